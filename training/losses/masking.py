"""What the losses share: which pixels count, and how frames without a label fall out."""

from __future__ import annotations

import torch
from torch import Tensor

from echoplan.labels import IGNORE


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
