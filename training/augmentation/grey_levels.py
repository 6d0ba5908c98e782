"""The papers' changes of brightness, contrast and gamma, on grey levels and inside the sector.

A clip is standardised afterwards by the mean and deviation that it had before, so that none of this is taken back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .transform import Bounds, check_bounds
from .ultrasound import IntensityTransform, Sector


@dataclass(frozen=True, kw_only=True)
class GreyLevels(IntensityTransform):
    """What one number, drawn for the whole clip, does to its grey levels.

    Attributes:
        factor: bounds of the number, within 0 to 10; 1 changes nothing.
    """

    probability: float = 0.5
    factor: Bounds

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds("factor of grey levels", self.factor, 0, 10)

    def draw(self, generator: np.random.Generator) -> float:
        """Uniform."""
        return float(generator.uniform(*self.factor))


class Brightness(GreyLevels):
    """I' = min(255, b I)."""

    def change(self, draw: float, frames: np.ndarray, sector: Sector) -> None:
        """Multiply."""
        frames[:, sector.inside] = np.minimum(frames[:, sector.inside] * np.float32(draw), 255)


class Contrast(GreyLevels):
    """I' = m + c (I - m) within 0 to 255, with m the mean of all frames inside the sector."""

    def change(self, draw: float, frames: np.ndarray, sector: Sector) -> None:
        """Stretch about the mean."""
        inside = frames[:, sector.inside]
        if inside.size:
            mean = inside.mean()
            frames[:, sector.inside] = np.clip(mean + np.float32(draw) * (inside - mean), 0, 255)


class Gamma(GreyLevels):
    """I' = 255 (I / 255)^g: brighter for g below 1, darker above."""

    def change(self, draw: float, frames: np.ndarray, sector: Sector) -> None:
        """Raise to the power."""
        frames[:, sector.inside] = 255 * (frames[:, sector.inside] / 255) ** np.float32(draw)
