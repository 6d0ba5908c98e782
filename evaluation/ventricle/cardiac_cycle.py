"""End-diastole and end-systole from the cavity's area (or volume) over time; cycle lengths, heart rate, rhythm."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter1d, median_filter

from echoplan.errors import EchoPlanError

_SMOOTHING_S = 0.02
_SHORTEST_BEAT_S = 0.35  # about 170 beats a minute
# Where the frame time is unknown, the same as shares of the clip.
_SMOOTHING_SHARE = 0.01
_SHORTEST_BEAT_SHARE = 0.08
_PROMINENCE_SHARE = 0.25  # of the curve's range
_END_TOLERANCE_SHARE = 0.15  # the clip's first or last frame is an extremum only if this near the next one
_BACK_AGAIN_SHARE = 0.1
_SMALL_CHANGE = 0.05
# Longest minus shortest cycle, as a share of the mean cycle. Breathing changes cycles by some 10 %, and area curves
# place an extremum within a frame or two; a premature beat or atrial fibrillation changes them by far more.
IRREGULAR_SHARE = 0.20
_IRREGULAR_FRAMES = 3  # the least difference of cycles that frames can show


@dataclass(frozen=True)
class Rhythm:
    """The clip's whole cycles.

    Attributes:
        cycles_s: their lengths in seconds, in frames where the frame time is unknown: from end-systole to end-systole,
            or from end-diastole to end-diastole where that gives more.
        in_seconds: which of the two units.
        shortest, longest: of the cycles of both kinds, in the same unit.
        variation: their difference as a share of the mean cycle; None where there is only one.
        irregular: whether the variation is beyond `IRREGULAR_SHARE`.
    """

    cycles_s: tuple[float, ...]
    in_seconds: bool
    shortest: float
    longest: float
    variation: float | None
    irregular: bool

    @property
    def heart_rate_bpm(self) -> float | None:
        """60 over the mean cycle; None where the frame time is unknown."""
        return 60 / fmean(self.cycles_s) if self.in_seconds else None

    @property
    def words(self) -> str:
        """What is irregular, with the numbers; empty where nothing is."""
        if not self.irregular or self.variation is None:
            return ""
        unit, digits = ("s", 2) if self.in_seconds else ("frames", 0)
        return (
            f"irregular rhythm: cycles of {self.shortest:.{digits}f} to {self.longest:.{digits}f} {unit}, a difference "
            f"of {100 * self.variation:.0f} % of their mean (limit {100 * IRREGULAR_SHARE:.0f} %)"
        )


@dataclass(frozen=True)
class Phases:
    """Where the heart is at its fullest and emptiest.

    Attributes:
        ed_frame, es_frame: of the most typical beat (the median change of area), or of the clip.
        beats: (ed, es) of every beat found, in the clip's order; at least one.
        complete: whether the clip shows at least one whole beat.
        note: what a reader should know, in words; empty if there is nothing to say.
        partial: (first, last) frame of the clip's ends where a beat is cut off: its end-diastole lies before the clip,
            or its end-systole after it.
        rhythm: cycle lengths and heart rate; None where phases were given, or no cycle is whole.
    """

    ed_frame: int
    es_frame: int
    beats: tuple[tuple[int, int], ...]
    complete: bool
    note: str = ""
    partial: tuple[tuple[int, int], ...] = ()
    rhythm: Rhythm | None = None

    @property
    def heart_rate_bpm(self) -> float | None:
        """Beats a minute; None where no cycle is whole or the frame time is unknown."""
        return self.rhythm.heart_rate_bpm if self.rhythm else None


@dataclass(frozen=True)
class PhaseErrors:
    """Found minus given phases; positive: found too late. Milliseconds are None where the frame time is unknown."""

    ed_frames: int
    es_frames: int
    ed_ms: float | None = None
    es_ms: float | None = None


def phase_errors(phases: Phases, ed_frame: int, es_frame: int, *, frame_time_ms: float | None = None) -> PhaseErrors:
    """How far found phases are from given ones, as those of a dataset.

    Of several beats found, the one that is nearest to the given frames is compared: a dataset marks one beat of a clip.

    Example:
        >>> from echoplan.evaluation import PhaseErrors, Phases, phase_errors
        >>> found = Phases(10, 22, ((10, 22),), True)
        >>> phase_errors(found, 9, 24, frame_time_ms=20.0)
        PhaseErrors(ed_frames=1, es_frames=-2, ed_ms=20.0, es_ms=-40.0)
    """
    ed, es = min(phases.beats, key=lambda beat: abs(beat[0] - ed_frame) + abs(beat[1] - es_frame))
    frames = ed - ed_frame, es - es_frame
    if frame_time_ms is None:
        return PhaseErrors(*frames)
    return PhaseErrors(*frames, *(difference * frame_time_ms for difference in frames))


def find_phases(area: ArrayLike, *, frame_time_ms: float | None = None) -> Phases:
    """End-diastole and end-systole of every beat in a clip.

    The curve is smoothed by time; its extrema are those at least 0.35 s apart that stand out by a quarter of its range.
    Where the frame time is unknown, shares of the clip's length take the place of seconds.

    Args:
        area: (T,) cavity area or volume. Frames with zero or a non-finite value have no cavity and are passed over.
        frame_time_ms: mean time between frames.

    Raises:
        EchoPlanError: no frame has a cavity, or the frame time is not positive.

    Example:
        >>> import numpy as np
        >>> from echoplan.evaluation import find_phases
        >>> area = 20 + 8 * np.cos(2 * np.pi * np.arange(60) / 25)  # beats of a second, at 25 frames a second
        >>> phases = find_phases(area, frame_time_ms=40.0)
        >>> phases.beats, round(phases.heart_rate_bpm)
        (((0, 12), (25, 37)), 60)
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
        return _of_few_frames(curve, frames, notes)

    filled = np.interp(np.arange(len(curve)), frames, curve[frames])
    smooth, distance = _smoothed(filled, frame_time_ms)
    maxima, minima = _extrema(smooth, distance), _extrema(-smooth, distance)
    maxima, minima = (_nearest_usable(found, usable) for found in (maxima, minima))
    beats = _pair(maxima, minima, smooth)
    complete = _has_whole_beat(maxima, minima, smooth)
    if not complete:
        notes.insert(0, "the clip shows less than one whole beat")
    partial = _cut_off(maxima, minima, smooth) if complete else ()
    notes += [f"frames {first} to {last} show a part of a beat" for first, last in partial]
    rhythm = measure_rhythm(smooth, maxima, minima, frame_time_ms)
    if rhythm is not None and rhythm.irregular:
        notes.append(rhythm.words)
    change = np.array([(smooth[ed] - smooth[es]) / smooth[ed] for ed, es in beats])
    if np.median(change) < _SMALL_CHANGE:
        notes.append("the cavity hardly changes")
    typical = beats[int(np.argmin(np.abs(change - np.median(change))))]
    return Phases(*typical, tuple(beats), complete, "; ".join(notes), partial, rhythm)


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
    from scipy.signal import find_peaks  # takes most of a second: it brings all of scipy.stats

    span = float(np.ptp(curve))
    if span == 0:
        return np.zeros(1, dtype=np.intp)
    # A low value on each side makes the ends candidates, and their prominence is then that of their inner side.
    framed = np.concatenate(([curve.min() - 1], curve, [curve.min() - 1]))
    found = find_peaks(framed, distance=distance, prominence=_PROMINENCE_SHARE * span)[0] - 1
    inside = (found > 0) & (found < len(curve) - 1)
    # An end is compared with the extremum next to it, since the curve may drift; without one, with the highest value.
    heights = curve[found]
    beside = np.full(len(found), curve.max())
    if inside.any():
        beside[0], beside[-1] = heights[inside][0], heights[inside][-1]
    found = found[inside | (heights >= beside - _END_TOLERANCE_SHARE * span)]
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


