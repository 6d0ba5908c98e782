"""Calibration of a model's measurements: its errors in cross-validation, kept in calibration.json beside its masks.

Every patient is measured as a new one is, and compared with a reference. The file holds plain numbers: for each way of
measuring (method, volume rule, phases found or given) and each quantity, the error in every cross-validated patient and
the fold that made it. `calibrate` makes it; `evaluation.conformal` has the mathematics of the intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from echoplan.errors import EchoPlanError
from echoplan.files import read_json, write_json

from ..evaluation import PatientRow
from ..evaluation.conformal import EDV, EF, ESV, QUANTITIES, Interval, prediction_interval
from ..evaluation.quality import Limit, default_limits
from .trained_weights import Weights, read_weights, trained_again

NONE_WRITTEN = "no calibration: echoplan_find_best_configuration writes one once all folds are trained"
_INTERVAL_COLUMNS = {
    EF: ("ef_low_percent", "ef_high_percent"),
    EDV: ("edv_low_ml", "edv_high_ml"),
    ESV: ("esv_low_ml", "esv_high_ml"),
}
_ERRORS = (
    "signed errors of cross-validation: each patient is measured by the fold that did not train on the patient. EF: "
    "reference - predicted in points; volumes: log(reference / predicted). least and largest differ where a patient "
    "has several clips of a method; folds, least and largest hold one number a patient, in one order"
)


@dataclass(frozen=True)
class Group:
    """The errors of one quantity measured in one way.

    Attributes:
        quantity: "ef_percent", "edv_ml" or "esv_ml".
        method: as in ef_report; "single_plane" also stands for a clip whose view is unknown.
        volume_rule: "simpson" or "camus".
        phases: "found" or "given".
        reference: "dataset" (the dataset's own value) or "masks" (the same rule on the reference masks).
        reason: why that reference.
        folds: of each patient.
        least, largest: each patient's least and largest error, as `evaluation.conformal` counts them.
    """

    quantity: str
    method: str
    volume_rule: str
    phases: str
    reference: str
    reason: str
    folds: tuple[int, ...]
    least: tuple[float, ...]
    largest: tuple[float, ...]

    @property
    def errors(self) -> list[tuple[int, float, float]]:
        """(fold, least, largest) of each patient."""
        return list(zip(self.folds, self.least, self.largest, strict=True))


@dataclass(frozen=True)
class Calibration:
    """What calibration.json holds.

    Attributes:
        models: the model folders' names.
        postprocessing: the steps applied before measuring.
        groups: the errors.
        limits: of the quality flag.
        weights: of the models that made the errors; empty in a file of an earlier EchoPlan, which did not say.
    """

    models: tuple[str, ...]
    postprocessing: tuple[dict[str, Any], ...]
    groups: tuple[Group, ...]
    limits: Mapping[str, Limit]
    weights: Weights = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As calibration.json holds it."""
        return {
            "errors": _ERRORS,
            "models": list(self.models),
            "weights": self.weights,
            "postprocessing": list(self.postprocessing),
            "limits": {name: asdict(limit) for name, limit in self.limits.items()},
            "groups": [asdict(group) | {"patients": len(group.folds)} for group in self.groups],
        }

    def write(self, path: Path) -> None:
        """Write calibration.json."""
        write_json(path, self.to_dict())

    @classmethod
    def read(cls, path: str | Path) -> Calibration:
        """Read what `write` wrote.

        Raises:
            EchoPlanError: the file is missing or is no calibration.
        """
        content = read_json(path)
        try:
            groups = []
            for item in content["groups"]:
                known = {key: value for key, value in item.items() if key != "patients"}
                numbers = {key: tuple(item[key]) for key in ("folds", "least", "largest")}
                groups.append(Group(**known | numbers))
            limits = {name: Limit(float(item["value"]), item["source"]) for name, item in content["limits"].items()}
            models, steps = tuple(content["models"]), tuple(content["postprocessing"])
            weights = read_weights(content.get("weights", {}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EchoPlanError(
                f"this is no calibration: {error!r}", file=path, remedy="run echoplan_find_best_configuration again"
            ) from error
        return cls(models, steps, tuple(groups), default_limits() | limits, weights)

    def mismatch(self, *, weights: Weights, postprocessing: Sequence[Mapping[str, Any]], checkpoint: str) -> str:
        """Why the calibration does not hold for a predictor; empty where it does.

        Args:
            weights: of each of its models the folds that it predicts with.
            postprocessing: its steps.
            checkpoint: "final" or "best".
        """
        if set(weights) != set(self.models):
            return f"the calibration is that of {' + '.join(self.models)}"
        if checkpoint != "final":
            return f"the calibration is that of the final checkpoints, not of the {checkpoint} ones"
        if list(postprocessing) != list(self.postprocessing):
            return "the calibration was made with other postprocessing"
        if others := trained_again(self.weights, weights):
            return f"the calibration is that of other weights: {others}"
        return ""

    def group(self, quantity: str, *, method: str, volume_rule: str, phases: str) -> Group:
        """The errors that hold for a measurement.

        Raises:
            EchoPlanError: cross-validation has no patient measured that way.
        """
        wanted = (quantity, method, volume_rule, phases)
        for group in self.groups:
            if (group.quantity, group.method, group.volume_rule, group.phases) == wanted:
                return group
        raise EchoPlanError(
            f"no cross-validated patient was measured that way: {quantity}, {method}, rule {volume_rule}, "
            f"phases {phases}"
        )


class Intervals(NamedTuple):
    """A patient's row with its intervals, the intervals by quantity, and by quantity why one is missing."""

    row: PatientRow
    there: dict[str, Interval]
    missing: dict[str, str]


def with_intervals(
    row: PatientRow,
    by_fold: Mapping[int, Mapping[str, float | None]],
    calibration: Calibration | None,
    coverage: float,
) -> Intervals:
    """The intervals of a patient.

    Args:
        row: of `measure_patients`.
        by_fold: fold -> quantity -> what its networks alone measure.
        calibration: of the model or ensemble; None where there is none.
        coverage: between 0 and 1.
    """
    columns: dict[str, Any] = {}
    there: dict[str, Interval] = {}
    missing: dict[str, str] = {}
    for quantity in QUANTITIES:
        try:
            there[quantity] = interval = _interval(row, quantity, by_fold, calibration, coverage)
        except EchoPlanError as error:
            missing[quantity] = error.problem
            continue
        columns |= dict(zip(_INTERVAL_COLUMNS[quantity], (interval.low, interval.high), strict=True))
        columns["interval_coverage_percent"] = 100 * coverage
    columns["interval_patients"] = there[EF].patients if EF in there else None
    return Intervals(replace(row, **columns), there, missing)


def _interval(
    row: PatientRow,
    quantity: str,
    by_fold: Mapping[int, Mapping[str, float | None]],
    calibration: Calibration | None,
    coverage: float,
) -> Interval:
    value = row.measured(quantity)
    if value is None:
        raise EchoPlanError("not measured")
    if calibration is None:
        raise EchoPlanError(NONE_WRITTEN)
    if not by_fold:
        raise EchoPlanError("what each fold found alone is not known; predict again with --overwrite")
    group = calibration.group(
        quantity, method=row.method or "", volume_rule=row.volume_rule or "", phases=phases_of(row)
    )
    values = {fold: measured[quantity] for fold, measured in by_fold.items()}
    return prediction_interval(quantity, value, values, group.errors, coverage)


def phases_of(row: PatientRow) -> str:
    """The phases by which errors are grouped: "given" where all were given, else "found"."""
    return "given" if set(str(row.phases).split(";")) == {"given"} else "found"
