"""Learning curves on made-up figures whose means, slopes and tests are known."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest

from echoplan.evaluation.comparison.learning_curve_plots import as_png, as_svg, draw_learning_curves
from echoplan.evaluation.comparison.learning_curves import LearningCurves, Line, learning_curves, mean_with_interval
from echoplan.evaluation.comparison.scores import ef_scores, frame_scores
from echoplan.evaluation.comparison.study_report import curve_tables
from echoplan.evaluation.comparison.tables import latex_tables, markdown_page

UNET, PK2, PK5 = Line("UNet", 1, "own"), Line("PKEcho", 2, "own"), Line("PKEcho", 5, "own")
PATIENTS = [f"p{number}" for number in range(12)]


def frame(number: int, dice: float) -> dict:
    return {"frame": number, "LV": {
        "dice": dice, "iou": dice / (2 - dice), "hd": 9 - dice, "hd95": 8 - dice, "assd": 4 - dice,
        "predicted_pixels": 10, "reference_pixels": 10,
    }}  # fmt: skip


def cell(line: Line, size: str, patients: int, *, dice, seed: int = 0, fold: int = 0, people=PATIENTS) -> pd.DataFrame:
    """Two clips a patient, ED 0.02 above and ES 0.02 below `dice(index of the patient)`."""
    per_case, of = {}, {}
    for person in people:
        value = dice(PATIENTS.index(person))
        for view in ("A2C", "A4C"):
            of[f"{person}_{view}"] = person
            per_case[f"{person}_{view}"] = {
                "distance_unit": "mm", "ed_frame": 0, "es_frame": 6,
                "frames": [frame(0, value + 0.02), frame(6, value - 0.02)],
            }  # fmt: skip
    ef = [50 + dice(PATIENTS.index(person)) for person in people]
    ef = pd.DataFrame({"patient": people, "ef_percent": ef, "reference_ef_percent": 50.0})
    training = {"size": size, "patients": patients, "clips": 2 * patients, "seed": seed, "fold": fold}
    return pd.concat([frame_scores(per_case, of), ef_scores(ef)]).assign(**line._asdict(), **training)


def curves_of(results: list[pd.DataFrame]) -> LearningCurves:
    return learning_curves(pd.concat(results, ignore_index=True), "LV")


def test_points_are_means_over_patients_folds_and_seeds():
    random = np.random.default_rng(0)
    truth = random.uniform(0.6, 0.9, (2, 12))
    results = [
        cell(UNET, "10", 10, dice=lambda i, s=seed: truth[s, i], seed=seed, fold=fold, people=PATIENTS[6 * fold :][:6])
        for seed in (0, 1)
        for fold in (0, 1)
    ]
    found = curves_of(results)
    (point,) = found.points.to_dict("records")
    assert (point["folds"], point["seeds"], point["trainings"], point["validated_patients"]) == (2, 2, 4, 12)
    assert point["dice_all"] == pytest.approx(truth.mean())
    assert point["dice_ed"] == pytest.approx(truth.mean() + 0.02)
    assert point["hd95_mm_es"] == pytest.approx(8 - truth.mean() + 0.02)
    assert point["ef_absolute_error"] == pytest.approx(truth.mean())
    assert point["dice_all_seed_sd"] == pytest.approx(truth.mean(axis=1).std(ddof=1))
    # About +-1.96 standard errors of the patients, their seeds averaged.
    error = truth.mean(axis=0).std(ddof=1) / np.sqrt(12)
    assert point["dice_all_95_high"] - point["dice_all_95_low"] == pytest.approx(3.92 * error, rel=0.15)
    assert found.cells["dice_all"].to_list() == pytest.approx(
        [truth[s, 6 * f :][:6].mean() for s in (0, 1) for f in (0, 1)]
    )
    assert found.trends.empty and found.contrasts.empty


def test_intervals_hold_the_mean_as_often_as_they_say():
    random = np.random.default_rng(1)
    held = 0
    for trial in range(300):
        sample = random.normal(0.8, 0.05, (30, 1))
        _, (low,), (high,) = mean_with_interval(sample, bootstrap=300, seed=trial)
        held += low <= 0.8 <= high
    assert 0.90 <= held / 300 <= 0.98  # a percentile bootstrap of 30 is a little too narrow


def test_missing_values_and_few_patients():
    matrix = np.array([[1.0, np.nan], [2.0, 5.0], [3.0, np.nan]])
    middle, low, high = mean_with_interval(matrix, bootstrap=200)
    assert middle == [2.0, 5.0] and low[0] < 2 < high[0]
    assert np.isnan(low[1]) and np.isnan(high[1])


def test_the_slope_is_that_of_the_curve_and_of_the_patients():
    steps = np.random.default_rng(2).normal(0.03, 0.01, 12)
    results = [
        cell(UNET, str(size), size, dice=lambda i, s=size: 0.6 + steps[i] * np.log2(s) + 0.001 * (i - 6), seed=seed)
        for size in (2, 8, 32)
        for seed in (0, 1)
    ]
    (trend,) = curves_of(results).trends.to_dict("records")
    assert trend["dice_per_doubling"] == pytest.approx(steps.mean())
    low, high = trend["interval_95_low"], trend["interval_95_high"]
    assert low < steps.mean() < high and high - low == pytest.approx(3.92 * steps.std(ddof=1) / np.sqrt(12), rel=0.2)
    assert trend["trend"] == "rises" and trend["sizes"] == 3
    assert trend["least_of_a_seed"] == pytest.approx(trend["largest_of_a_seed"]) == pytest.approx(steps.mean())


@pytest.mark.parametrize(
    ("slopes", "word"), [((0.02, 0.03), "rises"), ((-0.02, -0.01), "falls"), ((0.06, -0.01), "not clear")]
)
def test_a_curve_rises_only_if_every_seed_says_so(slopes, word):
    """Patients alone would call the last one rising: both seeds' mean is 0.025 in every patient."""
    results = [
        cell(UNET, str(size), size, dice=lambda i, a=slope, s=size: 0.6 + a * np.log2(s), seed=seed)
        for seed, slope in enumerate(slopes)
        for size in (4, 16)
    ]
    (trend,) = curves_of(results).trends.to_dict("records")
    assert trend["trend"] == word
    assert trend["dice_per_doubling"] == pytest.approx(np.mean(slopes))
    assert (trend["least_of_a_seed"], trend["largest_of_a_seed"]) == pytest.approx((min(slopes), max(slopes)))


