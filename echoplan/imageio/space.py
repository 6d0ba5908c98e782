"""Where the pixels of a file lie in space: origin, direction and spacing of its axes, as ITK has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

_TOLERANCE = 0.1  # of a pixel: headers round


@dataclass(frozen=True)
class Space:
    """The grid of a file, axes in its own order: column, row, and what comes behind them.

    Attributes:
        size: pixels along each axis.
        spacing: mm along each axis; behind the rows whatever the file says there.
        origin: of the first pixel's centre; x goes to the patient's left, y to the back (LPS).
        direction: the matrix whose columns are the axes, row by row.
        stated: whether the file says so; False: it says nothing of place, or has but a stopgap for its spacing, and
            this is what programs take.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    stated: bool = True

    @classmethod
    def of(
        cls,
        size: Sequence[int],
        spacing: Sequence[float],
        origin: Sequence[float] | None,
        direction: Sequence[float] | None,
        *,
        stated: bool = True,
    ) -> Space | None:
        """From what a header says; None where that is no place. Without origin or direction: 0 and no turn."""
        axes = len(size)
        found = cls(
            tuple(int(value) for value in size),
            tuple(float(value) for value in spacing),
            tuple(0.0 + value for value in origin or [0.0] * axes),  # no -0.0
            tuple(0.0 + value for value in (direction or np.eye(axes).ravel().tolist())),
            stated=stated,
        )
        numbers = (*found.spacing, *found.origin, *found.direction)
        right = len(found.spacing) == len(found.origin) == axes and len(found.direction) == axes**2
        return found if right and all(map(math.isfinite, numbers)) and min(found.spacing) > 0 else None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any] | None) -> Space | None:
        """The inverse of `to_dict`."""
        if content is None:
            return None
        size, spacing, origin, direction = (tuple(content[name]) for name in ("size", "spacing", "origin", "direction"))
        return cls(size, spacing, origin, direction, content["stated"])

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as JSON wants them."""
        return asdict(self)

    @property
    def plain(self) -> bool:
        """Whether it begins at 0 and is not turned, as where nobody said anything."""
        return not any(self.origin) and self.direction == tuple(np.eye(len(self.size)).ravel())

    @property
    def in_nifti(self) -> bool:
        """Whether ITK takes it for the same grid when NIfTI, whose header has single precision, has held it.

        ITK allows a millionth of a pixel (ImageToImageFilter); half of that is left for its own arithmetic.
        """
        numbers = np.array([*self.origin, *self.spacing])
        away = np.abs(numbers.astype(np.float32) - numbers).max()
        return bool(away <= 0.5e-6 * self.spacing[0]) and self.size[3:] != (1,)  # a fourth axis of one ends in it

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """The origin (n,), and the steps (n, n) in mm from pixel to pixel, one axis a row."""
        count = len(self.size)
        steps = np.array(self.direction).reshape(count, count).T * np.array(self.spacing)[:, None]
        return np.array(self.origin), steps

    def with_frames(self, shape: tuple[int, int, int]) -> Space | None:
        """The same of frames (T, H, W); None where they are of another size, or too many for its axes."""
        frames, rows, columns = shape
        behind = list(self.size[2:])
        if frames != math.prod(behind):
            if not behind:
                return None
            behind[behind.index(max(behind))] = frames
        if self.size[:2] != (columns, rows) or frames != math.prod(behind):
            return None
        return Space((columns, rows, *behind), self.spacing, self.origin, self.direction, self.stated)


def brought_to(mask: np.ndarray, place: Space, target: Space) -> np.ndarray | None:
    """A mask (T, H, W) that lies at `place`, turned to the grid of `target`; None where that is another place.

    Rows, columns and frames are mirrored, rows and columns exchanged: nothing is resampled. Where the mask has another
    number of frames than the target, its place along time says nothing.
    """
    count = min(len(place.size), len(target.size), 3)
    in_time = count == 3 and len(place.size) == len(target.size) == 3
    counted = in_time and place.size[2] == target.size[2]
    origin, steps = (part[..., :count] for part in target.axes)
    either = (False, True)
    for exchange, *mirrored in product(either, either, either, either if counted else (False,)):
        moved, own = (part[..., :count].copy() for part in place.axes)
        lengths = list(place.size)
        for axis, mirror in enumerate(mirrored):
            if mirror:
                moved, own[axis] = moved + own[axis] * (lengths[axis] - 1), -own[axis]
        if exchange:
            own[[0, 1]], lengths[:2] = own[[1, 0]], lengths[1::-1]
        if lengths[:2] != list(target.size[:2]):
            continue
        away = [moved - origin, *((own[axis] - steps[axis]) * (lengths[axis] - 1) for axis in (0, 1))]
        if in_time and not counted:
            along = steps[2] / np.linalg.norm(steps[2])
            away[0] = away[0] - along * (away[0] @ along)
        same_way = not counted or target.size[2] == 1 or own[2] @ steps[2] > 0
        if same_way and max(np.abs(vector).max() for vector in away) <= _TOLERANCE * min(target.spacing[:2]):
            turned = mask[::-1] if mirrored[2] else mask
            turned = turned[:, :: -1 if mirrored[1] else 1, :: -1 if mirrored[0] else 1]
            return np.ascontiguousarray(turned.transpose(0, 2, 1) if exchange else turned)
    return None
