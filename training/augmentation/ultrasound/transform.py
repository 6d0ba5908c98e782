"""What every ultrasound transform is: parameters drawn once a clip, and applied to a dictionary."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from echoplan.errors import EchoPlanError

from .movement import SectorMove, move_clip
from .sector import Sector

Clip = dict[str, Any]
Bounds = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Transform(ABC):
    """A random change of a clip; settings are bounds, `draw` picks within them, `apply` does it.

    A clip is a dictionary: "frames" float32 (T, H, W) in grey levels 0 to 255, "labels" uint8 (T, H, W), "apex" (row,
    column) of the sector in pixels, "classes", and "spacing_mm" (row, column) where somebody wants it corrected. Frames
    are worked on in place where their pixels stay where they are.

    Attributes:
        probability: of changing a clip at all.

    Raises:
        EchoPlanError: a setting is out of its bounds.

    Example:
        haze = Haze(strength=(0.1, 0.3))
        clip = haze(np.random.default_rng(0), frames=frames, labels=labels, apex=(0.0, 63.5), classes=2)
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        check_bounds("probability", (self.probability, self.probability), 0, 1)

    def __call__(self, generator: np.random.Generator, **clip: Any) -> Clip:
        """The clip with one draw applied, whatever the probability."""
        return self.apply(self.draw(generator), **clip)

    @abstractmethod
    def draw(self, generator: np.random.Generator) -> Any:
        """Random parameters within the bounds, as a frozen dataclass."""

    @abstractmethod
    def apply(self, draw: Any, **clip: Any) -> Clip:
        """The clip changed by these parameters; with a strength of 0 it is the same."""


@dataclass(frozen=True, kw_only=True)
class MovingTransform(Transform):
    """Moves pixels about the apex, and labels with them."""

    @abstractmethod
    def draw(self, generator: np.random.Generator) -> SectorMove:
        """A random move."""

    def apply(self, draw: SectorMove, **clip: Any) -> Clip:
        """The clip moved, and its spacing corrected: a pixel of an enlarged picture shows fewer millimetres."""
        frames, labels = move_clip(draw, clip["frames"], clip["labels"], apex=clip["apex"], classes=clip["classes"])
        moved = clip | {"frames": frames, "labels": labels}
        moved.pop("sector", None)
        if clip.get("spacing_mm") is not None:
            moved["spacing_mm"] = tuple(value / draw.scale for value in clip["spacing_mm"])
        return moved


@dataclass(frozen=True, kw_only=True)
class IntensityTransform(Transform):
    """Changes grey levels inside the sector; what lies outside, and the labels, stay as they are."""

    probability: float = 0.3  # most clips keep their own grey levels: an artefact that is always there is none

    def apply(self, draw: Any, **clip: Any) -> Clip:
        """The clip with other grey levels; it also holds its "sector", so that the next transform need not look."""
        sector = clip.get("sector") or Sector.of(clip["frames"], apex=clip["apex"])
        self.change(draw, clip["frames"], sector)
        return clip | {"sector": sector}

    @abstractmethod
    def change(self, draw: Any, frames: np.ndarray, sector: Sector) -> None:
        """Change float32 frames (T, H, W) in place, inside the sector only."""


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


def check_bounds(name: str, bounds: Bounds, lowest: float, highest: float) -> None:
    """Say so where bounds are the wrong way round, or out of the allowed range.

    Raises:
        EchoPlanError: they are.
    """
    low, high = bounds
    if not lowest <= low <= high <= highest:
        raise EchoPlanError(f"the augmentation's {name} is {bounds}; it must lie in {lowest:g} to {highest:g}")


def draw_seed(generator: np.random.Generator) -> int:
    """A seed for the noise that `apply` makes, so that a draw says all there is to say."""
    return int(generator.integers(2**32))
