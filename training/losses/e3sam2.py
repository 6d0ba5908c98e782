"""E3SAM2's losses beside Dice and cross-entropy: edges, attention's entropy, and SAM2's judges of its own masks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from echoplan.labels import IGNORE
from echoplan.networks.e3sam2.edges import sobel

from .region import class_masks, cross_entropy_loss, mean_where, reduce_labels

_LEAST_GAP = 1e-3  # of the entropies of background and foreground, in the authors' code


def edge_loss(
    logits: Tensor,
    target: Tensor,
    *,
    dilated: bool = False,
    positive_weight: float = 1.0,
    classes: int = 1,
    ignore: int = IGNORE,
) -> Tensor:
    """L_edge: mean binary cross-entropy with `edge_target` over the grid points where that is known.

    Args:
        logits: ``(B, T, 1, H/s, W/s)``.
        target: ``(B, T, H, W)``.
        dilated: logits are enlarged to the target's grid, where edges are wider by a pixel to each side, as E3SAM2's
            authors do; else the target is reduced to the logits' grid.
        positive_weight: see `cross_entropy_loss`.
        classes, ignore: see `edge_target`.
    """
    stride = 1 if dilated else target.shape[-1] // logits.shape[-1]
    if dilated:
        enlarged = F.interpolate(logits.float().flatten(0, 1), size=target.shape[-2:], mode="bilinear")
        logits = enlarged.unflatten(0, target.shape[:2])
    edges = edge_target(target, stride=stride, dilated=dilated, classes=classes, ignore=ignore)
    return cross_entropy_loss(logits, edges, positive_weight=positive_weight, ignore=ignore)


def edge_target(
    target: Tensor, *, stride: int = 4, dilated: bool = False, classes: int = 1, ignore: int = IGNORE
) -> Tensor:
    """Where the ground truth has edges, on a coarser grid: 1 on an edge, 0 off it, `ignore` where nobody knows.

    A pixel is on an edge when the Sobel gradient of a structure's mask is not zero there: on either side of a straight
    contour. A coarse point is on an edge when one of its pixels is. That keeps the line thin, one or two points, where
    the gradient of the reduced mask would smear it over three or four. What touches an unlabelled pixel is not known.

    Args:
        target: ``(B, T, H, W)``, labels, integers.
        stride: s; it divides H and W.
        dilated: whether the eight neighbours of a pixel on an edge are on it, too.
        classes: 1 for the edges of label 1 alone; K > 1 for those of the labels 0 to K - 1.
        ignore: the label of pixels that nobody labelled.

    Returns:
        uint8, ``(B, T, H/s, W/s)``.
    """
    gradients = torch.stack(sobel(class_masks(target, classes).flatten(0, 1)))
    on_edge = (gradients != 0).any(dim=0).any(dim=1, keepdim=True).float()
    unlabelled = F.max_pool2d((target == ignore).flatten(0, 1).unsqueeze(1).float(), 3, stride=1, padding=1)
    if dilated:
        on_edge, unlabelled = (F.max_pool2d(each, 3, stride=1, padding=1) for each in (on_edge, unlabelled))
    edges, unknown = (F.max_pool2d(each, stride).squeeze(1) > 0 for each in (on_edge, unlabelled))
    return edges.byte().masked_fill(unknown, ignore).unflatten(0, target.shape[:2])


def entropy_loss(
    entropies: Sequence[Tensor],
    target: Tensor,
    *,
    bounded: bool = False,
    classes: int = 1,
    ignore: int = IGNORE,
) -> Tensor:
    """Equation 5, L_reg: mean entropy over the foreground minus that over the background; their mean over all maps.

    A grid point counts towards each region by the region's mask, interpolated linearly there. A frame counts where it
    has both regions.

    Args:
        entropies: one ``(B, T, N)`` an attention: H / ln N, so that they compare, of the N = H/s x W/s points of its
            grid, row by row.
        target: ``(B, T, H, W)``.
        bounded: a gap (background minus foreground) below 1e-3 counts as 1e-3, and has no gradient, as in the authors'
            code.
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
        grid = [side // stride for side in target.shape[2:]]
        reduced = F.interpolate(regions.flatten(0, 1), size=grid, mode="bilinear")
        area = reduced.unflatten(0, target.shape[:2]).flatten(3)
        size = area.sum(dim=3)
        total = torch.where(area > 0, entropy.float().unsqueeze(2) * area, 0.0).sum(dim=3)
        # A region of no size has no mean; dividing by one keeps its frame, which does not count, free of NaN.
        mean = total / torch.where(size > 0, size, 1.0)
        gap = mean[:, :, 1] - mean[:, :, 0]
        gaps.append(-(gap.clamp(_LEAST_GAP, 1.0) if bounded else gap))
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