def test_slopes_know_that_folds_have_other_numbers_of_patients():
    """ "100%" is 30 patients in one fold and 34 in the other; each patient's slope takes the own fold's number."""
    results = [
        cell(UNET, size, count, dice=lambda i, n=count: 0.5 + 0.04 * np.log2(n), fold=fold,
             people=PATIENTS[6 * fold :][:6])
        for size, counts in (("5", (5, 5)), ("100%", (30, 34)))
        for fold, count in enumerate(counts)
    ]  # fmt: skip
    (trend,) = curves_of(results).trends.to_dict("records")
    assert trend["dice_per_doubling"] == pytest.approx(0.04, abs=1e-9)


def test_contrasts_pair_the_patients_at_the_most_patients():
    base = np.linspace(0.6, 0.9, 12)
    results = [cell(line, size, count, dice=lambda i, d=shift: base[i] + d)
               for line, gain in ((UNET, 0.0), (PK2, -0.01), (PK5, 0.02))
               for size, count, shift in (("4", 4, -0.1), ("100%", 30, gain))]  # fmt: skip
    first, second = curves_of(results).contrasts.to_dict("records")
    assert (first["frames"], second["frames"]) == (2, 5) and first["baseline"] == "UNet"
    assert first["mean_difference"] == pytest.approx(-0.01) and first["rank_biserial"] == -1
    assert second["mean_difference"] == pytest.approx(0.02)
    assert second["p_signed_rank_holm"] == pytest.approx(2 * 2 / 2**12)


def test_lines_are_told_apart_by_what_differs():
    assert UNET.in_words([UNET, PK2, PK5]) == "UNet" and PK2.in_words([UNET, PK2, PK5]) == "PKEcho, T 2"
    assert PK2.in_words([UNET, PK2]) == "PKEcho"
    strong = Line("UNet", 1, "ultrasound")
    assert strong.in_words([UNET, strong]) == "UNet, ultrasound"


@pytest.fixture(scope="module")
def curves():
    return curves_of(
        [
            cell(line, size, count, dice=lambda i, n=count: 0.5 + 0.02 * np.log2(n) + 0.01 * (i % 3), seed=seed)
            for line in (UNET, PK2, PK5, Line("UNet", 1, "none"))
            for size, count in (("10", 10), ("100%", 40))
            for seed in (0, 1)
        ]
    )


def test_tables_in_markdown_and_latex(curves):
    text = markdown_page("Study", [], curve_tables(curves), ["a note"])
    rows = [re.sub(" +", " ", line) for line in text.splitlines()]
    for begin in (
        "UNet, own | 10 | 2 | 57.64",
        "PKEcho, T 5, own | 40 (100%) | 2 | 61.64",
        "UNet, none | 2 | 12 | 2.00",
    ):
        assert any(row.startswith(f"| {begin} |") for row in rows)
    assert any(row.endswith("| rises |") for row in rows) and text.endswith("- a note\n")
    latex = latex_tables(curve_tables(curves), ["a note"])
    assert r"\toprule" in latex and r"40 (100\%)" in latex and latex.count(r"\begin{table}") == 4


def test_the_figure_has_a_panel_a_policy_and_one_of_clip_lengths(curves):
    figure = draw_learning_curves(curves)
    assert len(figure.axes) == 3
    labels = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes]
    assert labels == [["UNet", "PKEcho, T 2", "PKEcho, T 5"], ["UNet"],
                      ["UNet, own (single frames)", "UNet, none (single frames)", "PKEcho, own"]]  # fmt: skip
    svg = as_svg(figure)
    ElementTree.fromstring(svg)
    assert svg == as_svg(draw_learning_curves(curves)) and as_png(figure)[:4] == b"\x89PNG"
    few = curves_of([cell(UNET, "4", 4, dice=lambda i: 0.7, people=PATIENTS[:1])])
    as_svg(draw_learning_curves(few))  # one patient: no interval to draw
