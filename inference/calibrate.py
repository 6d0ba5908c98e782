"""A calibration made of cross-validation: every patient measured as a new one is, and compared with a reference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from echoplan.case_warnings import log_failures
from echoplan.dataset import Case
from echoplan.parallel_map import run_cases

from ..evaluation import VOLUME_RULES, CaseMeasurement, PatientRow, measure_case, measure_patients
from ..evaluation.conformal import EF, QUANTITIES, signed_error
from ..evaluation.measurements import under_rule
from ..evaluation.quality import clip_measures, limits_from_crossval, patient_measures
from ..evaluation.ventricle.volumes import VolumeRule
from ..preprocessing.store import ClipStore
from .conformal import Calibration, Group
from .cross_validation import Candidate, CrossValidation, load_labelled
from .postprocessing import Step, apply_postprocessing

logger = logging.getLogger(__name__)

_SAME_QUANTITY = {EF: 2.0, "edv_ml": 0.05, "esv_ml": 0.05}  # EF points; shares of the volume
_DIGITS = 4  # of EF points, and of the logarithm of a volume's ratio
_UNKNOWN_VIEW = "single_plane"

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
