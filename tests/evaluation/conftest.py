"""Shapes whose volumes are known, and the real masks where they are at hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import half_ellipsoids

CAMUS = Path("/work/shared/data/camus_mhd")


@pytest.fixture(scope="session")
def half_ellipsoid():
    """half_ellipsoid(length, width, spacing, ...) -> (mask, volume in mL)."""
    return half_ellipsoids.half_ellipsoid


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
