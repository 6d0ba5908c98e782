"""Find the ultrasound sector in frames that also carry text, an ECG trace, colour bars or a wide black border."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.morphology import convex_hull_image

from .morphology import closed_and_opened, dilated, opened, spread

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
    rows = sum(padded[first::step] for first in range(step))
    return (sum(rows[:, first::step] for first in range(step)) / step**2).astype(np.float32)


def _weights(components: np.ndarray, count: int, moving: np.ndarray) -> np.ndarray:
    """The components' moving pixels; their areas where (almost) nothing moves."""
    index = np.arange(1, count + 1)
    areas = ndimage.sum_labels(np.ones_like(components), components, index)
    motion = ndimage.sum_labels(moving, components, index)
    return motion if motion.sum() >= 0.05 * areas.sum() else areas
