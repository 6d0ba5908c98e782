"""Conformal intervals: exact ranks, coverage on exchangeable data, and what has to be refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from echoplan.errors import EchoPlanError
from echoplan.evaluation.conformal import (
    centred_by_fold,
    check_coverage,
    conformal_quantile,
    prediction_interval,
    signed_bounds,
    signed_error,
    smallest_sample,
)


def one_fold(errors):
    return [(0, error, error) for error in errors]


@pytest.mark.parametrize(("coverage", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_the_smallest_sample_is_just_large_enough(coverage, needed):
    assert smallest_sample(coverage) == needed
    assert math.isfinite(conformal_quantile(np.arange(needed), coverage))
    assert conformal_quantile(np.arange(needed - 1), coverage) == math.inf


@pytest.mark.parametrize(
    ("count", "coverage", "rank"),
    [(9, 0.9, 9), (10, 0.9, 10), (19, 0.9, 18), (99, 0.9, 90), (100, 0.9, 91), (4, 0.8, 4)],
)
def test_the_quantile_is_the_finite_sample_one(count, coverage, rank):
    values = np.random.default_rng(0).permutation(np.arange(1, count + 1))
    assert conformal_quantile(values, coverage) == rank
    assert rank == math.ceil(round(coverage * (count + 1), 9))


def test_the_quantile_leaves_out_nan_and_minds_ties():
    assert conformal_quantile([1.0, np.nan, 2.0, 3.0, 4.0, np.nan], 0.8) == 4.0
    assert conformal_quantile([5.0] * 9, 0.9) == 5.0
    assert conformal_quantile([], 0.5) == math.inf


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.1, 90, math.nan])
def test_a_coverage_is_a_share(coverage):
    with pytest.raises(EchoPlanError, match="between 0 and 1"):
        check_coverage(coverage)


def test_exchangeable_values_are_covered_as_stated():
    """The chance that a tenth value is at most the ninth of nine is exactly 0.9, whatever their distribution."""
    random = np.random.default_rng(1)
    draws = random.standard_cauchy((20000, 10))
    held = np.mean([row[9] <= conformal_quantile(row[:9], 0.9) for row in draws])
    assert held == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("count", [12, 19, 60])
def test_split_conformal_intervals_hold_skewed_errors_as_often_as_stated(count):
    random = np.random.default_rng(count)
    held, trials = 0, 4000
    for _ in range(trials):
        *errors, new = random.gamma(2, 3, count + 1) - 2
        low, high = signed_bounds(errors, errors, 0.9)
        held += low <= new <= high
    # Between 1 - a and 1 - a + 2 / (n + 1), with three standard errors of room.
    room = 3 * math.sqrt(0.09 / trials)
    assert 0.9 - room <= held / trials <= 0.9 + 2 / (count + 1) + room


def test_cross_validation_covers_a_regression_as_stated():
    """The whole of it: five folds fit a line with an offset, and the mean of the five measures a new point."""
    random = np.random.default_rng(3)
    folds = np.arange(60) % 5
    held, trials = 0, 1500
    for _ in range(trials):
        x = random.normal(size=61)
        y = 40 + 2 * x + random.standard_t(4, size=61)
        lines = [np.polyfit(x[:60][folds != k], y[:60][folds != k], 1) for k in range(5)]
        own = np.array([np.polyval(lines[k], value) for k, value in zip(folds, x[:60], strict=True)])
        errors = [(int(k), e, e) for k, e in zip(folds, y[:60] - own, strict=True)]
        measured = {k: float(np.polyval(lines[k], x[60])) for k in range(5)}
        found = prediction_interval("ef_percent", float(np.mean(list(measured.values()))), measured, errors, 0.9)
        held += found.low <= y[60] <= found.high
    assert 0.87 <= held / trials <= 0.95


def test_the_ends_are_the_ranks_of_the_definition():
    errors = np.arange(-9.0, 11.0)  # 20 patients, so each end has its own rank: floor and ceil of 0.05 and 0.95 of 21
    assert signed_bounds(errors, errors, 0.9) == (-9, 10)
    few = np.array([-9.0, 1, 2, 3, 4, 5, 6, 7, 8])  # 9 patients: +- the size at rank 9
    assert signed_bounds(few, few, 0.9) == (-9, 9)


def test_errors_to_one_side_make_an_interval_to_that_side():
    errors = np.linspace(4, 8, 40)
    low, high = signed_bounds(errors, errors, 0.9)
    assert 4 <= low <= 4.2 and 7.8 <= high <= 8
    found = prediction_interval("ef_percent", 50.0, {0: 50.0}, one_fold(errors), 0.9)
    assert found.low == 50.0  # what is reported is never outside
    assert found.high == pytest.approx(50 + high, abs=0.05)


def test_what_a_fold_adds_to_all_its_patients_counts_in_the_mean_alone():
    spread = np.linspace(-3, 3, 20)
    shifted = [(fold, error + 10 * fold, error + 10 * fold) for fold in (0, 1) for error in spread]
    alike = [(fold, error + 5, error + 5) for fold in (0, 1) for error in spread]
    measured = {0: 40.0, 1: 60.0}
    found = prediction_interval("ef_percent", 50.0, measured, shifted, 0.9)
    expected = prediction_interval("ef_percent", 50.0, measured, alike, 0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.high - found.low < 9 and found.patients == 40 and found.coverage == 0.9
    assert found.low <= 50 <= found.high and found.high > 57


def test_centring_makes_up_for_the_mean_it_takes():
    """Errors of few patients a fold keep the variance they had."""
    random = np.random.default_rng(0)
    folds = np.repeat(np.arange(2000), 3)
    errors = random.normal(size=6000)
    moved, same = centred_by_fold(folds, errors, errors)
    assert np.array_equal(moved, same) and moved.std() == pytest.approx(1, abs=0.03)
    alone, _ = centred_by_fold([0, 1, 1], [5.0, 1.0, 3.0], [5.0, 1.0, 3.0])
    assert alone[0] == 5.0 and alone[1:].mean() == pytest.approx(3.0)


def test_only_patients_of_the_folds_that_predict_count():
    errors = [(fold, 1.0, 1.0) for fold in (0, 1) for _ in range(8)]
    assert prediction_interval("ef_percent", 50.0, {0: 50.0, 1: 50.0}, errors, 0.9).patients == 16
    with pytest.raises(EchoPlanError, match="8 cross-validated patients are too few: 90 % coverage takes 9"):
        prediction_interval("ef_percent", 50.0, {0: 50.0}, errors, 0.9)
    assert prediction_interval("ef_percent", 50.0, {0: 50.0}, errors, 0.8).patients == 8


def test_errors_that_are_not_known_leave_the_patient_out():
    errors = one_fold([1.0] * 9 + [math.nan] * 5)
    assert prediction_interval("ef_percent", 50.0, {0: 50.0}, errors, 0.9).patients == 9
    with pytest.raises(EchoPlanError, match="too few"):
        prediction_interval("ef_percent", 50.0, {0: 50.0}, errors[1:], 0.9)
    known = signed_bounds([1.0] * 9, [1.0] * 9, 0.9)
    assert signed_bounds([1.0] * 9 + [math.nan], [1.0] * 10, 0.9) == known


def test_a_network_that_finds_nothing_leaves_no_interval():
    errors = [(fold, 0.0, 0.0) for fold in (0, 1, 2, 3, 4) for _ in range(20)]
    measured = dict.fromkeys(range(4), 50.0)
    with pytest.raises(EchoPlanError, match="finds nothing to measure"):
        prediction_interval("ef_percent", 50.0, measured | {4: None}, errors, 0.9)
    assert prediction_interval("ef_percent", 50.0, measured, errors, 0.9).patients == 80


def test_ejection_fractions_stay_possible_and_volumes_positive():
    wide = one_fold(np.linspace(-60, 60, 40))
    found = prediction_interval("ef_percent", 80.0, {0: 80.0}, wide, 0.9)
    assert found.low == pytest.approx(22, abs=2) and found.high == 100.0
    assert prediction_interval("ef_percent", 20.0, {0: 20.0}, wide, 0.9).low == 0.0
    halves = one_fold(np.linspace(math.log(0.5), math.log(2), 19))
    volume = prediction_interval("edv_ml", 100.0, {0: 100.0}, halves, 0.9)
    assert volume.low == pytest.approx(50) and volume.high == pytest.approx(200)
    tiny = prediction_interval("esv_ml", 1.0, {0: 1.0}, one_fold([-9.0] * 19), 0.9)
    assert 0 < tiny.low < 0.001 and tiny.high == 1.0


def test_the_worse_of_two_clips_counts_at_either_end():
    errors = [(0, -4.0, 6.0)] * 19
    found = prediction_interval("ef_percent", 50.0, {0: 50.0}, errors, 0.9)
    assert (found.low, found.high) == (46.0, 56.0)
    few = prediction_interval("ef_percent", 50.0, {0: 50.0}, errors[:9], 0.9)
    assert (few.low, few.high) == (44.0, 56.0)


def test_errors_are_points_of_ef_and_ratios_of_volumes():
    assert signed_error("ef_percent", 50.0, 56.0) == 6.0
    assert signed_error("edv_ml", 100.0, 50.0) == pytest.approx(-math.log(2))
    assert signed_error("edv_ml", 10.0, 5.0) == pytest.approx(signed_error("edv_ml", 200.0, 100.0))
    for predicted, reference in ((None, 50.0), (50.0, None), (math.nan, 50.0), (0.0, 50.0), (50.0, -1.0)):
        assert math.isnan(signed_error("esv_ml", predicted, reference))
