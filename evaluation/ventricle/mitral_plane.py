"""Where on its outline a ventricle's base lies: the two hinge points of the mitral valve, by shape alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter1d

from echoplan.errors import EchoPlanError

from .contour import Points, cross, resample, signed_area

_SAMPLES = 120  # points along the contour among which the two hinge points are sought
_FINE = 400  # points along the contour among which they are placed
_RAGGED = 1.024  # perimeter over that of the smoothed outline; CAMUS' cavities have 1.010 to 1.025
_ARM = 0.08  # share of the perimeter on each side of a point over which its turning is measured
_CORNER_REACH = 0.06  # share of the perimeter on each side of a point within which its corner is sought
_FLAT = 0.88  # chord / arc of a base is at least this
# The line through the base: its ends, where corners are rounded, are left out.
_BASE_MARGIN = 0.15
_FEWEST_BASE_POINTS = 5
_ROUNDS = 3
_FARTHEST_MOVE = 0.06  # of a hinge onto that line, as a share of the chord
_IN_CACHE = 256  # pairs whose distances to all points stay in a processor's cache
_TRIED_FIRST = 16  # pairs, of which the best says what all others have to beat
# What a base looks like, as penalties; fitted to the hinge points of CAMUS' labels (where cavity, myocardium and atrium
# meet) and to half-ellipsoids, both also with rounded corners and ragged edges, at any rotation.
_PENALTY_BULGE = 1.0
_PENALTY_ROUND_CORNERS = 0.07
_PENALTY_SKEWED = 0.10
_PENALTY_WIDTH = 0.04
_PENALTY_SHORT = 0.02
_PENALTY_LOPSIDED = 0.01
_PENALTY_AGAINST_HINT = 0.3


def find_mitral_plane(contour: Points, towards: ArrayLike | None = None) -> tuple[Points, float]:
    """The two ends (2, 2) of the base of a closed contour (N, 2), and how unlike a base it looks (0: a perfect one).

    Every pair of points on the smoothed outline is rated by how flat the arc between them is, how sharply the outline
    turns at its ends, and how well it lies across the long axis and halves the cavity. The ends of the best pair are
    moved to the nearest corners of the unsmoothed outline, and these onto the line that fits the base between them.

    Args:
        contour: counter-clockwise, in mm.
        towards: (2,), rough direction from base to apex if known.

    Raises:
        EchoPlanError: no part of the outline can be a base.
    """
    outline = gaussian_filter1d(resample(contour, _SAMPLES), 1.0, axis=0, mode="wrap")
    first, second, penalty = _best_pair(outline, towards)
    fine = resample(contour, _FINE)
    corners = [_nearest_corner(fine, outline[index]) for index in (first, second)]
    return _levelled(fine, *corners), penalty


def is_ragged(contour: Points) -> bool:
    """Whether a closed contour (N, 2) has teeth and notches so large that a ragged base would not look flat."""
    outline = gaussian_filter1d(resample(contour, _SAMPLES), 1.0, axis=0, mode="wrap")
    smoother = gaussian_filter1d(outline, 2.0, axis=0, mode="wrap")
    return _perimeter(outline) > _RAGGED * _perimeter(smoother)


def _perimeter(contour: Points) -> float:
    return float(np.hypot(*(np.roll(contour, -1, axis=0) - contour).T).sum())


def _best_pair(outline: Points, towards: ArrayLike | None) -> tuple[int, int, float]:
    """Indices of the points of a counter-clockwise outline (N, 2) where the base starts and ends, and its penalty.

    The costly terms, of the long axis, are worked out for those pairs alone that could still be the best.
    """
    first, second, arc, chord = _plausible_pairs(outline)
    size = np.sqrt(signed_area(outline))
    roundness = 1 - np.clip(_turning(outline), -0.5, np.pi / 2) / (np.pi / 2)
    ends = _PENALTY_BULGE * (arc / chord - 1) + _PENALTY_ROUND_CORNERS * (roundness[first] + roundness[second])
    width = _PENALTY_WIDTH * np.log(chord / size) ** 2
    # No axis is longer than the diagonal of the box around the outline; all other terms only add to a penalty.
    least = ends + width - _PENALTY_SHORT * np.log(np.hypot(*np.ptp(outline, axis=0)) / size)

    def rate(some: NDArray[np.intp]) -> tuple[Points, Points]:
        """The penalties of some pairs, and with them what speaks against them by `towards`."""
        axis, skewed, lopsided = _axis_terms(outline, first[some], second[some], chord[some])
        length = np.hypot(*axis.T)
        rated = ends[some] + _PENALTY_SKEWED * skewed + width[some] - _PENALTY_SHORT * np.log(length / size)
        rated += _PENALTY_LOPSIDED * lopsided
        if towards is None:
            return rated, rated
        hint = np.asarray(towards, dtype=np.float64)
        return rated, rated + _PENALTY_AGAINST_HINT * (1 - axis @ hint / (length * np.linalg.norm(hint)))

    some = np.argsort(least)[:_TRIED_FIRST]
    some = np.flatnonzero(least <= rate(some)[1].min())
    rated, with_hint = rate(some)
    best = int(np.argmin(with_hint))
    return int(first[some[best]]), int(second[some[best]]), float(rated[best])


def _axis_terms(
    outline: Points, first: NDArray[np.intp], second: NDArray[np.intp], chord: Points
) -> tuple[Points, Points, Points]:
    """Of pairs of points (P,): the long axis (P, 2), how far it is from standing on the chord, and `_lopsidedness`."""
    middle = (outline[first] + outline[second]) / 2
    # |m - o|^2 without |m|^2, which is the same for all points o that one middle m has to choose from.
    own, apex = np.sum(outline**2, axis=1), np.empty(len(middle), np.intp)
    for start in range(0, len(middle), _IN_CACHE):
        both = 2 * middle[start : start + _IN_CACHE] @ outline.T
        np.subtract(own, both, out=both).argmax(axis=1, out=apex[start : start + _IN_CACHE])
    axis = outline[apex] - middle
    skewed = np.abs(np.sum(axis * (outline[second] - outline[first]), axis=1)) / (np.hypot(*axis.T) * chord)
    return axis, skewed, _lopsidedness(outline, middle, first, second, apex)


def _plausible_pairs(outline: Points) -> tuple[NDArray[np.intp], NDArray[np.intp], Points, Points]:
    """Pairs of points that could end a base: their indices, the length of the arc between them and of the chord."""
    steps = np.hypot(*(np.roll(outline, -1, axis=0) - outline).T)
    position, perimeter = np.concatenate(([0.0], np.cumsum(steps)[:-1])), steps.sum()
    size = np.sqrt(signed_area(outline))
    arc = (position[None] - position[:, None]) % perimeter
    chord = np.hypot(*(outline[None] - outline[:, None]).transpose(2, 0, 1))
    plausible = (chord > 0.25 * size) & (chord < 1.6 * size)
    flat = plausible & (chord > _FLAT * arc)
    first, second = np.nonzero(flat if flat.any() else plausible)
    if not len(first):
        raise EchoPlanError("the mask has no shape with a base", remedy="look at the predicted mask of this frame")
    return first, second, arc[first, second], chord[first, second]


def _turning(outline: Points) -> Points:
    """Angle (N,) by which the outline turns at each point, in radians, positive where it is convex."""
    arm = max(1, round(_ARM * len(outline)))
    before = outline - np.roll(outline, arm, axis=0)
    after = np.roll(outline, -arm, axis=0) - outline
    return np.arctan2(cross(before, after), np.sum(before * after, axis=1))


def _lopsidedness(
    outline: Points, middle: Points, first: NDArray[np.intp], second: NDArray[np.intp], apex: NDArray[np.intp]
) -> Points:
    """Difference of the areas on both sides of each candidate's long axis, as a share of their sum (0 to 1)."""
    sums = np.concatenate(([0.0], np.cumsum(cross(outline, np.roll(outline, -1, axis=0)))))

    def along(start: NDArray[np.intp], stop: NDArray[np.intp]) -> Points:
        return sums[stop] - sums[start] + np.where(stop >= start, 0.0, sums[-1])

    left = cross(middle, outline[second]) + along(second, apex) + cross(outline[apex], middle)
    right = cross(middle, outline[apex]) + along(apex, first) + cross(outline[first], middle)
    return np.abs(left - right) / np.maximum(np.abs(left) + np.abs(right), 1e-12)


