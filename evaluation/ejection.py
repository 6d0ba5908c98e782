"""The ejection-fraction table: from masks over time to one row a patient, and its files."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from echoplan import __version__, layout
from echoplan.files import write_csv, write_json

from .agreement import agreement
from .comparison.subgroups import subgroup_agreement
from .measurements import NEGATIVE_EF, NO_SPACING, BeatVolumes, CaseMask, CaseMeasurement, joined, measure_case
from .ventricle.volumes import (
    DISCS,
    LARGEST_LENGTH_DIFFERENCE_PERCENT,
    VOLUME_RULES,
    VolumeRule,
    check_volume_rule,
    length_difference_percent,
    volumes_of_beat,
)
from .views import phase_finding, view_columns, view_notes

logger = logging.getLogger(__name__)

COLUMNS = (
    "patient", "cases", "method", "volume_rule", "ef_percent", "edv_ml", "esv_ml", "ef_low_percent",
    "ef_high_percent", "edv_low_ml", "edv_high_ml", "esv_low_ml", "esv_high_ml", "interval_coverage_percent",
    "ef_fold_sd_percent", "quality", "quality_reasons", "beats", "ef_per_beat_percent",
    "ef_a2c_percent", "ef_a4c_percent", "heart_rate_bpm", "ed_frames", "es_frames", "phases", "ed_error_ms",
    "es_error_ms", "length_difference_percent", "reference_ef_percent", "reference_edv_ml", "reference_esv_ml",
    "note", "failure",
)  # fmt: skip


def measure_patients(
    cases: Sequence[CaseMask], *, method: VolumeRule = "simpson", measurements: Sequence[CaseMeasurement] | None = None
) -> list[dict[str, Any]]:
    """One row a patient, in order of first appearance: biplane where A2C and A4C are measurable, else single plane.

    The fallback is named in the column `method`: biplane, single_plane_a4c, single_plane_a2c, single_plane_<view> or
    single_plane. Of several clips of one view the first measurable one counts. Patients without any measurable clip
    have a row with the reason in `failure`. The columns are `COLUMNS`; unknown is None.

    Args:
        cases: clips of any number of patients.
        method: "simpson" (ASE/EACVI), "camus" (one disc height for both phases) or "area_length", see `VOLUME_RULES`.
        measurements: `measure_case` of each case, where they were made already with the same method.

    Raises:
        EchoPlanError: the method is not known.
    """
    check_volume_rule(method)
    if measurements is None:
        measurements = [measure_case(case, method=method) for case in cases]
    patients: dict[str, list[tuple[CaseMask, CaseMeasurement]]] = {}
    for case, measured in zip(cases, measurements, strict=True):
        patients.setdefault(measured.patient, []).append((case, measured))
    return [_patient_row(patient, clips, method) for patient, clips in patients.items()]


def write_ef_report(
    folder: str | Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    method: VolumeRule = "simpson",
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ef_report.csv and ef_report.json into `folder`; returns what the JSON holds.

    The JSON has `volume_rule`, `methods` (rows of each), `agreement` (of EF, EDV and ESV; null without references),
    `phase_finding` (found against given phases, null where none can be compared),
    `subgroups` (of EF, see `subgroup_agreement`; empty without references), `versions`, the caller's `details`, `rows`.
    """
    used: dict[str, int] = {}
    for row in rows:
        name = row["method"] or "failed"
        used[name] = used.get(name, 0) + 1
    content = {
        "volume_rule": {"name": method, "meaning": VOLUME_RULES[method], "discs": DISCS},
        "methods": used,
        "failures": {row["patient"]: row["failure"] for row in rows if row["failure"]},
        "agreement": ef_agreement(rows),
        "phase_finding": phase_finding(rows),
        "subgroups": subgroup_agreement(rows),
        "versions": {"echoplan": __version__, "python": platform.python_version(), "numpy": np.__version__},
        "details": dict(details or {}),
        "rows": [dict(row) for row in rows],
    }
    folder = Path(folder)
    write_csv(folder / layout.EF_REPORT_CSV, rows, COLUMNS)
    write_json(folder / layout.EF_REPORT_JSON, content)
    return content


