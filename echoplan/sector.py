"""Find the ultrasound sector in frames that also carry text, an ECG trace, colour bars or a wide black border."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import ndimage
from skimage.morphology import convex_hull_image

Box = tuple[int, int, int, int]  # first row, end row, first column, end column; ends excluded

_FRAMES_LOOKED_AT = 16
_WORKING_SIDE = 256  # detection runs on frames shrunk to about this long side
_DARK = 6  # grey levels above the background that count as signal: above compression noise, below speckle
_MOVING = 6  # grey levels of change over time that count as motion
_STROKE = 0.006  # of the long side: the width of the strokes of letters, traces and rulers
_STROKE_STANDS_OUT = 30  # grey levels above the black around it; what is dim and thin may be speckle
_CLOSING = 0.02  # gaps in speckle and dark cavities up to twice this share of the long side are bridged ...
_OPENING = 0.02  # ... and what is thinner than twice this share is dropped
_BAR_FULL = 0.85  # of a side of the frame: a title bar or a panel fills that much of it, ...
_BAR_FROM = 0.03  # ... begins this near to the frame's edge, as a share of the frame, ...
_BAR_DEPTH = 0.15  # ... is at most so deep ...
_BAR_END = 0.2  # ... and what follows is narrower by at least this
_SECOND_PART = 0.25  # a component with this share of the largest one's weight belongs to the sector too
_BOX_MARGIN = 0.02  # of the frame's long side, added around the box
_MASK_MARGIN = 0.01  # and around the mask, which is to keep words out
_SMALLEST = 0.05  # what is smaller than this share of the frame is no sector


def detect_sector(frames: np.ndarray) -> Box:
    """The bounding box of the ultrasound sector.

    The brightest value of each pixel over time, compared with the frame's border, shows what carries signal. Thin
    bright strokes on black and bars along the frame's edges are taken out, gaps closed, and thin things opened away.
    Of the remaining components the one with the most motion is the sector (the largest one where nothing moves, as in
    a single frame). The box rather errs on the large side: a margin is added and large further parts are kept.

    Args:
        frames: (T, H, W) uint8, T >= 1.

    Returns:
        (first row, end row, first column, end column), ends excluded; the whole frame where no sector stands out.
    """
    height, width = frames.shape[1:]
    whole = (0, height, 0, width)
    step = _step(frames)
    kept = _sector(frames, step)
    if not kept.any():
        return whole
    rows, columns = np.flatnonzero(kept.any(axis=1)), np.flatnonzero(kept.any(axis=0))
    margin = round(_BOX_MARGIN * max(height, width))
    box = (
        max(0, int(rows[0]) * step - margin),
        min(height, (int(rows[-1]) + 1) * step + margin),
        max(0, int(columns[0]) * step - margin),
        min(width, (int(columns[-1]) + 1) * step + margin),
    )
    return whole if box_share(box, (height, width)) < _SMALLEST else box


def sector_mask(frames: np.ndarray) -> np.ndarray:
    """Where the sector is: its convex hull with a small margin, (H, W) bool; everywhere if no sector stands out.

    Unlike the box of `detect_sector`, this also leaves out what stands in the corners beside a fan: names and dates,
    which scanners write there.

    Args:
        frames: (T, H, W) uint8, T >= 1.
    """
    height, width = frames.shape[1:]
    everywhere = np.ones((height, width), bool)
    step = _step(frames)
    kept = _sector(frames, step)
    if not kept.any():
        return everywhere
    margin = max(1, round(_MASK_MARGIN * max(kept.shape)))
    hull = dilated(convex_hull_image(kept), margin)
    inside = hull.repeat(step, axis=0).repeat(step, axis=1)[:height, :width]
    return inside if inside.mean() >= _SMALLEST else everywhere


def box_share(box: Box, frame_shape: tuple[int, int]) -> float:
    """The box's area as a share of the frame's, 0 to 1."""
    r0, r1, c0, c1 = box
    return (r1 - r0) * (c1 - c0) / (frame_shape[0] * frame_shape[1])


def _step(frames: np.ndarray) -> int:
    """How many pixels become one for detection."""
    return max(1, round(max(frames.shape[1:]) / _WORKING_SIDE))


def _sector(frames: np.ndarray, step: int) -> np.ndarray:
    """Where the sector is, (H / step, W / step) bool; nowhere if nothing solid carries signal."""
    looked_at = frames[np.unique(np.linspace(0, len(frames) - 1, _FRAMES_LOOKED_AT).round().astype(int))]
    brightest = looked_at.max(axis=0)
    change = _shrunk(brightest - looked_at.min(axis=0), step)
    border = np.concatenate([brightest[0], brightest[-1], brightest[:, 0], brightest[:, -1]])
    dark = np.percentile(border, 10) + _DARK
    signal = _without_bars(_shrunk(_without_strokes(brightest, dark), step) > dark)
    unit = max(signal.shape)
    solid = closed_and_opened(signal, max(1, round(_CLOSING * unit)), max(1, round(_OPENING * unit)))
    components, count = ndimage.label(solid)
    if count == 0:
        return solid
    weights = _weights(components, count, change > _MOVING)
    return np.isin(components, 1 + np.flatnonzero(weights >= _SECOND_PART * weights.max()))


def _without_strokes(brightest: np.ndarray, dark: float) -> np.ndarray:
    """(H, W) without what is thin and bright on black, and its halo of compression.

    Lines of letters would otherwise be closed to solid blocks, and join the sector where they touch it.
    """
    stroke = max(3, round(_STROKE * max(brightest.shape)))
    solid = opened(brightest, stroke)
    strokes = (solid <= dark) & (brightest > solid.astype(np.int16) + _STROKE_STANDS_OUT)
    if not strokes.any():
        return brightest
    return np.where(spread(strokes, stroke), solid, brightest)


def _without_bars(signal: np.ndarray) -> np.ndarray:
    """(h, w) bool without bars along a whole side of the frame: title bars, panels, rows of soft keys."""
    cleaned = signal.copy()
    for rows in (cleaned, cleaned[::-1], cleaned.T, cleaned.T[::-1]):
        filled = rows.mean(axis=1)
        full = filled >= _BAR_FULL
        first = int(np.argmax(full))
        end = first + int(np.argmin(full[first:]))
        if not full[first] or full[end] or first > _BAR_FROM * len(rows) or end > _BAR_DEPTH * len(rows):
            continue
        # A bar ends at once (its last row may be half covered); a sector that fills the side narrows little by little.
        if filled[end + 1] < _BAR_FULL - _BAR_END:
            rows[: end + 1] = False
    return cleaned


def _shrunk(image: np.ndarray, step: int) -> np.ndarray:
    """Means of blocks of `step` x `step` pixels, float32."""
    if step == 1:
        return image.astype(np.float32)
    padded = np.pad(image, ((0, -image.shape[0] % step), (0, -image.shape[1] % step)), mode="edge").astype(np.int32)
    # Row by row and column by column: several times as fast as a mean over axes of a few pixels.
    rows = np.stack([padded[first::step] for first in range(step)]).sum(axis=0, dtype=np.int32)
    sums = np.stack([rows[:, first::step] for first in range(step)]).sum(axis=0, dtype=np.int32)
    return (sums / step**2).astype(np.float32)


def _weights(components: np.ndarray, count: int, moving: np.ndarray) -> np.ndarray:
    """The components' moving pixels; their areas where (almost) nothing moves."""
    index = np.arange(1, count + 1)
    areas = ndimage.sum_labels(np.ones_like(components), components, index)
    motion = ndimage.sum_labels(moving, components, index)
    return motion if motion.sum() >= 0.05 * areas.sum() else areas


