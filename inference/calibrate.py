"""From cross-validated masks to a calibration: every patient measured as a new one is, against a reference."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from echoplan.parallel_map import run_cases

from ..evaluation import VOLUME_RULES, CaseMask, CaseMeasurement, measure_case, measure_patients
from ..evaluation.conformal import EF, QUANTITIES, signed_error
from ..evaluation.measurements import BeatVolumes
from ..evaluation.quality import clip_measures, limits_from_crossval, patient_measures
from ..evaluation.ventricle.volumes import volumes_of_beat
from ..preprocessing.store import ClipStore, StoredCase
from .calibration import Calibration, Group
from .cross_validation import Candidate, CrossValidation, load_labelled
from .postprocessing import Step, apply_postprocessing

logger = logging.getLogger(__name__)

_SAME_QUANTITY = {EF: 2.0, "edv_ml": 0.05, "esv_ml": 0.05}  # EF points; shares of the volume
_DIGITS = 4  # of EF points, and of the logarithm of a volume's ratio
_UNKNOWN_VIEW = "single_plane"


@dataclass
class _Patient:
    """What cross-validation knows of one patient.

    Attributes:
        fold: the fold that measured it.
        rows: (volume rule, phases, measurement's row) of all its clips together, and of each clip alone.
        references: "dataset" -> quantity -> value; "masks" -> volume rule -> quantity -> value.
        measures: of its clips' and its own quality.
    """

    fold: int
    rows: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    dataset: dict[str, float | None] = field(default_factory=dict)
    masks: dict[str, dict[str, float | None]] = field(default_factory=dict)
    measures: list[dict[str, Any]] = field(default_factory=list)


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
    patients: dict[str, list[tuple[StoredCase, Path, tuple[Path, ...]]]] = {}
    folds = {}
    for case, fold in crossval.cases.items():
        stored = store.case(case)
        name = stored.patient or case
        patients.setdefault(name, []).append((stored, crossval.reference(case), candidate.files(crossval, case)))
        folds[name] = fold
    arguments = {name: (folds[name], items, steps, dict(structures), target) for name, items in patients.items()}
    results = run_cases(_measure_patient, arguments, processes=processes, description="calibrating")
    for name, reason in results.failures.items():
        logger.warning("%s takes no part in the calibration: %s", name, reason)
    measured = list(results.done.values())
    groups = []
    for rule in VOLUME_RULES:
        for quantity in QUANTITIES:
            reference, reason = _choose_reference(measured, rule, quantity)
            for phases in ("found", "given"):
                groups += _groups(measured, quantity, rule, phases, reference, reason)
    values: dict[str, list[float | None]] = {}
    for patient in measured:
        for found in patient.measures:
            for name, value in found.items():
                values.setdefault(name, []).append(value)
    return Calibration(
        models=tuple(model.name for model in candidate.models),
        postprocessing=tuple(dict(step) for step in steps),
        groups=tuple(groups),
        limits=limits_from_crossval(values),
    )


def _measure_patient(
    fold: int,
    items: Sequence[tuple[StoredCase, Path, tuple[Path, ...]]],
    steps: Sequence[Step],
    structures: Mapping[str, int],
    target: int,
) -> _Patient:
    patient = _Patient(fold)
    cases: dict[str, list[CaseMask]] = {"found": [], "given": [], "masks": []}
    measured: dict[str, list[CaseMeasurement]] = {"found": [], "given": [], "masks": []}
    for stored, reference, files in items:
        item = load_labelled(files, reference)
        mask = apply_postprocessing(item.prediction, steps, structures, frame_time_ms=item.frame_time_ms) == target
        known = CaseMask(
            case=stored.case,
            mask=mask,
            patient=stored.patient,
            view=stored.view,
            spacing_mm=stored.spacing_mm,
            frame_time_ms=stored.frame_time_ms,
            ed_frame=stored.ed_frame,
            es_frame=stored.es_frame,
        )
        found = replace(known, ed_frame=None, es_frame=None)
        for way, clip in (
            ("found", found), ("given", known), ("masks", replace(known, mask=item.reference == target)),
        ):  # fmt: skip
            measured[way].append(measure_case(clip))
            cases[way].append(clip.without_pixels())
        patient.measures.append(clip_measures(mask, measured["found"][-1]))
        for quantity in QUANTITIES:
            if patient.dataset.get(quantity) is None:
                patient.dataset[quantity] = getattr(stored, quantity)
    for rule in VOLUME_RULES:
        for way in ("found", "given"):
            patient.rows += [(rule, way, row) for row in _rows(cases[way], measured[way], rule, way)]
        (patient.masks[rule],) = _rows_together(cases["masks"], measured["masks"], rule)
    whole = _rows_together(cases["found"], measured["found"], "simpson")[0]
    patient.measures.append(patient_measures(whole))
    return patient


def _rows(cases: Sequence[CaseMask], measured: Sequence[CaseMeasurement], rule: str, way: str) -> list[dict[str, Any]]:
    """The patient's row, and each clip's as if there were no other; only those whose phases came about that way."""
    rows = _rows_together(cases, measured, rule)
    if len(cases) > 1:
        for case, item in zip(cases, measured, strict=True):
            rows += _rows_together([case], [item], rule)
    return [row for row in rows if not row["failure"] and set(row["phases"].split(";")) == {way}]


def _rows_together(cases: Sequence[CaseMask], measured: Sequence[CaseMeasurement], rule: str) -> list[dict[str, Any]]:
    return measure_patients(cases, method=rule, measurements=[_under_rule(item, rule) for item in measured])


def _under_rule(measured: CaseMeasurement, rule: str) -> CaseMeasurement:
    """A clip measured by the ordinary rule as another rule has it; the landmarks, which take the time, are the same."""
    if rule == "simpson" or measured.failure:
        return measured
    result = BeatVolumes()
    for ed, es in measured.beats:
        result.add(*volumes_of_beat((ed, ed), (es, es), rule))
    columns = result.columns(in_ml=measured.edv_ml is not None)
    return replace(measured, ef_per_beat_percent=tuple(result.ef), **columns)


def _choose_reference(patients: Sequence[_Patient], rule: str, quantity: str) -> tuple[str, str]:
    """ "dataset" or "masks", and why."""
    pairs = [(patient.dataset.get(quantity), patient.masks[rule][quantity]) for patient in patients]
    of_dataset = [pair for pair in pairs if pair[0] is not None]
    of_masks = [pair for pair in pairs if pair[1] is not None]
    if not of_dataset:
        return "masks", "the dataset gives no value; the reference masks are measured by the same rule"
    if not of_masks:
        return "dataset", "no reference mask can be measured"
    both = [(own, mask) for own, mask in of_dataset if mask is not None]
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
        truth = patient.dataset.get(quantity) if reference == "dataset" else patient.masks[rule][quantity]
        own: dict[str, list[float]] = {}
        for row_rule, way, row in patient.rows:
            error = round(signed_error(quantity, row[quantity], truth), _DIGITS)
            if (row_rule, way) == (rule, phases) and np.isfinite(error):
                own.setdefault(row["method"], []).append(error)
                if row["method"] not in ("biplane", _UNKNOWN_VIEW):
                    own.setdefault(_UNKNOWN_VIEW, []).append(error)
        for method, errors in own.items():
            # One entry a patient: patients are exchangeable, clips of one patient are not. The worst ones are safe.
            found.setdefault(method, []).append((patient.fold, min(errors), max(errors)))
    groups = []
    for method, items in sorted(found.items()):
        folds, least, largest = zip(*items, strict=True)
        groups.append(Group(quantity, method, rule, phases, reference, reason, folds, least, largest))
    return groups
