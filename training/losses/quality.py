"""What keeps SAM2's own judges honest: the IoU it predicts of its masks, and whether there is an object at all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from echoplan.labels import IGNORE

from .deep_supervision import reduce_labels
from .masking import mean_where


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
