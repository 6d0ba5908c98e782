"""The Dice that is watched during training: per labelled frame, on the network's grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from echoplan.labels import IGNORE


class OnlineDice:
    """Collects Dice over batches.

    Args:
        classes: K of the network's logits; 1 is one structure by sigmoid.
        dataset_of: which of a joint's datasets a case is of; None where there is no joint.
    """

    def __init__(self, classes: int, dataset_of: Callable[[str], str | None] | None = None) -> None:
        self.classes = classes
        self._dataset_of = dataset_of
        self._values: dict[str | None, list[float]] = {}

    def add(self, logits: Tensor, labels: Tensor, cases: Sequence[str] = ()) -> None:
        """Add a batch: logits (B, T, K, H, W), labels (B, T, H, W); pixels of 255 do not count.

        In a joint, also the B cases.
        """
        predicted = (logits[:, :, 0] > 0).long() if self.classes == 1 else logits.argmax(dim=2)
        known = labels != IGNORE
        labelled = known.flatten(2).any(dim=2)
        names = [self._dataset_of(case) for case in cases] if self._dataset_of else [None] * len(labels)
        of_frames = [name for name, count in zip(names, labelled.sum(1).tolist(), strict=True) for _ in range(count)]
        for value in range(1, max(self.classes, 2)):
            found = ((predicted == value) & known)[labelled].flatten(1).float()
            truth = ((labels == value) & known)[labelled].flatten(1).float()
            size = found.sum(1) + truth.sum(1)
            # An empty structure that is found empty is right.
            dice = torch.where(size > 0, 2 * (found * truth).sum(1) / size.clamp(min=1), 1.0)
            for name, value_of_frame in zip(of_frames, dice.tolist(), strict=True):
                self._values.setdefault(name, []).append(value_of_frame)

    def by_dataset(self) -> dict[str | None, float]:
        """The mean over frames and structures for each dataset that has any; under None where there is no joint."""
        return {name: sum(values) / len(values) for name, values in self._values.items()}

    def mean(self) -> float | None:
        """The mean over frames and structures, in a joint over datasets then; None before anything was added."""
        return mean_over_datasets(self.by_dataset())


def mean_over_datasets(dice: Mapping[str | None, float]) -> float | None:
    """The mean of `by_dataset`; None where there is none."""
    return sum(dice.values()) / len(dice) if dice else None
