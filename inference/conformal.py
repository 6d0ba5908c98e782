"""Calibration of a model's measurements: its errors in cross-validation, kept in calibration.json beside its masks.

Every patient is measured as a new one is, and compared with a reference. The file holds plain numbers: for each way of
measuring (method, volume rule, phases found or given) and each quantity, the error in every cross-validated patient and
the fold that made it. `evaluation.conformal` has the mathematics of the intervals that are made of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from echoplan.case_warnings import log_failures
from echoplan.dataset import Case
from echoplan.errors import EchoPlanError
from echoplan.files import read_json, write_json
from echoplan.parallel_map import run_cases

from ..evaluation import VOLUME_RULES, CaseMeasurement, PatientRow, measure_case, measure_patients
from ..evaluation.conformal import EDV, EF, ESV, QUANTITIES, Interval, prediction_interval, signed_error
from ..evaluation.measurements import under_rule
from ..evaluation.quality import Limit, clip_measures, default_limits, limits_from_crossval, patient_measures
from ..evaluation.ventricle.volumes import VolumeRule
from ..preprocessing.store import ClipStore
from .cross_validation import Candidate, CrossValidation, load_labelled
from .postprocessing import Step, apply_postprocessing
from .trained_weights import Weights, read_weights, trained_again

logger = logging.getLogger(__name__)

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
_SAME_QUANTITY = {EF: 2.0, "edv_ml": 0.05, "esv_ml": 0.05}  # EF points; shares of the volume
_DIGITS = 4  # of EF points, and of the logarithm of a volume's ratio
_UNKNOWN_VIEW = "single_plane"


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


# A clip, the files that its mask is made from, its reference's file, and what tells how sure the networks are of it.
_Clip = tuple[Case, tuple[Path, ...], Path, Callable[[], float | None]]


@dataclass
class _Patient:
    """What cross-validation knows of one patient.

    Attributes:
        fold: the fold that measured it.
        rows: (volume rule, phases, measurement's row) of all its clips together, and of each clip alone.
        dataset: quantity -> the dataset's own value. masks: volume rule -> the reference masks' measurement.
        quality: measures of its clips' and its own quality.
    """

    fold: int
    rows: list[tuple[str, str, PatientRow]] = field(default_factory=list)
    dataset: dict[str, float | None] = field(default_factory=dict)
    masks: dict[str, PatientRow] = field(default_factory=dict)
    quality: list[dict[str, Any]] = field(default_factory=list)

    def reference(self, kind: str, rule: str, quantity: str) -> float | None:
        """The value that the "dataset" or the "masks" give."""
        return self.dataset[quantity] if kind == "dataset" else self.masks[rule].measured(quantity)


def calibrate(
    crossval: CrossValidation,
    candidate: Candidate,
    store: ClipStore,
    steps: Sequence[Step],
    structures: Mapping[str, int],
    target: int,
    *,
    processes: int = 0,
) -> Calibration:
    """Measure every cross-validated patient as a new one is measured, and compare with the reference.

    The reference of an interval has to be what the interval promises. The dataset's own values are taken where the
    reference masks, measured by the same rule, agree with them (medians within 2 EF points, 5 % of a volume); where
    they do not, as with CAMUS' own EF and the ordinary rule, the dataset's value is another quantity and the masks'
    measurement is taken, biplane where both views are labelled. Without labelled masks the dataset's value is all
    there is. Patients that cannot be measured take no part: no interval is ever given to such a patient.

    Args:
        crossval: the cases.
        candidate: the model or ensemble.
        store: knows the cases' patient, view, phases and reference values.
        steps: the postprocessing that prediction will use.
        structures: structure -> value.
        target: the value that is measured.
        processes: worker processes; 0: none.
    """
    patients: dict[str, list[_Clip]] = {}
    folds = {}
    for name, fold in crossval.cases.items():
        case = store.case(name)
        patient = case.patient or name
        sure = partial(candidate.certainty, crossval, name, target)
        patients.setdefault(patient, []).append((case, candidate.files(crossval, name), crossval.reference(name), sure))
        folds[patient] = fold
    arguments = {name: (folds[name], clips, steps, dict(structures), target) for name, clips in patients.items()}
    results = run_cases(_measure_patient, arguments, processes=processes, description="calibrating")
    log_failures(logger, results.failures, "no part in the calibration", of=len(arguments))
    measured = list(results.done.values())
    groups = []
    for rule in VOLUME_RULES:
        for quantity in QUANTITIES:
            reference, reason = _choose_reference(measured, rule, quantity)
            for phases in ("found", "given"):
                groups += _groups(measured, quantity, rule, phases, reference, reason)
    values: dict[str, list[float | None]] = {}
    for patient in measured:
        for measures in patient.quality:
            for name, value in measures.items():
                values.setdefault(name, []).append(value)
    return Calibration(
        models=tuple(model.name for model in candidate.models),
        postprocessing=tuple(dict(step) for step in steps),
        groups=tuple(groups),
        limits=limits_from_crossval(values),
    )


def _measure_patient(
    fold: int,
    clips: Sequence[_Clip],
    steps: Sequence[Step],
    structures: Mapping[str, int],
    target: int,
) -> _Patient:
    patient = _Patient(fold)
    measured: dict[str, list[CaseMeasurement]] = {"found": [], "given": [], "masks": []}
    for case, files, reference, sure in clips:
        item = load_labelled(files, reference)
        mask = apply_postprocessing(item.prediction, steps, structures, frame_time_ms=item.frame_time_ms) == target
        measured["found"].append(measure_case(case.without_phases(), mask))
        measured["given"].append(measure_case(case, mask))
        measured["masks"].append(measure_case(case, item.reference == target))
        patient.quality.append(clip_measures(mask, measured["found"][-1]) | {"certainty": sure()})
        for quantity in QUANTITIES:
            if patient.dataset.get(quantity) is None:
                patient.dataset[quantity] = getattr(case, quantity)
    for rule in VOLUME_RULES:
        for way in ("found", "given"):
            patient.rows += [(rule, way, row) for row in _rows(measured[way], rule) if _came_about(row, way)]
        patient.masks[rule] = _rows(measured["masks"], rule)[0]
    patient.quality.append(patient_measures(_rows(measured["found"], "simpson")[0]))
    return patient


def _rows(measured: Sequence[CaseMeasurement], rule: VolumeRule) -> list[PatientRow]:
    """The patient's row, and each clip's as if there were no other."""
    clips = [under_rule(item, rule) for item in measured]
    together = measure_patients(clips, method=rule)
    alone = [row for clip in clips for row in measure_patients([clip], method=rule)] if len(clips) > 1 else []
    return together + alone


def _came_about(row: PatientRow, way: str) -> bool:
    """Whether there is an EF, and all phases came about that way."""
    return not row.failure and set((row.phases or "").split(";")) == {way}


def _choose_reference(patients: Sequence[_Patient], rule: str, quantity: str) -> tuple[str, str]:
    """ "dataset" or "masks", and why."""
    pairs = [tuple(patient.reference(kind, rule, quantity) for kind in ("dataset", "masks")) for patient in patients]
    of_dataset = [pair for pair in pairs if pair[0] is not None]
    of_masks = [pair for pair in pairs if pair[1] is not None]
    if not of_dataset:
        return "masks", "the dataset gives no value; the reference masks are measured by the same rule"
    if not of_masks:
        return "dataset", "no reference mask can be measured"
    both = [(own, mask) for own, mask in pairs if own is not None and mask is not None]
    if len(of_dataset) < len(of_masks) or not both:
        return "masks", f"the dataset gives {len(of_dataset)} values, its masks {len(of_masks)}"
    if quantity == EF:
        difference = median(mask - own for own, mask in both)
        words = f"the masks' measurement differs from the dataset's by {difference:+.1f} points (median)"
    else:
        difference = median(mask / own - 1 for own, mask in both)
        words = f"the masks' measurement differs from the dataset's by {100 * difference:+.1f} % (median)"
    return ("dataset" if abs(difference) <= _SAME_QUANTITY[quantity] else "masks"), words


def _groups(
    patients: Sequence[_Patient], quantity: str, rule: str, phases: str, reference: str, reason: str
) -> list[Group]:
    """The groups of one quantity by one rule: one a method, and all single clips together for an unknown view."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for patient in patients:
        truth = patient.reference(reference, rule, quantity)
        own: dict[str, list[float]] = {}
        for row_rule, way, row in patient.rows:
            error = round(signed_error(quantity, row.measured(quantity), truth), _DIGITS)
            if (row_rule, way) == (rule, phases) and np.isfinite(error):
                own.setdefault(row.method or "", []).append(error)
                if row.method not in ("biplane", _UNKNOWN_VIEW):
                    own.setdefault(_UNKNOWN_VIEW, []).append(error)
        for method, errors in own.items():
            # One entry a patient: patients are exchangeable, clips of one patient are not. The worst ones are safe.
            found.setdefault(method, []).append((patient.fold, min(errors), max(errors)))
    groups = []
    for method, items in sorted(found.items()):
        folds, least, largest = zip(*items, strict=True)
        groups.append(Group(quantity, method, rule, phases, reference, reason, folds, least, largest))
    return groups
