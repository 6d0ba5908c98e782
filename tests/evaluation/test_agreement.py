from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from echoplan.evaluation import agreement


def pairs(n=60, seed=0, shift=2.0, noise=5.0):
    random = np.random.default_rng(seed)
    reference = random.normal(55, 12, n).round(0)
    return reference + shift + random.normal(0, noise, n), reference


def icc_by_anova(predicted, reference):
    """ICC(2,1) from the two-way table, with loops."""
    table = pd.DataFrame({"p": predicted, "r": reference})
    n, k = table.shape
    grand = table.to_numpy().mean()
    ss_total = ((table - grand) ** 2).to_numpy().sum()
    ss_subjects = k * sum((row.mean() - grand) ** 2 for _, row in table.iterrows())
    ss_raters = n * sum((table[c].mean() - grand) ** 2 for c in table)
    msr, msc = ss_subjects / (n - 1), ss_raters / (k - 1)
    mse = (ss_total - ss_subjects - ss_raters) / ((n - 1) * (k - 1))
    return (msr - mse) / (msr + (k - 1) * mse + k * (msc - mse) / n)


def test_equals_independent_references():
    predicted, reference = pairs()
    got = agreement(predicted, reference, bootstrap=0)
    difference = predicted - reference
    assert got["pearson_r"] == pytest.approx(stats.pearsonr(predicted, reference).statistic)
    assert got["spearman_r"] == pytest.approx(stats.spearmanr(predicted, reference).statistic)
    assert got["icc_2_1"] == pytest.approx(icc_by_anova(predicted, reference))
    assert got["bias"] == pytest.approx(difference.mean())
    assert got["sd_of_differences"] == pytest.approx(difference.std(ddof=1))
    assert got["limits_of_agreement_low"] == pytest.approx(difference.mean() - 1.96 * difference.std(ddof=1))
    assert got["limits_of_agreement_high"] == pytest.approx(difference.mean() + 1.96 * difference.std(ddof=1))
    assert got["mae"] == pytest.approx(np.abs(difference).mean())
    assert got["rmse"] == pytest.approx(np.sqrt((difference**2).mean()))
    assert (got["n"], got["failures"]) == (60, 0)


def test_shrout_and_fleiss_known_value():
    """Two of the judges (1 and 4) of Shrout and Fleiss 1979, table 2, against the loops above."""
    first, fourth = [9, 6, 8, 7, 10, 6], [8, 2, 6, 6, 9, 7]
    first_, fourth_ = np.array(first, float), np.array(fourth, float)
    assert agreement(first, fourth, bootstrap=0)["icc_2_1"] == pytest.approx(icc_by_anova(first_, fourth_))


def test_icc_of_two_judges_worked_by_hand():
    """Means 11, 15, 22, 19, 27 of subjects, 18 and 19.6 of judges: mean squares 76.4, 6.4, and 0.4 for the rest."""
    found = agreement([10, 14, 22, 18, 26], [12, 16, 22, 20, 28], bootstrap=0)["icc_2_1"]
    assert found == pytest.approx((76.4 - 0.4) / (76.4 + 0.4 + 2 * (6.4 - 0.4) / 5))


def test_icc_punishes_a_shift_that_correlation_does_not_see():
    reference = np.arange(40.0, 70.0)
    shifted = agreement(reference + 10, reference, bootstrap=0)
    assert shifted["pearson_r"] == pytest.approx(1)
    variance = reference.var(ddof=1)
    assert shifted["icc_2_1"] == pytest.approx(variance / (variance + 10**2 / 2))


def test_intervals_equal_scipy_resample_by_resample():
    predicted, reference = pairs(n=25)
    got = agreement(predicted, reference, bootstrap=100, seed=7)["intervals_95"]
    drawn = {name: [] for name in got}
    for chosen in np.random.default_rng(7).integers(25, size=(100, 25)):
        p, r = predicted[chosen], reference[chosen]
        bias, sd = (p - r).mean(), stats.tstd(p - r)
        values = (
            stats.pearsonr(p, r).statistic, stats.spearmanr(p, r).statistic, icc_by_anova(p, r), bias, sd,
            bias - 1.96 * sd, bias + 1.96 * sd, np.abs(p - r).mean(), np.sqrt(np.square(p - r).mean()),
        )  # fmt: skip
        for name, value in zip(drawn, values, strict=True):
            drawn[name].append(value)
    for name, bounds in got.items():
        assert bounds == pytest.approx(np.percentile(drawn[name], [2.5, 97.5]).tolist()), name


def test_bias_is_signed():
    predicted, reference = pairs(shift=-7)
    assert agreement(predicted, reference, bootstrap=0)["bias"] < -5
    assert agreement(reference, predicted, bootstrap=0)["bias"] > 5


def test_bootstrap_interval_of_the_bias_is_the_known_one():
    predicted, reference = pairs(n=200)
    got = agreement(predicted, reference)
    low, high = got["intervals_95"]["bias"]
    error = got["sd_of_differences"] / np.sqrt(200)
    assert low == pytest.approx(got["bias"] - 1.96 * error, abs=0.1 * error + 0.05)
    assert high == pytest.approx(got["bias"] + 1.96 * error, abs=0.1 * error + 0.05)
    assert all(low <= got[name] <= high for name, (low, high) in got["intervals_95"].items())
    assert got == agreement(predicted, reference)
    assert got["intervals_95"] != agreement(predicted, reference, seed=1)["intervals_95"]


def test_missing_values_are_failures_or_left_out():
    got = agreement([50, None, float("nan"), 60, 70, 80], [51, 52, 53, None, 69, 82])
    assert (got["n"], got["failures"]) == (3, 2)
    assert got["mae"] == pytest.approx(4 / 3)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_pairs_are_defined(n):
    got = agreement([50.0, 60.0][:n], [52.0, 61.0][:n])
    assert got["pearson_r"] is None
    assert got["n"] == n
    assert (got["mae"] is None) == (n == 0)
    assert (got["sd_of_differences"] is None) == (n < 2)
    assert set(got["intervals_95"].values()) == {None}


def test_constant_values_are_defined():
    got = agreement([54.1] * 5, [50, 55, 60, 65, 70])
    assert got["pearson_r"] is None
    assert got["spearman_r"] is None
    assert got["mae"] == pytest.approx(np.mean([4.1, 0.9, 5.9, 10.9, 15.9]))
    assert got["intervals_95"]["pearson_r"] is None
    same = agreement([54.1] * 5, [54.1] * 5)
    assert same["icc_2_1"] is None
    assert same["rmse"] == 0


def test_lengths_must_agree():
    with pytest.raises(ValueError):
        agreement([1.0], [1.0, 2.0])
