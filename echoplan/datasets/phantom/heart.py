"""The heart of the phantom: a truncated ellipsoid whose volume is known exactly, and its two apical cuts.

The cavity is the ellipsoid (x/a)^2 + (y/b)^2 + (z/c)^2 <= 1 between its apex z = -c and the mitral plane z = h. The A4C
plane is y = 0 (semi-axes a, c), the A2C plane x = 0 (semi-axes b, c). The axis is bent within the plane: every slice
across it is shifted as a whole, so that neither the volume, nor the area of a cut, nor the diameter of a disc changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .shape import Shape

BACKGROUND, CAVITY, MYOCARDIUM, ATRIUM = 0, 1, 2, 3


def truncated_ellipsoid_volume_ml(a: float, b: float, c: float, h: float) -> float:
    """Volume in mL of an ellipsoid (semi-axes in mm) from z = -c to z = h: pi a b (h + 2c/3 - h^3 / (3 c^2))."""
    return np.pi * a * b * (h + 2 * c / 3 - h**3 / (3 * c**2)) / 1000.0


@dataclass(frozen=True)
class HeartState:
    """The heart at one moment; lengths in mm.

    Attributes:
        a, b, c, h: semi-axes in the A4C plane, in the A2C plane, along the axis; height of the mitral plane.
        wall: thickness of the wall at the equator. The outer semi-axes are a + wall, b + wall, c + apical_wall.
        apical_wall: thickness of the wall at the apex.
        atrium_length, atrium_width: length of the left atrium below the mitral plane and its half width.
        contraction: 0 at end-diastole, 1 at end-systole.
        valve: 0 closed to 1 wide open.
    """

    a: float
    b: float
    c: float
    h: float
    wall: float
    apical_wall: float
    atrium_length: float
    atrium_width: float
    contraction: float
    valve: float = 0.0

    @property
    def volume_ml(self) -> float:
        """Volume of the cavity in mL."""
        return truncated_ellipsoid_volume_ml(self.a, self.b, self.c, self.h)

    @property
    def wall_volume_ml(self) -> float:
        """Volume of the wall above the mitral plane in mL."""
        outer = (self.a + self.wall, self.b + self.wall, self.c + self.apical_wall)
        return truncated_ellipsoid_volume_ml(*outer, self.h) - self.volume_ml

    def short_axis(self, view: str) -> float:
        """Semi-axis across the cut of `view`, in mm."""
        return self.a if view == "A4C" else self.b


@dataclass(frozen=True)
class Heart:
    """A heart at end-diastole and how it contracts.

    Attributes:
        end_diastole: the relaxed heart.
        ef_percent: ejection fraction of the true volumes.
        shortening: share of the axis' length lost at end-systole.
        asymmetry: how much less the A4C diameter shrinks than the A2C diameter; the slices' areas do not depend on it.
        width: of both cuts' `Shape`; without shapes it is not used.
        side: of both cuts' `Pose`.
    """

    end_diastole: HeartState
    ef_percent: float
    shortening: float
    asymmetry: float
    width: np.ndarray = field(default_factory=lambda: Shape().width)
    side: int = 1

    def state(self, contraction: float, valve: float = 0.0) -> HeartState:
        """The heart at `contraction` in 0..1: the cavity's volume falls linearly in it, the wall's volume stays."""
        start = self.end_diastole
        axial = 1 - self.shortening * contraction
        radial = np.sqrt((1 - self.ef_percent / 100 * contraction) / axial)
        skew = 1 + self.asymmetry * contraction
        a, b = start.a * radial * skew, start.b * radial / skew
        c, h = start.c * axial, start.h * axial
        ratio = start.apical_wall / start.wall

        def excess(wall: float) -> float:
            outer = truncated_ellipsoid_volume_ml(a + wall, b + wall, c + ratio * wall, h)
            return outer - truncated_ellipsoid_volume_ml(a, b, c, h) - start.wall_volume_ml

        low, high = 0.0, 5 * start.wall
        for _ in range(45):
            middle = (low + high) / 2
            low, high = (middle, high) if excess(middle) < 0 else (low, middle)
        wall = (low + high) / 2
        # The far wall of the atrium follows the ring by a quarter of its way only: the atrium fills.
        base_moved = (start.c + start.apical_wall + start.h) - (c + ratio * wall + h)
        return HeartState(
            a, b, c, h, wall, ratio * wall,
            start.atrium_length + 0.75 * base_moved, start.atrium_width * (1 + 0.08 * contraction), contraction, valve,
        )  # fmt: skip


@dataclass(frozen=True)
class Pose:
    """Where the cut lies in the sector: outer apex at (x, depth) mm, axis turned by `tilt` rad, bent by `bend` mm.

    `side` is -1 where the picture is swapped left and right.
    """

    x: float
    depth: float
    tilt: float
    bend: float
    side: int = 1

    def to_local(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image (lateral, depth) mm -> (across, along the axis from the outer apex) mm, the bend not yet undone."""
        dx, dy = self.side * x - self.x, y - self.depth
        cosine, sine = np.cos(self.tilt), np.sin(self.tilt)
        return dx * cosine - dy * sine, dx * sine + dy * cosine

    def to_image(self, u: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inverse of `to_local`."""
        cosine, sine = np.cos(self.tilt), np.sin(self.tilt)
        return self.side * (self.x + u * cosine + along * sine), self.depth - u * sine + along * cosine


@dataclass(frozen=True)
class Cut:
    """One apical cut through the heart at one moment; coordinates (u, z) in mm, u across, z along the axis.

    Without a `shape` it is the ellipsoid's, bent by the pose.
    """

    state: HeartState
    view: str
    pose: Pose
    shape: Shape | None = None

    @property
    def origin(self) -> float:
        """Distance in mm of z = 0 from the outer apex."""
        return self.state.c + self.state.apical_wall

    def _share(self, z: np.ndarray) -> np.ndarray:
        return (z + self.state.c) / (self.state.c + self.state.h)

    def _bend(self, z: np.ndarray) -> np.ndarray:
        share = np.clip(self._share(z), -0.2, 1.0)
        return self.pose.bend * 4 * share * (1 - share)

    def straight(self, u: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Local coordinates of `Pose.to_local` -> (u, z) of the unbent ellipsoid."""
        z = along - self.origin
        if self.shape is None:
            return u - self._bend(z), z
        z = z - self.shape.slant * u
        share = self._share(z)
        return (u - self.shape.shift_at(share)) / self.shape.width_at(share), z

    def to_image(self, u: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(u, z) of the unbent ellipsoid -> image (lateral, depth) mm."""
        if self.shape is None:
            return self.pose.to_image(u + self._bend(z), z + self.origin)
        share = self._share(z)
        u = u * self.shape.width_at(share) + self.shape.shift_at(share)
        return self.pose.to_image(u, z + self.shape.slant * u + self.origin)

    def wall_point(self, position: np.ndarray, layer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Material point of the wall: position -1..1 from hinge to hinge over the apex, layer 0..1 from inside out.

        Layers below 0 lie in the cavity, above 1 outside the heart. Returns (u, z) in mm.
        """
        state, short = self.state, self.state.short_axis(self.view)
        inner = position * np.arccos(-state.h / state.c)
        outer = position * np.arccos(-state.h / (state.c + state.apical_wall))
        inner_u, inner_z = short * np.sin(inner), -state.c * np.cos(inner)
        outer_u = (short + state.wall) * np.sin(outer)
        outer_z = -(state.c + state.apical_wall) * np.cos(outer)
        if self.shape is not None:
            outer_u = outer_u + self.shape.outer_shift
        return inner_u + layer * (outer_u - inner_u), inner_z + layer * (outer_z - inner_z)

    def levels(self, u: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Squared elliptic radii of the cavity, of the outer surface and of the left atrium: below 1 is inside."""
        state, short = self.state, self.state.short_axis(self.view)
        cavity = (u / short) ** 2 + (z / state.c) ** 2
        outer_u, atrium_u = u, u
        if self.shape is not None:
            outer_u = u - self.shape.outer_shift
            atrium_u = u - self.shape.atrium_shift - self.shape.atrium_lean * (z - state.h)
        outer = (outer_u / (short + state.wall)) ** 2 + (z / (state.c + state.apical_wall)) ** 2
        length = state.atrium_length
        atrium = (atrium_u / state.atrium_width) ** 2 + ((z - state.h - 0.35 * length) / (0.65 * length)) ** 2
        return cavity, outer, atrium

    def wall_end(self, u: np.ndarray) -> np.ndarray | float:
        """z in mm where the wall ends below the ring."""
        state = self.state
        if self.shape is None:
            return state.h
        ring = self.state.short_axis(self.view) * np.sqrt(1 - (state.h / state.c) ** 2)
        return state.h + self.shape.flare * np.clip(np.abs(u) - ring, 0, 10)

    def labels(self, u: np.ndarray, along: np.ndarray) -> np.ndarray:
        """Labels uint8 at local coordinates: 0 background, 1 LV cavity, 2 myocardium, 3 left atrium."""
        u, z = self.straight(u, along)
        cavity, outer, atrium = self.levels(u, z)
        above = z <= self.state.h
        labels = np.full(u.shape, BACKGROUND, np.uint8)
        labels[~above & (atrium <= 1)] = ATRIUM
        labels[(z <= self.wall_end(u)) & (outer <= 1)] = MYOCARDIUM
        labels[above & (cavity <= 1)] = CAVITY
        return labels


def semi_axes(edv_ml: float, truncation: float, slenderness: float, ratio: float) -> tuple[float, float, float, float]:
    """Semi-axes a, b and c, and the mean of the first two, in mm, of an ellipsoid cut off at its mitral plane.

    Args:
        edv_ml: its volume.
        truncation: height of the mitral plane as a share of c.
        slenderness: length from apex to mitral plane, of the mean diameter.
        ratio: a to b.
    """
    slice_share = truncation + 2 / 3 - truncation**3 / 3
    length = (edv_ml * 1000 * 4 * slenderness**2 * (1 + truncation) / (np.pi * slice_share)) ** (1 / 3)
    c, mean_radius = length / (1 + truncation), length / (2 * slenderness)
    return mean_radius * np.sqrt(ratio), mean_radius / np.sqrt(ratio), c, mean_radius


def random_heart(rng: np.random.Generator, *, ef_percent: float) -> Heart:
    """A heart of plausible size: EDV about 60 to 220 mL, larger where the ejection fraction is low."""
    edv = float(np.clip(rng.lognormal(np.log(118 - 0.5 * (ef_percent - 50)), 0.24), 55, 240))
    truncation, slenderness = rng.uniform(0.25, 0.55), rng.uniform(1.6, 2.05)
    a, b, c, mean_radius = semi_axes(edv, truncation, slenderness, rng.uniform(0.86, 1.16))
    wall = rng.uniform(7.5, 11.5)
    state = HeartState(
        a, b, c, truncation * c, wall, wall * rng.uniform(0.65, 0.9), rng.uniform(30, 46),
        mean_radius * rng.uniform(0.78, 1.0), 0.0,
    )  # fmt: skip
    return Heart(state, ef_percent, ef_percent / 100 * rng.uniform(0.2, 0.32), rng.uniform(-0.05, 0.05))


def contraction_curve(phase: np.ndarray, systole: float) -> tuple[np.ndarray, np.ndarray]:
    """Contraction (0..1) and opening of the mitral valve (0..1) over the beat.

    Args:
        phase: time since end-diastole in beats, any shape; periodic.
        systole: share of the beat from end-diastole to end-systole.

    Contraction rises strictly to end-systole; then come early filling, diastasis and the atrial kick.
    """
    phase = np.mod(phase, 1.0)
    rise = np.clip(phase / systole, 0, 1)
    ejecting = 0.7 * (1 - np.cos(np.pi * rise)) / 2 + 0.3 * rise
    rest = np.clip((phase - systole) / (1 - systole), 0, 1)
    early = np.clip(rest / 0.45, 0, 1)
    kick = np.clip((rest - 0.72) / 0.28, 0, 1)
    filled = 0.76 * (1 - np.cos(np.pi * early)) / 2 + 0.04 * rest + 0.2 * (1 - np.cos(np.pi * kick)) / 2
    contraction = np.where(phase <= systole, ejecting, 1 - filled)
    early_open = np.sin(np.pi * np.clip(rest / 0.5, 0, 1)) ** 0.7
    kick_open = 0.6 * np.sin(np.pi * kick)
    return contraction, np.where(phase <= systole, 0.0, np.maximum(early_open, kick_open))
