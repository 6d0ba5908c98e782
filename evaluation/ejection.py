"""The ejection-fraction table: from masks over time to one row a patient, and its files."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from echoplan import __version__
from echoplan.errors import EchoPlanError
from echoplan.files import write_csv, write_json

from .agreement import agreement
from .cardiac_cycle import Phases, find_phases
from .geometry import Landmarks, find_landmarks_of_beat
from .segmentation import check_spacing
from .volumes import (
    DISCS,
    LARGEST_LENGTH_DIFFERENCE_PERCENT,
    biplane_volume,
    camus_volumes,
    ejection_fraction,
    length_difference_percent,
)

logger = logging.getLogger(__name__)

VolumeRule = Literal["simpson", "camus"]
VOLUME_RULES = {
    "simpson": "20 discs of height L/20, L the (larger) long axis of that phase; Lang et al., ASE/EACVI 2015",
    "camus": "20 discs of one height for both phases, the largest long axis over views and phases / 20, as in CAMUS' "
    "own script: EF is 5 to 10 points lower",
}
COLUMNS = (
    "patient", "cases", "method", "volume_rule", "ef_percent", "edv_ml", "esv_ml", "beats", "ef_per_beat_percent",
    "ed_frames", "es_frames", "phases", "length_difference_percent", "reference_ef_percent", "reference_edv_ml",
    "reference_esv_ml", "note", "failure",
)  # fmt: skip
NO_SPACING = "no volumes: the pixel spacing is unknown"
_VIEWS = {"2CH": "A2C", "AP2": "A2C", "4CH": "A4C", "AP4": "A4C"}


@dataclass(frozen=True)
class CaseMask:
    """The masks of one clip and what is known of it.

    Attributes:
        case, patient: names; an empty patient counts as a patient of its own.
        view: "A2C", "A4C" (2CH, 4CH are understood) or any other word.
        mask: (T, H, W), 0 is background, anything else the ventricle's cavity.
        spacing_mm: (row, col), None where unknown.
        frame_time_ms: mean time between frames, None where unknown.
        ed_frame, es_frame: given phases, used as they are; None to have them found.
        reference_ef_percent, reference_edv_ml, reference_esv_ml: of the patient, where known.
    """

    case: str
    mask: np.ndarray
    patient: str = ""
    view: str = ""
    spacing_mm: tuple[float, float] | None = None
    frame_time_ms: float | None = None
    ed_frame: int | None = None
    es_frame: int | None = None
    reference_ef_percent: float | None = None
    reference_edv_ml: float | None = None
    reference_esv_ml: float | None = None


@dataclass(frozen=True)
class CaseMeasurement:
    """What was measured on one clip.

    Attributes:
        area: (T,) area of all foreground, in `area_unit` ("mm2", or "px" without spacing).
        phases: the beats; None where the clip has no cavity.
        beats: (end-diastole, end-systole) landmarks of every beat measured, in mm, or pixels without spacing.
        ef_percent, edv_ml, esv_ml: single plane, means over the beats; None where not measured.
        ef_per_beat_percent: the beats' own.
        frame_time_ms: as given.
        note: what a reader should know. failure: why there is no EF; empty if there is one.
    """

    case: str
    patient: str
    view: str
    area: np.ndarray
    area_unit: str
    phases: Phases | None = None
    beats: tuple[tuple[Landmarks, Landmarks], ...] = ()
    ef_percent: float | None = None
    edv_ml: float | None = None
    esv_ml: float | None = None
    ef_per_beat_percent: tuple[float, ...] = ()
    frame_time_ms: float | None = None
    note: str = ""
    failure: str = ""

    @property
    def ed_frame(self) -> int | None:
        return self.phases.ed_frame if self.phases else None

    @property
    def es_frame(self) -> int | None:
        return self.phases.es_frame if self.phases else None


@dataclass
class _Result:
    """EDV, ESV and EF of each beat."""

    volumes: list[tuple[float, float]] = field(default_factory=list)
    ef: list[float] = field(default_factory=list)

    def add(self, edv: float, esv: float) -> None:
        self.ef.append(ejection_fraction(edv, esv))
        self.volumes.append((edv, esv))

    def columns(self, *, in_ml: bool) -> dict[str, Any]:
        edv, esv = (fmean(values) for values in zip(*self.volumes, strict=True))
        return {
            "ef_percent": fmean(self.ef),
            "edv_ml": edv if in_ml else None,
            "esv_ml": esv if in_ml else None,
        }


def measure_case(case: CaseMask, *, method: VolumeRule = "simpson") -> CaseMeasurement:
    """Area curve, phases, and single-plane volumes and EF of one clip.

    Never raises for what the masks or the header hold: `failure` then says why there is no EF. Several beats give
    several EFs and their mean. Without spacing EF is measured in (square) pixels and volumes stay None.
    """
    view = _VIEWS.get(case.view.upper(), case.view.upper() if case.view.upper() in ("A2C", "A4C") else case.view)
    patient = case.patient or case.case
    mask = np.asarray(case.mask)
    try:
        if mask.ndim != 3:
            raise EchoPlanError(f"the mask has {mask.ndim} axes, a clip (T, H, W) is needed")
        spacing = check_spacing(case.spacing_mm)
    except EchoPlanError as error:
        return CaseMeasurement(case.case, patient, view, np.zeros(0), "px", failure=error.problem)
    pixel = 1.0 if spacing is None else spacing[0] * spacing[1]
    area = np.count_nonzero(mask, axis=(1, 2)) * pixel
    unit = "px" if spacing is None else "mm2"
    measured = CaseMeasurement(case.case, patient, view, area, unit, frame_time_ms=case.frame_time_ms)
    try:
        phases = _phases(case, area)
        measured = replace(measured, phases=phases, note=phases.note)
        beats, broken = _measure_beats(mask, phases, spacing or (1.0, 1.0))
    except EchoPlanError as error:
        return replace(measured, failure=error.problem)
    result = _Result()
    for ed, es in beats:
        result.add(*_volumes([(ed, ed), (es, es)], method))
    notes = [phases.note, broken, NO_SPACING if spacing is None else "", _negative(result.ef)]
    if phases.ed_frame == phases.es_frame:
        return replace(measured, beats=beats, note=_joined(notes), failure="end-diastole and end-systole are one frame")
    return replace(
        measured,
        beats=beats,
        note=_joined(notes),
        ef_per_beat_percent=tuple(result.ef),
        **result.columns(in_ml=spacing is not None),
    )


def measure_patients(
    cases: Sequence[CaseMask], *, method: VolumeRule = "simpson", measurements: Sequence[CaseMeasurement] | None = None
) -> list[dict[str, Any]]:
    """One row a patient, in order of first appearance: biplane where A2C and A4C are measurable, else single plane.

    The fallback is named in the column `method`: biplane, single_plane_a4c, single_plane_a2c, single_plane_<view> or
    single_plane. Of several clips of one view the first measurable one counts. Patients without any measurable clip
    have a row with the reason in `failure`. The columns are `COLUMNS`; unknown is None.

    Args:
        cases: clips of any number of patients.
        method: "simpson" (ASE/EACVI) or "camus" (one disc height for both phases), see `VOLUME_RULES`.
        measurements: `measure_case` of each case, where they were made already with the same method.

    Raises:
        EchoPlanError: the method is not known.
    """
    if method not in VOLUME_RULES:
        raise EchoPlanError(f"there is no volume rule {method!r}", remedy=f"use one of {', '.join(VOLUME_RULES)}")
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
    `versions`, the caller's `details`, and `rows`.
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
        "versions": {"echoplan": __version__, "python": platform.python_version(), "numpy": np.__version__},
        "details": dict(details or {}),
        "rows": [dict(row) for row in rows],
    }
    folder = Path(folder)
    write_csv(folder / "ef_report.csv", rows, COLUMNS)
    write_json(folder / "ef_report.json", content)
    return content


def ef_agreement(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]] | None:
    """`agreement` of EF, EDV and ESV with the references there are; None where no row has one."""
    found = {}
    for name in ("ef_percent", "edv_ml", "esv_ml"):
        reference = [row[f"reference_{name}"] for row in rows]
        if any(value is not None for value in reference):
            found[name] = agreement([row[name] for row in rows], reference)
    return found or None


def _phases(case: CaseMask, area: np.ndarray) -> Phases:
    ed, es = case.ed_frame, case.es_frame
    for name, frame in (("end-diastole", ed), ("end-systole", es)):
        if frame is not None and not 0 <= frame < len(area):
            raise EchoPlanError(f"the given {name}, frame {frame}, is not in the clip of {len(area)} frames")
    if ed is not None and es is not None:
        return Phases(ed, es, ((ed, es),), True)
    found = find_phases(area, frame_time_ms=case.frame_time_ms)
    if ed is None and es is None:
        return found
    ed, es = (found.ed_frame if ed is None else ed), (found.es_frame if es is None else es)
    return Phases(ed, es, ((ed, es),), found.complete, found.note)


def _measure_beats(
    mask: np.ndarray, phases: Phases, spacing: tuple[float, float]
) -> tuple[tuple[tuple[Landmarks, Landmarks], ...], str]:
    """Landmarks of every measurable beat, and a note on those that are not; an error if there is none."""
    beats, reasons = [], []
    for ed_frame, es_frame in phases.beats:
        try:
            beats.append(find_landmarks_of_beat(mask[ed_frame], mask[es_frame], spacing))
        except EchoPlanError as error:
            reasons.append(f"frames {ed_frame} and {es_frame}: {error.problem}")
    if not beats:
        raise EchoPlanError(_joined(reasons))
    return tuple(beats), _joined(reasons)


def _volumes(phases: Sequence[tuple[Landmarks, Landmarks]], method: VolumeRule) -> tuple[float, float]:
    """(EDV, ESV) from the (A2C, A4C) landmarks of end-diastole and end-systole; single plane: the same view twice."""
    ed, es = phases
    return camus_volumes(ed, es) if method == "camus" else (biplane_volume(*ed), biplane_volume(*es))


def _patient_row(patient: str, clips: Sequence[tuple[CaseMask, CaseMeasurement]], method: VolumeRule) -> dict[str, Any]:
    row: dict[str, Any] = {**dict.fromkeys(COLUMNS), "patient": patient, "volume_rule": method}
    for column in ("reference_ef_percent", "reference_edv_ml", "reference_esv_ml"):
        known = (getattr(case, column) for case, _ in clips)
        row[column] = next((value for value in known if value is not None), None)
    good = [measured for _, measured in clips if not measured.failure]
    broken = [f"{measured.case}: {measured.failure}" for _, measured in clips if measured.failure]
    if not good:
        row |= {"cases": ";".join(measured.case for _, measured in clips), "note": "", "failure": _joined(broken)}
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
    notes += [f"not usable: {_joined(broken)}" if broken else "", f"not used: {', '.join(unused)}" if unused else ""]
    row |= values | {
        "cases": ";".join(measured.case for measured in used),
        "ed_frames": ";".join(str(measured.ed_frame) for measured in used),
        "es_frames": ";".join(str(measured.es_frame) for measured in used),
        "phases": ";".join(given[measured.case] for measured in used),
        "note": _joined(notes),
        "failure": "",
    }
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
    result = _Result()
    differences = []
    for first, second in zip(a2c.beats, a4c.beats, strict=False):  # as many beats as both clips have
        result.add(*_volumes(list(zip(first, second, strict=True)), method))
        differences += [length_difference_percent(a.length, b.length) for a, b in zip(first, second, strict=True)]
    notes = [f"{measured.view}: {note}" for measured in (a2c, a4c) if (note := _without_volumes(measured.note))]
    notes += ["" if in_ml else NO_SPACING, _negative(result.ef)]
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
    return "; ".join(part for part in note.split("; ") if part and part not in (NO_SPACING, _negative([-1.0])))


def _negative(ef: Sequence[float]) -> str:
    return "end-systole is larger than end-diastole: negative EF" if any(value < 0 for value in ef) else ""


def _joined(parts: Sequence[str]) -> str:
    return "; ".join(part for part in parts if part)


def _listed(values: Sequence[float]) -> str:
    return ";".join(f"{value:.2f}" for value in values)
