"""What `echoplan_predict` says of phases that were given, and of what its intervals rest on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from echoplan import scripts
from echoplan.evaluation import PatientRow
from echoplan.evaluation.conformal import Interval, coverage_range
from echoplan.evaluation.quality import default_limits
from echoplan.files import read_json
from echoplan.imageio import write_clip
from echoplan.inference.conformal import Calibration, Group, with_intervals
from echoplan.inference.interval_notes import interval_notes, trust_of
from echoplan.inference.uncertainty import Assessment, TrustSettings

from .conftest import make_heart


@pytest.fixture
def table(tmp_path):
    """A folder of a clip with a table that gives phases which are wrong, and a reference."""
    folder = tmp_path / "clips"
    write_clip(folder / "p1_A4C.nii.gz", make_heart(spacing_mm=(0.5, 0.5)).clip)
    (folder / "cases.csv").write_text(
        "case,patient,image,view,ed_frame,es_frame,ef_percent\np,p,p1_A4C.nii.gz,4ch,1,3,66\n"
    )
    return folder


def test_given_phases_are_said_and_can_be_passed_over(tmp_path, folders, at, make_model, table, capsys):
    make_model(folders.results)
    arguments = ["-i", str(table), "--device", "cpu", "-np", "0"]
    assert scripts.predict([*arguments, "-o", str(tmp_path / "given")]) == 0
    said = capsys.readouterr().out
    report = read_json(tmp_path / "given" / "ef_report.json")
    assert report["rows"][0]["phases"] == "given" and report["rows"][0]["ed_frames"] == "1"
    agreed = report["agreement"]
    assert agreed["ef_found_phases_percent"]["mae"] < 4 < agreed["ef_percent"]["mae"]
    assert len(report["notes"]) >= 3
    for note in report["notes"]:
        assert note in said and note.replace("'", "&#39;") in (tmp_path / "given" / "report.html").read_text()
    assert "given with the clips (cases.csv)" in said and "at the phases found (n = 1)" in said
    assert scripts.predict([*arguments, "-o", str(tmp_path / "found"), "--find_phases"]) == 0
    report = read_json(tmp_path / "found" / "ef_report.json")
    assert report["rows"][0]["phases"] == "found" and report["agreement"]["ef_percent"]["mae"] < 4
    assert "given with the clips" not in capsys.readouterr().out


# Intervals ------------------------------------------------------------------------------------------------------------

ROW = PatientRow("p", ef_percent=50.0, method="biplane", phases="found;found")


def assessed(errors, coverage=0.9, value=50.0):
    """The assessment of a patient by cross-validated errors of one fold, and the settings."""
    n = len(errors)
    group = Group("ef_percent", "biplane", "simpson", "found", "masks", "", (0,) * n, tuple(errors), tuple(errors))
    settings = TrustSettings(Calibration(("a",), (), (group,), default_limits()), "", coverage)
    row, there, missing = with_intervals(
        replace(ROW, ef_percent=value), {0: {"ef_percent": value, "edv_ml": None, "esv_ml": None}},
        settings.calibration, coverage,
    )  # fmt: skip
    return Assessment(row, missing, there), settings


def test_how_many_patients_and_to_which_side_they_erred():
    item, settings = assessed([3.0] * 60 + [-2.0] * 20)
    assert (item.row.interval_patients, item.intervals["ef_percent"].too_low) == (80, 60)
    (note,) = interval_notes([item], settings)
    assert note == (
        "90 % intervals of EF (biplane, phases found) rest on 80 cross-validated patients; EF was too low in 60 of "
        "them, by 3.0 points in the median, so the reference is rather to be expected above the estimate"
    )
    (basis,) = trust_of(settings, {"p": item})["intervals"]
    assert (basis["patients"], basis["measured_too_low_in"], basis["median_of_reference_less_measured"]) == (80, 60, 3)
    assert basis["holds_percent_of_further_patients"] == [100 * end for end in coverage_range(80, 0.9)]
    item, settings = assessed([0.1, -0.1] * 40)
    assert "measured without bias (median +0.0 points)" in interval_notes([item], settings)[0]


def test_few_patients_are_said_with_what_chance_makes_of_them():
    item, settings = assessed([float(error) for error in range(-5, 5)])
    (note,) = interval_notes([item], settings)
    assert "rest on 10 cross-validated patients" in note and "EF was too high in 5 of them" in note
    assert "They are few: by chance such intervals hold 74 to 99 % of further patients" in note
    assert note.endswith("and below 19 they reach equally far to both sides")
    item, settings = assessed([float(error) for error in range(-5, 3)])
    (note,) = interval_notes([item], settings)
    assert (
        note
        == "1 of 1 patients have no interval of EF: 8 cross-validated patients are too few: 90 % coverage takes 9 (1)"
    )


def test_an_interval_that_begins_at_the_estimate_is_explained():
    item, settings = assessed([2.0 + 0.1 * number for number in range(60)])
    assert item.row.ef_low_percent == 50.0 < item.row.ef_high_percent
    assert "1 of 1 intervals of EF begin or end at the estimate itself" in interval_notes([item], settings)[1]
    at_the_end, settings = assessed([2.0 + 0.1 * number for number in range(60)], value=100.0)
    assert len(interval_notes([at_the_end], settings)) == 1  # 100 % is an end by itself


def test_no_calibration_is_one_sentence():
    assert interval_notes([Assessment(ROW)], TrustSettings()) == [
        f"no intervals of EF and volumes: {TrustSettings().why_none}"
    ]
    assert interval_notes([Assessment(replace(ROW, failure="no cavity"))], TrustSettings()) == []


def test_volumes_are_told_in_percent():
    from echoplan.evaluation.conformal import prediction_interval

    found = prediction_interval("edv_ml", 100.0, {0: 100.0}, [(0, 0.0953, 0.0953)] * 20, 0.9)
    assert found == Interval(100.0, pytest.approx(110.0, abs=0.01), 0.9, 20, 20, 0, pytest.approx(10.0, abs=0.01))


@pytest.mark.parametrize(("patients", "coverage"), [(10, 0.9), (40, 0.9), (9, 0.8)])
def test_the_share_that_intervals_hold_is_that_of_simulated_samples(patients, coverage):
    import numpy as np

    from echoplan.evaluation.conformal import signed_bounds

    random = np.random.default_rng(0)
    errors = random.random((4000, patients)) - 0.5
    bounds = np.array([signed_bounds(sample, sample, coverage) for sample in errors])
    held = np.diff(np.clip(bounds, -0.5, 0.5), axis=1).ravel()  # of a uniform distribution
    np.testing.assert_allclose(np.percentile(held, (5, 95)), coverage_range(patients, coverage), atol=0.012)
