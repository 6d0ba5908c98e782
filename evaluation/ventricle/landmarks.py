"""The ventricle's landmarks and discs: mitral plane, apex, long axis, diameters across it, all in mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from echoplan.errors import EchoPlanError

from .contour import Points, lv_contour, resample, signed_area
from .mitral_plane import find_mitral_plane, is_ragged

DISCS = 20
_HEIGHTS_A_DISC = 6  # at which the outline's width is taken within one disc
_BLUR = 0.03  # standard deviation over the square root of the area, where the outline is ragged
_BASE_TEETH = 0.02  # of the length: outline this far below the mitral plane balances the notches above it
_FEWEST_MIDDLES = 10  # heights that a centre line is laid through
_STEEPEST = 0.6  # of the centre line against the axis, 31 degrees: more is no ventricle's bend
_AS_FAR = 0.005  # of the distance to the apex: points as near to it as that are at its distance
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

    @cached_property
    def area(self) -> float:
        """Area inside the outline."""
        return abs(signed_area(self.contour))


def find_landmarks(mask: ArrayLike, spacing_mm: Sequence[float], *, towards: ArrayLike | None = None) -> Landmarks:
    """Mitral plane and apex of a ventricle, by its shape alone: any rotation or flip, any pixel shape.

    The cavity is a bullet: the base is the arc of the outline that is flat, ends in two corners, lies across the long
    axis and halves the cavity.

    Args:
        mask: (H, W), 0 is background.
        spacing_mm: (row, col); (1, 1) measures in pixels.
        towards: (2,), rough direction from base to apex in mm if known, as from another frame of the clip.

    Raises:
        EchoPlanError: the mask is empty, or too small or thin to have a shape.

    Example:
        >>> import numpy as np
        >>> from echoplan.evaluation import find_landmarks
        >>> rows, columns = np.mgrid[:120, :80]
        >>> mask = (((rows - 100) / 90) ** 2 + ((columns - 40) / 25) ** 2 < 1) & (rows < 100)
        >>> found = find_landmarks(mask, (1.0, 1.0))
        >>> found.apex.round().tolist(), round(found.length)
        ([10.0, 40.0], 89)
    """
    contour = _counter_clockwise(lv_contour(mask, spacing_mm))
    shape = contour
    if is_ragged(contour):
        shape = _counter_clockwise(lv_contour(mask, spacing_mm, blur_mm=_BLUR * np.sqrt(signed_area(contour))))
    hinges, penalty = find_mitral_plane(shape, towards)
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

    Example:
        >>> import numpy as np
        >>> from echoplan.evaluation import find_landmarks_of_beat
        >>> rows, columns = np.mgrid[:120, :80]
        >>> mask = (((rows - 100) / 90) ** 2 + ((columns - 40) / 25) ** 2 < 1) & (rows < 100)
        >>> ed, es = find_landmarks_of_beat(mask, mask & (rows > 20), (1.0, 1.0))
        >>> ed.length > es.length
        True
    """
    ed, es = find_landmarks(mask_ed, spacing_mm), find_landmarks(mask_es, spacing_mm)
    if ed.direction @ es.direction > _SAME_WAY:
        return ed, es
    as_ed = ed, find_landmarks(mask_es, spacing_mm, towards=ed.direction)
    as_es = find_landmarks(mask_ed, spacing_mm, towards=es.direction), es
    return min(as_ed, as_es, key=lambda pair: pair[0].penalty + pair[1].penalty)


def disc_diameters(landmarks: Landmarks, discs: int = DISCS) -> Points:
    """Diameters (discs,) from base to apex, so that pi/4 sum d_i^2 L / discs is the volume above the mitral plane.

    d_i^2 is the mean, over a disc's height, of the squared width of the outline across the long axis, times the cosine
    of the angle between that axis and the ventricle's centre line there. A disc cuts a bent ventricle obliquely: its
    width is the one across the centre line over the cosine, its height the centre line's length times the cosine, so
    that plain discs make the volume one cosine too large (up to 0.9 % in a body bent by 30 degrees).

    A mitral plane that lies obliquely cuts a wedge off the lowest discs on one side and leaves its like below them on
    the other. That wedge is put back at its mirrored height. So a body of round cross-sections has its true volume.
    """
    fine = discs * _HEIGHTS_A_DISC
    step = landmarks.length / fine
    heights = (np.arange(fine) + 0.5) * step
    along, side = _in_axis_frame(landmarks)
    widths, middles = _widths(along, side, step, fine)
    above, below = widths[fine:], widths[:fine][::-1]
    # Lower than the lower hinge lies a bulge of the base, which is no part of the ventricle.
    skew = abs((landmarks.hinges[0] - landmarks.base_middle) @ landmarks.direction)
    cut = heights - step / 2 < skew + _BASE_TEETH * landmarks.length
    whole = np.minimum(above + np.where(cut, below, 0.0), above.max())
    squares = whole**2 * _cosines(heights, middles[fine:], np.where(cut, 0.0, above))
    return np.sqrt(np.mean(squares.reshape(discs, _HEIGHTS_A_DISC), axis=1))


