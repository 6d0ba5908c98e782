"""What changes grey levels as other scanners, tissues and artefacts do, inside the sector.

docs/augmentation.md shows them.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from .transform import Bounds, Clip, Transform, check_bounds, draw_seed

_BLACK = 4  # grey levels; compressed videos leave a little noise where the picture is black
_GRIDS_KEPT = 4  # clips of one store differ in their padding alone: a few grids serve a whole training


@dataclass(frozen=True)
class Sector:
    """Where a sample's fan is, and where its pixels lie in it.

    Attributes:
        inside: (H, W) bool, the sector.
        radius: (H, W) float32, pixels from the apex.
        angle: (H, W) float32, radians to the vertical, more to the right.
    """

    inside: np.ndarray
    radius: np.ndarray
    angle: np.ndarray

    @classmethod
    def of(cls, frames: np.ndarray, *, apex: tuple[float, float]) -> Sector:
        """The sector of frames whose surroundings are black.

        A fan is what lies between its outermost bright pixels, in its row and in its column; so black cavities belong
        to it, and the black in the middle of a curved probe's upper edge does not.

        Args:
            frames: (T, H, W) grey levels 0 to 255.
            apex: (row, column), in pixels.
        """
        signal = frames.max(axis=0) > _BLACK
        return cls(_between(signal) & _between(signal.T).T, *_polar_grid(signal.shape, *apex))

    @cached_property
    def depth(self) -> float:
        """Pixels from the apex to the sector's deepest pixel; 1 where there is none."""
        return max(1.0, float((self.radius * self.inside).max()))

    @cached_property
    def relative_depth(self) -> np.ndarray:
        """(H, W) float32: 0 at the apex, 1 at the sector's deepest pixel."""
        return self.radius * np.float32(1 / self.depth)

    @cached_property
    def angles(self) -> tuple[float, float]:
        """The directions of the outermost beams, in radians; both 0 where there is no sector."""
        # Near the apex a pixel is wider than several beams.
        far = self.angle[self.inside & (self.radius > 0.5 * self.depth)]
        return (float(far.min()), float(far.max())) if far.size else (0.0, 0.0)


def _between(signal: np.ndarray) -> np.ndarray:
    """(H, W) bool: from the first to the last signal in each row."""
    width = signal.shape[1]
    first = np.where(signal.any(axis=1), signal.argmax(axis=1), width)
    last = width - 1 - signal[:, ::-1].argmax(axis=1)
    columns = np.arange(width)
    return (columns >= first[:, None]) & (columns <= last[:, None])


@lru_cache(maxsize=_GRIDS_KEPT)
def _polar_grid(shape: tuple[int, int], row: float, column: float) -> tuple[np.ndarray, np.ndarray]:
    """(radius, angle) of every pixel, float32 and read-only, since all samples share them."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    radius, angle = np.hypot(rows - row, columns - column), np.arctan2(columns - column, rows - row)
    grids = radius.astype(np.float32), angle.astype(np.float32)
    for grid in grids:
        grid.flags.writeable = False
    return grids


@dataclass(frozen=True, kw_only=True)
class IntensityTransform(Transform):
    """Changes grey levels inside the sector; what lies outside, and the labels, stay as they are."""

    probability: float = 0.3  # most clips keep their own grey levels: an artefact that is always there is none

    def apply(self, draw: Any, **clip: Any) -> Clip:
        """The clip with other grey levels; it also holds its "sector", so that the next transform need not look."""
        sector = clip.get("sector") or Sector.of(clip["frames"], apex=clip["apex"])
        self.change(draw, clip["frames"], sector)
        return clip | {"sector": sector}

    @abstractmethod
    def change(self, draw: Any, frames: np.ndarray, sector: Sector) -> None:
        """Change float32 frames (T, H, W) in place, inside the sector only."""


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
