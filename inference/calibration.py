"""Calibration of a model's measurements: its errors in cross-validation, kept in calibration.json beside its masks.

The file holds plain numbers: for each way of measuring (method, volume rule, phases found or given) and each quantity,
the error in every cross-validated patient and the fold that made it. `evaluation.intervals` makes intervals of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from echoplan.errors import EchoPlanError
from echoplan.files import read_json, write_json

from ..evaluation.conformal import EDV, EF, ESV, QUANTITIES, prediction_interval
from ..evaluation.quality import Limit, default_limits

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
        least, largest: each patient's least and largest error, as `evaluation.intervals` counts them.
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
    """

    models: tuple[str, ...]
    postprocessing: tuple[dict[str, Any], ...]
    groups: tuple[Group, ...]
    limits: Mapping[str, Limit]

    def to_dict(self) -> dict[str, Any]:
        """As calibration.json holds it."""
        return {
            "errors": _ERRORS,
            "models": list(self.models),
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
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EchoPlanError(
                f"this is no calibration: {error!r}", file=path, remedy="run echoplan_find_best_configuration again"
            ) from error
        return cls(models, steps, tuple(groups), default_limits() | limits)

    def mismatch(self, *, models: Sequence[str], postprocessing: Sequence[Mapping[str, Any]], checkpoint: str) -> str:
        """Why the calibration does not hold for a predictor; empty where it does."""
        if set(models) != set(self.models):
            return f"the calibration is that of {' + '.join(self.models)}"
        if checkpoint != "final":
            return f"the calibration is that of the final checkpoints, not of the {checkpoint} ones"
        if list(postprocessing) != list(self.postprocessing):
            return "the calibration was made with other postprocessing"
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


def interval_columns(
    row: Mapping[str, Any],
    by_fold: Mapping[int, Mapping[str, float | None]],
    calibration: Calibration | None,
    coverage: float,
) -> tuple[dict[str, float | None], dict[str, str]]:
    """The columns of a patient's intervals, and by quantity why one is missing.

    Args:
        row: of `measure_patients`.
        by_fold: fold -> quantity -> what its networks alone measure.
        calibration: of the model or ensemble; None where there is none.
        coverage: between 0 and 1.
    """
    names = [name for pair in _INTERVAL_COLUMNS.values() for name in pair]
    columns: dict[str, float | None] = dict.fromkeys((*names, "interval_coverage_percent"))
    reasons = {}
    for quantity in QUANTITIES:
        try:
            low, high = _interval(row, quantity, by_fold, calibration, coverage)
        except EchoPlanError as error:
            reasons[quantity] = error.problem
            continue
        columns |= dict(zip(_INTERVAL_COLUMNS[quantity], (low, high), strict=True))
        columns["interval_coverage_percent"] = 100 * coverage
    return columns, reasons


def _interval(
    row: Mapping[str, Any],
    quantity: str,
    by_fold: Mapping[int, Mapping[str, float | None]],
    calibration: Calibration | None,
    coverage: float,
) -> tuple[float, float]:
    if row[quantity] is None:
        raise EchoPlanError("not measured")
    if calibration is None:
        raise EchoPlanError(NONE_WRITTEN)
    if not by_fold:
        raise EchoPlanError("what each fold found alone is not known; predict again with --overwrite")
    given = set(str(row["phases"]).split(";")) == {"given"}
    group = calibration.group(
        quantity,
        method=row["method"],
        volume_rule=row["volume_rule"],
        phases="given" if given else "found",
    )
    values = {fold: found[quantity] for fold, found in by_fold.items()}
    found = prediction_interval(quantity, row[quantity], values, group.errors, coverage)
    return found.low, found.high
