"""The sector of one training sample in polar coordinates about its apex."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

_BLACK = 4  # grey levels; compressed videos leave a little noise where the picture is black
_GRIDS_KEPT = 4  # clips of one store differ in their padding alone: a few grids serve a whole training


@dataclass(frozen=True)
class Sector:
    """Where a sample's fan is, and where its pixels lie in it.

    Attributes:
        inside: (H, W) bool, the sector.
        radius: (H, W) float32, pixels from the apex.
        angle: (H, W) float32, radians to the vertical, more to the right.
    """

    inside: np.ndarray
    radius: np.ndarray
    angle: np.ndarray

    @classmethod
    def of(cls, frames: np.ndarray, *, apex: tuple[float, float]) -> Sector:
        """The sector of frames whose surroundings are black.

        A fan is what lies between its outermost bright pixels, in its row and in its column; so black cavities belong
        to it, and the black in the middle of a curved probe's upper edge does not.

        Args:
            frames: (T, H, W) grey levels 0 to 255.
            apex: (row, column), in pixels.
        """
        signal = frames.max(axis=0) > _BLACK
        return cls(_between(signal) & _between(signal.T).T, *_polar_grid(signal.shape, *apex))

    @cached_property
    def depth(self) -> float:
        """Pixels from the apex to the sector's deepest pixel; 1 where there is none."""
        return max(1.0, float((self.radius * self.inside).max()))

    @cached_property
    def relative_depth(self) -> np.ndarray:
        """(H, W) float32: 0 at the apex, 1 at the sector's deepest pixel."""
        return self.radius * np.float32(1 / self.depth)

    @cached_property
    def angles(self) -> tuple[float, float]:
        """The directions of the outermost beams, in radians; both 0 where there is no sector."""
        # Near the apex a pixel is wider than several beams.
        far = self.angle[self.inside & (self.radius > 0.5 * self.depth)]
        return (float(far.min()), float(far.max())) if far.size else (0.0, 0.0)


def _between(signal: np.ndarray) -> np.ndarray:
    """(H, W) bool: from the first to the last signal in each row."""
    width = signal.shape[1]
    first = np.where(signal.any(axis=1), signal.argmax(axis=1), width)
    last = width - 1 - signal[:, ::-1].argmax(axis=1)
    columns = np.arange(width)
    return (columns >= first[:, None]) & (columns <= last[:, None])


@lru_cache(maxsize=_GRIDS_KEPT)
def _polar_grid(shape: tuple[int, int], row: float, column: float) -> tuple[np.ndarray, np.ndarray]:
    """(radius, angle) of every pixel, float32 and read-only, since all samples share them."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    radius, angle = np.hypot(rows - row, columns - column), np.arctan2(columns - column, rows - row)
    grids = radius.astype(np.float32), angle.astype(np.float32)
    for grid in grids:
        grid.flags.writeable = False
    return grids
