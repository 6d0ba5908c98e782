"""The multi-scale region proxy: affinities that carry a coarse map to a finer grid without a decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NEIGHBOURS = 9  # M x M with M = 3, the paper's choice


class AffinityEstimator(nn.Module):
    """How much each of the 3 x 3 coarse neighbours stands for each fine pixel (paper, figure 3).

    Args:
        channels: channels of the coarse feature map.
        factor: how many times finer the next grid is.
    """

    def __init__(self, channels: int, *, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.affinity = nn.Conv2d(channels, _NEIGHBOURS * factor**2, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` -> ``(N, 9, factor ** 2, h, w)``, which sum to one over the neighbours."""
        scores = self.affinity(F.relu(self.norm(self.depthwise(features)))).unflatten(1, (_NEIGHBOURS, self.factor**2))
        height, width = features.shape[-2:]
        inside = F.unfold(torch.ones(1, 1, height, width, device=scores.device), 3, padding=1)
        outside = inside.view(_NEIGHBOURS, 1, height, width) == 0
        return scores.masked_fill(outside, float("-inf")).softmax(dim=1)


def upsample_by_affinity(coarse: Tensor, affinity: Tensor) -> Tensor:
    """Each fine pixel is the affinity-weighted mean of its 3 x 3 coarse neighbours (equation 5).

    Args:
        coarse: ``(N, K, h, w)``.
        affinity: ``(N, 9, r * r, h, w)`` from `AffinityEstimator`.

    Returns:
        ``(N, K, r * h, r * w)``.
    """
    neighbours = F.unfold(coarse, 3, padding=1).view(*coarse.shape[:2], _NEIGHBOURS, 1, *coarse.shape[2:])
    # A sum term by term: one product over all nine would need nine times the memory of the result.
    fine = sum(neighbours[:, :, i] * affinity[:, None, i] for i in range(_NEIGHBOURS))
    return F.pixel_shuffle(fine.flatten(1, 2), round(affinity.shape[2] ** 0.5))
