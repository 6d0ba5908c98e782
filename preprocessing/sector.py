"""Find the ultrasound sector in frames that also carry text, an ECG trace, colour bars or a wide black border."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from skimage.morphology import isotropic_closing, isotropic_opening

from .geometry import Box

_FRAMES_LOOKED_AT = 16
_WORKING_SIDE = 256  # detection runs on frames shrunk to about this long side
_DARK = 6  # grey levels above the background that count as signal: above compression noise, below speckle
_MOVING = 6  # grey levels of change over time that count as motion
_CLOSING = 0.02  # gaps in speckle and dark cavities up to twice this share of the long side are bridged ...
_OPENING = 0.02  # ... and what is thinner than twice this share (letters, traces, rulers) is dropped
_SECOND_PART = 0.25  # a component with this share of the largest one's weight belongs to the sector too
_MARGIN = 0.02  # of the frame's long side, added around the box
_SMALLEST = 0.05  # a box below this share of the frame is no sector


def detect_sector(frames: np.ndarray) -> Box:
    """The bounding box of the ultrasound sector.

    The brightest value of each pixel over time, compared with the frame's border, shows what carries signal. Gaps are
    closed, thin things opened away, and of the remaining components the one with the most motion is the sector (the
    largest one where nothing moves, as in a single frame). The box rather errs on the large side: a margin is added and
    large further parts are kept.

    Args:
        frames: (T, H, W) uint8, T >= 1.

    Returns:
        (first row, end row, first column, end column), ends excluded; the whole frame where no sector stands out.
    """
    height, width = frames.shape[1:]
    whole = (0, height, 0, width)
    step = max(1, round(max(height, width) / _WORKING_SIDE))
    brightest, change = _shrunk_projections(frames, step)
    border = np.concatenate([brightest[0], brightest[-1], brightest[:, 0], brightest[:, -1]])
    signal = brightest > np.percentile(border, 10) + _DARK
    unit = max(signal.shape)
    closed = _pad_and(isotropic_closing, signal, max(1, round(_CLOSING * unit)))
    solid = _pad_and(isotropic_opening, closed, max(1, round(_OPENING * unit)))
    components, count = ndimage.label(solid)
    if count == 0:
        return whole
    weights = _weights(components, count, change > _MOVING)
    kept = np.isin(components, 1 + np.flatnonzero(weights >= _SECOND_PART * weights.max()))
    rows, columns = np.flatnonzero(kept.any(axis=1)), np.flatnonzero(kept.any(axis=0))
    margin = round(_MARGIN * max(height, width))
    box = (
        max(0, int(rows[0]) * step - margin),
        min(height, (int(rows[-1]) + 1) * step + margin),
        max(0, int(columns[0]) * step - margin),
        min(width, (int(columns[-1]) + 1) * step + margin),
    )
    return whole if box_share(box, (height, width)) < _SMALLEST else box


def box_share(box: Box, frame_shape: tuple[int, int]) -> float:
    """The box's area as a share of the frame's, 0 to 1."""
    r0, r1, c0, c1 = box
    return (r1 - r0) * (c1 - c0) / (frame_shape[0] * frame_shape[1])


def _shrunk_projections(frames: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Maximum over time and largest change over time, both averaged over blocks of `step` x `step` pixels."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, _FRAMES_LOOKED_AT).round().astype(int))
    looked_at = frames[chosen]
    brightest = looked_at.max(axis=0).astype(np.float32)
    change = brightest - looked_at.min(axis=0)
    if step == 1:
        return brightest, change
    height, width = brightest.shape
    pad = ((0, -height % step), (0, -width % step))

    def shrink(image: np.ndarray) -> np.ndarray:
        padded = np.pad(image, pad, mode="edge")
        return padded.reshape(padded.shape[0] // step, step, -1, step).mean(axis=(1, 3))

    return shrink(brightest), shrink(change)


def _pad_and(operation: Callable[..., np.ndarray], mask: np.ndarray, radius: int) -> np.ndarray:
    """Morphology that continues the mask beyond the frame, so that a sector cut by its edge is not eaten there."""
    padded = np.pad(mask, radius + 1, mode="edge")
    inner = slice(radius + 1, -radius - 1)
    return operation(padded, radius)[inner, inner]


def _weights(components: np.ndarray, count: int, moving: np.ndarray) -> np.ndarray:
    """The components' moving pixels; their areas where (almost) nothing moves."""
    index = np.arange(1, count + 1)
    areas = ndimage.sum_labels(np.ones_like(components), components, index)
    motion = ndimage.sum_labels(moving, components, index)
    return motion if motion.sum() >= 0.05 * areas.sum() else areas
