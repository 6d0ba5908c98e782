"""The scanner's depth setting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .movement import SectorMove
from .transform import Bounds, MovingTransform, check_bounds


@dataclass(frozen=True, kw_only=True)
class DepthChange(MovingTransform):
    """Scales the clip about the sector's apex, as another imaging depth does, and corrects "spacing_mm".

    Source: after the idea of the zoom of Singla et al. (MIDL 2022) and the depth change of VanBerlo et al. (2025, arXiv
    2504.07904), which both keep the beams where they are.

    Attributes:
        scale: bounds within 0.5 to 2; more than 1 is a shallower setting, which shows the heart larger.
    """

    scale: Bounds = (0.85, 1.15)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds("depth scale", self.scale, 0.5, 2)

    def draw(self, generator: np.random.Generator) -> SectorMove:
        """Uniform in the logarithm: a tenth shallower is as likely as a tenth deeper."""
        return SectorMove(scale=float(np.exp(generator.uniform(*np.log(self.scale)))))
