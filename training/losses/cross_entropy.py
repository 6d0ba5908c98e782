"""The cross-entropy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from echoplan.labels import IGNORE

from .masking import mask_logits, mean_where


def cross_entropy_loss(logits: Tensor, target: Tensor, *, ignore: int = IGNORE) -> Tensor:
    """Mean cross-entropy over all labelled pixels of the batch; binary for K = 1 (label 1 against the rest).

    Args:
        logits: ``(B, T, K, H, W)``.
        target: ``(B, T, H, W)``, uint8 or long; labels below K, or `ignore`.
        ignore: the label of pixels that nobody labelled; they have neither weight nor gradient.
    """
    logits, labelled = mask_logits(logits, target, ignore=ignore)
    if logits.shape[2] == 1:
        loss = F.binary_cross_entropy_with_logits(logits.squeeze(2), (target == 1).float(), reduction="none")
    else:
        # Ignored pixels get label 0 here, since cross_entropy would refuse a label beyond K; they are left out below.
        labels = target.long().masked_fill(~labelled, 0)
        loss = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return mean_where(loss, labelled)
