"""The probe tilted in the image's plane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .movement import SectorMove
from .transform import MovingTransform, check_bounds


@dataclass(frozen=True, kw_only=True)
class Rotation(MovingTransform):
    """Turns the clip about the sector's apex, where the probe stands; depth under the probe stays what it was.

    Source: rotation is every recipe's; about the apex because that is how a probe tilts. Geometric changes that
    anatomy allows carried over best between echocardiography datasets (Elyasi et al. 2026, arXiv 2605.16427).

    Attributes:
        degrees: the largest rotation to either side, 0 to 45.
    """

    degrees: float = 15.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds("rotation in degrees", (self.degrees, self.degrees), 0, 45)

    def draw(self, generator: np.random.Generator) -> SectorMove:
        """Uniform to either side."""
        return SectorMove(degrees=float(generator.uniform(-self.degrees, self.degrees)))
