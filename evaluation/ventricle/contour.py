"""The outline of a cavity: one component without holes, its sub-pixel contour in mm, and sums along a contour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter, label
from skimage.measure import find_contours

from echoplan.errors import EchoPlanError

from ..metrics import check_spacing

Points = NDArray[np.float64]

# A cavity of fewer pixels has no shape to find a base and an apex in.
MINIMAL_PIXELS = 30


def largest_filled_component(mask: ArrayLike) -> NDArray[np.bool_]:
    """The largest 4-connected component of a (H, W) mask with its holes filled; all False for an empty mask."""
    foreground = np.asarray(mask) != 0
    whole = np.zeros(foreground.shape, dtype=bool)
    box = _bounding_box(foreground)
    if box is not None:
        whole[box] = _component(foreground[box])
    return whole


def lv_contour(mask: ArrayLike, spacing_mm: Sequence[float], *, blur_mm: float = 0.0) -> Points:
    """Sub-pixel outline (N, 2) of the largest component of a (H, W) mask, holes filled, (row, col) in mm.

    Marching squares at 0.5 on the binary mask: the enclosed area is the pixels' area less half a pixel, whatever the
    shape, so it is left unsmoothed.

    Args:
        blur_mm: standard deviation of a Gaussian over the mask before it is contoured, to see past ragged edges.

    Raises:
        EchoPlanError: the mask is not two-dimensional, or is empty or too small to have a shape.

    Example:
        >>> import numpy as np
        >>> from echoplan.evaluation import lv_contour
        >>> mask = np.zeros((20, 20))
        >>> mask[5:15, 5:15] = 1
        >>> contour = lv_contour(mask, (0.5, 0.5))  # through the middles of the outermost pixels' outer edges
        >>> contour.min(axis=0).tolist(), contour.max(axis=0).tolist()
        ([2.25, 2.25], [7.25, 7.25])
    """
    spacing = check_spacing(spacing_mm)
    if spacing is None:
        raise EchoPlanError("the pixel spacing is missing", remedy="give (row, col) in mm")
    foreground = np.asarray(mask) != 0
    if foreground.ndim != 2:
        raise EchoPlanError(f"the mask has {foreground.ndim} axes, one frame (H, W) is needed")
    box = _bounding_box(foreground)
    cavity = np.zeros((0, 0), dtype=bool) if box is None else _component(foreground[box])
    pixels = int(cavity.sum())
    if box is None or pixels < MINIMAL_PIXELS:
        raise EchoPlanError(
            "the mask is empty" if pixels == 0 else f"the mask has {pixels} pixels, too few for a shape",
            remedy="look at the predicted mask of this frame",
        )
    sigma = blur_mm / np.asarray(spacing)
    border = 1 + int(np.ceil(2 * sigma.max()))
    height = np.pad(cavity, border).astype(np.float32)
    if blur_mm > 0:
        height = gaussian_filter(height, sigma, truncate=3)
    outlines = find_contours(height, 0.5)
    if not outlines:
        raise EchoPlanError("the mask is too thin for a shape", remedy="look at the predicted mask of this frame")
    corner = np.array([box[0].start, box[1].start])
    return (max(outlines, key=len)[:-1] - border + corner) * np.asarray(spacing)


def signed_area(contour: Points) -> float:
    """Area inside a closed contour (N, 2), negative where it runs the other way round."""
    return float(np.sum(cross(contour, np.roll(contour, -1, axis=0))) / 2)


def resample(contour: Points, count: int) -> Points:
    """`count` points at equal steps along a closed contour (N, 2)."""
    closed = np.concatenate((contour, contour[:1]))
    position = np.concatenate(([0.0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))))
    wanted = np.linspace(0, position[-1], count, endpoint=False)
    return np.stack([np.interp(wanted, position, closed[:, axis]) for axis in (0, 1)], axis=1)


def cross(first: Points, second: Points) -> Points:
    """The third component of the cross product of (..., 2) vectors."""
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]


def _bounding_box(foreground: NDArray[np.bool_]) -> tuple[slice, slice] | None:
    """Where the foreground lies, so that the slower steps see no more than that; None for an empty mask."""
    rows = np.flatnonzero(foreground.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(foreground[rows[0] : rows[-1] + 1].any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _component(foreground: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Largest component of a mask that is not empty, holes filled."""
    parts, count = label(foreground)
    if count > 1:
        foreground = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    # What the background outside cannot reach is a hole.
    background, _ = label(~np.pad(foreground, 1))
    return (background != background[0, 0])[1:-1, 1:-1]
