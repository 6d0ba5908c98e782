"""The Dice that is watched during training: per labelled frame, on the network's grid."""

from __future__ import annotations

import torch
from torch import Tensor

from echoplan.dataset import IGNORE


class OnlineDice:
    """Collects Dice over batches.

    Args:
        classes: K of the network's logits; 1 is one structure by sigmoid.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._values: list[float] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, T, K, H, W), labels (B, T, H, W); pixels of 255 do not count."""
        predicted = (logits[:, :, 0] > 0).long() if self.classes == 1 else logits.argmax(dim=2)
        known = labels != IGNORE
        labelled = known.flatten(2).any(dim=2)
        for value in range(1, max(self.classes, 2)):
            found = ((predicted == value) & known)[labelled].flatten(1).float()
            truth = ((labels == value) & known)[labelled].flatten(1).float()
            size = found.sum(1) + truth.sum(1)
            # An empty structure that is found empty is right.
            dice = torch.where(size > 0, 2 * (found * truth).sum(1) / size.clamp(min=1), 1.0)
            self._values += dice.tolist()

    def mean(self) -> float | None:
        """The mean over frames and structures; None before anything was added."""
        return sum(self._values) / len(self._values) if self._values else None
