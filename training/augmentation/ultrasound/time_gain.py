"""The scanner's row of sliders for the gain at each depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .sector import Sector
from .transform import Bounds, IntensityTransform, check_bounds


@dataclass(frozen=True)
class TimeGainDraw:
    """The sliders' gains, from the apex to the deepest pixel."""

    gains: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TimeGain(IntensityTransform):
    """Multiplies with a gain that goes linearly from slider to slider with depth; the same for the whole clip.

    Source: after the idea of the time-gain compensation of Singla et al. (MIDL 2022).

    Attributes:
        gain: bounds of each slider within 0 to 3; 1 changes nothing.
        bands: sliders, 2 to 32; scanners have about eight.
    """

    gain: Bounds = (0.75, 1.25)
    bands: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds("time gain", self.gain, 0, 3)
        check_bounds("number of gain bands", (self.bands, self.bands), 2, 32)

    def draw(self, generator: np.random.Generator) -> TimeGainDraw:
        """Uniform, each slider by itself."""
        return TimeGainDraw(tuple(generator.uniform(*self.gain, size=self.bands).tolist()))

    def change(self, draw: TimeGainDraw, frames: np.ndarray, sector: Sector) -> None:
        """Multiply all frames with one map."""
        gains = np.interp(sector.relative_depth, np.linspace(0, 1, len(draw.gains)), draw.gains)
        frames *= np.where(sector.inside, gains, 1).astype(np.float32)
        np.minimum(frames, 255, out=frames)
