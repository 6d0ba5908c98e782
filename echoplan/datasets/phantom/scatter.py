"""What reflects: material points that ride on the wall and the valve, and how strongly each of them does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from .heart import Cut
from .polar_grid import PolarGrid, bilinear


@dataclass(frozen=True)
class WallPoints:
    """Scatterers of the wall, of its trabeculae and of the pericardium.

    Attributes:
        position, layer: material coordinates of `Cut.wall_point`, each (N,).
        amplitude: complex reflectivity (N,), the spread of the points in the polar grid already allowed for.
    """

    position: np.ndarray
    layer: np.ndarray
    amplitude: np.ndarray

    def splat(self, cut: Cut, grid: PolarGrid) -> np.ndarray:
        """The points' reflectivity on the polar grid at this moment, complex64 (R, B)."""
        return splat(*cut.to_image(*cut.wall_point(self.position, self.layer)), self.amplitude, grid)


def splat(x: np.ndarray, y: np.ndarray, amplitude: np.ndarray, grid: PolarGrid) -> np.ndarray:
    """Spread complex points at (x, y) mm onto the polar grid, bilinearly; points outside are left out."""
    row, column = grid.to_polar_index(x, y)
    shape = (len(grid.radii), len(grid.angles))
    kept = (row >= 0) & (row <= shape[0] - 1) & (column >= 0) & (column <= shape[1] - 1)
    cells, weights = bilinear(row[kept], column[kept], shape)
    values = weights * amplitude[kept]
    size = shape[0] * shape[1]
    real = np.bincount(cells.ravel(), values.real.ravel(), size)
    imaginary = np.bincount(cells.ravel(), values.imag.ravel(), size)
    return (real + 1j * imaginary).astype(np.complex64).reshape(shape)


def decibel(value: np.ndarray | float) -> np.ndarray:
    """dB -> factor on the amplitude."""
    return 10 ** (np.asarray(value) / 20)


def complex_noise(rng: np.random.Generator, shape: int | tuple[int, ...]) -> np.ndarray:
    """Circular complex noise of mean power 1, complex64."""
    real, imaginary = rng.standard_normal((2, *np.atleast_1d(shape)), dtype=np.float32) * np.float32(np.sqrt(0.5))
    return real + 1j * imaginary


def smooth_curve(rng: np.random.Generator, count: int, width: float) -> np.ndarray:
    """Smooth noise of unit standard deviation along `count` samples, correlated over `width` of them."""
    curve = gaussian_filter1d(rng.standard_normal(count + int(8 * width)), width, mode="wrap")
    return ((curve - curve.mean()) / curve.std())[:count]


