"""The scanner's polar grid: beams from one point, and the scan conversion to square pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix

SAMPLES_PER_PIXEL = 2.0  # along the beam
BEAMS_PER_PIXEL = 0.7  # at full depth, where the beams are farthest apart


@dataclass(frozen=True)
class PolarGrid:
    """Samples along the beams of a sector whose point lies in the middle of the top row, or elsewhere.

    Attributes:
        size: (H, W) of the image.
        spacing_mm: square pixels, mm.
        depth_mm: radius of the sector.
        half_angle: rad.
        near_mm: radius of the probe's face, where the beams begin; 0 of a phased array.
        point_shift: (rows, columns) in pixels from the top row's middle to the sector's point.
    """

    size: tuple[int, int]
    spacing_mm: float
    depth_mm: float
    half_angle: float
    near_mm: float = 0.0
    point_shift: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def fitting(cls, size: tuple[int, int], depth_mm: float, half_angle: float, spacing_mm: float | None) -> PolarGrid:
        """The sector that fills an image of `size`, or that lies in it at `spacing_mm`, then cut off by its borders."""
        if spacing_mm is None:
            spacing_mm = max(depth_mm / (size[0] - 1), 2 * depth_mm * np.sin(half_angle) / (size[1] - 2))
        return cls(size, float(spacing_mm), float(depth_mm), float(half_angle))

    @cached_property
    def radii(self) -> np.ndarray:
        """Depths of the polar samples in mm, (R,)."""
        count = max(32, int(np.ceil(self.depth_mm / self.spacing_mm * SAMPLES_PER_PIXEL)))
        return (np.arange(count) + 0.5) * self.depth_mm / count

    @cached_property
    def angles(self) -> np.ndarray:
        """Angles of the beams in rad, 0 straight down, positive to the right, (B,)."""
        width = 2 * self.half_angle * self.depth_mm / self.spacing_mm
        return np.linspace(-self.half_angle, self.half_angle, max(32, int(np.ceil(width * BEAMS_PER_PIXEL))))

    @property
    def polar_step(self) -> tuple[float, float]:
        """(mm along the beam, rad between beams)."""
        return float(self.radii[1] - self.radii[0]), float(self.angles[1] - self.angles[0])

    @cached_property
    def polar_xy(self) -> tuple[np.ndarray, np.ndarray]:
        """(lateral, depth) in mm of the polar samples, each (R, B)."""
        return np.outer(self.radii, np.sin(self.angles)), np.outer(self.radii, np.cos(self.angles))

    @cached_property
    def pixel_xy(self) -> tuple[np.ndarray, np.ndarray]:
        """(lateral, depth) in mm of the pixels' centres, each (H, W)."""
        rows, columns = self.size
        x = (np.arange(columns) - (columns - 1) / 2 - self.point_shift[1]) * self.spacing_mm
        y = (np.arange(rows) + 0.5 - self.point_shift[0]) * self.spacing_mm
        return np.broadcast_to(x, self.size), np.broadcast_to(y[:, None], self.size)

    @cached_property
    def inside(self) -> np.ndarray:
        """Which pixels lie in the sector, (H, W) bool."""
        x, y = self.pixel_xy
        radius = np.hypot(x, y)
        return (radius >= self.near_mm) & (radius <= self.depth_mm) & (np.abs(np.arctan2(x, y)) <= self.half_angle)

    @property
    def point(self) -> tuple[float, float]:
        """(row, column) of the sector's point, fractional; it may lie above the frame."""
        return self.point_shift[0] - 0.5, (self.size[1] - 1) / 2 + self.point_shift[1]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(row 0, row 1, column 0, column 1) around the sector's pixels, ends excluded."""
        rows, columns = np.flatnonzero(self.inside.any(1)), np.flatnonzero(self.inside.any(0))
        return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1

    def to_polar_index(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions in mm -> fractional (depth, beam) indices of the polar grid."""
        step_r, step_angle = self.polar_step
        return np.hypot(x, y) / step_r - 0.5, (np.arctan2(x, y) + self.half_angle) / step_angle

    @cached_property
    def _conversion(self) -> csr_matrix:
        row, column = (index[self.inside] for index in self.to_polar_index(*self.pixel_xy))
        shape = (len(self.radii), len(self.angles))
        cells, weights = bilinear(row, column, shape)
        count = row.size
        indices = (np.tile(np.arange(count), 4), cells.ravel())
        return csr_matrix((weights.ravel(), indices), shape=(count, shape[0] * shape[1]), dtype=np.float32)

    def scan_convert(self, polar: np.ndarray) -> np.ndarray:
        """(T, R, B) float32 -> (T, H, W) float32, bilinear, 0 outside the sector."""
        image = np.zeros((len(polar), *self.size), np.float32)
        image[:, self.inside] = (self._conversion @ polar.reshape(len(polar), -1).T).T
        return image


def bilinear(row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices and weights, each (4, N), of the four grid points around fractional positions, kept in the grid."""
    row, column = np.clip(row, 0, shape[0] - 1), np.clip(column, 0, shape[1] - 1)
    row0 = np.minimum(row.astype(np.int64), shape[0] - 2)
    column0 = np.minimum(column.astype(np.int64), shape[1] - 2)
    down, right = row - row0, column - column0
    first = row0 * shape[1] + column0
    cells = np.stack([first, first + 1, first + shape[1], first + shape[1] + 1])
    weights = np.stack([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right])
    return cells, weights
