"""From reflectivity to an image: point spread function, compounding, artefacts, log compression.

Everything before the scan conversion happens on the polar grid, where the point spread function is the same everywhere:
a constant width in angle is a width in mm that grows with depth, as a phased array has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from .heart import Cut
from .polar_grid import PolarGrid
from .scatter import complex_noise, decibel, smooth_curve, valve_points, wall_points


@dataclass(frozen=True)
class Scanner:
    """How one clip looks. Levels in dB, 0 dB being the mean power of a well-seen myocardium.

    Attributes:
        quality: 0 poor to 1 good.
        axial_mm, lateral_rad: standard deviations of the point spread function.
        blood_db, haze_db, noise_db: blood, near-field haze, receiver noise at full depth.
        side_lobe: share of the power that leaks sideways.
        dropouts: 0 none to 1 strong.
        dynamic_range_db, zero_db_grey, gamma: log compression: grey is 255 ((dB / range) + zero_db_grey) ** gamma.
    """

    quality: float
    axial_mm: float
    lateral_rad: float
    blood_db: float
    haze_db: float
    noise_db: float
    side_lobe: float
    dropouts: float
    dynamic_range_db: float
    zero_db_grey: float
    gamma: float

    @classmethod
    def random(cls, rng: np.random.Generator, quality: float) -> Scanner:
        """A scanner setting for a window of this quality."""
        poor = 1 - quality
        return cls(
            quality=quality,
            axial_mm=rng.uniform(0.32, 0.48),
            lateral_rad=np.deg2rad(rng.uniform(0.5, 0.7) + 0.3 * poor),
            blood_db=rng.uniform(-19, -13) + 7 * poor,
            haze_db=rng.uniform(-17, -10) + 7 * poor,
            noise_db=rng.uniform(-24, -17) + 6 * poor,
            side_lobe=0.01 + 0.04 * rng.uniform(0.3, 1) * (0.5 + poor),
            dropouts=float(np.clip(0.25 + 0.75 * poor + rng.normal(0, 0.15), 0, 1)),
            dynamic_range_db=rng.uniform(42, 54),
            zero_db_grey=rng.uniform(0.54, 0.68),
            gamma=rng.uniform(1.2, 1.7),
        )


class Renderer:
    """Renders the frames of one clip; draw all randomness that lasts through the clip once, at end-diastole."""

    def __init__(self, rng: np.random.Generator, grid: PolarGrid, end_diastole: Cut, scanner: Scanner) -> None:
        self.rng, self.grid, self.scanner = rng, grid, scanner
        self.shape = (len(grid.radii), len(grid.angles))
        step_r, step_angle = grid.polar_step
        self.blur = (max(scanner.axial_mm / step_r, 0.75), max(scanner.lateral_rad / step_angle, 0.75))
        self.wall = wall_points(rng, end_diastole, grid, quality=scanner.quality, dropouts=scanner.dropouts)
        self.valve = valve_points(rng, grid)
        self.static, self.blood, self.clutter = (complex_noise(rng, self.shape) for _ in range(3))
        self.right_heart = {name: rng.uniform(0.85, 1.25) for name in ("width", "length", "atrium")}
        self.right_blood_db: np.ndarray | float = 0.0  # more than in the left heart
        self.background_db = self._background(end_diastole)
        self.rim_db = rng.uniform(-4, 4) + 4.5 * self._smooth_field(10.0)
        self.blood_db = scanner.blood_db + 1.2 * self._smooth_field(12.0)
        self.gain_db = self._gain()
        self.haze_power = self._haze()

    def frame(self, cut: Cut) -> np.ndarray:
        """One frame's echo power in dB on the polar grid, float32 (R, B)."""
        fresh = complex_noise(self.rng, self.shape)
        self.blood = 0.45 * self.blood + np.float32(np.sqrt(1 - 0.45**2)) * fresh
        level, own_points = self._levels(cut)
        echo = np.where(level == self.blood_db, self.blood, self.static) * decibel(level).astype(np.float32)
        echo[own_points] = self.blood[own_points] * decibel(self.scanner.blood_db)
        echo = echo + self.wall.splat(cut, self.grid) + self.valve.splat(cut, self.grid)
        echo = self.spread(echo)
        power = echo.real**2 + echo.imag**2
        power += self.scanner.side_lobe * gaussian_filter1d(power, self.blur[1] * 8, axis=1)
        power *= decibel(self.gain_db).astype(np.float32) ** 2
        power += self.haze_power
        depth = self.grid.radii[:, None] / self.grid.depth_mm
        receiver = np.abs(self.spread(complex_noise(self.rng, self.shape))) ** 2
        power += (receiver * decibel(self.scanner.noise_db - 14 * (1 - depth)) ** 2).astype(np.float32)
        power = gaussian_filter(power, (1.1 * self.blur[0], 0.7 * self.blur[1]))  # compounding of several looks
        return (10 * np.log10(power + 1e-7)).astype(np.float32)

    def to_grey(self, power_db: np.ndarray) -> np.ndarray:
        """Echo power in dB (T, R, B) -> grey image uint8 (T, H, W), black outside the sector."""
        scanner = self.scanner
        shade = np.clip(power_db / scanner.dynamic_range_db + scanner.zero_db_grey, 0.03, 1) ** scanner.gamma
        image = self.grid.scan_convert((255 * shade).astype(np.float32))
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)

    def spread(self, echo: np.ndarray) -> np.ndarray:
        """The echo of a reflectivity (R, B): convolved with the point spread function, mean power kept."""
        real, imaginary = (gaussian_filter(part, self.blur, truncate=3.0) for part in (echo.real, echo.imag))
        return (real + 1j * imaginary) * np.float32(np.sqrt(4 * np.pi * self.blur[0] * self.blur[1]))

    def _smooth_field(self, width_mm: float) -> np.ndarray:
        """Smooth noise of unit standard deviation on the polar grid."""
        step_r, step_angle = self.grid.polar_step
        beams = width_mm / (0.6 * self.grid.depth_mm * step_angle)
        field = gaussian_filter(self.rng.standard_normal(self.shape), (width_mm / step_r, 1.6 * beams), mode="wrap")
        return (field - field.mean()) / field.std()

    def _straight(self, cut: Cut) -> tuple[np.ndarray, np.ndarray]:
        return cut.straight(*cut.pose.to_local(*self.grid.polar_xy))

    def _background(self, cut: Cut) -> np.ndarray:
        """Tissue around the heart, dB: patchy, bright beside the ring and behind the atrium, fading sideways."""
        u, z = self._straight(cut)
        state, rng = cut.state, self.rng
        level = rng.uniform(-9, -3) + 4.5 * self._smooth_field(20.0) + 3.0 * self._smooth_field(5.0)
        outer = state.short_axis(cut.view) + state.wall
        for side in (-1, 1):
            if cut.view == "A4C" and side < 0:
                continue
            across = (u - side * (outer + rng.uniform(4, 12))) / 13
            along = (z - state.h) / rng.uniform(10, 32)
            level += rng.uniform(4, 18) * np.exp(-(across**2) - along**2)
        below = (z - state.h - state.atrium_length) / rng.uniform(5, 12)
        level += rng.uniform(5, 16) * np.exp(-((below - 0.6) ** 2))
        steps = np.repeat(rng.standard_normal(60), 5)  # streaks across the beams, as behind strong reflectors
        level += 2.0 * np.interp(self.grid.radii, np.linspace(0, self.grid.depth_mm, 300), steps)[:, None]
        return level

    def _levels(self, cut: Cut) -> tuple[np.ndarray, np.ndarray]:
        """Reflectivity in dB of what does not ride on the wall, and where the wall's own points take its place."""
        u, z = self._straight(cut)
        state = cut.state
        cavity, outer, atrium = cut.levels(u, z)
        above = z <= state.h
        level = self.background_db.copy()
        if cut.view == "A4C":
            self._draw_right_heart(level, cut, u, z)
        rim = np.exp(-(((np.sqrt(atrium) - 1.06) / 0.07) ** 2)) * ~above
        level = np.maximum(level, self.rim_db + 14 * (rim - 1))
        ring = ~above & (outer < 1.25) & (z < state.h + 9)  # its own tissue, below both hinges
        level[ring] = np.maximum(level, self.rim_db)[ring]
        chamber = (above & (cavity <= 1)) | (~above & (atrium <= 1))
        level[chamber] = self.blood_db[chamber]
        return level, above & (outer <= 1) & (cavity > 1)

    def _draw_right_heart(self, level: np.ndarray, cut: Cut, u: np.ndarray, z: np.ndarray) -> None:
        """The right ventricle and atrium left of the septum, with the free wall and the tricuspid valve."""
        state, size = cut.state, self.right_heart
        squeeze = 1 - 0.18 * state.contraction
        edge = state.a + state.wall
        valve = state.h - 5
        width = 24 * size["width"] * squeeze
        ventricle = ((u + edge - 2) / width) ** 2 + ((z - valve) / (1.05 * state.c * size["length"])) ** 2
        length = 0.55 * state.atrium_length * size["atrium"]
        atrium = ((u + edge + 4) / (21 * size["atrium"])) ** 2 + ((z - valve - 0.75 * length) / length) ** 2
        over = z < valve
        left = u < -0.6 * edge
        free_wall = left & np.where(over, (ventricle > 1) & (ventricle < 1.45), (atrium > 1) & (atrium < 1.3))
        level[free_wall] += 4
        chamber = left & np.where(over, ventricle <= 1, atrium <= 1)
        level[chamber] = (self.blood_db + self.right_blood_db)[chamber]
        leaflet = chamber & (np.abs(z - valve + 3 * state.valve) < 1.1)
        level[leaflet] = self.rim_db[leaflet]
        between = ~over & (u > -0.95 * edge) & (u < -0.55 * edge) & (z < state.h + state.atrium_length)
        level[between] = np.maximum(level, self.rim_db - 5)[between]  # the wall between the atria

    def _gain(self) -> np.ndarray:
        """Attenuation along the beam, beams in shadow, weak beams at the sector's sides; dB on the polar grid."""
        rng, poor = self.rng, 1 - self.scanner.quality
        radii, angles = self.grid.radii, self.grid.angles
        depth = radii / self.grid.depth_mm
        along = rng.uniform(-7, 3) * (depth - 0.5) + 1.5 * smooth_curve(rng, len(radii), len(radii) / 8)
        side = np.abs(angles) / self.grid.half_angle
        across = 1.3 * smooth_curve(rng, len(angles), len(angles) / 10)
        across -= rng.uniform(0, 5) * side**4
        shadow = np.zeros(self.shape)
        for _ in range(rng.poisson(0.5 + 2.5 * poor)):
            place, width = rng.uniform(-1, 1) * self.grid.half_angle, np.deg2rad(rng.uniform(2, 7))
            profile = np.exp(-(((angles - place) / width) ** 2))
            start = 1 / (1 + np.exp(-(radii - rng.uniform(5, 60)) / 6))
            shadow -= rng.uniform(3, 8 + 7 * poor) * np.outer(start, profile)
        return along[:, None] + across[None] + shadow

    def _haze(self) -> np.ndarray:
        """Power of what does not come from where it seems to: near-field clutter, reverberations, haze."""
        rng, scanner = self.rng, self.scanner
        radii = self.grid.radii - self.grid.near_mm
        haze = decibel(scanner.haze_db - radii / rng.uniform(5, 14) + 2 * smooth_curve(rng, len(radii), 12)) ** 2
        near = decibel(rng.uniform(-2, 6)) ** 2 * np.exp(-((radii / rng.uniform(5, 10)) ** 2))
        rings = 1 + 0.8 * np.sin(radii * 2 * np.pi / rng.uniform(2.5, 5))
        patchy = decibel(1.5 * self._smooth_field(15.0)) ** 2
        veil = decibel(scanner.haze_db - 7 + 3.5 * self._smooth_field(35.0)) ** 2
        speckle = np.abs(self.spread(self.clutter)) ** 2
        return (((haze + near * rings)[:, None] * patchy + veil) * speckle).astype(np.float32)
