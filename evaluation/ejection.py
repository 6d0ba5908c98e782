"""The ejection-fraction table: from measured clips to one row a patient."""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from echoplan.dataset import Case
from echoplan.files import write_csv
from echoplan.views import VOLUME_VIEWS, is_known

from .measurements import NO_SPACING, CaseMeasurement, joined
from .ventricle.volumes import (
    LARGEST_LENGTH_DIFFERENCE_PERCENT,
    VolumeRule,
    check_volume_rule,
    ejection_fraction,
    length_difference_percent,
    not_measurable,
    volumes_of_views,
)

logger = logging.getLogger(__name__)

# The single planes of one heart differ by their cut as much as by error; beyond this one of them deserves a look.
LARGEST_EF_DIFFERENCE_POINTS = 15.0
LARGEST_RATE_DIFFERENCE_PERCENT = 15.0

NO_WARNING, CHECK, NOT_JUDGED = "no warning", "check", "not judged"


def names_of_cases(cases: str, known: Container[str]) -> list[str]:
    """The names that a row's `cases` joins by ";"; one that is `known` may have a ";" in it."""
    names, parts = [], cases.split(";")
    while parts:
        ends = range(len(parts), 0, -1)
        end = next((end for end in ends if ";".join(parts[:end]) in known), 1)
        names.append(";".join(parts[:end]))
        parts = parts[end:]
    return names


@dataclass(frozen=True)
class PatientRow:
    """One row of ef.csv, ef_report.csv and ef_report.json; None where something is unknown.

    Attributes:
        cases: the clips measured, joined by ";", as are `ed_frames`, `es_frames`, `phases` (found or given) and the
            phase errors; `ef_per_beat_percent` has the beats' own EFs.
        method: biplane, single_plane_a4c, single_plane_a2c, single_plane_<view> or single_plane.
        beats: beats measured; of two views, of the one with more. `ef_per_beat_percent`: none where those of two views
            are several, for they are not the same beats of the heart.
        ef_low_percent, ..., interval_coverage_percent: the intervals, where a calibration gives them.
        quality: "check", with its reasons, where something speaks against the measurement; where it was asked for,
            else "no warning", or "not judged" where no second network could contradict.
        note: what a reader should know. failure: why there is no EF; empty if there is one. Volumes beside a failure
            are there to be seen and take part in nothing.
        exam: which of the patient's exams, where there are several; a column only then.
        reference_mask_ef_percent: EF in the reference masks, by the same rule; a column only where there are such.
            `reference_ef_percent` is the dataset's table's.
        single_plane_reason: why not biplane; a column only where somebody was measured in one plane.
        ef_found_phases_percent: EF at the phases that masks show, where those of the row were given and a reference
            says which is nearer; a column only then.
        interval_patients: the cross-validated patients that the interval of EF rests on; a column only where there are.
    """

    patient: str
    cases: str = ""
    method: str | None = None
    volume_rule: VolumeRule = "simpson"
    ef_percent: float | None = None
    edv_ml: float | None = None
    esv_ml: float | None = None
    ef_low_percent: float | None = None
    ef_high_percent: float | None = None
    edv_low_ml: float | None = None
    edv_high_ml: float | None = None
    esv_low_ml: float | None = None
    esv_high_ml: float | None = None
    interval_coverage_percent: float | None = None
    ef_fold_sd_percent: float | None = None
    quality: str | None = None
    quality_reasons: str | None = None
    beats: int | None = None
    ef_per_beat_percent: str | None = None
    ef_a2c_percent: float | None = None
    ef_a4c_percent: float | None = None
    heart_rate_bpm: float | None = None
    ed_frames: str | None = None
    es_frames: str | None = None
    phases: str | None = None
    ed_error_ms: str | None = None
    es_error_ms: str | None = None
    length_difference_percent: float | None = None
    reference_ef_percent: float | None = None
    reference_edv_ml: float | None = None
    reference_esv_ml: float | None = None
    note: str = ""
    failure: str = ""
    exam: str | None = None
    reference_mask_ef_percent: float | None = None
    single_plane_reason: str | None = None
    ef_found_phases_percent: float | None = None
    interval_patients: int | None = None

    @property
    def name(self) -> str:
        """The patient, and which exam where there are several."""
        return self.patient if self.exam is None else f"{self.patient}, exam {self.exam or 'unknown'}"

    def measured(self, quantity: str) -> float | None:
        """ "ef_percent", "edv_ml" or "esv_ml" as statistics take it: None beside a failure."""
        value: float | None = getattr(self, quantity)
        return None if self.failure else value

    @classmethod
    def unmeasured(cls, patient: str, cases: Sequence[Case], *, method: VolumeRule, failure: str) -> PatientRow:
        """The row of a patient of whom nothing was measured: who is missing, why, and the reference values."""

        def first(name: str) -> float | None:
            return next((value for case in cases if (value := getattr(case, name)) is not None), None)

        return cls(
            patient,
            ";".join(case.case for case in cases),
            volume_rule=method,
            reference_ef_percent=first("ef_percent"),
            reference_edv_ml=first("edv_ml"),
            reference_esv_ml=first("esv_ml"),
            failure=failure,
        )

    def to_row(self) -> dict[str, Any]:
        """Column -> value, in the tables' order; those that not every table has only where there is a value."""
        return {name: value for name, value in asdict(self).items() if value is not None or name not in _SOMETIMES}


