"""The ventricle's outline and landmarks: sub-pixel contour, mitral plane, apex, long axis, all in mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_fill_holes, gaussian_filter1d, label
from skimage.measure import find_contours

from echoplan.errors import EchoPlanError

from .segmentation import check_spacing

Points = NDArray[np.float64]

# A cavity of fewer pixels has no shape to find a base and an apex in.
MINIMAL_PIXELS = 30

_SAMPLES = 120  # points along the contour among which the two hinge points are sought
_ARM = 0.08  # share of the perimeter on each side of a point over which its turning is measured
_FLAT = 0.88  # chord / arc of a base is at least this
# What a base looks like, as penalties; fitted to the hinge points of CAMUS' labels (where cavity, myocardium and atrium
# meet) and to half-ellipsoids, both also with rounded corners and ragged edges, at any rotation.
_PENALTY_BULGE = 1.0
_PENALTY_ROUND_CORNERS = 0.07
_PENALTY_SKEWED = 0.10
_PENALTY_WIDTH = 0.04
_PENALTY_SHORT = 0.02
_PENALTY_LOPSIDED = 0.01
_PENALTY_AGAINST_HINT = 0.3
_SAME_WAY = 0.94  # cosine of the angle between two long axes of one heart, 20 degrees


@dataclass(frozen=True)
class Landmarks:
    """Outline and landmarks of one cavity, (row, col) in mm (in pixels if the spacing was given as 1, 1).

    Attributes:
        contour: (N, 2), the closed outline without the first point repeated.
        hinges: (2, 2), the two ends of the mitral plane.
        apex: (2,), the contour point farthest from the middle of the mitral plane.
        penalty: how unlike a base the mitral plane looks; 0 would be a perfect bullet.
    """

    contour: Points
    hinges: Points
    apex: Points
    penalty: float = 0.0

    @cached_property
    def base_middle(self) -> Points:
        """(2,), the middle of the mitral plane."""
        return self.hinges.mean(axis=0)

    @cached_property
    def length(self) -> float:
        """Length of the long axis, from the middle of the mitral plane to the apex."""
        return float(np.linalg.norm(self.apex - self.base_middle))

    @cached_property
    def direction(self) -> Points:
        """(2,), unit vector from the middle of the mitral plane to the apex."""
        return (self.apex - self.base_middle) / self.length


def largest_component(mask: ArrayLike) -> NDArray[np.bool_]:
    """The largest 4-connected component of a (H, W) mask with its holes filled; all False for an empty mask."""
    foreground = np.asarray(mask) != 0
    parts, count = label(foreground)
    if count > 1:
        foreground = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    return binary_fill_holes(foreground)


def lv_contour(mask: ArrayLike, spacing_mm: Sequence[float]) -> Points:
    """Sub-pixel outline (N, 2) of the largest component of a (H, W) mask, holes filled, (row, col) in mm.

    Marching squares at 0.5 on the binary mask: the enclosed area is the pixels' area less half a pixel, whatever the
    shape, so it is left unsmoothed.

    Raises:
        EchoPlanError: the mask is not two-dimensional, or is empty or too small to have a shape.
    """
    spacing = check_spacing(spacing_mm)
    if spacing is None:
        raise EchoPlanError("the pixel spacing is missing", remedy="give (row, col) in mm")
    if np.ndim(mask) != 2:
        raise EchoPlanError(f"the mask has {np.ndim(mask)} axes, one frame (H, W) is needed")
    cavity = largest_component(mask)
    pixels = int(cavity.sum())
    if pixels < MINIMAL_PIXELS:
        raise EchoPlanError(
            "the mask is empty" if pixels == 0 else f"the mask has {pixels} pixels, too few for a shape",
            remedy="look at the predicted mask of this frame",
        )
    outline = max(find_contours(np.pad(cavity, 1).astype(np.float32), 0.5), key=len)[:-1] - 1.0
    return outline * np.asarray(spacing)


def find_landmarks(mask: ArrayLike, spacing_mm: Sequence[float], *, towards: ArrayLike | None = None) -> Landmarks:
    """Mitral plane and apex of a ventricle, by its shape alone: any rotation or flip, any pixel shape.

    The cavity is a bullet: the base is the arc of the outline that is flat, ends in two corners, lies across the long
    axis and halves the cavity. Every pair of points on the outline is rated by these, and the best pair is moved to the
    nearest corners of the unsmoothed outline.

    Args:
        mask: (H, W), 0 is background.
        spacing_mm: (row, col); (1, 1) measures in pixels.
        towards: (2,), rough direction from base to apex in mm if known, as from another frame of the clip.

    Raises:
        EchoPlanError: the mask is empty, or too small or thin to have a shape.
    """
    contour = lv_contour(mask, spacing_mm)
    contour = contour if _signed_area(contour) > 0 else contour[::-1]
    samples, _ = _resample(contour, _SAMPLES)
    outline = gaussian_filter1d(samples, 1.0, axis=0, mode="wrap")
    first, second, penalty = _best_base(outline, towards)
    hinges = np.stack([_nearest_corner(contour, outline[index]) for index in (first, second)])
    middle = hinges.mean(axis=0)
    apex = _apex(contour, middle)
    if np.linalg.norm(apex - middle) < 2 * max(spacing_mm) or np.ptp(hinges, axis=0).max() == 0:
        raise EchoPlanError("the mask is too thin for a long axis", remedy="look at the predicted mask of this frame")
    return Landmarks(contour=contour, hinges=hinges, apex=apex, penalty=penalty)


def find_landmarks_of_beat(
    mask_ed: ArrayLike, mask_es: ArrayLike, spacing_mm: Sequence[float]
) -> tuple[Landmarks, Landmarks]:
    """Landmarks at end-diastole and end-systole of one clip, which must point the same way.

    A heart does not turn round within a beat: where the two shapes alone disagree, both directions are tried on both
    masks, and the one that suits them better together holds.

    Raises:
        EchoPlanError: as `find_landmarks`.
    """
    ed, es = find_landmarks(mask_ed, spacing_mm), find_landmarks(mask_es, spacing_mm)
    if ed.direction @ es.direction > _SAME_WAY:
        return ed, es
    as_ed = ed, find_landmarks(mask_es, spacing_mm, towards=ed.direction)
    as_es = find_landmarks(mask_ed, spacing_mm, towards=es.direction), es
    return min(as_ed, as_es, key=lambda pair: pair[0].penalty + pair[1].penalty)


def disc_diameters(landmarks: Landmarks, discs: int = 20) -> Points:
    """Diameters (discs,) from base to apex: widths of the outline across the long axis at each disc's middle height."""
    axis = landmarks.direction
    across = np.array([-axis[1], axis[0]])
    relative = landmarks.contour - landmarks.base_middle
    along, side = relative @ axis, relative @ across
    next_along, next_side = np.roll(along, -1), np.roll(side, -1)
    heights = (np.arange(discs) + 0.5) * landmarks.length / discs
    crosses = (along[None] > heights[:, None]) != (next_along[None] > heights[:, None])
    step = np.where(next_along == along, 1.0, next_along - along)
    position = side + (heights[:, None] - along) * (next_side - side) / step
    # An outline crosses a line upwards and downwards by turns: the signed sum of the places is the width inside.
    sign = np.where(next_along > along, 1.0, -1.0)
    return np.abs(np.sum(np.where(crosses, position * sign, 0.0), axis=1))


