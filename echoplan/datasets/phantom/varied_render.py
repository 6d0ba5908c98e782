"""The renderer of randomised phantoms: more anatomy around the ventricle, more artefacts, more ways to show them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from .heart import Cut
from .overlays import draw_overlays
from .polar_grid import PolarGrid
from .render import Renderer, Scanner
from .scatter import WallPoints, complex_noise, decibel, smooth_curve, spread_of_points


class VariedRenderer(Renderer):
    """Renders the frames of one clip of a randomised phantom."""

    def __init__(self, rng: np.random.Generator, grid: PolarGrid, end_diastole: Cut, scanner: Scanner) -> None:
        super().__init__(rng, grid, end_diastole, scanner)
        self.right_heart = {"width": rng.uniform(0.6, 1.6), "length": rng.uniform(0.7, 1.2),
                            "atrium": rng.uniform(0.7, 1.6)}  # fmt: skip
        self.right_blood_db = rng.uniform(0, 7) * np.clip(self._smooth_field(8.0), 0, None)
        # Leaflets that close far above the ring, as in dilated hearts, are not where the cavity ends.
        loudness = decibel(rng.uniform(-9, 3))
        self.valve = replace(self.valve, tenting=rng.uniform(0.5, 13), amplitude=self.valve.amplitude * loudness)
        self.wall = _varied_wall(rng, self.wall, end_diastole, grid)
        self.coarser = rng.uniform(1.1, 2.4) if rng.random() < 0.25 else 1.0
        self.smoothing = rng.uniform(0.3, 0.9) if rng.random() < 0.2 else 0.0
        self.sharpening = rng.uniform(0.3, 1.2) if rng.random() < 0.25 else 0.0
        self.overlays = rng.random() < 0.35

    def to_grey(self, power_db: np.ndarray) -> np.ndarray:
        """As the plain renderer's; then what the scanner's filters, a copy at lower resolution and its texts do."""
        grey = super().to_grey(power_db).astype(np.float32)
        if self.smoothing:
            grey = _blurred(grey, self.smoothing)
        if self.sharpening:
            grey += self.sharpening * (grey - _blurred(grey, 1.5))
        if self.coarser > 1:
            small = zoom(_blurred(grey, 0.4 * self.coarser), (1, 1 / self.coarser, 1 / self.coarser), order=1)
            grey = zoom(small, np.divide(grey.shape, small.shape), order=1)
        frames = np.where(self.grid.inside, np.clip(np.rint(grey), 0, 255), 0).astype(np.uint8)
        return draw_overlays(frames, self.rng) if self.overlays else frames

    def _background(self, cut: Cut) -> np.ndarray:
        """Brighter or darker as a whole, with vessels and sinuses below the ring and a bright band behind the heart."""
        rng = self.rng
        level = super()._background(cut) + rng.uniform(-5, 6)
        state = cut.state
        if rng.random() < 0.5:  # pericardium and lung behind the atria, an arc
            u, z = self._straight(cut)
            place = state.h + state.atrium_length * rng.uniform(0.8, 1.3) - rng.uniform(-0.006, 0.01) * u**2
            level += rng.uniform(4, 14) * np.exp(-(((z - place) / rng.uniform(2.5, 9)) ** 2))
        for _ in range(rng.poisson(0.7)):
            angle = rng.uniform(-0.8, 0.8) * self.grid.half_angle
            depth = rng.uniform(0.55, 1.0) * self.grid.depth_mm
            size = rng.uniform(5, 15)
            x, y = self.grid.polar_xy
            distance = np.hypot(x - depth * np.sin(angle), (y - depth * np.cos(angle)) / rng.uniform(0.6, 1.3)) / size
            level -= rng.uniform(4, 14) / (1 + np.exp((distance - 1) * 10))
            level += rng.uniform(0, 10) * np.exp(-(((distance - 1.12) / 0.15) ** 2))
        return level

    def _gain(self) -> np.ndarray:
        """Also sliders set wrong, attenuation, and a side where lung or rib takes the beams."""
        rng, radii, angles = self.rng, self.grid.radii, self.grid.angles
        depth = radii / self.grid.depth_mm
        along = rng.uniform(-10, 8) * (depth - 0.5)
        along += rng.uniform(0, 3) * smooth_curve(rng, len(radii), len(radii) / 5)
        gain = super()._gain() + along[:, None]
        if rng.random() < 0.4:
            side, edge, blur = rng.choice([-1, 1]), rng.uniform(0.0, 0.95), rng.uniform(0.03, 0.2)
            taken = 1 / (1 + np.exp(-(side * angles / self.grid.half_angle - edge) / blur))
            start = 1 / (1 + np.exp(-(radii - rng.uniform(-20, 60)) / rng.uniform(4, 15)))
            gain -= rng.uniform(4, 22) * np.outer(start, taken)
        return gain

    def _haze(self) -> np.ndarray:
        """Also clouds of clutter anywhere and echoes of the chest wall, arcs at equal distances below the probe."""
        rng = self.rng
        radii, angles = self.grid.radii - self.grid.near_mm, self.grid.angles / self.grid.half_angle
        power = super()._haze()
        speckle = np.abs(self.spread(complex_noise(rng, self.shape))) ** 2
        for _ in range(rng.poisson(0.8)):
            place, width = rng.uniform(0.0, 0.8) * self.grid.depth_mm, rng.uniform(12, 45)
            cloud = np.outer(np.exp(-(((radii - place) / width) ** 2)),
                             np.exp(-(((angles - rng.uniform(-1, 1)) / rng.uniform(0.3, 1.2)) ** 2)))  # fmt: skip
            power = power + decibel(rng.uniform(-20, -5)) ** 2 * cloud * speckle
        if rng.random() < 0.5:
            step, thick = rng.uniform(3, 9), rng.uniform(0.5, 1.2)
            middle, width = rng.uniform(-0.5, 0.5), rng.uniform(0.3, 1.0)
            across = np.exp(-(((angles - middle) / width) ** 2))
            for number in range(1, int(rng.integers(2, 7))):
                arc = np.exp(-(((radii - number * step) / thick) ** 2))
                power = power + decibel(rng.uniform(-4, 6) - 3.5 * number) ** 2 * np.outer(arc, across)
        return power.astype(np.float32)


def _blurred(frames: np.ndarray, sigma: float) -> np.ndarray:
    return gaussian_filter(frames, (0, sigma, sigma))


def _varied_wall(rng: np.random.Generator, wall: WallPoints, cut: Cut, grid: PolarGrid) -> WallPoints:
    """The wall louder or fainter as a whole and in parts, with papillary muscles that reach into the cavity."""
    places = np.linspace(-1.1, 1.1, 300)
    level = rng.normal(0, 3) + rng.uniform(0, 4) * smooth_curve(rng, 300, 30)
    loudness = np.interp(wall.position, places, level)
    # The border is drawn at the tips of the trabeculae; between them is blood, and the layer is hardly seen.
    share = np.interp(
        wall.position, places, np.clip(rng.uniform(0, 0.4) + 0.15 * smooth_curve(rng, 300, 25), 0.02, 0.6)
    )
    share = np.clip(share + rng.uniform(0, 0.3) * np.exp(-((wall.position / 0.3) ** 2)), 0, 0.7)
    loudness -= rng.uniform(2, 14) * np.clip(1 - wall.layer / share, 0, 1)
    loudness[wall.layer < 0] += rng.uniform(-10, 2)  # specks of the trabeculae
    loudness[wall.layer > 1] += rng.uniform(-14, 2)  # pericardium
    amplitude = wall.amplitude * decibel(loudness)
    parts = [(wall.position, wall.layer, amplitude)]
    for side in (-1, 1):
        if rng.random() < 0.65:
            parts.append(_papillary_muscle(rng, side, cut, grid))
    return WallPoints(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _papillary_muscle(
    rng: np.random.Generator, side: int, cut: Cut, grid: PolarGrid
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of a muscle that leaves the wall half-way and runs towards the ring, with the chordae at its tip."""
    count = 400
    along = rng.uniform(0, 1, count)
    start, reach = rng.uniform(0.25, 0.5), rng.uniform(0.12, 0.35)
    deep, thick = rng.uniform(0.2, 1.6), rng.uniform(0.08, 0.22)
    position = side * (start + reach * along) + 0.02 * rng.standard_normal(count)
    layer = -0.1 - deep * along + thick * rng.standard_normal(count) * (1 - 0.6 * along)
    covered = 4 * thick * reach
    level = rng.uniform(-12, 4) + 3 * smooth_curve(rng, 50, 6)[(along * 49).astype(int)]
    amplitude = decibel(level) * np.sqrt(covered * spread_of_points(cut, grid, position, layer) / count)
    return position, layer, amplitude * complex_noise(rng, count)
