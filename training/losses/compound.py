"""Dice and cross-entropy together (nnU-Net's loss)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from echoplan.labels import IGNORE

from .cross_entropy import cross_entropy_loss
from .dice import soft_dice_loss


def dice_ce_loss(
    logits: Tensor,
    target: Tensor,
    *,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    ignore: int = IGNORE,
    **dice_settings: Any,
) -> Tensor:
    """Weighted sum of `soft_dice_loss` and `cross_entropy_loss`.

    Args:
        logits: ``(B, T, K, H, W)``.
        target: ``(B, T, H, W)``.
        dice_weight, ce_weight: the two weights.
        ignore: the label of pixels that nobody labelled.
        dice_settings: passed on to `soft_dice_loss`.
    """
    dice = soft_dice_loss(logits, target, ignore=ignore, **dice_settings)
    return dice_weight * dice + ce_weight * cross_entropy_loss(logits, target, ignore=ignore)
