"""What every transform is: parameters drawn once a clip, and applied to a dictionary."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from echoplan.errors import EchoPlanError

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
