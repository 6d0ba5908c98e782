"""The ejection-fraction report of predicted masks: patient by patient, from the masks on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from echoplan import layout
from echoplan.inputs import InputClip
from echoplan.masks import find_mask
from echoplan.parallel_map import CaseResults, log_warnings, outcome_of, record, run_cases

from ..evaluation import CaseMeasurement, Film, PatientRow, measure_patients, write_ef_report, write_report
from ..evaluation.quality import with_quality
from ..evaluation.report.clips import report_clip
from ..evaluation.report.overlays import write_overlays
from ..evaluation.report.thumbnails import Picture, picture_of
from ..evaluation.ventricle.volumes import VolumeRule
from .interval_notes import interval_notes, trust_of
from .uncertainty import Assessment, ClipEvidence, TrustSettings, assess_patient

_Usable = list[tuple[InputClip, Path, Picture]]


class EarlyMeasurements:
    """Measures patients while other clips are still predicted, each as soon as it is known which clips it has.

    Args:
        inputs: all clips, in the order of the report.
        begin: has a function called elsewhere: a name, the function, its arguments.
        out, target, ef_method, trust: as `write_reports` takes them.
    """

    def __init__(
        self,
        inputs: Sequence[InputClip],
        begin: Callable[..., Future[Any]],
        out: Path,
        target: int,
        ef_method: VolumeRule,
        trust: TrustSettings,
    ) -> None:
        self._coming = list(inputs)[::-1]
        self._begin = begin
        self._how = (target, ef_method, out / layout.EVIDENCE, trust)
        self._masks: dict[str, Path | None] = {}
        self._usable: dict[str, _Usable] = {item.case.patient: [] for item in inputs}
        self._left = Counter(item.case.patient for item in inputs)
        self._shown = 0
        self._begun: dict[str, Future[Any]] = {}

    def settle(self, item: InputClip, mask: Path | None) -> None:
        """A clip's mask is written, or there will be none."""
        self._masks[item.name] = mask
        # In the report's order, since a clip's place there decides which pictures it gets.
        while self._coming and self._coming[-1].name in self._masks:
            item = self._coming.pop()
            patient, mask = item.case.patient, self._masks[item.name]
            if mask is not None:
                self._usable[patient].append((item, mask, picture_of(self._shown)))
                self._shown += 1
            self._left[patient] -= 1
            if not self._left[patient] and self._usable[patient]:
                self._begun[patient] = self._begin(patient, _measure_patient, self._usable[patient], *self._how)

    def settle_all(self, items: Iterable[InputClip], out: Path) -> None:
        """The masks of some clips are there already."""
        for item in items:
            self.settle(item, find_mask(out, item.name))

    def take(self, patient: str, usable: _Usable) -> Future[Any] | None:
        """The measurement of a patient with these clips, where it has begun."""
        return self._begun.pop(patient, None) if self._usable.get(patient) == usable else None


class Report(NamedTuple):
    """What was written: the rows, one a patient, and what holds for several of them, in words."""

    rows: list[PatientRow]
    notes: list[str]


@dataclass
class _Patient:
    """What was measured on one patient."""

    assessments: list[Assessment] = field(default_factory=list)
    measurements: list[CaseMeasurement] = field(default_factory=list)
    films: list[Film] = field(default_factory=list)


def write_reports(
    out: Path,
    inputs: Sequence[InputClip],
    masks: Mapping[str, Path],
    failures: MutableMapping[str, str],
    *,
    target: int,
    ef_method: VolumeRule = "simpson",
    title: str = "",
    trust: TrustSettings | None = None,
    overlays: bool = False,
    processes: int = 0,
    early: EarlyMeasurements | None = None,
) -> Report:
    """Measure masks and write ef_report.csv, ef_report.json and report.html, and videos where they are asked for.

    One patient is in memory at a time. Patients without any mask have a row with the reason.

    Args:
        out: where the reports go.
        inputs: all clips, those that failed included.
        masks: case -> mask file, of those that did not.
        failures: case -> reason; patients that cannot be measured are added.
        target: the label that is measured.
        ef_method: "simpson" or "camus".
        title: the model's name, for the page.
        trust: what intervals and the quality flag are made with; None: no intervals, the fixed limits.
        overlays: also write a video of each clip with its outline, out/overlays/<case>.mp4.
        processes: worker processes; 0: none.
        early: what is measured already, by the same settings.

    Returns:
        the report's rows, one a patient, and its notes.
    """
    trust = trust or TrustSettings()
    found = _measure_all(inputs, masks, failures, (target, ef_method, out / layout.EVIDENCE, trust), processes, early)
    rows = [item.row for patient in found for item in patient.assessments]
    measurements = [measured for patient in found for measured in patient.measurements]
    assessments = {item.row.name: item for patient in found if patient.measurements for item in patient.assessments}
    details = {"model": title, "trust": trust_of(trust, assessments), "cases": _cases(found)}
    notes = interval_notes([*assessments.values()], trust)
    content = write_ef_report(out, rows, method=ef_method, details=details, notes=notes)
    write_report(
        out / layout.REPORT_PAGE,
        rows=rows,
        measurements=measurements,
        films=[film for patient in found for film in patient.films],
        subtitle=title,
        notes=notes,
    )
    if overlays:
        files = {item.name: item.path for item in inputs}
        clips = {measured.name: (files[measured.name], masks[measured.name], measured) for measured in measurements}
        broken = write_overlays(out / layout.OVERLAYS, clips, target, processes=processes).failures
        failures.update({f"overlay of {case}": reason for case, reason in broken.items()})
    return Report(rows, content["notes"])