def _best_base(outline: Points, towards: ArrayLike | None) -> tuple[int, int, float]:
    """Indices of the points of a counter-clockwise outline (N, 2) where the base starts and ends, and its penalty."""
    count = len(outline)
    following = np.roll(outline, -1, axis=0)
    steps = np.hypot(*(following - outline).T)
    position, perimeter = np.concatenate(([0.0], np.cumsum(steps)[:-1])), steps.sum()
    size = np.sqrt(_signed_area(outline))

    first, second = (index.ravel() for index in np.meshgrid(np.arange(count), np.arange(count), indexing="ij"))
    arc = (position[second] - position[first]) % perimeter
    chord = np.hypot(*(outline[second] - outline[first]).T)
    plausible = (chord > 0.25 * size) & (chord < 1.6 * size)
    flat = plausible & (chord > _FLAT * arc)
    keep = flat if flat.any() else plausible
    if not keep.any():
        raise EchoPlanError("the mask has no shape with a base", remedy="look at the predicted mask of this frame")
    first, second, arc, chord = first[keep], second[keep], arc[keep], chord[keep]

    middle = (outline[first] + outline[second]) / 2
    distance = np.linalg.norm(middle[:, None] - outline[None], axis=2)
    apex = distance.argmax(axis=1)
    length = distance[np.arange(len(apex)), apex]
    axis = outline[apex] - middle
    roundness = 1 - np.clip(_turning(outline), -0.5, np.pi / 2) / (np.pi / 2)
    penalty = (
        _PENALTY_BULGE * (arc / chord - 1)
        + _PENALTY_ROUND_CORNERS * (roundness[first] + roundness[second])
        + _PENALTY_SKEWED * np.abs(np.sum(axis * (outline[second] - outline[first]), axis=1)) / (length * chord)
        + _PENALTY_WIDTH * np.log(chord / size) ** 2
        - _PENALTY_SHORT * np.log(length / size)
        + _PENALTY_LOPSIDED * _lopsidedness(outline, middle, first, second, apex)
    )
    against = np.zeros_like(penalty)
    if towards is not None:
        hint = np.asarray(towards, dtype=np.float64)
        against = _PENALTY_AGAINST_HINT * (1 - axis @ hint / (length * np.linalg.norm(hint)))
    best = int(np.argmin(penalty + against))
    return int(first[best]), int(second[best]), float(penalty[best])


