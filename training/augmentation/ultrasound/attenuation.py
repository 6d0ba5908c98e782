"""Tissue that swallows more of the beam than the scanner makes up for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .sector import Sector
from .transform import Bounds, IntensityTransform, check_bounds


@dataclass(frozen=True)
class AttenuationDraw:
    """The rate mu: grey levels fall to exp(-mu) at the sector's deepest pixel."""

    rate: float


@dataclass(frozen=True, kw_only=True)
class DepthAttenuation(IntensityTransform):
    """Darkens with depth: I' = I exp(-mu d), with d = 0 at the apex and 1 at the sector's deepest pixel.

    Source: Østvik et al. (IEEE Transactions on Medical Imaging 2021), as an exponential in Tupper and Gagné (2025,
    arXiv 2501.13193), whose lambda, the share that is never lost, is 0 here as it is there by default.

    Attributes:
        rate: bounds of mu within 0 to 3; 0 changes nothing.
    """

    rate: Bounds = (0.0, 1.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds("attenuation rate", self.rate, 0, 3)

    def draw(self, generator: np.random.Generator) -> AttenuationDraw:
        """Uniform."""
        return AttenuationDraw(float(generator.uniform(*self.rate)))

    def change(self, draw: AttenuationDraw, frames: np.ndarray, sector: Sector) -> None:
        """Multiply all frames with one map."""
        frames *= np.where(sector.inside, np.exp(-np.float32(draw.rate) * sector.relative_depth), np.float32(1))