_SOMETIMES = (
    "exam", "reference_mask_ef_percent", "single_plane_reason", "ef_found_phases_percent", "interval_patients",
)  # fmt: skip
COLUMNS = tuple(column.name for column in fields(PatientRow) if column.name not in _SOMETIMES)


def write_rows(path: Path, rows: Sequence[PatientRow]) -> None:
    """Write ef.csv or ef_report.csv."""
    more = [name for name in _SOMETIMES if any(getattr(row, name) is not None for row in rows)]
    write_csv(path, [row.to_row() for row in rows], (*COLUMNS, *more))


def measure_patients(measurements: Sequence[CaseMeasurement], *, method: VolumeRule = "simpson") -> list[PatientRow]:
    """One row a patient, in order of first appearance: biplane where A2C and A4C are measurable, else single plane.

    The fallback is named in the column `method`. Of several clips of one view the first measurable one counts. Patients
    without any measurable clip have a row with the reason in `failure`. A patient with several exams has a row of each;
    clips whose exam is unknown belong to the exam that is known where it is the only one.

    Args:
        measurements: `measure_case` of clips of any number of patients, with the same method.
        method: "simpson" (ASE/EACVI), "camus" (one disc height for both phases), "folland" (three sections) or
            "area_length", see `VOLUME_RULES`.

    Raises:
        EchoPlanError: the method is not known.

    Example:
        >>> import numpy as np
        >>> from echoplan.dataset import Case
        >>> from echoplan.evaluation import measure_case, measure_patients
        >>> measured = measure_case(Case("a", "patient1"), np.zeros((5, 64, 64)))
        >>> [(row.patient, row.failure) for row in measure_patients([measured])]
        [('patient1', 'a: no frame of the clip has a cavity')]
    """
    check_volume_rule(method)
    exams_of: dict[str, set[str]] = {}
    for measured in measurements:
        exams_of.setdefault(measured.patient, set()).add(measured.case.exam)
    clips_of: dict[tuple[str, str | None], list[CaseMeasurement]] = {}
    for measured in measurements:
        several = len(exams_of[measured.patient] - {""}) > 1
        clips_of.setdefault((measured.patient, measured.case.exam if several else None), []).append(measured)
    rows = [replace(_patient_row(patient, clips, method), exam=exam) for (patient, exam), clips in clips_of.items()]
    if not any(measured.at_found_phases for measured in measurements):
        return rows
    others = measure_patients([measured.at_found_phases or measured for measured in measurements], method=method)
    return [_with_found_phases(row, other) for row, other in zip(rows, others, strict=True)]