def _levelled(samples: Points, first: int, second: int) -> Points:
    """Hinge points (2, 2): two corners of an outline (N, 2), moved onto the line that fits the base between them.

    A corner is one pixel of a staircase; the base is many. Points far from the line count less, so that a notch or a
    tooth does not turn it.
    """
    hinges = samples[[first, second]]
    count = (second - first) % len(samples)
    margin = round(_BASE_MARGIN * count)
    base = samples[np.arange(first + margin, first + count - margin + 1) % len(samples)]
    if len(base) < _FEWEST_BASE_POINTS:
        return hinges
    weights = np.ones(len(base))
    for _ in range(_ROUNDS):
        centre = np.average(base, axis=0, weights=weights)
        spread = base - centre
        normal = np.linalg.eigh((spread * weights[:, None]).T @ spread)[1][:, 0]
        off = np.abs(spread @ normal)
        typical = max(float(np.average(off, weights=weights)), 1e-9)
        weights = 1 / np.maximum(1, off / (1.5 * typical))
    limit = _FARTHEST_MOVE * np.hypot(*(hinges[1] - hinges[0]))
    return hinges - np.clip((hinges - centre) @ normal, -limit, limit)[:, None] * normal


def _nearest_corner(samples: Points, point: Points) -> int:
    """The corner of a finely sampled outline near `point`: farthest from the line between two ends of a window."""
    centre = int(np.argmin(np.hypot(*(samples - point).T)))
    span = round(_CORNER_REACH * len(samples))
    window = samples[np.arange(centre - span, centre + span + 1) % len(samples)]
    line = window[-1] - window[0]
    height = -cross(np.broadcast_to(line, window.shape), window - window[0])
    step = np.hypot(*(samples[1] - samples[0]))
    if np.hypot(*line) < step or height.max() <= 0:
        return centre
    return (centre - span + int(np.argmax(height))) % len(samples)
