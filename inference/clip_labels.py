"""The labels that networks find in a clip, kept a bit a pixel, and how sure they are of them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor
from torch.nn.functional import pad

from echoplan.networks.interface import labels_from_probabilities

from ..preprocessing.geometry import Geometry
from ..preprocessing.probabilities import Certainty, ClipProbabilities
from .ensemble import FrameProbabilities, on_native_grid

_FRAMES_AT_ONCE = 32


class ClipLabels:
    """What all parts amount to: every opinion's labels, a bit a pixel, in little memory.

    Args:
        shape: (T, H, W) of the clip.
        classes: K of the probabilities.
        target: the label of the structure that is measured.
        keep_probabilities: their type, or None where they are not wanted.

    Attributes:
        labels: (T, H, W) on the clip's own grid, of all networks together.
        on_grid: fold -> what its networks find, on the network's grid; None -> what all find together.
        geometry: of that grid.
        probabilities: of all networks together, where they were to be kept.
    """

    geometry: Geometry

    def __init__(
        self, shape: tuple[int, int, int], classes: int, target: int, keep_probabilities: DTypeLike | None
    ) -> None:
        self.labels = PackedLabels(shape, classes)
        self._target = target
        self._sure: dict[int | None, Certainty] = {}
        self.on_grid: dict[int | None, PackedLabels] = {}
        self._kept_type = keep_probabilities
        self._kept: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        labels = (self.labels, *self.on_grid.values())
        return sum(each.nbytes for each in labels) + (0 if self._kept is None else self._kept.nbytes)

    @property
    def probabilities(self) -> ClipProbabilities | None:
        return None if self._kept is None else ClipProbabilities(self._kept, self.geometry)

    @property
    def certainty(self) -> float | None:
        """The networks' mean `Certainty`, each fold's by itself: so a fold is sure of the cases that it validates."""
        folds = [sure for fold, sure in self._sure.items() if fold is not None] or list(self._sure.values())
        known = [sure.mean for sure in folds if sure.mean is not None]
        return sum(known) / len(known) if known else None

    def add(self, part: FrameProbabilities) -> None:
        """Take what is found in some frames."""
        values, self.geometry = part.values, part.geometry
        shape = (self.labels.shape[0], *values.shape[2:])
        if part.fold not in self.on_grid:
            self.on_grid[part.fold] = PackedLabels(shape, len(values))
        labels = labels_from_probabilities(values)
        self.on_grid[part.fold].put(part.frames, labels)
        self._sure.setdefault(part.fold, Certainty(self._target)).add(values, labels)
        if part.fold is not None:
            return
        for first in range(0, len(part.frames), _FRAMES_AT_ONCE):
            some = slice(first, first + _FRAMES_AT_ONCE)
            self.labels.put(
                part.frames[some], labels_from_probabilities(on_native_grid(values[:, some], part.geometry))
            )
        if self._kept_type is not None:
            if self._kept is None:
                self._kept = np.zeros((len(values), *shape), self._kept_type)
            self._kept[:, part.frames] = values.cpu().numpy()


class PackedLabels:
    """Label maps of a whole clip, a bit a pixel where there is one structure: each network has an opinion of its own.

    Args:
        shape: (T, h, w).
        classes: K of the probabilities.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        self.shape = shape
        planes = max(1, (classes - 1).bit_length())
        self._bits = np.zeros((planes, shape[0], -(-shape[1] * shape[2] // 8)), np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self._bits.nbytes

    def put(self, frames: np.ndarray, labels: Tensor) -> None:
        """Keep the labels (n, h, w) uint8 of some frames (n,); from a GPU come bits alone."""
        flat = labels.flatten(1)
        for number, plane in enumerate(self._bits):
            bits = flat >> number & 1
            if bits.device.type == "cpu":
                plane[frames] = np.packbits(bits.numpy(), axis=1)
            else:
                eights = pad(bits, (0, -bits.shape[1] % 8)).unflatten(1, (-1, 8))
                places = 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
                plane[frames] = (eights * places).sum(2, dtype=torch.uint8).cpu().numpy()

    def unpacked(self) -> np.ndarray:
        """(T, h, w) uint8."""
        labels = np.zeros((self.shape[0], self.shape[1] * self.shape[2]), np.uint8)
        for number, plane in enumerate(self._bits):
            for row, bits in zip(labels, plane, strict=True):
                row |= np.unpackbits(bits, count=len(row)) << number
        return labels.reshape(self.shape)
