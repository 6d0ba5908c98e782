"""Another scanner's speckle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from .sector import Sector
from .transform import IntensityTransform, check_bounds, draw_seed


@dataclass(frozen=True)
class SpeckleDraw:
    """One pattern of speckle.

    Attributes:
        phasors: M, echoes that add up in a resolution cell.
        strength: standard deviation of each phasor's real and imaginary part, in square roots of grey levels.
        lines: resolution cells across the sector.
        samples: resolution cells from the apex to the deepest pixel.
        seed: of the pattern.
    """

    phasors: int
    strength: float
    lines: int
    samples: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class PolarSpeckle(IntensityTransform):
    """Lets random echoes interfere with the picture on a grid of beams and depths, the same pattern in every frame.

    The amplitude sqrt(I) takes M random steps in the complex plane: I' = |sqrt(I) + z_1 + ... + z_M|^2, each z circular
    Gaussian of standard deviation s. The grain grows with depth, as beams spread. Between grid points z is interpolated
    and brought back to its variance, so that everywhere E[I'] = I + 2 M s^2 and var[I'] = 4 I M s^2 + 4 M^2 s^4.

    Source: the random walk on a polar grid of Perreault and Auclair-Fortier (Canadian Conference on Computer and Robot
    Vision 2007), as VanBerlo et al. (2025, arXiv 2504.07904) augment with it, from whose code the bounds and s come;
    there the picture itself is sampled on the grid too, which blurs it.

    Attributes:
        phasors: bounds of M within 0 to 100.
        strength: s, 0 to 2; 0 changes nothing.
        lines, samples: bounds within 8 to 1024.
    """

    phasors: tuple[int, int] = (5, 15)
    strength: float = 0.2
    lines: tuple[int, int] = (50, 100)
    samples: tuple[int, int] = (50, 100)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds("number of phasors", self.phasors, 0, 100)
        check_bounds("speckle strength", (self.strength, self.strength), 0, 2)
        check_bounds("lines of speckle", self.lines, 8, 1024)
        check_bounds("samples of speckle", self.samples, 8, 1024)

    def draw(self, generator: np.random.Generator) -> SpeckleDraw:
        """Uniform, both bounds included."""
        return SpeckleDraw(
            phasors=int(generator.integers(*self.phasors, endpoint=True)),
            strength=self.strength,
            lines=int(generator.integers(*self.lines, endpoint=True)),
            samples=int(generator.integers(*self.samples, endpoint=True)),
            seed=draw_seed(generator),
        )

    def change(self, draw: SpeckleDraw, frames: np.ndarray, sector: Sector) -> None:
        """Add one sum of phasors to the amplitudes of all frames."""
        # The sum of M circular Gaussians is one of sqrt(M) times their standard deviation: no need to draw each.
        spread = np.float32(draw.strength * np.sqrt(draw.phasors))
        real, imaginary = spread * _unit_field(draw, sector) * sector.inside
        cross = np.sqrt(frames)
        cross *= 2 * real
        frames += cross
        frames += real**2 + imaginary**2
        np.clip(frames, 0, 255, out=frames)


def _unit_field(draw: SpeckleDraw, sector: Sector) -> np.ndarray:
    """(2, H, W) float32: Gaussian noise of variance 1 in every pixel, correlated within resolution cells."""
    cells = np.random.default_rng(draw.seed).standard_normal((1, 2, draw.samples, draw.lines), dtype=np.float32)
    left, right = sector.angles
    across = np.clip((sector.angle - left) / max(right - left, 1e-6), 0, 1)
    along = np.minimum(sector.relative_depth, 1)
    grid = torch.from_numpy(np.stack([2 * across - 1, 2 * along - 1], axis=-1))[None]
    field = functional.grid_sample(torch.from_numpy(cells), grid, mode="bilinear", align_corners=True)[0].numpy()
    for place, count in ((across, draw.lines), (along, draw.samples)):
        place *= count - 1
        place -= np.floor(place)
        place *= 2 * (place - 1)
        place += 1  # (1 - p)^2 + p^2, the variance between two grid points
    across *= along
    field /= np.sqrt(across, out=across)
    return field
