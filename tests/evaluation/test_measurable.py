"""What cannot be: spacings and times of no echocardiogram, ejection fractions outside 0 to 100, views of two exams."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from masked import Masked, measured, patient_rows

from echoplan.dataset import Case, read_cases, write_cases
from echoplan.evaluation import (
    ef_agreement,
    ejection_fraction,
    lv_volume_biplane,
    measure_case,
    measure_patients,
    write_ef_report,
)
from echoplan.evaluation.quality import clip_measures, default_limits, find_doubts
from echoplan.imageio import Clip, probe_clip, read_clip, write_clip

SPACING = (0.8, 0.5)
FULL, HALF, EMPTY = 1.0, 0.5, 0.0


@pytest.fixture(scope="module")
def clip(half_ellipsoid):
    """clip(states, width) -> (T, H, W): a cavity that is larger and smaller by turns; 1 is full, 0 is empty."""

    def build(states=(FULL, HALF, EMPTY), width=44.0):
        sizes = [(80 * (0.8 + 0.2 * state), width * (0.7 + 0.3 * state)) for state in states]
        return np.stack([half_ellipsoid(*size, SPACING, tilt=9, shape=(150, 240))[0] for size in sizes])

    return build


@pytest.mark.parametrize("spacing", [(14.1, 14.1), (0.00141, 0.00141), (0.5, 14.1)])
def test_a_spacing_of_no_echocardiogram_counts_as_unknown_wherever_it_is_taken(tmp_path, clip, spacing):
    write_clip(tmp_path / "a.nii.gz", Clip(np.zeros((3, 20, 30), np.uint8), spacing, 25.0))
    for header in (read_clip(tmp_path / "a.nii.gz"), probe_clip(tmp_path / "a.nii.gz")):
        assert header.spacing_mm is None and header.frame_time_ms == 25.0
        assert "unusual for echocardiography and counts as unknown (0.02 to 5 mm)" in header.scale_note
        of_header = measure_case(Case("a", "p").with_header(header), clip())
    of_table = measured(Masked("a", clip(), "p", spacing_mm=spacing))
    for got in (of_header, of_table):
        assert got.edv_ml is None and got.area_unit == "px" and got.ef_percent == pytest.approx(61, abs=3)
        (row,) = measure_patients([got])
        assert row.edv_ml is None and row.quality == "check"
        assert f"{spacing[1]:g} mm is unusual" in row.note and f"{spacing[1]:g} mm is unusual" in row.quality_reasons
    known = read_clip(tmp_path / "a.nii.gz", spacing_mm=(0.5, 0.5))
    assert known.spacing_mm == (0.5, 0.5) and known.scale_note == ""


def test_a_frame_time_in_seconds_counts_as_unknown(tmp_path, clip):
    states = 0.5 + 0.5 * np.cos(np.linspace(0, 2 * np.pi, 16))
    right = measured(Masked("a", clip(states), "p", "A4C", SPACING, 23.2))
    seconds = measured(Masked("a", clip(states), "p", "A4C", SPACING, 0.0232))
    assert seconds.ef_percent == pytest.approx(right.ef_percent, abs=0.5) and right.ef_percent > 55
    assert "the frame time of 0.0232 ms is unusual" in seconds.note and "in seconds?" in seconds.doubt
    (row,) = measure_patients([seconds])
    assert row.quality == "check" and "0.0232 ms" in row.quality_reasons and row.heart_rate_bpm is None
    write_clip(tmp_path / "a.nii.gz", Clip(np.zeros((3, 20, 30), np.uint8), (0.5, 0.5), 0.0232))
    assert probe_clip(tmp_path / "a.nii.gz").frame_time_ms is None
    assert read_clip(tmp_path / "a.nii.gz", frame_time_ms=300.0).frame_time_ms is None


@pytest.mark.parametrize(("factor", "words"), [(10, "more than any heart holds"), (0.1, "less than any heart holds")])
def test_a_spacing_ten_times_off_that_may_still_be_one_makes_a_volume_that_is_none(clip, factor, words):
    mask = clip()
    row, column = (factor * 0.48, factor * 0.3)
    got = measured(Masked("a", mask, spacing_mm=(row, column)))
    doubts = find_doubts(clip_measures(mask, got), default_limits())
    assert any(words in doubt.words and "is the spacing right?" in doubt.words for doubt in doubts)


def test_no_ef_outside_0_to_100(clip, tmp_path):
    """EF -270 % was a number, with an interval, in the mean, and in the report."""
    turned = Masked("p1_A4C", clip(), "p1", "A4C", SPACING, ed_frame=2, es_frame=0, ef_percent=60.0, edv_ml=90.0)
    good = Masked("p2_A4C", clip(), "p2", "A4C", SPACING, ef_percent=60.0, edv_ml=90.0)
    rows = patient_rows([turned, good])
    assert rows[0].ef_percent is None and rows[0].edv_ml < rows[0].esv_ml  # seen, never swapped
    assert rows[0].failure.startswith("p1_A4C: no EF: end-systole (")
    assert rows[0].measured("edv_ml") is None and rows[1].measured("edv_ml") == rows[1].edv_ml
    statistics = ef_agreement(rows)
    assert {name: (found["n"], found["failures"]) for name, found in statistics.items()} == {
        "ef_percent": (1, 1), "edv_ml": (1, 1)
    }  # fmt: skip
    content = write_ef_report(tmp_path, rows)
    assert content["methods"] == {"failed": 1, "single_plane_a4c": 1} and "p1" in content["failures"]
    same = measured(replace(turned, ed_frame=0, es_frame=1, mask=clip((FULL, FULL, EMPTY))))
    assert same.ef_percent is None and "no EF" in same.failure
    without = measured(replace(turned, spacing_mm=None))
    assert without.failure == "no EF: end-systole is not smaller than end-diastole" and without.edv_ml is None


def test_a_view_without_an_ef_does_not_count_in_the_mismatch_and_is_named(clip):
    good = Masked("p_A4C", clip(), "p", "A4C", SPACING)
    flat = Masked("p_A2C", clip((0.5, 0.52)), "p", "A2C", SPACING, ed_frame=0, es_frame=1)
    turned = replace(flat, mask=clip(), ed_frame=2, es_frame=0)
    for other, method in ((flat, "biplane"), (turned, "single_plane_a4c")):
        (row,) = patient_rows([other, good])
        assert row.method == method and row.ef_a2c_percent is None and 0 < row.ef_percent < 65
        assert "EF points" not in row.note and "no EF" in row.note and not row.failure
        assert row.quality == "check" and "p_A2C alone: no EF" in row.quality_reasons


def test_a_beat_without_an_ef_is_left_out_with_a_word(clip, monkeypatch):
    module = measure_case.__globals__
    beats = module["Phases"](0, 2, ((0, 2), (2, 3), (3, 5)), True)
    monkeypatch.setitem(module, "find_phases", lambda area, frame_time_ms: beats)
    got = measured(Masked("a", clip((FULL, HALF, EMPTY, FULL, HALF, 0.2)), "p", "A4C", SPACING))
    assert len(got.ef_per_beat_percent) == len(got.beats) == 2 and min(got.ef_per_beat_percent) > 0
    assert "1 of 3 beats left out" in got.note and measure_patients([got])[0].quality == "check"


def test_biplane_is_made_of_each_views_mean_beat(clip):
    """Beats of two clips are not the same beats: A2C's second was paired with A4C's second."""
    states = np.array([1, 0.85, 0.4, 0, 0.3, 0.6, 0.8, 0.95] * 2)
    weaker = states.copy()
    weaker[8:] = 0.4 + 0.6 * weaker[8:]
    once = Masked("p_A2C", clip(states[:8]), "p", "A2C", SPACING, 100.0)
    twice = Masked("p_A4C", clip(weaker, width=50.0), "p", "A4C", SPACING, 100.0)
    a2c, a4c = measured(once), measured(twice)
    assert (len(a2c.beats), len(a4c.beats)) == (1, 2)
    (row,) = measure_patients([a2c, a4c])
    alone = [measure_patients([a2c, replace(a4c, beats=(beat,))])[0] for beat in a4c.beats]
    # The long axes differ by little, so that the mean of the pairs' volumes is that of the mean beat.
    for name in ("edv_ml", "esv_ml"):
        assert getattr(row, name) == pytest.approx(np.mean([getattr(one, name) for one in alone]), rel=0.01)
    assert row.ef_percent == ejection_fraction(row.edv_ml, row.esv_ml) != pytest.approx(alone[0].ef_percent, abs=3)
    assert (row.beats, row.ef_per_beat_percent, alone[0].beats) == (2, None, 1)
    ed, es = (phases.phases.beats[0] for phases in (a2c, a4c))
    edv = lv_volume_biplane(once.mask[ed[0]], twice.mask[es[0]], SPACING, SPACING)
    assert alone[0].edv_ml == pytest.approx(edv, rel=0.01) and alone[0].ef_per_beat_percent


def exam_rows(clip, exams):
    views = [("A2C", (FULL, HALF, EMPTY)), ("A4C", (FULL, HALF, EMPTY)), ("A2C", (FULL, 0.8, 0.6)),
             ("A4C", (FULL, 0.8, 0.6))]  # fmt: skip
    clips = [
        measure_case(replace(Masked(f"{view}_{place}", clip(states), "p", view, SPACING).case, exam=exam), clip(states))
        for place, ((view, states), exam) in enumerate(zip(views, exams, strict=True))
    ]
    return measure_patients(clips)


def test_two_exams_of_a_patient_are_two_rows(clip, tmp_path):
    rows = exam_rows(clip, ("2020", "2020", "2023", "2023"))
    assert [(row.patient, row.exam, row.method, row.cases) for row in rows] == [
        ("p", "2020", "biplane", "A2C_0;A4C_1"), ("p", "2023", "biplane", "A2C_2;A4C_3")
    ]  # fmt: skip
    assert rows[0].ef_percent - rows[1].ef_percent > 25
    crossed = exam_rows(clip, ("2020", "2023", "2020", "2023"))
    assert [row.cases for row in crossed] == ["A2C_0", "A4C_1"] or all(";" in row.cases for row in crossed)
    write_ef_report(tmp_path, rows)
    with open(tmp_path / "ef_report.csv", newline="") as stream:
        assert [row["exam"] for row in csv.DictReader(stream)] == ["2020", "2023"]
    assert json.loads((tmp_path / "ef_report.json").read_text())["rows"][1]["exam"] == "2023"


def test_one_exam_or_none_known_is_one_row_without_the_column(clip):
    for exams in (("", "", "", ""), ("2020", "2020", "", "")):
        (row,) = exam_rows(clip, exams)
        assert row.exam is None and "exam" not in row.to_row() and row.name == "p"


def test_the_exam_is_a_column_of_cases_csv_only_where_it_is_known(tmp_path):
    cases = (Case("a", "p", "a.nii.gz", exam="2020"), Case("b", "p", "b.nii.gz"))
    write_cases(tmp_path / "cases.csv", cases)
    assert read_cases(tmp_path / "cases.csv") == cases
    write_cases(tmp_path / "cases.csv", cases[1:])
    assert "exam" not in (tmp_path / "cases.csv").read_text()
