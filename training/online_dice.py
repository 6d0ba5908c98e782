"""The Dice that is watched during training: per labelled frame, on the network's grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from echoplan.labels import IGNORE


class OnlineDice:
    """Collects Dice over batches.

    Args:
        classes: K of the network's logits; 1 is one structure by sigmoid.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._values: dict[str, list[float]] = {}

    def add(self, logits: Tensor, labels: Tensor, datasets: Sequence[str]) -> None:
        """Add a batch: logits (B, T, K, H, W), labels (B, T, H, W), B source datasets; pixels of 255 do not count."""
        predicted = (logits[:, :, 0] > 0).long() if self.classes == 1 else logits.argmax(dim=2)
        known = labels != IGNORE
        labelled = known.flatten(2).any(dim=2)
        counts = labelled.sum(1).tolist()
        of_frames = [name for name, count in zip(datasets, counts, strict=True) for _ in range(count)]
        for value in range(1, max(self.classes, 2)):
            found = ((predicted == value) & known)[labelled].flatten(1).float()
            truth = ((labels == value) & known)[labelled].flatten(1).float()
            size = found.sum(1) + truth.sum(1)
            # An empty structure that is found empty is right.
            dice = torch.where(size > 0, 2 * (found * truth).sum(1) / size.clamp(min=1), 1.0)
            for name, value_of_frame in zip(of_frames, dice.tolist(), strict=True):
                self._values.setdefault(name, []).append(value_of_frame)

    def by_dataset(self) -> dict[str, float]:
        """The mean over frames and structures for each source dataset that has any."""
        return {name: sum(values) / len(values) for name, values in self._values.items()}

    def mean(self) -> float | None:
        """The mean over frames and structures, then over datasets; None before anything was added."""
        return mean_over_datasets(self.by_dataset())


def mean_over_datasets(dice: Mapping[str, float]) -> float | None:
    """The mean of `by_dataset`; None where there is none."""
    return sum(dice.values()) / len(dice) if dice else None
