"""How far a patient's measurements can be trusted: intervals, the folds' disagreement, and the quality flag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from echoplan import layout

from ..evaluation import CaseMask
from ..evaluation.conformal import DEFAULT_COVERAGE, check_coverage
from ..evaluation.quality import (
    Doubt,
    default_limits,
    find_doubts,
    patient_measures,
    quality_columns,
)
from .calibration import NONE_WRITTEN, Calibration, interval_columns
from .postprocessing import Step
from .uncertainty import ClipEvidence, fold_sd, measure_folds


@dataclass(frozen=True)
class TrustSettings:
    """What intervals and flags are made with.

    Attributes:
        calibration: of the very model or ensemble; None where there is none.
        why_none: why there is no calibration, in words.
        coverage: of the intervals, between 0 and 1.
        file: where the calibration was read.
    """

    calibration: Calibration | None = None
    why_none: str = NONE_WRITTEN
    coverage: float = DEFAULT_COVERAGE
    file: Path | None = None

    @classmethod
    def find(
        cls,
        models: Sequence[Path],
        *,
        file: Path | None,
        postprocessing: Sequence[Step],
        checkpoint: str,
        coverage: float,
    ) -> TrustSettings:
        """Read the calibration that holds for a predictor, where there is one.

        Args:
            models: the model folders.
            file: the calibration; None takes a single model's own, crossval_results/calibration.json.
            postprocessing, checkpoint: those of the predictor.
            coverage: between 0 and 1.

        Raises:
            EchoPlanError: the coverage is not between 0 and 1, or the file is no calibration.
        """
        coverage = check_coverage(coverage)
        if file is None and len(models) == 1:
            file = models[0] / layout.CROSS_VALIDATION / layout.CALIBRATION_FILE
        if file is None:
            return cls(None, "no calibration: the ensemble is not the best configuration that was found", coverage)
        if not file.is_file():
            return cls(None, NONE_WRITTEN, coverage)
        calibration = Calibration.read(file)
        reason = calibration.mismatch(
            models=[model.resolve().name for model in models], postprocessing=postprocessing, checkpoint=checkpoint
        )
        return cls(None, reason, coverage, file) if reason else cls(calibration, "", coverage, file)

    def to_dict(self) -> dict[str, Any]:
        """As prediction_args.json and ef_report.json hold it."""
        limits = self.calibration.limits if self.calibration else default_limits()
        return {
            "coverage_percent": 100 * self.coverage,
            "calibration": None if self.calibration is None else str(self.file),
            "why_none": self.why_none,
            "limits": {name: {"value": limit.value, "source": limit.source} for name, limit in limits.items()},
        }


@dataclass
class Assessment:
    """What was found about one patient.

    Attributes:
        columns: of ef_report, by name.
        no_interval: quantity -> why it has no interval.
        doubts: clip -> reasons to look again; "" has those about the patient.
    """

    columns: dict[str, Any]
    no_interval: dict[str, str] = field(default_factory=dict)
    doubts: dict[str, list[Doubt]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """What ef_report.json holds about the patient beside the columns."""
        return {"no_interval": self.no_interval, "doubts": [doubt.to_dict() for doubt in self.doubts.get("", ())]}

    @property
    def reasons(self) -> list[str]:
        """All reasons to look again, in words."""
        return [doubt.words for found in self.doubts.values() for doubt in found]


def assess_patient(
    row: Mapping[str, Any],
    cases: Sequence[CaseMask],
    measures: Sequence[Mapping[str, Any]],
    evidence: Mapping[str, ClipEvidence],
    settings: TrustSettings,
) -> Assessment:
    """Intervals, the folds' disagreement and the quality flag of one patient.

    Args:
        row: of `measure_patients`.
        cases: the patient's clips, as the row was made from; their masks are not looked at.
        measures: `clip_measures` of each, but for what the evidence knows.
        evidence: clip -> what was kept of its prediction; clips without are passed over.
        settings: the calibration and the coverage.
    """
    used = str(row["cases"] or "").split(";")
    known = {case.case: case for case in cases}
    by_fold: dict[int, dict[str, float | None]] = {}
    if not row["failure"] and all(name in evidence for name in used):
        by_fold = measure_folds(row, [(known[name], evidence[name]) for name in used], method=row["volume_rule"])
    columns, no_interval = interval_columns(row, by_fold, settings.calibration, settings.coverage)
    if settings.calibration is None:
        no_interval = {quantity: settings.why_none for quantity in no_interval}
    spread = fold_sd(by_fold)
    limits = settings.calibration.limits if settings.calibration else default_limits()
    doubts = {"": find_doubts(patient_measures(row, ef_fold_sd_percent=spread), limits)}
    for case, measured in zip(cases, measures, strict=True):
        own = evidence.get(case.case)
        known_too = {} if own is None else {"edge_share": own.edge_share}
        doubts[case.case] = doubts.get(case.case, []) + find_doubts({**measured, **known_too}, limits)
    columns |= {"ef_fold_sd_percent": spread, **quality_columns(row, doubts)}
    return Assessment(columns, no_interval, doubts)