def _with_found_phases(row: PatientRow, other: PatientRow) -> PatientRow:
    given = "given" in (row.phases or "").split(";")
    return replace(row, ef_found_phases_percent=other.measured("ef_percent")) if given else row


def _patient_row(patient: str, clips: Sequence[CaseMeasurement], method: VolumeRule) -> PatientRow:
    good = [measured for measured in clips if not measured.failure]
    turned = [measured for measured in clips if measured.failure and measured.has_volumes]
    broken = [f"{measured.name}: {measured.failure}" for measured in clips if measured.failure]
    doubts = [f"{measured.name}: {measured.doubt}" for measured in clips if measured.doubt]
    if good:  # a view that was outlined and has no EF speaks against the others
        doubts += [f"{measured.name} alone: {measured.failure}" for measured in turned]
    row = PatientRow.unmeasured(
        patient, [measured.case for measured in clips], method=method, failure="" if good else joined(broken)
    )
    if doubts:
        row = replace(row, quality=CHECK, quality_reasons=joined(doubts))
    if not good:
        seen = next((measured for measured in clips if measured.edv_ml is not None), clips[0])
        return replace(row, edv_ml=seen.edv_ml, esv_ml=seen.esv_ml, note=joined(doubts))
    used, values, notes = _views(good, turned, method)
    broken = [f"{measured.name}: {measured.failure}" for measured in clips if measured.failure and measured not in used]
    unused = [measured.name for measured in good if measured not in used]
    notes += [f"{measured.name} alone: {measured.failure}" for measured in used if measured.failure]
    notes += [f"not usable: {joined(broken)}" if broken else "", f"not used: {', '.join(unused)}" if unused else ""]
    if len(used) == 1 and used[0].view and used[0].view not in VOLUME_VIEWS:
        words = f"the view is {used[0].view}, not an apical two- or four-chamber view, for which volumes are made"
        row = replace(row, quality=CHECK, quality_reasons=joined([*doubts, words]))
    return replace(
        row,
        **values,
        **_view_columns(used),
        single_plane_reason=_why_single_plane(clips, [*good, *turned]) if len(used) == 1 else None,
        cases=";".join(measured.name for measured in used),
        ed_frames=";".join(str(measured.ed_frame) for measured in used),
        es_frames=";".join(str(measured.es_frame) for measured in used),
        phases=";".join("found" if None in (m.case.ed_frame, m.case.es_frame) else "given" for m in used),
        note=joined(notes),
    )


def _why_single_plane(clips: Sequence[CaseMeasurement], usable: Sequence[CaseMeasurement]) -> str:
    """Why clips make no biplane volume, in words."""
    missing = [view for view in VOLUME_VIEWS if view not in {measured.view for measured in clips}]
    if not missing:
        unable = [view for view in VOLUME_VIEWS if view not in {measured.view for measured in usable}]
        return f"{' and '.join(unable)} not measurable" if unable else "A2C and A4C have no EF together"
    strange = sorted({measured.view for measured in clips if not is_known(measured.view)})
    words = [f"the view {view!r} is not known" if view else "a view is not named" for view in strange]
    return f"no {' and no '.join(missing)} clip" + (f" ({', '.join(words)})" if words else "")


