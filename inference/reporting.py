"""The ejection-fraction report of predicted masks: patient by patient, from the masks on disk."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from echoplan.imageio import read_mask
from echoplan.work import run_cases

from ..evaluation import COLUMNS as EF_COLUMNS
from ..evaluation import (
    CaseMask,
    CaseMeasurement,
    Overlay,
    make_overlays,
    measure_case,
    measure_patients,
    write_ef_report,
    write_report,
)
from .inputs import InputClip

_PICTURES = 200  # clips with pictures in report.html; each costs decoding it again


@dataclass
class _Patient:
    """What was measured on one patient."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    measurements: list[CaseMeasurement] = field(default_factory=list)
    overlays: list[Overlay] = field(default_factory=list)


def write_reports(
    out: Path,
    inputs: Sequence[InputClip],
    masks: Mapping[str, Path],
    failures: MutableMapping[str, str],
    *,
    target: int,
    ef_method: str = "simpson",
    title: str = "",
    processes: int = 0,
) -> list[dict[str, Any]]:
    """Measure masks and write ef_report.csv, ef_report.json and report.html.

    One patient is in memory at a time. Patients without any mask have a row with the reason.

    Args:
        out: where the reports go.
        inputs: all clips, those that failed included.
        masks: case -> mask file, of those that did not.
        failures: case -> reason; patients that cannot be measured are added.
        target: the label that is measured.
        ef_method: "simpson" or "camus".
        title: the model's name, for the page.
        processes: worker processes; 0: none.

    Returns:
        the report's rows, one a patient.
    """
    patients: dict[str, list[InputClip]] = {}
    for item in inputs:
        patients.setdefault(item.about.patient, []).append(item)
    pictured = {item.case for item in [item for item in inputs if item.case in masks][:_PICTURES]}
    arguments = {}
    for name, items in patients.items():
        usable = [(item, masks[item.case], item.case in pictured) for item in items if item.case in masks]
        if usable:
            arguments[name] = (usable, target, ef_method)
    results = run_cases(_measure_patient, arguments, processes=processes, description="measuring")
    for name, reason in results.failures.items():
        failures[f"measuring {name}"] = reason
    found = [
        results.done.get(name) or _without_mask(name, items, failures, ef_method) for name, items in patients.items()
    ]
    rows = [row for patient in found for row in patient.rows]
    measurements = [measured for patient in found for measured in patient.measurements]
    curves = {measured.case: _curve(measured) for measured in measurements}
    write_ef_report(out, rows, method=ef_method, details={"model": title, "cases": curves})
    write_report(
        out / "report.html",
        rows=rows,
        measurements=measurements,
        overlays=[overlay for patient in found for overlay in patient.overlays],
        subtitle=title,
    )
    return rows


def _measure_patient(usable: Sequence[tuple[InputClip, Path, bool]], target: int, ef_method: str) -> _Patient:
    found = _Patient()
    cases = []
    for item, path, pictured in usable:
        # The clip's own header is asked: a mask file cannot say that the spacing is unknown.
        clip = item.read() if pictured else None
        header = clip or item.probe()
        mask = read_mask(path)
        if header.crop is not None:
            mask = header.crop.to_clip(mask)
        case = CaseMask(
            case=item.case,
            patient=item.about.patient,
            view=item.about.view,
            mask=mask == target,
            spacing_mm=header.spacing_mm,
            frame_time_ms=header.frame_time_ms,
            ed_frame=item.about.ed_frame,
            es_frame=item.about.es_frame,
            reference_ef_percent=item.about.ef_percent,
            reference_edv_ml=item.about.edv_ml,
            reference_esv_ml=item.about.esv_ml,
        )
        measured = measure_case(case, method=ef_method)
        if clip is not None:
            found.overlays += make_overlays(measured, clip.frames, case.mask, clip.spacing_mm)
        found.measurements.append(measured)
        cases.append(case)
    found.rows = measure_patients(cases, method=ef_method, measurements=found.measurements)
    return found


def _curve(measured: CaseMeasurement) -> dict[str, Any]:
    return {
        f"area_{measured.area_unit}": measured.area,
        "ed_frame": measured.ed_frame,
        "es_frame": measured.es_frame,
        "ef_percent": measured.ef_percent,
        "note": measured.note,
        "failure": measured.failure,
    }


def _without_mask(patient: str, items: Sequence[InputClip], failures: Mapping[str, str], ef_method: str) -> _Patient:
    """The row of a patient who was not measured: the report names who is missing, and why."""
    reasons = [f"{item.case}: {failures[item.case]}" for item in items if item.case in failures]
    about = [item.about for item in items]
    references = {
        f"reference_{name}": next((value for case in about if (value := getattr(case, name)) is not None), None)
        for name in ("ef_percent", "edv_ml", "esv_ml")
    }
    row = {
        **dict.fromkeys(EF_COLUMNS),
        **references,
        "patient": patient,
        "cases": ";".join(item.case for item in items),
        "volume_rule": ef_method,
        "note": "",
        "failure": "; ".join(reasons) or failures.get(f"measuring {patient}", "not measured"),
    }
    return _Patient(rows=[row])
