"""Clutter: reverberations that lie over the picture as a band of fog."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .sector import Sector
from .transform import Bounds, IntensityTransform, check_bounds, draw_seed


@dataclass(frozen=True)
class HazeDraw:
    """One band of haze.

    Attributes:
        strength: its brightest possible pixel, as a share of white.
        radius: its middle, 0 at the apex and 1 at the sector's deepest pixel.
        width: its standard deviation along the beams, in the same unit.
        seed: of its noise.
    """

    strength: float
    radius: float
    width: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Haze(IntensityTransform):
    """Adds noise in a band at one distance from the probe: the band stays over the clip, its noise is new every frame.

    I' = min(255, I + 255 s u exp(-(d - r)^2 / 2 w^2)), u uniform in 0 to 1 for every pixel of every frame.

    Source: Østvik et al. (IEEE Transactions on Medical Imaging 2021), as described by Tupper and Gagné (2025, arXiv
    2501.13193), from whom the bounds of radius and width and the largest strength come.

    Attributes:
        strength: bounds within 0 to 1; 0 changes nothing.
        radius: bounds within 0 to 1.
        width: bounds within 0.01 to 1.
    """

    strength: Bounds = (0.0, 0.5)
    radius: Bounds = (0.05, 0.95)
    width: Bounds = (0.01, 0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds("haze strength", self.strength, 0, 1)
        check_bounds("haze radius", self.radius, 0, 1)
        check_bounds("haze width", self.width, 0.01, 1)

    def draw(self, generator: np.random.Generator) -> HazeDraw:
        """Uniform."""
        return HazeDraw(
            strength=float(generator.uniform(*self.strength)),
            radius=float(generator.uniform(*self.radius)),
            width=float(generator.uniform(*self.width)),
            seed=draw_seed(generator),
        )

    def change(self, draw: HazeDraw, frames: np.ndarray, sector: Sector) -> None:
        """Add one band with its own noise for every frame."""
        away = (sector.relative_depth - draw.radius) / draw.width
        band = np.float32(draw.strength) * np.exp(-0.5 * away**2) * sector.inside
        # Bytes: pictures have no more levels, and they are drawn three times as fast as floats.
        levels = np.frombuffer(np.random.default_rng(draw.seed).bytes(frames.size), np.uint8)
        frames += levels.reshape(frames.shape) * band
        np.minimum(frames, 255, out=frames)