def _views(
    good: Sequence[CaseMeasurement], turned: Sequence[CaseMeasurement], method: VolumeRule
) -> tuple[list[CaseMeasurement], dict[str, Any], list[str]]:
    """The clips that a patient is measured on, and what they give; `turned` ones have volumes, but no EF of their own.

    Two views have an EF together where one alone has none; a single plane stands in where they have not.
    """
    first = {measured.view: measured for measured in reversed([*good, *turned])}
    pair = [first[view] for view in ("A2C", "A4C") if view in first]
    if len(pair) == 2:
        values, notes = _biplane(pair[0], pair[1], method)
        if not values["failure"] or all(measured in good for measured in pair):
            return pair, values, notes
    by_view = {measured.view: measured for measured in reversed(good)}
    alone = by_view.get("A4C") or by_view.get("A2C") or good[0]
    return [alone], *_single_plane(alone)


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
    edv, esv = volumes_of_views(a2c.beats, a4c.beats, method)
    failure = not_measurable(edv, esv, in_ml=in_ml)
    beats = max(len(a2c.beats), len(a4c.beats))
    notes = [f"{measured.view}: {note}" for measured in (a2c, a4c) if (note := _without_volumes(measured.note))]
    notes += ["" if in_ml else NO_SPACING, *_view_notes(a2c, a4c)]
    lengths = [[fmean(beat[phase].length for beat in view.beats) for view in (a2c, a4c)] for phase in (0, 1)]
    # Lengths in the pixels of two clips cannot be compared.
    worst = max(length_difference_percent(*pair) for pair in lengths) if in_ml else None
    if worst is not None and worst > LARGEST_LENGTH_DIFFERENCE_PERCENT:
        notes.append(f"warning: the long axes of A2C and A4C differ by {worst:.0f} %, one view may be foreshortened")
    ef = None if failure else ejection_fraction(edv, esv)
    values = {
        "method": "biplane",
        "ef_percent": ef,
        "edv_ml": edv if in_ml else None,
        "esv_ml": esv if in_ml else None,
        "beats": beats,
        "ef_per_beat_percent": None if ef is None or beats > 1 else _listed([ef]),
        "length_difference_percent": worst,
        "failure": failure,
    }
    return values, notes


def _view_columns(used: Sequence[CaseMeasurement]) -> dict[str, Any]:
    """The report's columns on the views one by one: single-plane EF, heart rate, found against given phases.

    Phase errors are listed in the order of `cases`, in ms; None where nothing could be compared.
    """
    rates = [rate for measured in used if (rate := _heart_rate(measured)) is not None]
    errors = [measured.phase_errors for measured in used]
    ed = [None if error is None else error.ed_ms for error in errors]
    es = [None if error is None else error.es_ms for error in errors]
    return {
        **{f"ef_{m.view.lower()}_percent": m.ef_percent for m in used if m.view in ("A2C", "A4C")},
        "heart_rate_bpm": fmean(rates) if rates else None,
        "ed_error_ms": _phase_errors(ed),
        "es_error_ms": _phase_errors(es),
    }


def _view_notes(a2c: CaseMeasurement, a4c: CaseMeasurement) -> list[str]:
    """What a reader should know of two views that do not agree."""
    notes = []
    if a2c.ef_percent is not None and a4c.ef_percent is not None:
        difference = abs(a2c.ef_percent - a4c.ef_percent)
        if difference > LARGEST_EF_DIFFERENCE_POINTS:
            notes.append(
                f"the single planes differ by {difference:.0f} EF points: A2C {a2c.ef_percent:.0f} %, "
                f"A4C {a4c.ef_percent:.0f} %"
            )
    rates = [rate for view in (a2c, a4c) if (rate := _heart_rate(view)) is not None]
    if len(rates) == 2 and 100 * abs(rates[0] - rates[1]) > LARGEST_RATE_DIFFERENCE_PERCENT * max(rates):
        notes.append(f"the heart beats at {rates[0]:.0f} a minute in A2C and at {rates[1]:.0f} in A4C")
    return notes


def _without_volumes(note: str) -> str:
    # Missing volumes are said once for the patient, not for each view.
    return "; ".join(part for part in note.split("; ") if part and part != NO_SPACING)


def _listed(values: Sequence[float]) -> str:
    return ";".join(f"{value:.2f}" for value in values)


def _heart_rate(measured: CaseMeasurement) -> float | None:
    return measured.phases.heart_rate_bpm if measured.phases else None


def _phase_errors(values: Sequence[float | None]) -> str | None:
    if all(value is None for value in values):
        return None
    return ";".join("" if value is None else f"{value:.0f}" for value in values)