def _cut_off(
    maxima: NDArray[np.intp], minima: NDArray[np.intp], curve: NDArray[np.float64]
) -> tuple[tuple[int, int], ...]:
    """(first, last) frame of a systole whose beginning lies before the clip, and of one whose end lies after it."""
    last, parts = len(curve) - 1, []
    fallen = _BACK_AGAIN_SHARE * np.ptp(curve)
    if not np.any(maxima < minima[0]) and curve[0] - curve[minima[0]] > fallen:
        parts.append((0, int(minima[0])))
    if not np.any(minima > maxima[-1]) and curve[maxima[-1]] - curve[last] > fallen:
        parts.append((int(maxima[-1]), last))
    return tuple(parts)


def _of_few_frames(curve: NDArray[np.float64], frames: NDArray[np.intp], notes: list[str]) -> Phases:
    """The larger of two usable frames is end-diastole."""
    if len(frames) == 1:
        ed = es = int(frames[0])
        words = "one frame: end-diastole and end-systole are the same"
    else:
        ed, es = int(frames[np.argmax(curve[frames])]), int(frames[np.argmin(curve[frames])])
        words = "two frames: the larger cavity is end-diastole"
    return Phases(ed, es, ((ed, es),), False, "; ".join([words, *notes]))


def measure_rhythm(
    curve: NDArray[np.float64],
    maxima: NDArray[np.intp],
    minima: NDArray[np.intp],
    frame_time_ms: float | None,
) -> Rhythm | None:
    """Cycles between the extrema of one kind of a smoothed area curve (T,); None where there is no whole one.

    Heart rate comes from end-systole where it gives as many cycles as end-diastole: before contraction the curve is
    flat. A premature beat shows in either. Extrema at the clip's two ends are no turning points and do not count.

    Args:
        maxima, minima: frames, ascending.
        frame_time_ms: None where unknown; the cycles are then in frames.
    """
    systolic, diastolic = (np.diff(_turning_points(found, curve)) for found in (minima, maxima))
    both = np.concatenate((systolic, diastolic))
    if not len(both):
        return None
    chosen = systolic if len(systolic) >= len(diastolic) else diastolic
    unit = 1.0 if frame_time_ms is None else frame_time_ms / 1000
    spread = float(np.ptp(both))
    variation = spread / float(chosen.mean()) if len(both) > 1 else None
    return Rhythm(
        cycles_s=tuple(float(count) * unit for count in chosen),
        in_seconds=frame_time_ms is not None,
        shortest=float(both.min()) * unit,
        longest=float(both.max()) * unit,
        variation=variation,
        irregular=variation is not None and variation > IRREGULAR_SHARE and spread >= _IRREGULAR_FRAMES,
    )


def _turning_points(found: NDArray[np.intp], curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """Extrema inside the clip, to a part of a frame by the parabola through each and its two neighbours."""
    inside = found[(found > 0) & (found < len(curve) - 1)]
    before, at, after = curve[inside - 1], curve[inside], curve[inside + 1]
    bend = before - 2 * at + after
    shift = np.where(bend == 0, 0.0, (before - after) / (2 * np.where(bend == 0, 1.0, bend)))
    return inside + np.clip(shift, -0.5, 0.5)
