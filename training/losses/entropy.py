"""The entropy regularisation of E3SAM2: focused attention on the structure, diffuse attention around it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from echoplan.labels import IGNORE

from .masking import mean_where


def entropy_loss(entropies: Sequence[Tensor], target: Tensor, *, classes: int = 1, ignore: int = IGNORE) -> Tensor:
    """Equation 5, L_reg: mean entropy over the foreground minus that over the background; their mean over all maps.

    A grid point counts towards each region by the area of it that the region covers, so the two means are those over
    the labelled pixels of the full grid. A frame counts where it has both regions.

    Args:
        entropies: one ``(B, T, N)`` an attention: H / ln N, so that they compare, of the N = H/s x W/s points of its
            grid, row by row.
        target: ``(B, T, H, W)``.
        classes: 1 for label 1 as the foreground; K > 1 for every label but 0.
        ignore: the label of pixels that nobody labelled.

    Returns:
        Between -1 (all attention as it should be) and 1; zero with zero gradients where no frame counts.
    """
    foreground = target == 1 if classes == 1 else (target > 0) & (target != ignore)
    regions = torch.stack([foreground, ~foreground & (target != ignore)], dim=2).float()
    gaps, counted = [], []
    for entropy in entropies:
        stride = round(math.sqrt(target.shape[2] * target.shape[3] / entropy.shape[2]))
        area = F.avg_pool2d(regions.flatten(0, 1), stride).unflatten(0, target.shape[:2]).flatten(3)
        size = area.sum(dim=3)
        total = torch.where(area > 0, entropy.float().unsqueeze(2) * area, 0.0).sum(dim=3)
        # A region of no size has no mean; dividing by one keeps its frame, which does not count, free of NaN.
        mean = total / torch.where(size > 0, size, 1.0)
        gaps.append(mean[:, :, 0] - mean[:, :, 1])
        counted.append((size > 0).all(dim=2))
    return mean_where(torch.stack(gaps), torch.stack(counted))
