"""Class probabilities of a clip on some grid: kept as .npz, averaged, brought to the native grid."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path
from echoplan.networks.interface import labels_from_probabilities

from .geometry import Geometry

SAVED_TYPE = np.float16
_FRAMES_AT_ONCE = 32


@dataclass(frozen=True)
class ClipProbabilities:
    """The class probabilities of a clip.

    Attributes:
        values: (K, T, h, w) floats in [0, 1]; K = 1 is the one structure, else one map a label, the background first.
        geometry: how that grid lies on the clip's native grid.
    """

    values: np.ndarray
    geometry: Geometry

    def native(self, frames: np.ndarray | None = None) -> np.ndarray:
        """(K, T, H, W) float32 on the native grid; only the frames with these indices where they are given."""
        values = self.values if frames is None else self.values[:, frames]
        if self.geometry.is_native:
            return values.astype(np.float32)
        return self.geometry.to_native(values)

    def labels(self) -> np.ndarray:
        """(T, H, W) uint8 labels on the native grid; the native probabilities are never all in memory."""
        count = self.values.shape[1]
        labels = np.empty((count, *self.geometry.native_shape), dtype=np.uint8)
        for first in range(0, count, _FRAMES_AT_ONCE):
            part = np.arange(first, min(first + _FRAMES_AT_ONCE, count))
            labels[part] = labels_from_probabilities(self.native(part))
        return labels

    def of_class(self, index: int) -> np.ndarray:
        """(T, H, W) float32 probabilities of one class on the native grid."""
        return ClipProbabilities(self.values[index : index + 1], self.geometry).native()[0]


@dataclass
class Certainty:
    """How sure a network is of a structure: its mean probability over the pixels in which it is found.

    Attributes:
        target: the structure's label.
        total, pixels: the sum of the probabilities, and over how many pixels.
    """

    target: int
    total: float = 0.0
    pixels: int = 0

    def add(self, values: Tensor, labels: Tensor) -> None:
        """Take the probabilities (K, ...) of some frames, and the labels (...) that they amount to."""
        inside = labels == self.target
        of_target = values[0] if len(values) == 1 else values[self.target]
        total, pixels = torch.stack([(of_target * inside).sum(dtype=torch.float32), inside.sum()]).tolist()
        self.total, self.pixels = self.total + total, self.pixels + int(pixels)

    @property
    def mean(self) -> float | None:
        """The mean probability; None where the structure is found nowhere."""
        return self.total / self.pixels if self.pixels else None


def native_geometry(shape: tuple[int, int], spacing_mm: tuple[float, float] | None) -> Geometry:
    """The geometry of probabilities that lie on the native grid already."""
    height, width = shape
    return Geometry((height, width), (0, height, 0, width), (height, width), (0, 0, 0, 0), spacing_mm)


def average(members: Iterable[ClipProbabilities]) -> ClipProbabilities:
    """The mean of several models' probabilities of one clip.

    Members on one common grid are averaged there, others on the native grid. A single member is its own mean.

    Raises:
        EchoPlanError: the members are of different clips or classes.
    """
    remaining = iter(members)
    total = next(remaining)
    total = ClipProbabilities(total.values.astype(np.float32, copy=False), total.geometry)
    count = 1
    for member in remaining:
        count += 1
        if member.geometry != total.geometry:
            total, member = _on_native_grid(total), _on_native_grid(member)
        if member.values.shape != total.values.shape:
            raise EchoPlanError(
                f"the probabilities to average have the shapes {total.values.shape} and {member.values.shape} "
                "(classes, frames, rows, columns)",
                remedy="average predictions of one clip by models with the same labels",
            )
        # The first sum is a new array, the others are added to it: a member's own values stay as they are.
        into = None if count == 2 else total.values
        total = ClipProbabilities(np.add(total.values, member.values, out=into, dtype=np.float32), total.geometry)
    if count > 1:
        np.divide(total.values, count, out=total.values)
    return total


def _on_native_grid(probabilities: ClipProbabilities) -> ClipProbabilities:
    geometry = native_geometry(probabilities.geometry.native_shape, probabilities.geometry.native_spacing_mm)
    return ClipProbabilities(probabilities.native(), geometry)


def save_probabilities(path: Path, probabilities: ClipProbabilities) -> None:
    """Write `probabilities` float16 and `geometry` (JSON text) as compressed .npz, atomically."""
    with atomic_path(path) as temporary:
        np.savez_compressed(
            temporary,
            probabilities=probabilities.values.astype(SAVED_TYPE, copy=False),
            geometry=np.array(json.dumps(probabilities.geometry.to_dict())),
        )


def load_probabilities(path: Path) -> ClipProbabilities:
    """Read what `save_probabilities` or a fold's validation wrote.

    Raises:
        EchoPlanError: the file is missing, damaged, or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            geometry = Geometry.from_dict(json.loads(str(content["geometry"])))
            values = content["probabilities"]
    except FileNotFoundError as error:
        raise EchoPlanError(
            "the saved probabilities are missing", file=path, remedy="predict with --save_probabilities"
        ) from error
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise EchoPlanError(f"these are no saved probabilities: {error}", file=path, remedy="predict again") from error
    if values.ndim != 4 or values.shape[-2:] != geometry.size:
        raise EchoPlanError(f"probabilities of shape {values.shape} do not fit their grid {geometry.size}", file=path)
    return ClipProbabilities(values, geometry)
