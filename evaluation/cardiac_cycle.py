"""End-diastole and end-systole from the cavity's area (or volume) over time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter1d, median_filter
from scipy.signal import find_peaks

from echoplan.errors import EchoPlanError

_SMOOTHING_S = 0.02
_SHORTEST_BEAT_S = 0.35  # about 170 beats a minute
# Where the frame time is unknown, the same as shares of the clip.
_SMOOTHING_SHARE = 0.01
_SHORTEST_BEAT_SHARE = 0.08
_PROMINENCE_SHARE = 0.25  # of the curve's range
_END_TOLERANCE_SHARE = 0.15  # the clip's first or last frame is an extremum only if this near the curve's extreme
_BACK_AGAIN_SHARE = 0.1
_SMALL_CHANGE = 0.05


@dataclass(frozen=True)
class Phases:
    """Where the heart is at its fullest and emptiest.

    Attributes:
        ed_frame, es_frame: of the most typical beat (the median change of area), or of the clip.
        beats: (ed, es) of every beat found, in the clip's order; at least one.
        complete: whether the clip shows at least one whole beat.
        note: what a reader should know, in words; empty if there is nothing to say.
    """

    ed_frame: int
    es_frame: int
    beats: tuple[tuple[int, int], ...]
    complete: bool
    note: str = ""


def find_phases(area: ArrayLike, *, frame_time_ms: float | None = None) -> Phases:
    """End-diastole and end-systole of every beat in a clip.

    The curve is smoothed by time; its extrema are those at least 0.35 s apart that stand out by a quarter of its range.
    Where the frame time is unknown, shares of the clip's length take the place of seconds.

    Args:
        area: (T,) cavity area or volume. Frames with zero or a non-finite value have no cavity and are passed over.
        frame_time_ms: mean time between frames.

    Raises:
        EchoPlanError: no frame has a cavity, or the frame time is not positive.
    """
    curve = np.asarray(area, dtype=np.float64).ravel()
    usable = np.isfinite(curve) & (curve > 0)
    if not usable.any():
        raise EchoPlanError("no frame of the clip has a cavity", remedy="look at the predicted masks")
    if frame_time_ms is not None and not frame_time_ms > 0:
        raise EchoPlanError(f"the frame time of {frame_time_ms} ms is not positive", remedy="leave it out if unknown")
    frames = np.flatnonzero(usable)
    missing = len(curve) - len(frames)
    notes = [f"{missing} of {len(curve)} frames have no cavity"] if missing else []
    if len(frames) <= 2:
        ed, es = int(frames[np.argmax(curve[frames])]), int(frames[np.argmin(curve[frames])])
        es = ed if len(frames) == 1 else es
        few = "one frame: end-diastole and end-systole are the same"
        notes.insert(0, few if len(frames) == 1 else "two frames: the larger cavity is end-diastole")
        return Phases(ed, es, ((ed, es),), False, "; ".join(notes))

    filled = np.interp(np.arange(len(curve)), frames, curve[frames])
    smooth, distance = _smoothed(filled, frame_time_ms)
    maxima, minima = _extrema(smooth, distance), _extrema(-smooth, distance)
    maxima, minima = (_nearest_usable(found, usable) for found in (maxima, minima))
    beats = _pair(maxima, minima, smooth)
    complete = _has_whole_beat(maxima, minima, smooth)
    if not complete:
        notes.insert(0, "the clip shows less than one whole beat")
    change = np.array([(smooth[ed] - smooth[es]) / smooth[ed] for ed, es in beats])
    if np.median(change) < _SMALL_CHANGE:
        notes.append("the cavity hardly changes")
    typical = beats[int(np.argmin(np.abs(change - np.median(change))))]
    return Phases(*typical, tuple(beats), complete, "; ".join(notes))


def _smoothed(curve: NDArray[np.float64], frame_time_ms: float | None) -> tuple[NDArray[np.float64], int]:
    """The smoothed curve, and the least distance between extrema of one kind, in frames."""
    if frame_time_ms is None:
        sigma, distance = len(curve) * _SMOOTHING_SHARE, len(curve) * _SHORTEST_BEAT_SHARE
    else:
        sigma, distance = (1000 * seconds / frame_time_ms for seconds in (_SMOOTHING_S, _SHORTEST_BEAT_S))
    fine = len(curve) >= 20 if frame_time_ms is None else distance >= 5
    if fine:  # one frame gone wrong is not a beat; at few frames a beat it may be one
        curve = median_filter(curve, size=3, mode="nearest")
    return gaussian_filter1d(curve, max(sigma, 0.5), mode="nearest"), max(1, round(distance))


def _extrema(curve: NDArray[np.float64], distance: int) -> NDArray[np.intp]:
    """Maxima of a curve, its ends included where they are near its highest value; never none."""
    span = float(np.ptp(curve))
    if span == 0:
        return np.zeros(1, dtype=np.intp)
    # A low value on each side makes the ends candidates, and their prominence is then that of their inner side.
    framed = np.concatenate(([curve.min() - 1], curve, [curve.min() - 1]))
    found = find_peaks(framed, distance=distance, prominence=_PROMINENCE_SHARE * span)[0] - 1
    inside = (found > 0) & (found < len(curve) - 1)
    found = found[inside | (curve[found] >= curve.max() - _END_TOLERANCE_SHARE * span)]
    return found if len(found) else np.array([int(np.argmax(curve))])


def _nearest_usable(found: NDArray[np.intp], usable: NDArray[np.bool_]) -> NDArray[np.intp]:
    frames = np.flatnonzero(usable)
    return np.unique(frames[np.abs(frames[None] - found[:, None]).argmin(axis=1)])


def _pair(maxima: NDArray[np.intp], minima: NDArray[np.intp], curve: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Each end-systole with the end-diastole before it; if none has one, with the one after it."""
    beats = []
    for previous, es in zip([-1, *minima[:-1]], minima, strict=True):
        before = maxima[(maxima > previous) & (maxima < es)]
        if len(before):
            beats.append((int(before[np.argmax(curve[before])]), int(es)))
    if beats:
        return beats
    after = maxima[maxima > minima[0]]
    return [(int(after[0]) if len(after) else int(maxima[0]), int(minima[0]))]


def _has_whole_beat(maxima: NDArray[np.intp], minima: NDArray[np.intp], curve: NDArray[np.float64]) -> bool:
    """Whether an extremum lies between two of the other kind, or the curve turns twice and is back where it began."""
    kinds = ((maxima, minima), (minima, maxima))
    if any(bool(np.any((inner > outer[0]) & (inner < outer[-1]))) for inner, outer in kinds):
        return True
    if len(maxima) != 1 or len(minima) != 1 or {maxima[0], minima[0]} & {0, len(curve) - 1}:
        return False
    gained = (curve[-1] - curve[0]) * (1 if maxima[0] < minima[0] else -1)
    return bool(gained >= -_BACK_AGAIN_SHARE * np.ptp(curve))
