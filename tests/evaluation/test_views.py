"""The two views of one patient, and found against given phases, in the rows of the report."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from masked import Masked, measured, patient_rows

from echoplan.evaluation import write_ef_report

SPACING = (0.8, 0.5)
BEAT = (1, 0.85, 0.4, 0, 0.3, 0.6, 0.8, 0.95)


@pytest.fixture(scope="module")
def view(half_ellipsoid):
    """view(name, states, narrowing) -> a clip of patient p1 at 10 frames a second."""

    def build(name, states=BEAT * 2, narrowing=0.3, **more):
        sizes = [(80 * (0.8 + 0.2 * state), 44 * (1 - narrowing * (1 - state))) for state in states]
        mask = np.stack([half_ellipsoid(*size, SPACING, tilt=9, shape=(150, 240))[0] for size in sizes])
        return Masked(f"p1_{name}", mask, "p1", name, SPACING, frame_time_ms=100.0, **more)

    return build


def test_views_that_agree_have_their_columns_and_no_note(view):
    (row,) = patient_rows([view("A2C"), view("A4C")])
    assert row.ef_a2c_percent == pytest.approx(row.ef_a4c_percent)
    assert row.ef_a4c_percent == pytest.approx(row.ef_percent, abs=0.1)
    assert row.heart_rate_bpm == pytest.approx(75, abs=5)
    assert row.ed_error_ms is None
    assert "differ" not in row.note


def test_views_that_do_not_agree_are_noted(view):
    slow = tuple(np.repeat(BEAT, 2)) * 2
    (row,) = patient_rows([view("A2C", narrowing=0.02), view("A4C", slow)])
    assert "the single planes differ by" in row.note
    assert "A2C 23 %, A4C 61 %" in row.note
    assert "the heart beats at" in row.note


def test_found_phases_are_compared_with_given_ones(view, tmp_path):
    a2c, a4c = view("A2C", ed_frame=0, es_frame=3), view("A4C", ed_frame=1, es_frame=3)
    rows = patient_rows([a2c, a4c])
    assert rows[0].phases == "given;given"
    assert (rows[0].ed_error_ms, rows[0].es_error_ms) == ("0;-100", "0;0")
    content = write_ef_report(tmp_path, rows)
    assert json.loads((tmp_path / "ef_report.json").read_text())["phase_finding"] == content["phase_finding"]
    assert content["phase_finding"]["ed_error_ms"] == {
        "n": 2, "mean": -50.0, "mean_absolute": 50.0, "largest_absolute": 100.0
    }  # fmt: skip
    assert write_ef_report(tmp_path, patient_rows([view("A4C")]))["phase_finding"] is None


def test_labels_of_single_frames_are_no_curve_to_compare(view):
    case = view("A4C", ed_frame=0, es_frame=3)
    sparse = np.zeros_like(case.mask)
    sparse[[0, 3]] = case.mask[[0, 3]]
    assert measured(replace(case, mask=sparse)).phase_errors is None
    assert measured(case).phase_errors.ed_ms == 0
    without_time = measured(replace(case, frame_time_ms=None)).phase_errors
    assert (without_time.ed_frames, without_time.ed_ms) == (0, None)
    assert patient_rows([replace(case, frame_time_ms=None)])[0].ed_error_ms is None


def test_area_length_can_be_chosen(view):
    (row,) = patient_rows([view("A4C")], method="area_length")
    assert row.volume_rule == "area_length"
    assert row.ef_percent == pytest.approx(patient_rows([view("A4C")])[0].ef_percent, abs=1)