# Flat morphology on images of a few hundred pixels: the same pixels as scipy's and skimage's, ten times as fast, since
# finding the sector took a third of preprocessing. A window's extremes are put together from ever wider ones; a disc is
# a stack of rows, so that no distance transform is needed.


def opened(image: np.ndarray, side: int) -> np.ndarray:
    """Grey opening of (H, W) with a square of `side` pixels; edges are repeated outwards."""
    before = side // 2
    after = side - 1 - before
    return _in_window(np.maximum, _in_window(np.minimum, image, before, after), after, before)


def spread(mask: np.ndarray, reach: int) -> np.ndarray:
    """(H, W) bool grown by `reach` pixels in rows and columns."""
    return _in_window(np.logical_or, mask, reach, reach)


def dilated(mask: np.ndarray, radius: int) -> np.ndarray:
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


def eroded(mask: np.ndarray, radius: int) -> np.ndarray:
    """(H, W) bool without what is at most `radius` pixels from the background; outside the image there is none."""
    return ~dilated(~mask, radius)


def closed_and_opened(mask: np.ndarray, closing: int, opening: int) -> np.ndarray:
    """(H, W) bool with gaps closed by a disc, then opened by another; the mask goes on beyond the image's edge."""
    for radius, steps in ((closing, (dilated, eroded)), (opening, (eroded, dilated))):
        border = radius + 1
        mask = np.pad(mask, border, mode="edge")
        for step in steps:
            mask = step(mask, radius)
        mask = mask[border:-border, border:-border]
    return mask


def _in_window(
    reduce: Callable[[np.ndarray, np.ndarray], np.ndarray], image: np.ndarray, before: int, after: int
) -> np.ndarray:
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
