"""Cycle lengths, heart rate, and whether the beats follow each other regularly."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

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
        if not self.irregular:
            return ""
        unit, digits = ("s", 2) if self.in_seconds else ("frames", 0)
        return (
            f"irregular rhythm: cycles of {self.shortest:.{digits}f} to {self.longest:.{digits}f} {unit}, a difference "
            f"of {100 * self.variation:.0f} % of their mean (limit {100 * IRREGULAR_SHARE:.0f} %)"
        )


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
