"""The cross-dataset table on made-up figures."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from echoplan.evaluation.comparison.cross_dataset import cross_dataset
from echoplan.evaluation.comparison.learning_curves import Line
from echoplan.evaluation.comparison.scores import ef_scores, frame_scores
from echoplan.evaluation.comparison.study_report import CROSS_NOTES, cross_tables
from echoplan.evaluation.comparison.tables import latex_tables, markdown_page

LINES = {name: Line(name, 1, "own") for name in ("SAM", "EchoNet", "UNet")}


def network(name: str, tested_on: str, dice: np.ndarray, *, unit: str = "mm", seed: int = 0) -> pd.DataFrame:
    """dice (cases, 2): at end-diastole and end-systole; a case a patient."""
    per_case = {
        f"c{number}": {
            "distance_unit": unit, "ed_frame": 3, "es_frame": 8,
            "frames": [
                {"frame": place, "LV": {"dice": value, "iou": value / 2, "hd": 3.0, "hd95": 2.0, "assd": 1.0}}
                for place, value in zip((3, 8), row, strict=True)
            ],
        }
        for number, row in enumerate(dice)
    }  # fmt: skip
    patients = list(per_case)
    ef = pd.DataFrame({"patient": patients, "ef_percent": 60.0, "reference_ef_percent": 55.0})
    return pd.concat([frame_scores(per_case), ef_scores(ef)]).assign(
        **LINES[name]._asdict(), size="100%", fold=0, seed=seed, trained_on="CAMUS", tested_on=tested_on,
        within=tested_on == "CAMUS",
    )  # fmt: skip


@pytest.fixture(scope="module")
def cross():
    random = np.random.default_rng(0)
    own, other = random.uniform(0.7, 0.9, (8, 2)), random.uniform(0.5, 0.7, (10, 2))
    networks = []
    for name, shift in (("SAM", 0.0), ("EchoNet", -0.1), ("UNet", 0.05)):
        networks.append(network(name, "CAMUS", own + shift / 2))
        # Two networks a method, whose figures of a frame are averaged.
        networks += [
            network(name, "EchoNet-Dynamic", other + shift + d, unit="px", seed=seed)
            for seed, d in enumerate((0.01, -0.01))
        ]
    return cross_dataset(pd.concat(networks), bootstrap=200), own, other


def row_of(cross, tested_on, phase, method):
    return next(
        row
        for row in cross.rows.to_dict("records")
        if (row["tested_on"], row["phase"], row["method"]) == (tested_on, phase, method)
    )


def test_rows_are_means_over_frames_by_phase_within_and_beyond_the_dataset(cross):
    found, own, other = cross
    assert found.rows["tested_on"].to_list() == ["CAMUS"] * 9 + ["EchoNet-Dynamic"] * 9
    whole = row_of(found, "EchoNet-Dynamic", "all", "EchoNet")
    assert (whole["networks"], whole["frames"], whole["patients"]) == (2, 20, 10)
    assert whole["dice_mean"] == pytest.approx(other.mean() - 0.1)
    assert whole["dice_sd"] == pytest.approx(other.std(ddof=1))  # not that of 40 values
    assert whole["hd_px_mean"] == pytest.approx(3) and np.isnan(whole["hd_mm_mean"])
    assert whole["ef_absolute_error"] == pytest.approx(5)
    assert row_of(found, "EchoNet-Dynamic", "end_systole", "SAM")["dice_mean"] == pytest.approx(other[:, 1].mean())
    within = row_of(found, "CAMUS", "end_diastole", "UNet")
    assert within["dice_mean"] == pytest.approx(own[:, 0].mean() + 0.025) and within["hd_mm_mean"] == pytest.approx(3)


def test_tests_pair_the_patients_and_are_corrected(cross):
    tests = {
        (row["tested_on"], row["phase"], row["measure"], row["method"]): row
        for row in cross[0].tests.to_dict("records")
    }
    assert len(tests) == 2 * 3 * 5 * 2  # datasets, phases, measures with a figure, methods but the first
    found = tests["EchoNet-Dynamic", "all", "dice", "EchoNet"]
    assert found["baseline"] == "SAM" and found["n"] == 10 and found["rank_biserial"] == -1
    assert found["mean_difference"] == pytest.approx(-0.1)
    assert found["p_signed_rank"] == pytest.approx(2 / 2**10)
    assert found["p_signed_rank_holm"] == pytest.approx(4 / 2**10)
    assert tests["CAMUS", "end_systole", "dice", "UNet"]["mean_difference"] == pytest.approx(0.025)
    assert tests["CAMUS", "all", "hd_mm", "UNet"]["p_signed_rank"] == 1  # no difference in any patient


def test_tables_mark_the_best_of_a_dataset_and_phase(cross):
    text = markdown_page("Across", [], cross_tables(cross[0]), CROSS_NOTES)
    mean, sd = 100 * (cross[2].mean() + 0.05), 100 * cross[2].std(ddof=1)
    assert f"| CAMUS | EchoNet-Dynamic | all | UNet | 10 | 20 | **{mean:.2f} ± {sd:.2f}** |" in re.sub(" +", " ", text)
    assert "HD, px ↓" in text and "p, Holm" in text
    assert r"$\pm$" in latex_tables(cross_tables(cross[0]), CROSS_NOTES)


def test_one_method_alone_has_figures_and_no_tests():
    found = cross_dataset(network("SAM", "CAMUS", np.full((3, 2), 0.8)))
    assert len(found.rows) == 3 and found.tests.empty
    assert [table.title for table in cross_tables(found)] == ["Across datasets, mean ± SD over frames"]