def _measure_all(
    inputs: Sequence[InputClip],
    masks: Mapping[str, Path],
    failures: MutableMapping[str, str],
    how: tuple[int, VolumeRule, Path, TrustSettings],
    processes: int,
    early: EarlyMeasurements | None,
) -> list[_Patient]:
    """Every patient measured, one at a time in memory; `how` is target, rule, folder of the evidence, trust."""
    patients: dict[str, list[InputClip]] = {}
    for item in inputs:
        patients.setdefault(item.case.patient, []).append(item)
    shown = [item.name for item in inputs if item.name in masks]
    picture = {case: picture_of(number) for number, case in enumerate(shown)}
    arguments, begun = {}, CaseResults()
    for name, items in patients.items():
        usable = [(item, masks[item.name], picture[item.name]) for item in items if item.name in masks]
        if early is not None and (future := early.take(name, usable)) is not None:
            record(begun, name, *outcome_of(future))
        elif usable:
            arguments[name] = (usable, *how)
    log_warnings(begun, of=len(patients))
    results = run_cases(_measure_patient, arguments, processes=processes, description="measuring")
    for name, reason in (begun.failures | results.failures).items():
        failures[f"measuring {name}"] = reason
    done = begun.done | results.done
    return [done.get(name) or _without_mask(name, items, failures, how[1]) for name, items in patients.items()]


def _measure_patient(
    usable: _Usable,
    target: int,
    ef_method: VolumeRule,
    evidence_folder: Path,
    trust: TrustSettings,
) -> _Patient:
    clips = [
        report_clip(item.case, item.path, mask, target, method=ef_method, picture=picture)
        for item, mask, picture in usable
    ]
    patient = _Patient(
        measurements=[clip.measurement for clip in clips], films=[clip.film for clip in clips if clip.film is not None]
    )
    files = {item.name: evidence_folder / layout.probabilities_file(item.name) for item, *_ in usable}
    evidence = {name: ClipEvidence.read(file) for name, file in files.items() if file.is_file()}
    for row in measure_patients(patient.measurements, method=ef_method):
        judged = [(clip.measurement.case, clip.quality) for clip in clips if _is_of(clip.measurement, row)]
        patient.assessments.append(assess_patient(row, judged, evidence, trust))
    return patient


def _is_of(measured: CaseMeasurement, row: PatientRow) -> bool:
    return measured.patient == row.patient and row.exam in (None, measured.case.exam)


def _cases(patients: Sequence[_Patient]) -> dict[str, Any]:
    """Each clip's curve, and the reasons to look at it again."""
    cases = {}
    for patient in patients:
        doubts = {case: reasons for item in patient.assessments for case, reasons in item.doubts.items()}
        for measured in patient.measurements:
            reasons = [doubt.to_dict() for doubt in doubts.get(measured.name, ())]
            cases[measured.name] = _curve(measured) | {"doubts": reasons}
    return cases


def _curve(measured: CaseMeasurement) -> dict[str, Any]:
    return {
        f"area_{measured.area_unit}": measured.area,
        "ed_frame": measured.ed_frame,
        "es_frame": measured.es_frame,
        "ef_percent": measured.ef_percent,
        "note": measured.note,
        "failure": measured.failure,
    }


def _without_mask(
    patient: str, items: Sequence[InputClip], failures: Mapping[str, str], ef_method: VolumeRule
) -> _Patient:
    """The row of a patient who was not measured: the report names who is missing, and why."""
    reasons = [f"{item.name}: {failures[item.name]}" for item in items if item.name in failures]
    failure = "; ".join(reasons) or failures.get(f"measuring {patient}", "not measured")
    row = PatientRow.unmeasured(patient, [item.case for item in items], method=ef_method, failure=failure)
    return _Patient([Assessment(with_quality(row, {}))])
