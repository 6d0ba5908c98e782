"""Arrays as files hold them, made into the (T, H, W) greyscale arrays and label arrays of EchoPlan."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from echoplan.errors import EchoPlanError
from echoplan.imageio.bounds import check_size

logger = logging.getLogger(__name__)

_FRAMES_MORE = 256  # that there is room for where a clip is longer than its header says
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what JPEG and every video grabber use


def stack_frames(pictures: Iterable[np.ndarray], expected: int, path: Path) -> np.ndarray:
    """(T, H, W) of pictures (H, W) as they come, in memory once where `expected` is their number.

    Raises:
        ValueError: there are none, or they have several sizes.
        EchoPlanError: together they take more memory than a clip may.
    """
    stack, count = np.empty((0, 0, 0), np.uint8), 0
    for picture in pictures:
        if count == len(stack):
            try:
                grown = np.empty((max(expected, count + _FRAMES_MORE), *picture.shape), picture.dtype)
            except (MemoryError, OverflowError, ValueError):  # a damaged header made the number up
                grown = np.empty((count + _FRAMES_MORE, *picture.shape), picture.dtype)
            if count:
                grown[:count] = stack
            stack = grown
            check_size(path, (count + 1, *picture.shape), picture.itemsize)
        if picture.shape != stack.shape[1:]:
            raise ValueError("frames of several sizes")
        if picture.dtype != stack.dtype:  # 8-bit pictures among 16-bit ones
            stack = stack.astype(np.result_type(stack, picture), copy=False)
        stack[count] = picture
        count += 1
    if not count:
        raise ValueError("no frames")
    return stack[:count]


def to_grey(colour: np.ndarray) -> np.ndarray:
    """Luma of (..., 3) RGB, same dtype; exact where the three channels are equal."""
    red, green, blue = (colour[..., channel] for channel in range(3))
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return np.ascontiguousarray(red)
    luma = colour.astype(np.float32) @ np.asarray(LUMA, np.float32)
    return luma.astype(colour.dtype) if colour.dtype.kind == "f" else np.rint(luma).astype(colour.dtype)


def to_clip_dtype(frames: np.ndarray, path: Path) -> np.ndarray:
    """The frames as uint8 or uint16 where nothing is lost by it, else as float32.

    Raises:
        EchoPlanError: there is no finite intensity at all, or the intensities are complex numbers.
    """
    if frames.dtype.kind not in "uifb":
        raise EchoPlanError(f"intensities of type {frames.dtype} are not an image", file=path)
    if frames.dtype.kind == "f":
        return _finite(frames, path)
    smallest, largest = (int(frames.min()), int(frames.max())) if frames.size else (0, 0)
    if smallest < 0 or largest > np.iinfo(np.uint16).max:
        return frames.astype(np.float32)
    narrow = frames.dtype.itemsize == 1
    return np.ascontiguousarray(frames, dtype=np.uint8 if narrow else np.uint16)


def _finite(frames: np.ndarray, path: Path) -> np.ndarray:
    frames = np.ascontiguousarray(frames, dtype=np.float32)
    bad = ~np.isfinite(frames)
    if bad.all():
        raise EchoPlanError("every intensity is NaN or infinite", file=path, remedy="export the clip again")
    if bad.any():
        logger.warning("%s: %d NaN or infinite intensities are read as 0", path, int(bad.sum()))
        frames[bad] = 0
    return frames


def to_labels(values: np.ndarray, path: Path) -> np.ndarray:
    """Label values as uint8; floating-point files are fine as long as they hold whole numbers.

    Raises:
        EchoPlanError: a value is no whole number in 0..255.
    """
    if values.dtype.kind not in "uifb":
        raise EchoPlanError(f"values of type {values.dtype} are not labels", file=path)
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):  # NaN is unequal to itself
        raise EchoPlanError(
            "the mask holds values that are not whole numbers",
            file=path,
            remedy="save integer labels, resampled with nearest neighbours; probabilities are not a mask",
        )
    if values.size and (values.min() < 0 or values.max() > 255):
        raise EchoPlanError(
            f"the mask holds label values from {values.min():g} to {values.max():g}; they must lie in 0..255",
            file=path,
            remedy="renumber the labels 0, 1, 2, ... (255 marks pixels nobody labelled)",
        )
    return values.astype(np.uint8)


def as_frames(values: np.ndarray, path: Path) -> np.ndarray:
    """(T, H, W) of an array with leading axes (H, W), (T, H, W) or more where at most one is longer than 1.

    Raises:
        EchoPlanError: it is volumetric over time, or empty.
    """
    leading = [length for length in values.shape[:-2] if length != 1]
    if values.ndim < 2 or len(leading) > 1 or values.size == 0:
        raise EchoPlanError(
            f"an array of shape {values.shape} (slowest axis first) is no 2D clip",
            file=path,
            remedy="give 2D images over time: columns, rows, frames",
        )
    return values.reshape(-1, *values.shape[-2:])


def usable_spacing(spacing_mm: tuple[float, float]) -> bool:
    """Whether both distances are finite and positive."""
    return all(math.isfinite(value) and value > 0 for value in spacing_mm)


def usable_time(milliseconds: float | None) -> float | None:
    """The time if it is finite and positive, else None."""
    return float(milliseconds) if milliseconds and math.isfinite(milliseconds) and milliseconds > 0 else None
