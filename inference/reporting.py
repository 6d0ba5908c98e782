"""The ejection-fraction report of predicted masks: patient by patient, from the masks on disk."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from echoplan import layout
from echoplan.imageio import read_mask
from echoplan.parallel_map import run_cases

from ..evaluation import COLUMNS as EF_COLUMNS
from ..evaluation import (
    CaseMask,
    CaseMeasurement,
    Film,
    Picture,
    film_frames,
    make_film,
    measure_case,
    measure_patients,
    picture_of,
    write_ef_report,
    write_report,
)
from ..evaluation.quality import clip_measures, quality_columns
from ..evaluation.report.overlays import OverlayJob, write_overlays
from .inputs import InputClip
from .trust import Assessment, TrustSettings, assess_patient
from .uncertainty import ClipEvidence


@dataclass
class _Patient:
    """What was measured on one patient."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    measurements: list[CaseMeasurement] = field(default_factory=list)
    films: list[Film] = field(default_factory=list)
    assessments: dict[str, Assessment] = field(default_factory=dict)


def write_reports(
    out: Path,
    inputs: Sequence[InputClip],
    masks: Mapping[str, Path],
    failures: MutableMapping[str, str],
    *,
    target: int,
    ef_method: str = "simpson",
    title: str = "",
    trust: TrustSettings | None = None,
    overlays: bool = False,
    processes: int = 0,
) -> list[dict[str, Any]]:
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

    Returns:
        the report's rows, one a patient.
    """
    trust = trust or TrustSettings()
    found = _measure_all(inputs, masks, failures, (target, ef_method, out / layout.EVIDENCE, trust), processes)
    rows = [row for patient in found for row in patient.rows]
    measurements = [measured for patient in found for measured in patient.measurements]
    details = {"model": title, "trust": _trust(trust, found), "cases": _cases(found)}
    write_ef_report(out, rows, method=ef_method, details=details)
    write_report(
        out / layout.REPORT_PAGE,
        rows=rows,
        measurements=measurements,
        films=[film for patient in found for film in patient.films],
        subtitle=title,
    )
    if overlays:
        _write_overlays(out, inputs, masks, measurements, failures, target, processes)
    return rows


def _measure_all(
    inputs: Sequence[InputClip],
    masks: Mapping[str, Path],
    failures: MutableMapping[str, str],
    how: tuple[int, str, Path, TrustSettings],
    processes: int,
) -> list[_Patient]:
    """Every patient measured, one at a time in memory; `how` is target, rule, folder of the evidence, trust."""
    patients: dict[str, list[InputClip]] = {}
    for item in inputs:
        patients.setdefault(item.about.patient, []).append(item)
    shown = [item.case for item in inputs if item.case in masks]
    picture = {case: picture_of(number) for number, case in enumerate(shown)}
    arguments = {}
    for name, items in patients.items():
        usable = [(item, masks[item.case], picture[item.case]) for item in items if item.case in masks]
        if usable:
            arguments[name] = (usable, *how)
    results = run_cases(_measure_patient, arguments, processes=processes, description="measuring")
    for name, reason in results.failures.items():
        failures[f"measuring {name}"] = reason
    return [results.done.get(name) or _without_mask(name, items, failures, how[1]) for name, items in patients.items()]


def _write_overlays(
    out: Path,
    inputs: Sequence[InputClip],
    masks: Mapping[str, Path],
    measurements: Sequence[CaseMeasurement],
    failures: MutableMapping[str, str],
    target: int,
    processes: int,
) -> None:
    items = {item.case: item for item in inputs}
    jobs = {
        measured.case: OverlayJob(
            items[measured.case].path,
            masks[measured.case],
            target,
            measured,
            items[measured.case].about.spacing_mm,
            items[measured.case].about.frame_time_ms,
        )
        for measured in measurements
    }
    results = write_overlays(out / layout.OVERLAYS, jobs, processes=processes)
    for case, reason in results.failures.items():
        failures[f"overlay of {case}"] = reason


def _measure_patient(
    usable: Sequence[tuple[InputClip, Path, Picture]], target: int, ef_method: str, kept: Path, trust: TrustSettings
) -> _Patient:
    found = _Patient()
    cases, measures = [], []
    for item, path, picture in usable:
        # The clip's own header is asked: a mask file cannot say that the spacing is unknown.
        header = item.probe()
        mask = read_mask(path)
        if header.crop is not None:
            mask = header.crop.to_clip(mask)
        case = CaseMask(
            case=item.case,
            patient=item.about.patient,
            view=item.about.view,
            mask=np.equal(mask, target, out=mask.view(bool)),  # in place: a long clip's mask is large
            spacing_mm=header.spacing_mm,
            frame_time_ms=header.frame_time_ms,
            ed_frame=item.about.ed_frame,
            es_frame=item.about.es_frame,
            reference_ef_percent=item.about.ef_percent,
            reference_edv_ml=item.about.edv_ml,
            reference_esv_ml=item.about.esv_ml,
        )
        measured = measure_case(case, method=ef_method)
        player = picture == "player"
        shown = {frame: case.mask[frame].copy() for frame in film_frames(measured, len(mask), player=player)}
        found.measurements.append(measured)
        measures.append(clip_measures(case.mask, measured))
        # A long clip's whole mask is not in memory beside the clip, nor beside the patient's other clips.
        cases.append(case.without_pixels())
        del case, mask
        if picture != "none":
            clip = item.read()
            found.films.append(make_film(measured, clip.frames, shown, clip.spacing_mm, player=player))
            del clip
    found.rows = measure_patients(cases, method=ef_method, measurements=found.measurements)
    evidence = {
        case.case: ClipEvidence.read(file)
        for case in cases
        if (file := kept / layout.probabilities_file(case.case)).is_file()
    }
    for row in found.rows:
        own = [(c, m) for c, m in zip(cases, measures, strict=True) if (c.patient or c.case) == row["patient"]]
        assessment = assess_patient(row, *zip(*own, strict=True), evidence, trust)
        row |= assessment.columns
        found.assessments[row["patient"]] = assessment
    return found


def _trust(settings: TrustSettings, found: Sequence[_Patient]) -> dict[str, Any]:
    """What the intervals and the flags were made with, and each patient's reasons."""
    assessments = {name: own.to_dict() for patient in found for name, own in patient.assessments.items()}
    return settings.to_dict() | {"patients": assessments}


def _cases(found: Sequence[_Patient]) -> dict[str, Any]:
    """Each clip's curve, and the reasons to look at it again."""
    cases = {}
    for patient in found:
        doubts = {case: own for item in patient.assessments.values() for case, own in item.doubts.items()}
        for measured in patient.measurements:
            own = [doubt.to_dict() for doubt in doubts.get(measured.case, ())]
            cases[measured.case] = _curve(measured) | {"doubts": own}
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
    return _Patient(rows=[row | quality_columns(row, {})])
