"""A rib or air in the beam's way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .sector import Sector
from .transform import Bounds, IntensityTransform, check_bounds


@dataclass(frozen=True)
class ShadowDraw:
    """One shadow.

    Attributes:
        strength: the share of the light it takes in its middle.
        beam: its middle across the sector, 0 at the left edge and 1 at the right one.
        depth: its middle, 0 at the apex and 1 at the deepest pixel.
        width: its standard deviation across, as a share of the sector's angle.
        length: its standard deviation along the beam, as a share of the depth.
    """

    strength: float
    beam: float
    depth: float
    width: float
    length: float


@dataclass(frozen=True, kw_only=True)
class GaussianShadow(IntensityTransform):
    """A dark patch that fades like a Gaussian and stays where it is over the clip.

    I' = I (1 - s exp(-(a^2 / 2 w^2 + b^2 / 2 l^2))), a across the beams and b along them.

    Source: Smistad et al. (2018, on ultrasound-guided axillary nerve blocks), as described by Tupper and Gagné (2025,
    arXiv 2501.13193); theirs lies along rows and columns, this one along the beams, as shadows do.

    Attributes:
        strength: bounds within 0 to 1; 0 changes nothing.
        width, length: bounds of the standard deviations, within 0.01 to 1.
    """

    strength: Bounds = (0.0, 0.6)
    width: Bounds = (0.03, 0.15)
    length: Bounds = (0.05, 0.3)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds("shadow strength", self.strength, 0, 1)
        check_bounds("shadow width", self.width, 0.01, 1)
        check_bounds("shadow length", self.length, 0.01, 1)

    def draw(self, generator: np.random.Generator) -> ShadowDraw:
        """Uniform; anywhere in the sector."""
        return ShadowDraw(
            strength=float(generator.uniform(*self.strength)),
            beam=float(generator.random()),
            depth=float(generator.random()),
            width=float(generator.uniform(*self.width)),
            length=float(generator.uniform(*self.length)),
        )

    def change(self, draw: ShadowDraw, frames: np.ndarray, sector: Sector) -> None:
        """Multiply all frames with one map."""
        left, right = sector.angles
        across = (sector.angle - (left + draw.beam * (right - left))) / (draw.width * max(right - left, 1e-6))
        along = (sector.relative_depth - draw.depth) / draw.length
        frames *= 1 - np.float32(draw.strength) * np.exp(-0.5 * (across**2 + along**2)) * sector.inside