def disc_segments(landmarks: Landmarks) -> Points:
    """The two ends of each disc (DISCS, 2, 2), (row, col) in mm: where its middle height meets the outline.

    For drawing. The diameters that make the volume are means over each disc's height: `disc_diameters`.
    """
    along, side = _in_axis_frame(landmarks)
    next_along, next_side = np.roll(along, -1), np.roll(side, -1)
    heights = (np.arange(DISCS) + 0.5) * landmarks.length / DISCS
    crosses = (along[None] > heights[:, None]) != (next_along[None] > heights[:, None])
    rise = np.where(next_along == along, 1.0, next_along - along)
    place = side + (heights[:, None] - along) * (next_side - side) / rise
    left = np.where(crosses, place, np.inf).min(axis=1)
    right = np.where(crosses, place, -np.inf).max(axis=1)
    # A base that is drawn in may leave a height without an outline: its disc is a point on the axis.
    outermost = [np.where(crosses.any(axis=1), ends, 0.0) for ends in (left, right)]
    axis = landmarks.direction
    across = np.array([-axis[1], axis[0]])
    middles = landmarks.base_middle + heights[:, None] * axis
    return np.stack([middles + ends[:, None] * across for ends in outermost], axis=1)


def _in_axis_frame(landmarks: Landmarks) -> tuple[Points, Points]:
    """Height above the middle of the base along the long axis, and place across it, of every point of the outline."""
    axis = landmarks.direction
    relative = landmarks.contour - landmarks.base_middle
    return relative @ axis, relative @ np.array([-axis[1], axis[0]])


def _widths(along: Points, side: Points, step: float, count: int) -> tuple[Points, Points]:
    """Widths of a closed outline and their middles, (2 count,) each, at the heights (i + 1/2) step from i = -count."""
    heights = (np.arange(-count, count) + 0.5) * step
    next_along, next_side = np.roll(along, -1), np.roll(side, -1)
    # Of each edge: the heights it crosses, [start, stop).
    levels = np.ceil(np.stack((along, next_along)) / step - 0.5).astype(int) + count
    start, stop = np.clip(np.sort(levels, axis=0), 0, 2 * count)
    crossed = stop - start
    edge = np.repeat(np.arange(len(along)), crossed)
    level = np.arange(len(edge)) - np.repeat(np.cumsum(crossed) - crossed, crossed) + start[edge]
    rise = next_along[edge] - along[edge]
    place = side[edge] + (heights[level] - along[edge]) * (next_side[edge] - side[edge]) / rise
    # An outline crosses a line upwards and downwards by turns: the signed sum of the places is the width inside, and
    # that of their halved squares the width times its middle.
    way = np.sign(rise)
    widths = np.bincount(level, place * way, minlength=2 * count)
    moments = np.bincount(level, place**2 / 2 * way, minlength=2 * count)
    middles = np.divide(moments, widths, out=np.zeros_like(moments), where=widths != 0)
    return np.abs(widths), middles


def _cosines(heights: NDArray[np.floating[Any]], middles: Points, weights: Points) -> Points:
    """Cosine (N,) of the angle between the long axis and the centre line: a parabola through the widths' middles."""
    known = weights > 0
    if known.sum() < _FEWEST_MIDDLES:
        return np.ones_like(heights)
    curve = np.polynomial.Polynomial.fit(heights[known], middles[known], 2, w=weights[known])
    slope = np.clip(curve.deriv()(heights), -_STEEPEST, _STEEPEST)
    return 1 / np.sqrt(1 + slope**2)


def _counter_clockwise(contour: Points) -> Points:
    return contour if signed_area(contour) > 0 else contour[::-1]


def _apex(contour: Points, middle: Points) -> Points:
    """The contour point farthest from `middle`; where several are nearly so, the one in their midst.

    A round apex has many points at nearly one distance, and the pixels' staircase would choose among them.
    """
    samples = resample(contour, 400)
    relative = samples - middle
    distance = np.linalg.norm(relative, axis=1)
    farthest = distance >= (1 - _AS_FAR) * distance.max()
    direction = np.sum(relative[farthest], axis=0)
    cosine = relative @ direction / np.maximum(distance, 1e-12)
    return samples[int(np.argmax(np.where(farthest, cosine, -np.inf)))]
