"""E3SAM2's losses beside Dice and cross-entropy: edges, attention's entropy, and SAM2's judges of its own masks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from echoplan.labels import IGNORE
from echoplan.networks.e3sam2.encoder import sobel

from .region import class_masks, cross_entropy_loss, mean_where, reduce_labels


def edge_loss(logits: Tensor, target: Tensor, *, classes: int = 1, ignore: int = IGNORE) -> Tensor:
    """L_edge: mean binary cross-entropy with `edge_target` over the grid points where that is known.

    Args:
        logits: ``(B, T, 1, H/s, W/s)``.
        target: ``(B, T, H, W)``.
        classes, ignore: see `edge_target`.
    """
    edges = edge_target(target, stride=target.shape[-1] // logits.shape[-1], classes=classes, ignore=ignore)
    return cross_entropy_loss(logits, edges, ignore=ignore)


def edge_target(target: Tensor, *, stride: int = 4, classes: int = 1, ignore: int = IGNORE) -> Tensor:
    """Where the ground truth has edges, on a coarser grid: 1 on an edge, 0 off it, `ignore` where nobody knows.

    A pixel is on an edge when the Sobel gradient of a structure's mask is not zero there: on either side of a straight
    contour. A coarse point is on an edge when one of its pixels is. That keeps the line thin, one or two points, where
    the gradient of the reduced mask would smear it over three or four. What touches an unlabelled pixel is not known.

    Args:
        target: ``(B, T, H, W)``, labels, integers.
        stride: s; it divides H and W.
        classes: 1 for the edges of label 1 alone; K > 1 for those of the labels 0 to K - 1.
        ignore: the label of pixels that nobody labelled.

    Returns:
        uint8, ``(B, T, H/s, W/s)``.
    """
    gradients = torch.stack(sobel(class_masks(target, classes).flatten(0, 1)))
    on_edge = (gradients != 0).any(dim=0).any(dim=1, keepdim=True).float()
    unlabelled = F.max_pool2d((target == ignore).flatten(0, 1).unsqueeze(1).float(), 3, stride=1, padding=1)
    edges, unknown = (F.max_pool2d(each, stride).squeeze(1) > 0 for each in (on_edge, unlabelled))
    return edges.byte().masked_fill(unknown, ignore).unflatten(0, target.shape[:2])


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


def mask_quality_loss(iou: Tensor, masks: Tensor, target: Tensor, *, ignore: int = IGNORE) -> Tensor:
    """Mean distance of the predicted from the true IoU of every mask, over the labelled frames (SAM 2's L1).

    The true IoU is measured on the masks' own grid and has no gradient.

    Args:
        iou: ``(B, T, M)``, predicted, in [0, 1].
        masks: ``(B, T, M, h, w)`` logits of the M masks.
        target: ``(B, T, H, W)``, 1 is the structure.
        ignore: the label of pixels that nobody labelled.
    """
    labels = reduce_labels(target, masks.shape[-2:]).unsqueeze(2)
    known = labels != ignore
    with torch.no_grad():
        found, truth = (masks > 0) & known, (labels == 1) & known
        both, either = (found & truth).flatten(3).sum(3), (found | truth).flatten(3).sum(3)
        true_iou = torch.where(either > 0, both / either.clamp_min(1), 1.0)
    return mean_where((iou.float() - true_iou).abs(), known.flatten(3).any(3).expand(iou.shape))


def presence_loss(score: Tensor, target: Tensor, *, ignore: int = IGNORE) -> Tensor:
    """Binary cross-entropy of SAM2's object score: does a labelled frame show the structure?

    Args:
        score: ``(B, T)`` logits.
        target: ``(B, T, H, W)``, 1 is the structure.
        ignore: the label of pixels that nobody labelled.
    """
    shows = (target == 1).flatten(2).any(2).float()
    loss = F.binary_cross_entropy_with_logits(score.float(), shows, reduction="none")
    return mean_where(loss, (target != ignore).flatten(2).any(2))
