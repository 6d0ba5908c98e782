"""Flat morphology on images of a few hundred pixels: the same pixels as scipy's and skimage's, ten times as fast.

Finding the sector took a third of preprocessing. A window's extremes are put together from ever wider ones; a disc is a
stack of rows, so that no distance transform is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
_Reduce = Callable[[np.ndarray, np.ndarray], np.ndarray]


def opened(image: np.ndarray, side: int) -> np.ndarray:
    """Grey opening of (H, W) with a square of `side` pixels; edges are repeated outwards."""
    before = side // 2
    after = side - 1 - before
    return _in_window(np.maximum, _in_window(np.minimum, image, before, after), after, before)


def spread(mask: Mask, reach: int) -> Mask:
    """(H, W) bool grown by `reach` pixels in rows and columns."""
    return _in_window(np.logical_or, mask, reach, reach)


def dilated(mask: Mask, radius: int) -> Mask:
    """(H, W) bool grown by a disc: what is at most `radius` pixels from the mask."""
    height, width = mask.shape
    row = np.zeros((height + 2 * radius, width + 2 * radius), bool)
    row[radius : radius + height, radius : radius + width] = mask
    grown, reach = np.zeros_like(mask), 0
    for away in range(radius, -1, -1):  # from the disc's first row, the narrowest, to its middle
        half = math.isqrt(radius**2 - away**2)
        for _ in range(half - reach):
            wider = row.copy()
            wider[:, 1:] |= row[:, :-1]
            wider[:, :-1] |= row[:, 1:]
            row = wider
        reach = half
        for start in {radius - away, radius + away}:
            grown |= row[start : start + height, radius : radius + width]
    return grown


def eroded(mask: Mask, radius: int) -> Mask:
    """(H, W) bool without what is at most `radius` pixels from the background; outside the image there is none."""
    return ~dilated(~mask, radius)


def closed_and_opened(mask: Mask, closing: int, opening: int) -> Mask:
    """(H, W) bool with gaps closed by a disc, then opened by another; the mask goes on beyond the image's edge."""
    for radius, steps in ((closing, (dilated, eroded)), (opening, (eroded, dilated))):
        border = radius + 1
        mask = np.pad(mask, border, mode="edge")
        for step in steps:
            mask = step(mask, radius)
        mask = mask[border:-border, border:-border]
    return mask


def _in_window(reduce: _Reduce, image: np.ndarray, before: int, after: int) -> np.ndarray:
    """The extreme from `before` pixels before each pixel to `after` behind it, along both axes."""
    for axis in (0, 1):
        values = np.moveaxis(image, axis, 0)
        values = np.concatenate([values[:1]] * before + [values] + [values[-1:]] * after)
        width = 1
        while width <= before + after:
            step = min(width, before + after + 1 - width)
            values, width = reduce(values[:-step], values[step:]), width + step
        image = np.moveaxis(values, 0, axis)
    return image
