"""The soft Dice loss."""

from __future__ import annotations

from torch import Tensor

from echoplan.errors import EchoPlanError
from echoplan.labels import IGNORE

from .masking import class_masks, class_probabilities, mask_logits, mean_where


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
