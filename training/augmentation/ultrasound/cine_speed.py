"""Another heart rate or frame rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .transform import Bounds, TimingTransform, check_bounds


@dataclass(frozen=True)
class CineSpeedDraw:
    """How the clip is played.

    Attributes:
        speed: more than 1 is faster.
        anchor: which labelled frame stays at its place, from the first (0) to the last (1).
    """

    speed: float
    anchor: float


@dataclass(frozen=True, kw_only=True)
class CineSpeed(TimingTransform):
    """Takes frames nearer together or further apart about a labelled one; the recording stands still at its ends.

    Frame f becomes a + speed (f - a), rounded. A labelled frame that the new frames pass keeps its place among them, so
    that its label is not lost for half a frame.

    Source: temporal resampling as for any video; bounds are ours.

    Attributes:
        speed: bounds within 0.25 to 4; 1 changes nothing.
    """

    speed: Bounds = (0.8, 1.25)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds("cine speed", self.speed, 0.25, 4)

    def draw(self, generator: np.random.Generator) -> CineSpeedDraw:
        """The speed uniform in the logarithm."""
        return CineSpeedDraw(
            speed=float(np.exp(generator.uniform(*np.log(self.speed)))), anchor=float(generator.random())
        )

    def retime(self, draw: CineSpeedDraw, numbers: np.ndarray, labelled: np.ndarray, count: int) -> np.ndarray:
        """The frames to read instead of `numbers`."""
        anchors = labelled if len(labelled) else numbers
        anchor = anchors[min(int(draw.anchor * len(anchors)), len(anchors) - 1)]
        times = np.clip(anchor + draw.speed * (numbers - anchor), 0, count - 1)
        retimed = np.rint(times).astype(int)
        for frame in labelled:
            nearest = np.abs(times - frame).argmin()
            if times.min() <= frame <= times.max():
                retimed[nearest] = frame
        return retimed
