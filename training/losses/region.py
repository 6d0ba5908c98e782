"""Dice and cross-entropy over the labelled pixels, together and at several resolutions; and what all losses share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from echoplan.errors import EchoPlanError
from echoplan.labels import IGNORE


def soft_dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    smooth: float = 1.0,
    per_frame: bool = True,
    squared: bool = False,
    background: bool = False,
    ignore: int = IGNORE,
) -> Tensor:
    """1 - Dice, with Dice = (2 sum(p g) + smooth) / (sum(p) + sum(g) + smooth) over a frame's labelled pixels.

    An empty mask predicted empty costs nothing. Unlabelled frames do not count; with no labelled pixel at all the loss
    is a zero with zero gradients.

    Args:
        logits: ``(B, T, K, H, W)``; K = 1 is one structure (label 1), K > 1 has one channel a label.
        target: ``(B, T, H, W)``, uint8 or long.
        smooth: in pixels, positive: keeps empty masks defined.
        per_frame: one Dice a labelled frame, then their mean; otherwise one Dice over all labelled frames together.
        squared: sum(p^2) + sum(g^2) below the line, as V-Net has it (Milletari et al. 2016, the loss PKEcho-Net cites).
        background: for K > 1, whether label 0 counts among the classes.
        ignore: the label of pixels that nobody labelled.

    Raises:
        EchoPlanError: `smooth` is not positive.
    """
    if smooth <= 0:
        raise EchoPlanError(f"the Dice loss needs a positive `smooth`, not {smooth}")
    logits, labelled = mask_logits(logits, target, ignore=ignore)
    classes = logits.shape[2]
    first = 1 if classes > 1 and not background else 0
    prediction = (class_probabilities(logits) * labelled.unsqueeze(2))[:, :, first:].flatten(3)
    truth = class_masks(target, classes)[:, :, first:].flatten(3)
    over = 3 if per_frame else (0, 1, 3)
    both = (prediction * truth).sum(over)
    size = (prediction.square() + truth).sum(over) if squared else (prediction + truth).sum(over)
    loss = 1 - (2 * both + smooth) / (size + smooth)
    counted = labelled.flatten(2).any(dim=2).unsqueeze(2) if per_frame else labelled.any().unsqueeze(0)
    return mean_where(loss, counted.expand(loss.shape))


def cross_entropy_loss(logits: Tensor, target: Tensor, *, positive_weight: float = 1.0, ignore: int = IGNORE) -> Tensor:
    """Mean cross-entropy over all labelled pixels of the batch; binary for K = 1 (label 1 against the rest).

    Args:
        logits: ``(B, T, K, H, W)``.
        target: ``(B, T, H, W)``, uint8 or long; labels below K, or `ignore`.
        positive_weight: for K = 1, what a pixel of label 1 counts; the mean still divides by the number of pixels.
        ignore: the label of pixels that nobody labelled; they have neither weight nor gradient.
    """
    logits, labelled = mask_logits(logits, target, ignore=ignore)
    if logits.shape[2] == 1:
        weight = None if positive_weight == 1 else logits.new_tensor(positive_weight)
        truth = (target == 1).float()
        loss = F.binary_cross_entropy_with_logits(logits.squeeze(2), truth, reduction="none", pos_weight=weight)
    else:
        # Ignored pixels get label 0 here, since cross_entropy would refuse a label beyond K; they are left out below.
        labels = target.long().masked_fill(~labelled, 0)
        loss = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return mean_where(loss, labelled)


def dice_ce_loss(
    logits: Tensor,
    target: Tensor,
    *,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    positive_weight: float = 1.0,
    ignore: int = IGNORE,
    **dice_settings: Any,
) -> Tensor:
    """Weighted sum of `soft_dice_loss` and `cross_entropy_loss`.

    Args:
        logits: ``(B, T, K, H, W)``.
        target: ``(B, T, H, W)``.
        dice_weight, ce_weight: the two weights.
        positive_weight: see `cross_entropy_loss`.
        ignore: the label of pixels that nobody labelled.
        dice_settings: passed on to `soft_dice_loss`.
    """
    dice = soft_dice_loss(logits, target, ignore=ignore, **dice_settings)
    entropy = cross_entropy_loss(logits, target, positive_weight=positive_weight, ignore=ignore)
    return dice_weight * dice + ce_weight * entropy


def deep_supervision_loss(
    outputs: Sequence[Tensor], target: Tensor, *, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Weighted mean of `loss` over the resolutions; weights 1, 1/2, 1/4 ... divided by their sum.

    Args:
        outputs: logits, finest first: ``(B, T, K, H, W)``, then ``(B, T, K, h, w)`` ever coarser.
        target: ``(B, T, H, W)`` on the finest grid; the coarser ones take the nearest pixel's label, ignored
            ones included.
        loss: takes logits and target.
    """
    weights = [0.5**level for level in range(len(outputs))]
    terms = [
        weight * loss(logits, reduce_labels(target, logits.shape[-2:]))
        for weight, logits in zip(weights, outputs, strict=True)
    ]
    return sum(terms[1:], start=terms[0]) / sum(weights)


def reduce_labels(target: Tensor, size: Sequence[int]) -> Tensor:
    """Labels ``(..., H, W)`` on a grid of `size` (h, w): each pixel gets the label at its centre."""
    rows, columns = (
        torch.div((2 * torch.arange(new, device=target.device) + 1) * old, 2 * new, rounding_mode="floor")
        for new, old in zip(size, target.shape[-2:], strict=True)
    )
    return target[..., rows[:, None], columns]


def mask_logits(logits: Tensor, target: Tensor, *, ignore: int = IGNORE) -> tuple[Tensor, Tensor]:
    """Set the logits of ignored pixels to zero, which also cuts their gradient: it is exactly zero, whatever they were.

    Args:
        logits: ``(B, T, K, H, W)`` of any floating type.
        target: ``(B, T, H, W)``, integers.
        ignore: the label that says that a pixel has none.

    Returns:
        The logits as float32, and ``(B, T, H, W)``: True where a pixel is labelled.
    """
    labelled = target != ignore
    return torch.where(labelled.unsqueeze(2), logits.float(), 0.0), labelled


def class_probabilities(logits: Tensor) -> Tensor:
    """``(B, T, K, H, W)`` -> same shape: sigmoid for K = 1, softmax over K otherwise."""
    return logits.sigmoid() if logits.shape[2] == 1 else logits.softmax(dim=2)


def class_masks(target: Tensor, classes: int) -> Tensor:
    """Labels ``(B, T, H, W)`` -> float32 ``(B, T, K, H, W)``: label 1 for K = 1, else one plane a label from 0 on."""
    labels = [1] if classes == 1 else list(range(classes))
    return torch.stack([target == label for label in labels], dim=2).float()


def mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of `values` where `counted`; zero, still connected to the graph, where nothing is counted."""
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp_min(1)
