"""Half-ellipsoids, ventricles whose volume is known: for tests (through conftest.py) and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def half_ellipsoid(
    length: float,
    width: float,
    spacing: tuple[float, float],
    *,
    tilt: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    shape: tuple[int, int] | None = None,
    flips: Sequence[int] = (),
) -> tuple[np.ndarray, float]:
    """Rasterise a long-axis section: (uint8 mask (H, W), volume in mL for a circular cross-section).

    The apex points up the image; the tilt is about the middle of the long axis.

    Args:
        length, width: of the section, in mm.
        spacing: (row, col) size of a pixel in mm.
        tilt: degrees.
        shift: (row, col) in mm, from the middle of the image.
        shape: (H, W); by default what it needs.
        flips: axes to flip, 0 and 1.
    """
    row_mm, col_mm = spacing
    reach = 1.35 * max(length, width)
    rows, columns = shape or (int(reach / row_mm) + 1, int(reach / col_mm) + 1)
    y = (np.arange(rows)[:, None] - (rows - 1) / 2) * row_mm - shift[0]
    x = (np.arange(columns)[None] - (columns - 1) / 2) * col_mm - shift[1]
    angle = np.radians(tilt)
    along = -(np.cos(angle) * y + np.sin(angle) * x) + length / 2
    across = -np.sin(angle) * y + np.cos(angle) * x
    mask = (along >= 0) & ((along / length) ** 2 + (2 * across / width) ** 2 <= 1)
    for axis in flips:
        mask = np.flip(mask, axis)
    return mask.astype(np.uint8), 2 / 3 * np.pi * (width / 2) ** 2 * length / 1000
