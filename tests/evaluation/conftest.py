"""Shapes whose volumes are known, and the real masks where they are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

CAMUS = Path("/work/shared/data/camus_mhd")


@pytest.fixture(scope="session")
def half_ellipsoid():
    """Rasterise the long-axis section of a half-ellipsoid: (mask, volume in mL for a circular cross-section)."""

    def build(length, width, spacing, *, tilt=0.0, shift=(0.0, 0.0), shape=None, flips=()):
        row_mm, col_mm = spacing
        reach = 1.35 * max(length, width)
        rows, columns = shape or (int(reach / row_mm) + 1, int(reach / col_mm) + 1)
        y = (np.arange(rows)[:, None] - (rows - 1) / 2) * row_mm - shift[0] - length / 2
        x = (np.arange(columns)[None] - (columns - 1) / 2) * col_mm - shift[1]
        # the apex points up the image; the tilt is about the middle of the long axis
        angle, y = np.radians(tilt), y + length / 2
        along = -(np.cos(angle) * y + np.sin(angle) * x) + length / 2
        across = -np.sin(angle) * y + np.cos(angle) * x
        mask = (along >= 0) & ((along / length) ** 2 + (2 * across / width) ** 2 <= 1)
        for axis in flips:
            mask = np.flip(mask, axis)
        return mask.astype(np.uint8), 2 / 3 * np.pi * (width / 2) ** 2 * length / 1000

    return build


@pytest.fixture(scope="session")
def camus_masks():
    """camus_masks(patient, view, phase) -> (LV mask (H, W), (row, col) spacing); skips where CAMUS is not at hand."""
    if not CAMUS.is_dir():
        pytest.skip("the CAMUS patients are not on this machine")
    sitk = pytest.importorskip("SimpleITK")

    def load(patient, view, phase):
        image = sitk.ReadImage(str(CAMUS / patient / f"{patient}_{view}_{phase}_gt.mhd"))
        column, row = image.GetSpacing()[:2]
        return np.squeeze(sitk.GetArrayFromImage(image)) == 1, (row, column)

    return load
