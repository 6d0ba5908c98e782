"""Ventricles whose volume is known: half-ellipsoids, truncated and bent ones, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Ventricle:
    """A body of circular cross-sections, cut along its long axis; the apex points up the image.

    The centre line is an arc of `bend` degrees from the middle of the base to the apex. Across it, at a share s of its
    length from the base, the radius is width / 2 sqrt(1 - ((s - c) / (1 - c))^2): an ellipse whose widest place lies a
    share c = `cut` above the base. So cut 0 is a half-ellipsoid, and 0.3 one truncated some way below its equator.

    Attributes:
        length, width: mm; the length along the centre line, the width where it is largest.
        cut: 0 to 0.5.
        bend: degrees.
    """

    length: float
    width: float
    cut: float = 0.0
    bend: float = 0.0

    @property
    def volume_ml(self) -> float:
        """The body's true volume; by Pappus' rule bending does not change it."""
        share = 1 - (1 - self.cut) / 3 - self.cut**3 / (3 * (1 - self.cut) ** 2)
        return float(np.pi * (self.width / 2) ** 2 * self.length * share / 1000)

    def contains(self, along: Array, across: Array) -> NDArray[np.bool_]:
        """Which points lie inside; `along` is the direction in which the centre line leaves the base's middle."""
        if self.bend:
            centre = self.length / np.radians(self.bend)
            angle = np.arctan2(along * np.sign(centre), (centre - across) * np.sign(centre))
            across = centre - np.sign(centre) * np.hypot(along, centre - across)
            along = angle * centre
        height = along / self.length
        reach = 1 - ((height - self.cut) / (1 - self.cut)) ** 2
        return (height >= 0) & (height <= 1) & ((2 * across / self.width) ** 2 <= reach)

    def outline(self, points: int = 4001) -> Array:
        """(2 points, 2), (along, across) of both walls, from the base to the apex and back."""
        height = 1 - (np.linspace(1, 0, points)) ** 2  # dense at the apex
        radius = self.width / 2 * np.sqrt(np.maximum(0, 1 - ((height - self.cut) / (1 - self.cut)) ** 2))
        walls = np.stack(
            [np.concatenate((height, height[::-1])) * self.length, np.concatenate((radius, -radius[::-1]))]
        )
        if not self.bend:
            return walls.T
        centre = self.length / np.radians(self.bend)
        angle = walls[0] / centre
        return np.stack([(centre - walls[1]) * np.sin(angle), centre - (centre - walls[1]) * np.cos(angle)], axis=1)

    def long_axis(self) -> Array:
        """(2,), the vector from the middle of the base to the point of the outline that is farthest from it."""
        outline = self.outline()
        return outline[np.argmax(np.hypot(*outline.T))]

    def discs_ml(self) -> float:
        """What the single-plane rule measures: pi/4 times the integral of the squared widths across the long axis.

        Widths are counted on a fine grid laid along the exact long axis. For a straight body it is the true volume; a
        bent one has no such discs, and the two differ.
        """
        axis = self.long_axis()
        length = float(np.hypot(*axis))
        along, across = axis / length, np.array([-axis[1], axis[0]]) / length
        heights = (np.arange(400) + 0.5) * length / 400
        step = 0.02
        side = (np.arange(round(2 * self.length / step)) + 0.5) * step - self.length
        points = heights[:, None, None] * along + side[None, :, None] * across
        widths = step * self.contains(points[..., 0], points[..., 1]).sum(axis=1)
        return float(np.pi / 4 * np.sum(widths**2) * length / len(heights) / 1000)

    def mask(
        self,
        spacing: tuple[float, float],
        *,
        tilt: float = 0.0,
        shift: tuple[float, float] = (0.0, 0.0),
        shape: tuple[int, int] | None = None,
        flips: Sequence[int] = (),
        teeth: float = 0.0,
        random: np.random.Generator | None = None,
    ) -> NDArray[np.uint8]:
        """Rasterise: a pixel is inside where its centre is.

        Args:
            spacing: (row, col) size of a pixel in mm.
            tilt: degrees, about half the length above the base.
            shift: (row, col) in mm, from the middle of the image.
            shape: (H, W); by default what it needs.
            flips: axes to flip, 0 and 1.
            teeth: mm by which steps of 1.5 mm along the base stand out or lie in at most, drawn from `random`.
        """
        row_mm, col_mm = spacing
        reach = 1.35 * max(self.length, self.width)
        rows, columns = shape or (int(reach / row_mm) + 1, int(reach / col_mm) + 1)
        y = (np.arange(rows)[:, None] - (rows - 1) / 2) * row_mm - shift[0]
        x = (np.arange(columns)[None] - (columns - 1) / 2) * col_mm - shift[1]
        angle = np.radians(tilt)
        along = -(np.cos(angle) * y + np.sin(angle) * x) + self.length / 2
        across = -np.sin(angle) * y + np.cos(angle) * x
        mask = self.contains(along, across)
        if teeth:
            levels = random.uniform(-teeth, teeth, 1 + int(2 * reach / 1.5))
            level = levels[np.clip(((across + reach) / 1.5).astype(int), 0, len(levels) - 1)]
            below = (along < 0) & self.contains(np.full_like(along, 1e-9), across)
            mask = (mask | below) & (along >= level)
        for axis in flips:
            mask = np.flip(mask, axis)
        return mask.astype(np.uint8)


@dataclass(frozen=True)
class PhantomBeat:
    """End-diastole and end-systole of one body: (2,) bodies and masks (H, W)."""

    bodies: tuple[Ventricle, Ventricle]
    masks: tuple[NDArray[np.uint8], NDArray[np.uint8]]

    @property
    def volumes_ml(self) -> tuple[float, float]:
        return self.bodies[0].volume_ml, self.bodies[1].volume_ml

    @property
    def ef_percent(self) -> float:
        edv, esv = self.volumes_ml
        return 100 * (edv - esv) / edv


def phantom_beat(
    spacing: tuple[float, float],
    *,
    size: tuple[float, float] = (86.0, 48.0),
    shrink: tuple[float, float] = (0.82, 0.74),
    cut: float = 0.0,
    bend: float = 0.0,
    **where: object,
) -> PhantomBeat:
    """A body that shortens and narrows by `shrink`; size is (length, width) in mm, `where` is for `Ventricle.mask`."""
    small = size[0] * shrink[0], size[1] * shrink[1]
    bodies = Ventricle(*size, cut, bend), Ventricle(*small, cut, bend)
    return PhantomBeat(bodies, tuple(body.mask(spacing, **where) for body in bodies))


def half_ellipsoid(
    length: float, width: float, spacing: tuple[float, float], **where: object
) -> tuple[NDArray[np.uint8], float]:
    """(mask (H, W), volume in mL) of a half-ellipsoid; `where` is what `Ventricle.mask` takes."""
    body = Ventricle(length, width)
    return body.mask(spacing, **where), body.volume_ml
