"""The scanner's sector width."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .movement import SectorMove
from .transform import Bounds, MovingTransform, check_bounds


@dataclass(frozen=True, kw_only=True)
class FieldOfView(MovingTransform):
    """Spreads or gathers the beams: what lay at an angle to the vertical lies at a multiple of that angle.

    Distances along a beam stay, those across are stretched, so "spacing_mm" holds along the beams only.

    Source: after the idea of the convexity mutation of VanBerlo et al. (2025, arXiv 2504.07904).

    Attributes:
        opening: bounds within 0.5 to 2; more than 1 widens the fan.
    """

    opening: Bounds = (0.9, 1.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds("opening of the field of view", self.opening, 0.5, 2)

    def draw(self, generator: np.random.Generator) -> SectorMove:
        """Uniform in the logarithm."""
        return SectorMove(opening=float(np.exp(generator.uniform(*np.log(self.opening)))))
