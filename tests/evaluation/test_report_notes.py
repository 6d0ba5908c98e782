"""What holds for several patients of a report: phases that were given, one plane, views that make no volume."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from masked import Masked, measured

from echoplan.evaluation import PatientRow, ef_agreement, measure_patients, report_notes, write_ef_report, write_report
from echoplan.evaluation.quality import default_limits, find_doubts, with_quality
from echoplan.evaluation.report.clips import report_clip
from echoplan.imageio import Clip, write_clip, write_mask

SPACING = (0.8, 0.5)
BEAT = (1, 0.85, 0.4, 0, 0.3, 0.6, 0.8, 0.95)


@pytest.fixture(scope="module")
def beating(half_ellipsoid):
    """(T, H, W), largest in frame 0 and smallest in frame 3."""
    sizes = [(80 * (0.8 + 0.2 * state), 44 * (0.7 + 0.3 * state)) for state in BEAT]
    return np.stack([half_ellipsoid(*size, SPACING, shape=(110, 160))[0] for size in sizes]).astype(np.uint8)


@pytest.fixture(scope="module")
def clip_of(beating):
    """clip_of(view, patient="p") -> its measurement."""

    def measure(view, patient="p", mask=beating, **more):
        name = f"{patient}_{view or 'unnamed'}"
        return measured(Masked(name, mask, patient, view, SPACING, frame_time_ms=100.0, **more))

    return measure


def test_why_a_patient_is_measured_in_one_plane(clip_of, beating):
    def reason(*clips):
        (row,) = measure_patients(clips)
        return row.single_plane_reason

    empty = clip_of("A2C", mask=np.zeros_like(beating))
    assert reason(clip_of("A2C"), clip_of("A4C")) is None
    assert reason(clip_of("apical two chamber"), clip_of("4ch")) is None  # biplane, however they are spelled
    assert reason(clip_of("A4C")) == "no A2C clip"
    assert reason(clip_of("A4C"), clip_of("two-chambr")) == "no A2C clip (the view 'two-chambr' is not known)"
    assert reason(clip_of("")) == "no A2C and no A4C clip (a view is not named)"
    assert reason(empty, clip_of("A4C")) == "A2C not measurable"


def test_how_many_are_measured_in_one_plane_and_why(clip_of, tmp_path):
    rows = measure_patients([clip_of("A2C", "a"), clip_of("A4C", "a"), clip_of("A4C", "b"), clip_of("A4C", "c"),
                             clip_of("", "d")])  # fmt: skip
    note = (
        "3 of 4 patients are measured in one plane: no A2C clip (2), no A2C and no A4C clip (a view is not named) (1)"
    )
    assert report_notes(rows) == [note]
    assert write_ef_report(tmp_path, rows)["notes"] == [note]
    assert json.loads((tmp_path / "ef_report.json").read_text())["rows"][1]["single_plane_reason"] == "no A2C clip"
    write_report(tmp_path / "report.html", rows=rows, notes=["and this"])
    page = (tmp_path / "report.html").read_text()
    assert f"<li>{note}</li>" in page and "<li>and this</li>" in page


@pytest.mark.parametrize(("view", "check"), [("PLAX", True), ("A3C", True), ("A4C", False), ("", False)])
def test_a_view_that_makes_no_volume_is_a_reason_to_check(clip_of, view, check):
    (row,) = measure_patients([clip_of(view)])
    row = with_quality(row, {})
    assert (row.quality == "check") is check
    assert (f"the view is {view}, not an apical" in row.quality_reasons) is check
    (both,) = measure_patients([clip_of(view), clip_of("4CH")])  # which is measured in others, too
    assert with_quality(both, {}).quality == "no warning"


def test_what_nothing_could_contradict_is_not_judged(clip_of):
    (row,) = measure_patients([clip_of("A4C")])
    alone = with_quality(row, {"p_A4C": find_doubts({}, default_limits())}, folds=False)
    assert alone.quality == "not judged" and "no second fold" in alone.quality_reasons
    assert report_notes([alone, replace(row, quality="no warning")])[-1] == (
        "the quality of 1 of 2 patients is not judged: no second fold's network measured it that could disagree (1)"
    )


@pytest.fixture
def reported(beating, tmp_path):
    """reported(ed, es, reference) -> rows of a clip on disk, as a report measures it."""
    file, masks = tmp_path / "p_A4C.nii.gz", tmp_path / "masks" / "p_A4C.nii.gz"
    write_clip(file, Clip((beating * 200).astype(np.uint8), SPACING, 100.0))
    write_mask(masks, beating, like=Clip(beating, SPACING, 100.0))

    def rows(ed=None, es=None, reference=None):
        from echoplan.dataset import Case

        case = Case("p_A4C", "p", view="A4C", ed_frame=ed, es_frame=es, ef_percent=reference)
        return measure_patients([report_clip(case, file, masks, 1).measurement])

    return rows


def test_both_errors_are_told_where_phases_were_given(reported, tmp_path):
    (found,) = reported(reference=50.0)
    assert found.ef_found_phases_percent is None and report_notes([found])[0].startswith("1 of 1 patients is measured")
    rows = reported(ed=1, es=2, reference=50.0)
    (given,) = rows
    assert given.ef_percent < given.ef_found_phases_percent == pytest.approx(found.ef_percent)
    content = write_ef_report(tmp_path, rows)
    agreed = content["agreement"]
    errors = [abs(value - 50) for value in (given.ef_percent, found.ef_percent)]
    assert [agreed[key]["mae"] for key in ("ef_percent", "ef_found_phases_percent")] == pytest.approx(errors)
    first, second, _ = content["notes"]
    assert "EF of 1 of 1 patients is measured at the end-diastole and end-systole that were given" in first
    assert f"{errors[0]:.1f} points at the given phases (n = 1), {errors[1]:.1f} at the phases found (n = 1)" in second
    write_report(tmp_path / "report.html", rows=rows)
    page = (tmp_path / "report.html").read_text()
    assert first in page and second in page
    assert f"n = 1, given ED and ES; {errors[1]:.1f} at those found" in page
    write_report(tmp_path / "two.html", rows=[given, replace(given, patient="another")])
    assert "EF at found phases, %" in (tmp_path / "two.html").read_text()


def test_without_a_reference_phases_are_not_measured_twice(reported):
    (row,) = reported(ed=1, es=2)
    assert row.ef_found_phases_percent is None and ef_agreement([row]) is None
    (note, _) = report_notes([row])
    assert "--find_phases passes the given ones over" in note


def test_phases_of_patients_without_an_ef_are_no_matter():
    assert report_notes([PatientRow("p", phases="given", failure="no cavity")]) == []
