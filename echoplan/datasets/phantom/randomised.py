"""Randomised phantoms: hearts, probes and settings of far more kinds than one hospital has, to learn from them alone.

What a network may rely on must be what all echoes share: blood darker than what surrounds it, a wall between two
borders, a valve between two chambers, speckle that widens with depth. All else is drawn from wide ranges.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from echoplan.errors import EchoPlanError

from .heart import Cut, Heart, HeartState, Pose, semi_axes
from .polar_grid import PolarGrid
from .render import Scanner
from .shape import Shape, balanced_width

SMALLEST_SIDE = 112  # pixels


def varied_heart(rng: np.random.Generator, *, ef_percent: float) -> Heart:
    """A heart from small to dilated (EDV 30 to 300 mL), with walls from thin to hypertrophied (6 to 19 mm)."""
    edv = float(np.clip(rng.lognormal(np.log(98 - 0.8 * (ef_percent - 50)), 0.42), 30, 300))
    truncation, slenderness = rng.uniform(0.15, 0.6), rng.uniform(1.35, 2.2)
    a, b, c, mean_radius = semi_axes(edv, truncation, slenderness, rng.uniform(0.75, 1.3))
    wall = float(np.clip(rng.lognormal(np.log(11), 0.22), 6, 19))
    state = HeartState(
        a, b, c, truncation * c, wall, wall * rng.uniform(0.75, 1.6), rng.uniform(25, 62),
        mean_radius * rng.uniform(0.65, 1.2), 0.0,
    )  # fmt: skip
    return Heart(
        state, ef_percent, ef_percent / 100 * rng.uniform(0.15, 0.35), rng.uniform(-0.08, 0.08),
        balanced_width(rng, truncation), -1 if rng.random() < 0.2 else 1,
    )  # fmt: skip


def varied_scanner(rng: np.random.Generator, quality: float) -> Scanner:
    """A scanner of any make: frequency, gain, dynamic range and grey curve from wide ranges."""
    poor = 1 - quality
    frequency = rng.uniform(0.7, 1.5)  # times 2.5 MHz or so: a higher one is sharper both ways and sees less deep
    return replace(
        Scanner.random(rng, quality),
        axial_mm=rng.uniform(0.3, 0.5) / frequency,
        lateral_rad=np.deg2rad(rng.uniform(0.45, 0.8) + 0.3 * poor) / frequency,
        blood_db=rng.uniform(-26, -11) + 6 * poor,
        haze_db=rng.uniform(-24, -9) + 7 * poor,
        noise_db=rng.uniform(-30, -17) + 7 * poor,
        dynamic_range_db=rng.uniform(36, 66),
        zero_db_grey=rng.uniform(0.45, 0.75),
        gamma=rng.uniform(0.8, 2.0),
    )


def place_freely(
    rng: np.random.Generator, heart: Heart, view: str, size: tuple[int, int]
) -> tuple[PolarGrid, Pose, Shape]:
    """A sector, and where and how the heart lies in it: the cavity may leave it by a little, the atrium by much."""
    state = heart.end_diastole
    for trial in range(60):
        ease = 0.95 ** max(0, trial - 10)
        shape = Shape.random(rng, heart.width, view).smaller(ease)
        tilt = ease * np.deg2rad(rng.normal(5 if view == "A4C" else 2, 10))
        depth = rng.uniform(3, 32)
        x = ease * (rng.normal(0, 5) - 0.35 * np.sin(tilt) * (state.c + state.h))
        bottom = depth + state.c + state.apical_wall + state.h + state.atrium_length * rng.uniform(0.0, 1.6)
        grid = _varied_sector(rng, size, bottom)
        pose = Pose(x, depth + grid.near_mm, tilt, 0.0, heart.side)
        if _share_seen(Cut(state, view, pose, shape), grid) > (0.9 if trial < 50 else 0.75):
            return grid, pose, shape
    raise EchoPlanError(f"the phantom's heart does not fit a frame of {size} pixels")


def varied_size(rng: np.random.Generator, largest: tuple[int, int]) -> tuple[int, int]:
    """(H, W) from about 112 pixels up to `largest`; a smaller one stays as it is."""
    share = min(1.0, rng.uniform(min(1.0, SMALLEST_SIDE / min(largest)), 1.0))
    narrower, least = rng.uniform(0.85, 1.0, 2), [min(SMALLEST_SIDE, side) for side in largest]
    rows, columns = (max(low, round(side * share * by)) for low, side, by in zip(least, largest, narrower, strict=True))
    return rows, columns


def _varied_sector(rng: np.random.Generator, size: tuple[int, int], depth_mm: float) -> PolarGrid:
    """A phased array's sector or, less often, one with a round face; it fills the frame, leaves room or is cut off."""
    half_angle = np.deg2rad(rng.uniform(32, 46))
    near = rng.uniform(4, 30) if rng.random() < 0.15 else 0.0
    top = near * np.cos(half_angle)
    spacing = max((depth_mm + near - top) / (size[0] - 1), 2 * (depth_mm + near) * np.sin(half_angle) / (size[1] - 2))
    spacing *= rng.uniform(0.93, 1.25) if rng.random() < 0.5 else 1.0
    room = [
        max(0.0, size[0] - (depth_mm + near - top) / spacing),
        0.5 * max(0.0, size[1] - 2 * (depth_mm + near) * np.sin(half_angle) / spacing),
    ]
    shift = (room[0] * rng.uniform(0, 1) - top / spacing, room[1] * rng.uniform(-1, 1))
    return PolarGrid(size, float(spacing), float(depth_mm + near), float(half_angle), float(near), shift)


def _share_seen(cut: Cut, grid: PolarGrid) -> float:
    """Share of the cavity's area that lies in the sector and in the frame."""
    state = cut.state
    across, z = np.meshgrid(np.linspace(-0.98, 0.98, 25), np.linspace(-0.98 * state.c, state.h, 40))
    half = cut.state.short_axis(cut.view) * np.sqrt(1 - (z / state.c) ** 2)
    x, y = cut.to_image(across * half, z)
    row, column = y / grid.spacing_mm + grid.point[0], x / grid.spacing_mm + grid.point[1]
    seen = (row >= 0) & (row <= grid.size[0] - 1) & (column >= 0) & (column <= grid.size[1] - 1)
    radius = np.hypot(x, y)
    seen &= (radius >= grid.near_mm) & (radius <= grid.depth_mm) & (np.abs(np.arctan2(x, y)) <= grid.half_angle)
    return float((seen * half).sum() / half.sum())