def ef_agreement(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]] | None:
    """`agreement` of EF, EDV and ESV with the references there are; None where no row has one."""
    found = {}
    for name in ("ef_percent", "edv_ml", "esv_ml"):
        reference = [row[f"reference_{name}"] for row in rows]
        if any(value is not None for value in reference):
            found[name] = agreement([row[name] for row in rows], reference)
    return found or None


def _patient_row(patient: str, clips: Sequence[tuple[CaseMask, CaseMeasurement]], method: VolumeRule) -> dict[str, Any]:
    row: dict[str, Any] = {**dict.fromkeys(COLUMNS), "patient": patient, "volume_rule": method}
    for column in ("reference_ef_percent", "reference_edv_ml", "reference_esv_ml"):
        known = (getattr(case, column) for case, _ in clips)
        row[column] = next((value for value in known if value is not None), None)
    good = [measured for _, measured in clips if not measured.failure]
    broken = [f"{measured.case}: {measured.failure}" for _, measured in clips if measured.failure]
    if not good:
        row |= {"cases": ";".join(measured.case for _, measured in clips), "note": "", "failure": joined(broken)}
        return row
    by_view: dict[str, CaseMeasurement] = {}
    for measured in good:
        by_view.setdefault(measured.view, measured)
    used = [by_view[view] for view in ("A2C", "A4C") if view in by_view]
    if len(used) < 2:
        used = [by_view.get("A4C") or by_view.get("A2C") or good[0]]
    values, notes = _biplane(*used, method) if len(used) == 2 else _single_plane(used[0])
    given = {c.case: "found" if None in (c.ed_frame, c.es_frame) else "given" for c, _ in clips}
    unused = [measured.case for measured in good if measured not in used]
    notes += [f"not usable: {joined(broken)}" if broken else "", f"not used: {', '.join(unused)}" if unused else ""]
    row |= (
        values
        | view_columns(used)
        | {
            "cases": ";".join(measured.case for measured in used),
            "ed_frames": ";".join(str(measured.ed_frame) for measured in used),
            "es_frames": ";".join(str(measured.es_frame) for measured in used),
            "phases": ";".join(given[measured.case] for measured in used),
            "note": joined(notes),
            "failure": "",
        }
    )
    return row


def _single_plane(measured: CaseMeasurement) -> tuple[dict[str, Any], list[str]]:
    view = "_".join(measured.view.lower().split())
    values = {
        "method": f"single_plane_{view}" if view else "single_plane",
        "ef_percent": measured.ef_percent,
        "edv_ml": measured.edv_ml,
        "esv_ml": measured.esv_ml,
        "beats": len(measured.beats),
        "ef_per_beat_percent": _listed(measured.ef_per_beat_percent),
    }
    return values, [measured.note]


def _biplane(a2c: CaseMeasurement, a4c: CaseMeasurement, method: VolumeRule) -> tuple[dict[str, Any], list[str]]:
    in_ml = a2c.area_unit == a4c.area_unit == "mm2"
    result = BeatVolumes()
    differences = []
    for first, second in zip(a2c.beats, a4c.beats, strict=False):  # as many beats as both clips have
        result.add(*volumes_of_beat(*zip(first, second, strict=True), method))
        differences += [length_difference_percent(a.length, b.length) for a, b in zip(first, second, strict=True)]
    notes = [f"{measured.view}: {note}" for measured in (a2c, a4c) if (note := _without_volumes(measured.note))]
    notes += ["" if in_ml else NO_SPACING, result.note, *view_notes(a2c, a4c)]
    # Lengths in the pixels of two clips cannot be compared.
    worst = max(differences) if in_ml else None
    if worst is not None and worst > LARGEST_LENGTH_DIFFERENCE_PERCENT:
        notes.append(f"warning: the long axes of A2C and A4C differ by {worst:.0f} %, one view may be foreshortened")
    values = {
        "method": "biplane",
        **result.columns(in_ml=in_ml),
        "beats": len(result.ef),
        "ef_per_beat_percent": _listed(result.ef),
        "length_difference_percent": worst,
    }
    return values, notes


def _without_volumes(note: str) -> str:
    # Single-plane EF and missing volumes are said once for the patient, not for each view.
    return "; ".join(part for part in note.split("; ") if part and part not in (NO_SPACING, NEGATIVE_EF))


def _listed(values: Sequence[float]) -> str:
    return ";".join(f"{value:.2f}" for value in values)
