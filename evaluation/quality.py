"""Which measurements to look at again: what is measured of masks, the limits, and the reasons in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .conformal import conformal_quantile
from .ejection import CHECK, LARGEST_EF_DIFFERENCE_POINTS, NO_WARNING, NOT_JUDGED, PatientRow
from .measurements import CaseMeasurement
from .ventricle.contour import largest_filled_component
from .ventricle.volumes import LARGEST_LENGTH_DIFFERENCE_PERCENT

NO_SECOND_OPINION = "no second fold's network measured it that could disagree"
_SHARE_OF_ORDINARY = 0.95
_FEWEST_OF_A_BEAT = 3  # frames; two are an end-diastole and an end-systole that somebody chose
_FEWEST_FOR_ROUGHNESS = 5  # frames; a second difference needs three, and a few of them a spread


@dataclass(frozen=True)
class Limit:
    """Where doubt begins, and who says so."""

    value: float
    source: str


@dataclass(frozen=True)
class Doubt:
    """One reason to look again.

    Attributes:
        measure: its name, a key of `default_limits`.
        value: what was measured.
        limit: where doubt begins.
        source: where the limit comes from.
        words: the reason for people.
    """

    measure: str
    value: float
    limit: float
    source: str
    words: str

    def to_dict(self) -> dict[str, Any]:
        """As ef_report.json holds it."""
        return asdict(self)


@dataclass(frozen=True)
class _Measure:
    words: str
    default: float
    why: str
    low_is_bad: bool = False
    by_crossval: bool = False


_PERCENT = 100.0
_MEASURES = {
    "ef_fold_sd_percent": _Measure(
        "the folds' networks disagree on EF by an SD of {value:.1f} points (limit {limit:.1f})",
        5.0,
        "fixed: about what two readers of one echocardiogram differ by",
    ),
    "area_roughness": _Measure(
        "the area curve is ragged: noise {percent:.1f} % of its range (limit {limit_percent:.1f} %)",
        0.10,
        "fixed: a smooth beat of ten frames or more stays below 6 %",
        by_crossval=True,
    ),
    "view_ef_difference_percent": _Measure(
        "A2C and A4C alone differ by {value:.0f} EF points (limit {limit:.0f})",
        LARGEST_EF_DIFFERENCE_POINTS,
        "fixed: the single planes of one heart differ by their cuts too",
        by_crossval=True,
    ),
    "length_difference_percent": _Measure(
        "the long axes of A2C and A4C differ by {value:.0f} % (limit {limit:.0f} %): one view may be foreshortened",
        LARGEST_LENGTH_DIFFERENCE_PERCENT,
        "fixed: Lang et al., ASE/EACVI 2015",
        by_crossval=True,
    ),
    "largest_edv_ml": _Measure(
        "EDV is {value:,.0f} mL, more than any heart holds (limit {limit:,.0f} mL): is the spacing right?",
        1000.0,
        "fixed: the largest ventricles hold some 500 mL; a spacing 10 times too large makes 1,000 times the volume",
    ),
    "smallest_edv_ml": _Measure(
        "EDV is {value:.2g} mL, less than any heart holds (limit {limit:g} mL): is the spacing right?",
        1.0,
        "fixed: newborns' ventricles hold some 5 mL; a spacing 10 times too small makes a thousandth of the volume",
        low_is_bad=True,
    ),
    "edge_share": _Measure(
        "{percent:.0f} % of the cavity's outline lies on the edge of the image sector (limit {limit_percent:.0f} %)",
        0.10,
        "fixed: a whole ventricle lies inside the sector",
    ),
    "certainty": _Measure(
        "the network is less sure of the cavity ({percent:.1f} % in the mean) than of 19 in 20 that it was validated "
        "on (limit {limit_percent:.1f} %): the clip may be unlike its training data",
        0.0,
        "none: what a network is usually sure of, its cross-validation tells",
        low_is_bad=True,
        by_crossval=True,
    ),
    "empty_share": _Measure("{percent:.0f} % of the frames have no cavity", 0.0, "fixed: every frame shows the heart"),
    "stray_share": _Measure(
        "{percent:.0f} % of the mask lies outside its largest part (limit {limit_percent:.0f} %)",
        0.05,
        "fixed: a ventricle is one piece",
    ),
    "area_change": _Measure(
        "the cavity hardly changes: its area by {percent:.1f} % from end-diastole to end-systole (limit "
        "{limit_percent:.0f} %)",
        0.05,
        "fixed: an EF of some 8 %",
        low_is_bad=True,
    ),
    "area_share": _Measure(
        "the cavity is tiny: {percent:.1f} % of the frame (limit {limit_percent:.1f} %)",
        0.01,
        "fixed: an apical view that is made to measure the ventricle shows it larger",
        low_is_bad=True,
    ),
    "frames": _Measure(
        "the clip has {value:.0f} frames, too few to trust its end-diastole and end-systole (limit {limit:.0f})",
        5.0,
        "fixed: fewer hold no curve",
        low_is_bad=True,
    ),
}


def default_limits() -> dict[str, Limit]:
    """The limits that hold where cross-validation gives none."""
    return {name: Limit(measure.default, measure.why) for name, measure in _MEASURES.items()}


def limits_from_crossval(measured: Mapping[str, Sequence[float | None]]) -> dict[str, Limit]:
    """Limits from what cross-validation found ordinary; fixed ones for what it cannot tell.

    Roughness, certainty and the differences between views: the conformal 95th (5th) percentile, beyond which lies one
    ordinary clip (or patient) in twenty; 19 values at least. Frames: a clip as short as the shortest one in
    cross-validation is not too short, unless that shows end-diastole and end-systole alone. The others are fixed, the
    folds' disagreement because in cross-validation one network alone has not seen a patient.

    Args:
        measured: measure -> its values, a clip or a patient each; None is left out.
    """
    limits = default_limits()
    for name, values in measured.items():
        known = [float(value) for value in values if value is not None and np.isfinite(value)]
        if _MEASURES[name].by_crossval:
            sign, rank = (-1, "5th") if _MEASURES[name].low_is_bad else (1, "95th")
            limit = sign * conformal_quantile([sign * value for value in known], _SHARE_OF_ORDINARY)
            if np.isfinite(limit):
                limits[name] = Limit(limit, f"{rank} percentile of {len(known)} cross-validated measurements")
        elif name == "frames":
            beats = [value for value in known if value >= _FEWEST_OF_A_BEAT]
            if beats and min(beats) < limits[name].value:
                limits[name] = Limit(min(beats), f"the shortest of {len(beats)} cross-validated clips")
    return limits


def area_roughness(area: ArrayLike) -> float | None:
    """How noisy an area curve is, as a share of its range; None below five frames or for a curve without a range.

    The noise is the RMS of the second differences a[t-1] - 2 a[t] + a[t+1] divided by sqrt(6), which is the SD of white
    noise on a smooth curve. The heart's own motion adds about 5 / f^2 at f frames a beat.
    """
    curve = np.asarray(area, dtype=np.float64).ravel()
    span = float(np.ptp(curve)) if len(curve) >= _FEWEST_FOR_ROUGHNESS else 0.0
    if span <= 0:
        return None
    return float(np.sqrt(np.mean(np.diff(curve, 2) ** 2) / 6) / span)


def clip_measures(mask: np.ndarray, measured: CaseMeasurement) -> dict[str, Any]:
    """What is measured of one clip for its quality; None is unknown.

    `edge_share`, which takes the image, and `certainty`, which takes the networks' probabilities, are measured where
    these are.

    Args:
        mask: (T, H, W), 0 is background, anything else the cavity.
        measured: `measure_case` of it.
    """
    cavity = np.asarray(mask).astype(bool, copy=False)
    pixels = np.count_nonzero(cavity, axis=(1, 2))
    given = None not in (measured.case.ed_frame, measured.case.es_frame)
    beats = measured.phases.beats if measured.phases else ()
    frames = {frame for beat in beats for frame in beat}
    changes = [1 - pixels[es] / pixels[ed] for ed, es in beats if pixels[ed] and ed != es]
    stray = [1 - np.count_nonzero(largest_filled_component(cavity[f])) / pixels[f] for f in sorted(frames) if pixels[f]]
    return {
        "area_roughness": area_roughness(measured.area),
        "empty_share": float(np.mean(pixels == 0)),
        "stray_share": max(0.0, *stray) if stray else None,
        "area_change": float(np.median(changes)) if changes else None,
        "area_share": float(pixels.max(initial=0)) / (cavity.shape[1] * cavity.shape[2]),
        "largest_edv_ml": measured.edv_ml,
        "smallest_edv_ml": measured.edv_ml,
        "frames": None if given else len(cavity),  # to find end-diastole and end-systole in
    }


def patient_measures(row: PatientRow, *, ef_fold_sd_percent: float | None = None) -> dict[str, Any]:
    """What is measured of one patient for the quality; None is unknown.

    Args:
        row: of `measure_patients`.
        ef_fold_sd_percent: SD over the folds' networks, where there are several.
    """
    a2c, a4c = row.ef_a2c_percent, row.ef_a4c_percent
    return {
        "ef_fold_sd_percent": ef_fold_sd_percent,
        "view_ef_difference_percent": None if a2c is None or a4c is None else abs(a2c - a4c),
        "length_difference_percent": row.length_difference_percent,
    }


def find_doubts(measures: Mapping[str, float | None], limits: Mapping[str, Limit]) -> list[Doubt]:
    """Every measure beyond its limit, in a fixed order; an unknown measure raises no doubt.

    Args:
        measures: of `clip_measures` or `patient_measures`.
        limits: of `limits_from_crossval` or `default_limits`.
    """
    doubts = []
    for name, measure in _MEASURES.items():
        value = measures.get(name)
        if value is None:
            continue
        limit = limits[name]
        if value < limit.value if measure.low_is_bad else value > limit.value:
            words = measure.words.format(
                value=value, limit=limit.value, percent=_PERCENT * value, limit_percent=_PERCENT * limit.value
            )
            doubts.append(Doubt(name, float(value), limit.value, limit.source, words))
    return doubts


def with_quality(row: PatientRow, doubts: Mapping[str, Sequence[Doubt]], *, folds: bool = True) -> PatientRow:
    """A patient's row with its `quality` and `quality_reasons`.

    Args:
        row: of `measure_patients`; without an EF it is always to check, for the reason in `failure`, and so it is for
            the reasons that it has already.
        doubts: by clip; under "" those about the patient.
        folds: whether several folds' networks measured it and could have disagreed; where one network alone did, what
            it gets wrong in the shape of a heart goes unnoticed, and the row is "not judged" instead of "no warning".
    """
    reasons = [reason for reason in (row.failure, row.quality_reasons) if reason]
    for case, of_case in doubts.items():
        reasons += [f"{case}: {doubt.words}" if case else doubt.words for doubt in of_case]
    if not reasons and not folds:
        return replace(row, quality=NOT_JUDGED, quality_reasons=NO_SECOND_OPINION)
    return replace(row, quality=CHECK if reasons else NO_WARNING, quality_reasons="; ".join(reasons))