def _turning(outline: Points) -> Points:
    """Angle (N,) by which the outline turns at each point, in radians, positive where it is convex."""
    arm = max(1, round(_ARM * len(outline)))
    before = outline - np.roll(outline, arm, axis=0)
    after = np.roll(outline, -arm, axis=0) - outline
    return np.arctan2(_cross(before, after), np.sum(before * after, axis=1))


def _lopsidedness(
    outline: Points, middle: Points, first: NDArray[np.intp], second: NDArray[np.intp], apex: NDArray[np.intp]
) -> Points:
    """Difference of the areas on both sides of each candidate's long axis, as a share of their sum (0 to 1)."""
    sums = np.concatenate(([0.0], np.cumsum(_cross(outline, np.roll(outline, -1, axis=0)))))

    def along(start: NDArray[np.intp], stop: NDArray[np.intp]) -> Points:
        return sums[stop] - sums[start] + np.where(stop >= start, 0.0, sums[-1])

    left = _cross(middle, outline[second]) + along(second, apex) + _cross(outline[apex], middle)
    right = _cross(middle, outline[apex]) + along(apex, first) + _cross(outline[first], middle)
    return np.abs(left - right) / np.maximum(np.abs(left) + np.abs(right), 1e-12)


def _nearest_corner(contour: Points, point: Points, reach: float = 0.06) -> Points:
    """The corner of the outline near `point`: farthest from the line between two ends `reach` of the perimeter away."""
    samples, step = _resample(contour, 400)
    centre = int(np.argmin(np.linalg.norm(samples - point, axis=1)))
    span = round(reach * len(samples))
    window = samples[np.arange(centre - span, centre + span + 1) % len(samples)]
    line = window[-1] - window[0]
    height = -_cross(np.broadcast_to(line, window.shape), window - window[0])
    if np.linalg.norm(line) < step or height.max() <= 0:
        return samples[centre]
    return window[int(np.argmax(height))]


def _apex(contour: Points, middle: Points, tolerance: float = 0.005) -> Points:
    """The contour point farthest from `middle`; where several are within `tolerance`, the one in their midst.

    A round apex has many points at nearly one distance, and the pixels' staircase would choose among them.
    """
    samples, _ = _resample(contour, 400)
    relative = samples - middle
    distance = np.linalg.norm(relative, axis=1)
    farthest = distance >= (1 - tolerance) * distance.max()
    direction = np.sum(relative[farthest], axis=0)
    cosine = relative @ direction / np.maximum(distance, 1e-12)
    return samples[int(np.argmax(np.where(farthest, cosine, -np.inf)))]


def _resample(contour: Points, count: int) -> tuple[Points, float]:
    """`count` points at equal steps along the closed contour, and the step."""
    closed = np.concatenate((contour, contour[:1]))
    position = np.concatenate(([0.0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))))
    wanted = np.linspace(0, position[-1], count, endpoint=False)
    points = np.stack([np.interp(wanted, position, closed[:, axis]) for axis in (0, 1)], axis=1)
    return points, float(position[-1] / count)


def _cross(first: Points, second: Points) -> Points:
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]


def _signed_area(contour: Points) -> float:
    return float(np.sum(_cross(contour, np.roll(contour, -1, axis=0))) / 2)
