from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from masked import Masked, measured, patient_rows

from echoplan.errors import EchoPlanError
from echoplan.evaluation import (
    COLUMNS,
    camus_biplane_volumes,
    ejection_fraction,
    lv_volume_biplane,
    lv_volume_single_plane,
    measure_patients,
    write_ef_report,
)
from echoplan.evaluation.ejection import names_of_cases

SPACING = (0.8, 0.5)


@pytest.fixture(scope="module")
def clip(half_ellipsoid):
    """clip(scale, order) -> (T, H, W): a cavity that is larger and smaller by turns; 1 is full, 0 is empty."""

    def build(states=(1, 0.5, 0), width=44.0, length=80.0):
        sizes = [(length * (0.8 + 0.2 * state), width * (0.7 + 0.3 * state)) for state in states]
        return np.stack([half_ellipsoid(*size, SPACING, tilt=9, shape=(150, 240))[0] for size in sizes])

    return build


@pytest.fixture(scope="module")
def pair(clip):
    return (
        Masked("p1_A2C", clip(), "p1", "2CH", SPACING, ef_percent=61.0),
        Masked("p1_A4C", clip(width=52.0), "p1", "A4C", SPACING),
    )


def test_a_case_is_measured(clip):
    mask = clip((0.5, 1, 0.5, 0))
    got = measured(Masked("a", mask, spacing_mm=SPACING))
    assert (got.ed_frame, got.es_frame, got.failure, got.patient) == (1, 3, "", "a")
    assert got.edv_ml == pytest.approx(lv_volume_single_plane(mask[1], SPACING))
    assert got.esv_ml == pytest.approx(lv_volume_single_plane(mask[3], SPACING), rel=0.01)
    assert got.ef_percent == pytest.approx(ejection_fraction(got.edv_ml, got.esv_ml))
    assert got.ef_percent == pytest.approx(100 * (1 - 0.8 * 0.7**2), abs=2)
    assert got.area.tolist() == pytest.approx((mask.sum(axis=(1, 2)) * 0.4).tolist())
    assert got.area_unit == "mm2"


def test_without_spacing_ef_but_no_volumes(clip):
    square = np.repeat(clip(), 8, axis=1)[:, ::5]  # 0.5 x 0.5 mm pixels
    known = measured(Masked("a", square, spacing_mm=(0.5, 0.5)))
    unknown = measured(Masked("a", square))
    assert unknown.ef_percent == pytest.approx(known.ef_percent)
    assert unknown.edv_ml is None
    assert unknown.esv_ml is None
    assert "spacing is unknown" in unknown.note
    assert unknown.area_unit == "px"
    row = patient_rows([Masked("a", square), Masked("b", square, spacing_mm=(0.5, 0.5))])[0]
    assert row.edv_ml is None
    assert row.ef_percent is not None


def test_given_phases_are_used_and_never_swapped(clip):
    got = measured(Masked("a", clip((1, 0.5, 0)), spacing_mm=SPACING, ed_frame=2, es_frame=0))
    assert got.edv_ml < got.esv_ml
    assert got.ef_percent is None and got.ef_per_beat_percent == ()
    assert (
        got.failure
        == f"no EF: end-systole ({got.esv_ml:.1f} mL) is not smaller than end-diastole ({got.edv_ml:.1f} mL)"
    )
    half = measured(Masked("a", clip((1, 0.5, 0)), spacing_mm=SPACING, es_frame=1))
    assert (half.ed_frame, half.es_frame) == (0, 1)


def test_several_beats_give_their_mean(clip):
    states = [1, 0.6, 0.1, 0.5, 1, 0.5, 0.0, 0.6, 1]
    got = measured(Masked("a", clip(states), spacing_mm=SPACING, frame_time_ms=110.0))
    assert got.phases.beats == ((0, 2), (4, 6))
    assert len(set(got.ef_per_beat_percent)) == 2
    assert got.ef_percent == pytest.approx(np.mean(got.ef_per_beat_percent))


def test_biplane_where_both_views_exist(pair):
    (row,) = patient_rows(pair)
    a2c, a4c = (case.mask for case in pair)
    edv, esv = (lv_volume_biplane(a2c[t], a4c[t], SPACING, SPACING) for t in (0, 2))
    assert row.method == "biplane"
    assert row.cases == "p1_A2C;p1_A4C"
    assert (row.edv_ml, row.esv_ml) == pytest.approx((edv, esv), rel=0.01)
    assert row.ef_percent == pytest.approx(ejection_fraction(edv, esv), abs=0.3)
    assert (row.ed_frames, row.es_frames, row.beats) == ("0;0", "2;2", 1)
    assert row.length_difference_percent < 2
    assert row.reference_ef_percent == 61.0
    assert row.phases == "found;found"
    assert tuple(row.to_row()) == COLUMNS


def test_the_row_says_which_phases_were_given(pair):
    (row,) = patient_rows([replace(pair[0], ed_frame=0, es_frame=2), pair[1]])
    assert row.phases == "given;found"


