"""What chooses other frames of a recording: another heart rate or frame rate, and frames that a recorder loses."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from .transform import Bounds, Clip, Transform, check_bounds, draw_seed


@dataclass(frozen=True, kw_only=True)
class TimingTransform(Transform):
    """Chooses other frames of the recording, before any is read: labels come from where their frames come.

    Its clip has "frame_numbers" (T,), those of them with a label that the training may see under "labelled_frames", and
    "native_frames", the length of the recording.
    """

    def apply(self, draw: Any, **clip: Any) -> Clip:
        """The clip with other frame numbers, as many as before."""
        numbers, labelled = np.asarray(clip["frame_numbers"]), np.asarray(clip["labelled_frames"])
        retimed = self.retime(draw, numbers, np.intersect1d(numbers, labelled), clip["native_frames"])
        return clip | {"frame_numbers": tuple(retimed.tolist())}

    @abstractmethod
    def retime(self, draw: Any, numbers: np.ndarray, labelled: np.ndarray, count: int) -> np.ndarray:
        """The frames to read instead of `numbers`, of a recording of `count` frames; `labelled` are among them."""


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


@dataclass(frozen=True)
class FrameDropDraw:
    """The share of frames that is lost, and the seed that says which."""

    share: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class FrameDrop(TimingTransform):
    """Shows the frame before instead of a lost one; the first frame and labelled ones are never lost.

    Source: recorders and networks drop frames; the augmentation and its bounds are ours.

    Attributes:
        share: bounds within 0 to 1; 0 changes nothing.
    """

    share: Bounds = (0.0, 0.3)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds("share of dropped frames", self.share, 0, 1)

    def draw(self, generator: np.random.Generator) -> FrameDropDraw:
        """Uniform."""
        return FrameDropDraw(share=float(generator.uniform(*self.share)), seed=draw_seed(generator))

    def retime(self, draw: FrameDropDraw, numbers: np.ndarray, labelled: np.ndarray, count: int) -> np.ndarray:
        """The frames to read instead of `numbers`."""
        kept = np.random.default_rng(draw.seed).random(len(numbers)) >= draw.share
        kept |= np.isin(numbers, labelled)
        kept[0] = True
        return numbers[np.maximum.accumulate(np.where(kept, np.arange(len(numbers)), 0))]
