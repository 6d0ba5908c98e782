"""The clip: what every reader returns and every stage takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from echoplan.imageio.space import Space

PLAUSIBLE_SPACING_MM = (0.02, 5.0)
PLAUSIBLE_FRAME_TIME_MS = (1.0, 200.0)


def plausible_scale(
    spacing_mm: tuple[float, float] | None, frame_time_ms: float | None
) -> tuple[tuple[float, float] | None, float | None, str]:
    """Spacing and frame time as far as an echocardiogram can have them; what it cannot have counts as unknown.

    Numbers that are none (0, negative, not finite) stay, for their own errors.

    Returns:
        the spacing, the frame time, and why one of them counts as unknown, in words; empty where neither does.
    """
    notes = []
    if spacing_mm is not None and not all(_within(value, PLAUSIBLE_SPACING_MM) for value in spacing_mm):
        size = " x ".join(f"{value:g}" for value in spacing_mm)
        notes.append(f"the spacing of {size} mm {_unusual(PLAUSIBLE_SPACING_MM, 'mm')}")
        spacing_mm = None
    if frame_time_ms is not None and not _within(frame_time_ms, PLAUSIBLE_FRAME_TIME_MS):
        seconds = "; is it given in seconds?" if frame_time_ms < PLAUSIBLE_FRAME_TIME_MS[0] else ""
        notes.append(f"the frame time of {frame_time_ms:g} ms {_unusual(PLAUSIBLE_FRAME_TIME_MS, 'ms' + seconds)}")
        frame_time_ms = None
    return spacing_mm, frame_time_ms, "; ".join(notes)


def _within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1] or not (math.isfinite(value) and value > 0)


def _unusual(limits: tuple[float, float], unit: str) -> str:
    return f"is unusual for echocardiography and counts as unknown ({limits[0]:g} to {limits[1]:g} {unit})"


@dataclass(frozen=True)
class Crop:
    """Where a clip lies in the larger image its file holds (a DICOM's ultrasound region).

    Attributes:
        file_shape: (H, W) of the file's own image.
        box: (first row, end row, first column, end column) of the clip in it, ends excluded.
    """

    file_shape: tuple[int, int]
    box: tuple[int, int, int, int]

    def to_file(self, mask: np.ndarray) -> np.ndarray:
        """A mask (T, h, w) of the clip on the file's own grid (T, H, W), 0 around it."""
        whole = np.zeros((len(mask), *self.file_shape), mask.dtype)
        r0, r1, c0, c1 = self.box
        whole[:, r0:r1, c0:c1] = mask
        return whole

    def to_clip(self, mask: np.ndarray) -> np.ndarray:
        """A mask (T, H, W) on the file's own grid, cut to the clip (T, h, w); one on the clip's grid stays as it is."""
        if mask.shape[1:] != self.file_shape:
            return mask
        r0, r1, c0, c1 = self.box
        return mask[:, r0:r1, c0:c1]


@dataclass(frozen=True)
class Clip:
    """A greyscale ultrasound clip.

    Attributes:
        frames: (T, H, W), uint8, uint16 or float32; one time step a frame, row 0 at the top.
        spacing_mm: (row, column) distance of neighbouring pixels in mm, or None where it is unknown.
        frame_time_ms: mean time between two frames in ms, or None where it is unknown or there is one frame.
        source: the file or folder it was read from.
        crop: where the clip lies in the file's own image; None where it is all of it.
        space: where the file's pixels lie, in formats that say so; the spacing may be known better.
        exam: tells the exams of one patient apart; empty where the file does not.
        scale_note: why a spacing or a frame time that was given counts as unknown; empty where none does.
    """

    frames: np.ndarray
    spacing_mm: tuple[float, float] | None = None
    frame_time_ms: float | None = None
    source: str = ""
    crop: Crop | None = None
    space: Space | None = None
    exam: str = ""
    scale_note: str = ""

    def __len__(self) -> int:
        return int(self.frames.shape[0])

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(H, W)"""
        return int(self.frames.shape[1]), int(self.frames.shape[2])


@dataclass(frozen=True)
class ClipInfo:
    """What a file's header says of its clip, without decoding the frames.

    Attributes:
        shape: (T, H, W) of the clip that `read_clip` would return.
        spacing_mm, frame_time_ms, crop, space, exam, scale_note: as in `Clip`.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float] | None = None
    frame_time_ms: float | None = None
    crop: Crop | None = None
    space: Space | None = None
    exam: str = ""
    scale_note: str = ""
