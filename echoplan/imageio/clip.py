"""The clip: what every reader returns and every stage takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Clip:
    """A greyscale ultrasound clip.

    Attributes:
        frames: (T, H, W), uint8, uint16 or float32; one time step a frame, row 0 at the top.
        spacing_mm: (row, column) distance of neighbouring pixels in mm, or None where it is unknown.
        frame_time_ms: mean time between two frames in ms, or None where it is unknown or there is one frame.
        source: the file or folder it was read from.
    """

    frames: np.ndarray
    spacing_mm: tuple[float, float] | None = None
    frame_time_ms: float | None = None
    source: str = ""

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
        spacing_mm, frame_time_ms: as in `Clip`.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float] | None = None
    frame_time_ms: float | None = None
