"""What a predictor finds in one clip, measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from echoplan.dataset import Case
from echoplan.imageio.clip import Clip

from ..evaluation import CaseMeasurement, PatientRow, make_film, measure_case, measure_patients
from ..evaluation.ejection import CHECK, NOT_JUDGED
from ..evaluation.quality import clip_measures
from .ensemble import Segmentation
from .uncertainty import TrustSettings, assess_patient


@dataclass(frozen=True, repr=False)
class Prediction:
    """What a predictor finds in one clip. Printed it is one line; a notebook shows ED and ES with outlines, too.

    Attributes:
        mask: (T, H, W) uint8 labels on the clip's own grid, after postprocessing.
        probabilities: (T, H, W) float32, of the target structure, before postprocessing.
        area_mm2: (T,) area of the target in the mask; None where the spacing is unknown.
        ed_frame, es_frame: end-diastole and end-systole, found on the area curve; None where there is no cavity.
        ef_percent: single-plane ejection fraction; None where it cannot be measured.
        edv_ml, esv_ml: single-plane volumes; None where they cannot be measured, as without spacing.
        target: the label in `mask` that is measured.
        clip: the clip that it was found in.
        measurement: all that was measured: beats, landmarks, heart rate.
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
    edv_ml: float | None
    esv_ml: float | None
    target: int
    clip: Clip
    measurement: CaseMeasurement
    note: str = ""
    ef_low_percent: float | None = None
    ef_high_percent: float | None = None
    interval_coverage_percent: float | None = None
    interval_note: str = ""
    ef_fold_sd_percent: float | None = None
    quality: str = ""
    quality_reasons: tuple[str, ...] = ()
    interval_patients: int | None = None

    def __repr__(self) -> str:
        return f"<Prediction: {self._line()}>"

    def _line(self) -> str:
        """EF, volumes, phases and quality."""
        parts = [self._ef()]
        if self.edv_ml is not None and self.esv_ml is not None:
            parts.append(f"EDV {self.edv_ml:.1f} mL, ESV {self.esv_ml:.1f} mL")
        if self.ed_frame is not None:
            parts.append(f"ED frame {self.ed_frame} and ES frame {self.es_frame} of {len(self.mask)}")
        if self.quality == CHECK:
            parts.append(f"{CHECK}, see quality_reasons")
        elif self.quality:
            parts.append(self.quality)
        return "; ".join(parts)

    def _repr_html_(self) -> str:
        """ED and ES with outlines, the area curve, and the line, as a notebook shows them."""
        from ..evaluation.report.page import notebook_view  # with jinja2 and, for the curve, matplotlib

        cavity, spacing = self.mask == self.target, self.clip.spacing_mm
        film = make_film(self.measurement, self.clip.frames, cavity, spacing, player=False)
        return notebook_view(self.measurement, film, self._line(), self.quality_reasons)

    def _ef(self) -> str:
        if self.ef_percent is None:
            return f"no EF: {self.measurement.failure or self.note}"
        words = f"EF {self.ef_percent:.1f} %"
        if self.ef_low_percent is None or self.ef_high_percent is None:
            return words
        share = f"{self.interval_coverage_percent:.0f} % " if self.interval_coverage_percent else ""
        return f"{words} ({share}interval {self.ef_low_percent:.1f} to {self.ef_high_percent:.1f})"


def measured(clip: Clip, found: Segmentation, target: int, trust: TrustSettings) -> Prediction:
    """A clip measured by its mask, with intervals and quality.

    Args:
        clip: the clip, whose spacing and frame time count.
        found: what was found in it, with its probabilities.
        target: the label that is measured.
        trust: what intervals and the quality flag are made with.
    """
    mask, probabilities = found.mask, found.probabilities
    if probabilities is None:
        raise ValueError("a prediction has probabilities: segment with keep_probabilities")
    cavity = mask == target
    area = None if clip.spacing_mm is None else cavity.sum(axis=(1, 2)) * float(np.prod(clip.spacing_mm))
    case = Case("", "", "").with_header(clip)
    measurement = measure_case(case, cavity)
    (row,) = measure_patients([measurement])
    judged = assess_patient(row, [(case, clip_measures(cavity, measurement))], {case.case: found.evidence}, trust)
    return Prediction(
        mask=mask,
        probabilities=probabilities.of_class(0 if len(probabilities.values) == 1 else target),
        area_mm2=area,
        ed_frame=measurement.ed_frame,
        es_frame=measurement.es_frame,
        ef_percent=measurement.ef_percent,
        edv_ml=measurement.edv_ml,
        esv_ml=measurement.esv_ml,
        target=target,
        clip=clip,
        measurement=measurement,
        note="; ".join(part for part in (measurement.note, measurement.failure) if part),
        ef_low_percent=judged.row.ef_low_percent,
        ef_high_percent=judged.row.ef_high_percent,
        interval_coverage_percent=judged.row.interval_coverage_percent,
        interval_note=judged.no_interval.get("ef_percent", ""),
        ef_fold_sd_percent=judged.row.ef_fold_sd_percent,
        quality=judged.row.quality or "",
        quality_reasons=tuple(filter(None, (measurement.doubt, *judged.reasons))) or _unjudged(judged.row),
        interval_patients=judged.row.interval_patients,
    )


def _unjudged(row: PatientRow) -> tuple[str, ...]:
    return (row.quality_reasons or "",) if row.quality == NOT_JUDGED else ()
