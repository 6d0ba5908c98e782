"""What a predictor finds in one clip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """What a predictor finds in one clip.

    Attributes:
        mask: (T, H, W) uint8 labels on the clip's own grid, after postprocessing.
        probabilities: (T, H, W) float32, of the target structure, before postprocessing.
        area_mm2: (T,) area of the target in the mask; None where the spacing is unknown.
        ed_frame, es_frame: end-diastole and end-systole, found on the area curve; None where there is no cavity.
        ef_percent: single-plane ejection fraction; None where it cannot be measured.
        note: why something is missing or doubtful; empty if nothing is.
        ef_low_percent, ef_high_percent: the reference EF lies between; None where there is no interval.
        interval_coverage_percent: how often it does, in percent; None where there is no interval.
        interval_note: why there is no interval; empty if there is one.
        ef_fold_sd_percent: SD of EF over the folds' networks; None with fewer than two.
        quality: "no warning", "check" or, with one fold, "not judged"; "" where it was not asked for.
        quality_reasons: why to check, or why it is not judged, in words.
        interval_patients: the cross-validated patients that the interval rests on; None where there is no interval.
    """

    mask: np.ndarray
    probabilities: np.ndarray
    area_mm2: np.ndarray | None
    ed_frame: int | None
    es_frame: int | None
    ef_percent: float | None
    note: str = ""
    ef_low_percent: float | None = None
    ef_high_percent: float | None = None
    interval_coverage_percent: float | None = None
    interval_note: str = ""
    ef_fold_sd_percent: float | None = None
    quality: str = ""
    quality_reasons: tuple[str, ...] = ()
    interval_patients: int | None = None
