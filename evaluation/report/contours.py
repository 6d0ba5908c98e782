"""Outlines to look at: the lines around a mask at the size it is shown, in few points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.ndimage import label
from skimage.measure import find_contours

from ..ventricle.contour import Points, signed_area

OUTLINE_STEPS = 8  # outlines are stored in eighths of a pixel
_TOLERANCE = 0.4  # of an outline, in pixels of what it is traced on; the outline itself goes through pixel edges
_SEEN = 4  # pixels of a frame: a piece or a hole of fewer lies under the line around it, which is two pixels wide
_WAYS_ROUND = 2  # times around the frame: as long may the lines of a mask be
_INSIDE, _LEVEL = 128, 127.5  # of 0 to 255: a pixel that is half in a mask, and the line between in and out


def trace(mask: ArrayLike, size: tuple[int, int]) -> list[Points]:
    """Closed lines (N, 2) in (x, y) around a (H, W) mask as it is seen at a size, the largest first.

    For looking, not for measuring: lv_contour is for that. A mask finer than what is shown is averaged to the pixels
    shown. Pieces and holes of fewer than 4 of them are left out, as their own line would cover them. Of lines that are
    together longer than twice around the frame those of the largest pieces are kept; where the largest piece alone has
    more, it is so ragged that no eye follows it, and it is traced at half the size, and half of that, until it has not.

    Args:
        mask: 0 is background.
        size: (width, height) that is shown, in pixels.
    """
    picture = Image.fromarray(np.where(np.asarray(mask) != 0, np.uint8(255), np.uint8(0)))
    columns, rows = (min(sides) for sides in zip(picture.size, size, strict=True))
    while True:
        levels = np.pad(np.asarray(picture.resize((columns, rows), Image.Resampling.BOX)), 1)
        step = np.array([size[1] / rows, size[0] / columns])  # pixels shown for one of those it is traced on
        shown = _visible(levels, _SEEN / float(step.prod()), _WAYS_ROUND * 2 * sum(size) / float(step.mean()))
        if shown is not None:
            break
        columns, rows = max(1, columns // 2), max(1, rows // 2)
    # Pixel centres lie at whole numbers in the padded levels and at halves in a picture.
    lines = [((line[:-1] - 0.5) * step)[:, ::-1] for line in _simplified(find_contours(shown, _LEVEL), _TOLERANCE)]
    return sorted(lines, key=lambda line: -abs(signed_area(line)))


def within(outlines: Sequence[Sequence[Points]], most_bytes: int) -> list[list[Points]]:
    """The lines of a clip's frames, or where they are more than `most_bytes` as `packed`, of each frame its share.

    Of lines that are too many the largest stay; where not even the first fits, it is left with fewer points.

    Args:
        outlines: of each frame, the largest line first.
    """
    if len(packed(outlines)) <= most_bytes:
        return [list(lines) for lines in outlines]
    return [_largest(lines, most_bytes // len(outlines) - 2) for lines in outlines]


def packed(outlines: Iterable[Sequence[Points]]) -> bytes:
    """The lines (N, 2) of frames in few bytes.

    Returns:
        for each frame the number of its lines, then for each line the number of its points and their (x, y);
        little-endian 16-bit integers, places in eighths of a pixel.
    """
    parts: list[NDArray[Any]] = [np.zeros(0, dtype=int)]
    for lines in outlines:
        parts.append(np.array([len(lines)]))
        for line in lines:
            parts += [np.array([len(line)]), np.clip(np.rint(line * OUTLINE_STEPS), 0, 65535).ravel()]
    return np.concatenate(parts).astype("<u2").tobytes()


def enclosed(lines: Iterable[Points]) -> float:
    """The area that a frame's lines enclose, less that of their holes, in pixels."""
    return abs(sum(signed_area(line) for line in lines))


def _largest(lines: Sequence[Points], most_bytes: int) -> list[Points]:
    bytes_of = np.array([2 + 4 * len(line) for line in lines])
    fits = int(np.count_nonzero(np.cumsum(bytes_of) <= most_bytes))
    if fits or not len(lines):
        return list(lines[:fits])
    line, tolerance = lines[0], _TOLERANCE
    while 2 + 4 * len(line) > most_bytes:
        tolerance *= 2
        line = _simplified([np.concatenate((lines[0], lines[0][:1]))], tolerance)[0][:-1]
    return [line]


def _visible(levels: NDArray[np.uint8], least: float, longest: float) -> NDArray[np.uint8] | None:
    """Levels (H, W), 0 to 255 with a border of 0, without what is smaller than `least` and beyond what is `longest`.

    Args:
        least: pixels of a piece or a hole.
        longest: the lines' length together, in pixel edges.

    Returns:
        the levels; None where the largest piece alone has too long a line.
    """
    inside = levels >= _INSIDE
    holes, _ = label(~inside, np.ones((3, 3)))
    small = np.bincount(holes.ravel()) < least
    small[0] = False  # what is inside
    inside |= small[holes]
    pieces, _ = label(inside)
    edges = np.zeros(levels.shape, np.uint8)
    for axis in (0, 1):
        for shift in (1, -1):
            edges += inside & ~np.roll(inside, shift, axis)
    length = np.bincount(pieces.ravel(), edges.ravel())
    size = np.bincount(pieces.ravel())
    size[0] = 0
    order = np.argsort(-size, kind="stable")
    order = order[size[order] >= max(least, 1)]
    fits = np.cumsum(length[order]) <= longest
    if len(order) and not fits[0]:
        return None
    chosen = np.zeros(len(size), dtype=bool)
    chosen[order[fits]] = True
    return np.where(chosen[pieces], np.maximum(levels, _INSIDE), np.minimum(levels, _INSIDE - 1))


def _simplified(lines: Sequence[Points], tolerance: float) -> list[Points]:
    """Lines (N, 2) with only the points they need to stay within a tolerance of themselves (Douglas and Peucker 1973).

    Between points that are kept the farthest from their chord is kept too, until none is too far; all lines at once.
    """
    if not lines:
        return []
    stops = np.cumsum([len(line) for line in lines])
    points = np.concatenate(lines)
    kept = np.zeros(len(points), dtype=bool)
    kept[stops - 1] = kept[[0, *stops[:-1]]] = True
    while True:
        ends = np.flatnonzero(kept)
        part = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
        start = points[ends][part]
        chord = points[ends][part + 1] - start
        away = points[:-1] - start
        along = np.einsum("ij,ij->i", away, chord) / np.maximum(np.einsum("ij,ij->i", chord, chord), 1e-12)
        distance = np.hypot(*(away - np.clip(along, 0, 1)[:, None] * chord).T)
        farthest = np.maximum.reduceat(distance, ends[:-1])
        split = np.flatnonzero((distance == farthest[part]) & (distance > tolerance))
        if not len(split):
            return [line[own] for line, own in zip(lines, np.split(kept, stops[:-1]), strict=True)]
        kept[split[np.unique(part[split], return_index=True)[1]]] = True
