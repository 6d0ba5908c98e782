"""The edge supervision of E3SAM2: cross-entropy between an edge map and the contour of the ground truth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from echoplan.labels import IGNORE
from echoplan.networks.e3sam2.edges import sobel

from .cross_entropy import cross_entropy_loss
from .masking import class_masks


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