def wall_points(rng: np.random.Generator, cut: Cut, grid: PolarGrid, *, quality: float, dropouts: float) -> WallPoints:
    """Draw the wall's scatterers at end-diastole.

    Args:
        quality: 0 poor to 1 good.
        dropouts: 0 none to 1 strong: how far whole segments of the wall fade.
    """
    parts = [
        _muscle(rng, cut, grid, quality, dropouts),
        _trabeculae(rng),
        _pericardium(rng, cut, grid),
    ]
    return WallPoints(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def spread_of_points(cut: Cut, grid: PolarGrid, position: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """Polar cells that a unit of (position, layer) covers: evenly drawn points must be louder where they thin out."""

    def index(p: np.ndarray, f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return grid.to_polar_index(*cut.to_image(*cut.wall_point(p, f)))

    step = 1e-3
    row, column = index(position, layer)
    row_p, column_p = index(position + step, layer)
    row_f, column_f = index(position, layer + step)
    area = np.abs((row_p - row) * (column_f - column) - (row_f - row) * (column_p - column)) / step**2
    return np.minimum(area, 20 * np.median(area))


def _muscle(
    rng: np.random.Generator, cut: Cut, grid: PolarGrid, quality: float, dropouts: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count = int(0.35 * len(grid.radii) * len(grid.angles))
    samples = 400
    place = np.linspace(-1, 1, samples)
    position, share = rng.uniform(-1, 1, count), rng.uniform(0, 1, count)
    # Trabeculae and crypts: what one sees of the inner border wanders about the true one by a millimetre or so.
    wander = 0.07 + 0.13 * (1 - quality)
    inner, outer = (np.interp(position, place, wander * smooth_curve(rng, samples, 14)) for _ in range(2))
    layer = inner + share * (1 + outer - inner)
    along = 1.5 + 4.2 * smooth_curve(rng, samples, 25) + 2.5 * smooth_curve(rng, samples, 6)
    # In CAMUS the septal and inferior wall (left) shine, the lateral and anterior wall (right) fades, as does the apex.
    along += -rng.uniform(0, 9) * np.clip(place, 0, 1) + rng.uniform(0, 6) * np.clip(-place, 0, 1)
    along -= rng.uniform(0, 8) * np.exp(-((place / 0.28) ** 2))
    for _ in range(1 + rng.poisson(0.5 + 2.5 * (1 - quality))):
        centre, width = rng.choice([rng.uniform(-0.25, 0.95), rng.uniform(-0.9, 0.9)]), rng.uniform(0.08, 0.3)
        along -= dropouts * rng.uniform(8, 22) * np.exp(-(((place - centre) / width) ** 2))
    # Beams that run along the fibres bring less back than those that cross them.
    x, y = cut.to_image(*cut.wall_point(place, np.full(samples, 0.5)))
    running = np.abs(np.cos(np.arctan2(np.gradient(x), np.gradient(y)) - np.arctan2(x, y)))
    along += 3.5 * (1 - running)
    layers = np.array([2.5, 0.5, -1.0, -0.5, 0.5]) + rng.normal(0, 0.8, 5)
    loudness = np.interp(position, place, along) + np.interp(layer, np.linspace(0, 1, 5), layers)
    amplitude = decibel(loudness) * np.sqrt(2 * spread_of_points(cut, grid, position, layer) / count)
    return position, layer, amplitude * complex_noise(rng, count)


def _clusters(
    rng: np.random.Generator, clusters: int, places: tuple[float, float],
    layers: tuple[float, float], loudness: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Bright specks: each cluster is a few points within about a resolution cell."""
    each = 12
    position = np.repeat(rng.uniform(*places, clusters), each) + rng.normal(0, 0.012, clusters * each)
    layer = np.repeat(rng.uniform(*layers, clusters), each) + rng.normal(0, 0.06, clusters * each)
    strength = np.repeat(decibel(rng.uniform(*loudness, clusters)), each)
    return position, layer, strength * np.sqrt(6 / each) * complex_noise(rng, clusters * each)


def _trabeculae(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rim = _clusters(rng, int(rng.integers(10, 60)), (-0.95, 0.95), (-0.4, 0.05), (-2, 8))
    side = rng.uniform(0.35, 0.7)  # a papillary muscle on the free wall, sometimes one on the other side
    muscle = _clusters(rng, int(rng.integers(0, 22)), (side - 0.13, side + 0.13), (-0.9, 0.0), (-3, 6))
    other = _clusters(rng, int(rng.integers(0, 8)), (-0.7, -0.3), (-0.7, 0.0), (-4, 6))
    position, layer, amplitude = (np.concatenate(values) for values in zip(rim, muscle, other, strict=True))
    return position, layer, amplitude


def _pericardium(rng: np.random.Generator, cut: Cut, grid: PolarGrid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count = int(0.12 * len(grid.radii) * len(grid.angles))
    position, layer = rng.uniform(-1.02, 1.02, count), rng.uniform(0.97, 1.2, count)
    samples = np.linspace(-1.02, 1.02, 300)
    level = rng.uniform(0, 9) + 4.5 * smooth_curve(rng, 300, 14)
    level += rng.uniform(2, 7) * np.clip(np.abs(samples) * 1.6 - 0.8, 0, 1)  # towards the ring it shines most
    if cut.view == "A4C":
        level -= 14 * np.clip(-samples * 4, 0, 1)  # the septum has none
    level -= 8 * np.exp(-((samples / 0.2) ** 2))
    amplitude = decibel(np.interp(position, samples, level)) * np.sqrt(
        0.23 * 2.04 * spread_of_points(cut, grid, position, layer) / count
    )
    return position, layer, amplitude * complex_noise(rng, count)


@dataclass(frozen=True)
class ValvePoints:
    """The mitral valve's leaflets and ring: reflectivity of points evenly along both leaflets.

    Attributes:
        share: place on the leaflet, 0 hinge to 1 tip, (N,).
        side: -1 left or 1 right leaflet, (N,).
        thickness: distance from the leaflet's line in mm, (N,).
        amplitude: complex reflectivity, (N,).
        tenting: depth of the closed leaflets towards the apex in mm.
    """

    share: np.ndarray
    side: np.ndarray
    thickness: np.ndarray
    amplitude: np.ndarray
    tenting: float

    def splat(self, cut: Cut, grid: PolarGrid) -> np.ndarray:
        """The valve's reflectivity on the polar grid, complex64 (R, B)."""
        state = cut.state
        ring = state.short_axis(cut.view) * np.sqrt(1 - (state.h / state.c) ** 2)
        closed = np.arctan2(self.tenting, ring)
        angle = closed + state.valve * (1.25 - closed)
        length = np.where(self.side < 0, 0.95, 0.7) * ring * state.valve + (1 - state.valve) * ring / np.cos(closed)
        reach = self.share * length
        sag = 2.0 * np.sin(np.pi * self.share) * (1 - state.valve)
        u = self.side * (ring - reach * np.cos(angle)) + self.side * self.thickness * np.sin(angle)
        z = state.h - reach * np.sin(angle) + sag + self.thickness * np.cos(angle)
        return splat(*cut.to_image(u, z), self.amplitude, grid)


def valve_points(rng: np.random.Generator, grid: PolarGrid) -> ValvePoints:
    """Draw the valve's scatterers; loud at the ring and where the leaflets meet."""
    count = 500
    share = rng.uniform(-0.12, 1.0, count)
    side = rng.choice([-1.0, 1.0], count)
    level = rng.uniform(-2, 8) + 5 * smooth_curve(rng, 200, 12)[(np.clip(share, 0, 1) * 199).astype(int)]
    level += np.where(share < 0.08, rng.uniform(0, 6), 0)
    amplitude = decibel(level) * np.sqrt(120 / count) * complex_noise(rng, count)
    return ValvePoints(share, side, rng.normal(0, 0.5, count), amplitude, rng.uniform(0.5, 5.0))
