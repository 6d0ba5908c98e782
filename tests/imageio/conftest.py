"""Small clips, and real DICOM files where pydicom-data is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from echoplan.imageio import Clip


@pytest.fixture
def clip() -> Clip:
    """5 frames of 24 rows and 32 columns, anisotropic, so that swapped axes show."""
    frames = np.random.default_rng(0).integers(0, 256, (5, 24, 32), dtype=np.uint8)
    return Clip(frames, spacing_mm=(0.154, 0.308), frame_time_ms=20.66)


@pytest.fixture
def mask() -> np.ndarray:
    """Labels for `clip`, (5, 24, 32)."""
    mask = np.zeros((5, 24, 32), np.uint8)
    mask[:, 4:12, 6:20] = 1
    mask[1, 2, 3] = 2
    mask[3] = 255
    return mask


@pytest.fixture
def real_dicom():
    """name -> path of one of pydicom's files; skips where pydicom-data does not have it."""
    data = pytest.importorskip("pydicom.data")

    def find(name: str) -> Path:
        found = data.get_testdata_file(name, download=False)
        if found is None:
            pytest.skip(f"pydicom-data is not installed: no {name}")
        return Path(found)

    return find