def test_camus_rule(pair):
    (row,) = patient_rows(pair, method="camus")
    a2c, a4c = (case.mask for case in pair)
    expected = camus_biplane_volumes((a2c[0], a4c[0]), (a2c[2], a4c[2]), SPACING, SPACING)
    assert (row.edv_ml, row.esv_ml) == pytest.approx(expected, rel=0.01)
    assert row.ef_percent < patient_rows(pair)[0].ef_percent - 5
    assert row.volume_rule == "camus"
    with pytest.raises(EchoPlanError):
        measure_patients([measured(case) for case in pair], method="other")


def test_fallbacks_are_named(pair, clip):
    a2c, a4c = pair
    broken = replace(a2c, mask=np.zeros_like(a2c.mask))
    (row,) = patient_rows([broken, a4c])
    assert row.method == "single_plane_a4c"
    assert "p1_A2C: no frame of the clip has a cavity" in row.note
    assert patient_rows([a2c])[0].method == "single_plane_a2c"
    assert patient_rows([replace(a2c, view="PLAX")])[0].method == "single_plane_plax"
    assert patient_rows([replace(a2c, view="")])[0].method == "single_plane"
    twice = [a4c, replace(a4c, name="second")]
    assert "not used: second" in patient_rows(twice)[0].note


def test_different_lengths_are_warned_of(pair, clip):
    (row,) = patient_rows([pair[0], replace(pair[1], mask=clip(length=100.0))])
    assert row.length_difference_percent == pytest.approx(20, abs=1.5)
    assert "warning: the long axes" in row.note


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mask": np.zeros((3, 40, 40), np.uint8)}, "no frame"),
        ({"mask": np.zeros((40, 40), np.uint8)}, "axes"),
        ({"spacing_mm": (0.0, 1.0)}, "spacing"),
        ({"mask": np.pad(np.ones((3, 2, 2), np.uint8), ((0, 0), (9, 9), (9, 9)))}, "too few"),
    ],
)
def test_a_failed_case_is_a_row_and_stops_nothing(pair, change, reason):
    bad = replace(pair[0], name="bad", patient="bad", **change)
    rows = patient_rows([bad, *pair])
    assert [row.patient for row in rows] == ["bad", "p1"]
    assert reason in rows[0].failure
    assert rows[0].ef_percent is None
    assert not rows[1].failure


@pytest.mark.parametrize(
    ("phases", "words"),
    [({"es_frame": 31}, "es_frame is 31"), ({"ed_frame": 2, "es_frame": 2}, "both 2"), ({"ed_frame": -1}, "-1")],
)
def test_phases_that_the_clip_does_not_have_are_found_instead(pair, phases, words):
    (row,), (found,) = patient_rows([replace(pair[0], **phases)]), patient_rows([pair[0]])
    assert words in row.note and not row.failure and row.phases == "found"
    assert (row.ef_percent, row.ed_frames, row.es_frames) == (found.ef_percent, found.ed_frames, found.es_frames)


def test_one_frame_has_no_ef(clip):
    got = measured(Masked("a", clip()[:1], spacing_mm=SPACING))
    assert got.ef_percent is None
    assert "one frame" in got.failure


def test_report_files(pair, tmp_path):
    bad = Masked("bad", np.zeros((3, 40, 40), np.uint8), "p2", ef_percent=50.0)
    rows = patient_rows([*pair, bad])
    content = write_ef_report(tmp_path, rows)
    with open(tmp_path / "ef_report.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["patient"] for row in table] == ["p1", "p2"]
    assert tuple(table[0]) == COLUMNS
    assert float(table[0]["ef_percent"]) == rows[0].ef_percent
    assert table[1]["ef_percent"] == ""
    stored = json.loads((tmp_path / "ef_report.json").read_text())
    assert stored["methods"] == {"biplane": 1, "failed": 1}
    assert stored["agreement"]["ef_percent"]["failures"] == 1
    assert stored["volume_rule"]["name"] == "simpson"
    assert stored["rows"][0]["edv_ml"] == content["rows"][0]["edv_ml"]


def test_camus_patient_from_masks(camus_masks):
    cases = []
    for view in ("2CH", "4CH"):
        phases = [camus_masks("patient0001", view, phase) for phase in ("ED", "ES")]
        cases.append(Masked(view, np.stack([mask for mask, _ in phases]), "patient0001", view, phases[0][1]))
    (row,) = patient_rows(cases)
    assert row.ef_percent == pytest.approx(63.2, abs=1)
    assert row.edv_ml == pytest.approx(94.0, rel=0.03)
    assert patient_rows(cases, method="camus")[0].ef_percent == pytest.approx(54, abs=1.5)


def test_names_joined_into_one_cell_come_apart_again():
    assert names_of_cases("a;b;c", {"a;b", "c"}) == ["a;b", "c"]
    assert names_of_cases("a;b", ()) == ["a", "b"]
