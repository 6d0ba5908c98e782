from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from echoplan.evaluation import holm, paired_test


def values(n=30, shift=0.02, seed=0):
    random = np.random.default_rng(seed)
    baseline = random.normal(0.9, 0.05, n)
    return baseline + shift + random.normal(0, 0.03, n), baseline


def test_equals_scipy():
    ours, baseline = values()
    found = paired_test(ours, baseline)
    difference = ours - baseline
    assert found.n == 30
    assert found.mean_difference == pytest.approx(difference.mean())
    assert found.p_signed_rank == pytest.approx(stats.wilcoxon(ours, baseline).pvalue)
    assert found.p_rank_sum == pytest.approx(stats.mannwhitneyu(ours, baseline).pvalue)
    assert found.p_rank_sum == pytest.approx(
        stats.ranksums(ours, baseline).pvalue, rel=0.05
    )  # without continuity correction
    direct = stats.bootstrap((difference,), np.mean, method="percentile", n_resamples=4000)
    error = difference.std(ddof=1) / np.sqrt(30)
    interval = found.interval_95_low, found.interval_95_high
    assert interval == pytest.approx(tuple(direct.confidence_interval), abs=0.15 * error)


@pytest.mark.parametrize("seed", range(3))
def test_equals_every_way_to_flip_the_signs(seed):
    ours, baseline = values(n=9, seed=seed)
    difference = ours - baseline
    ranks = [sum(abs(other) <= abs(each) for other in difference) for each in difference]  # no ties
    signed = sum(rank * np.sign(each) for rank, each in zip(ranks, difference, strict=True))
    flips = [abs(np.dot(signs, ranks)) >= abs(signed) for signs in product((-1, 1), repeat=9)]
    found = paired_test(ours, baseline)
    assert found.p_signed_rank == pytest.approx(np.mean(flips))
    assert found.rank_biserial == pytest.approx(signed / 45)


def test_the_sign_is_the_method_minus_the_baseline():
    ours, baseline = values(shift=-0.5)
    found = paired_test(ours, baseline)
    assert found.rank_biserial == -1
    assert found.mean_difference < -0.4
    assert found.interval_95_high < 0
    assert paired_test(baseline, ours).rank_biserial == 1


def test_pairs_that_do_not_differ():
    same = paired_test([0.9, 0.8, 0.7], [0.9, 0.8, 0.7])
    assert (same.p_signed_rank, same.rank_biserial, same.mean_difference) == (1, 0, 0)
    assert same.p_rank_sum == 1
    some = paired_test([0.9, 0.8, 0.75, 0.9], [0.9, 0.8, 0.7, 0.7])
    assert (some.n, some.rank_biserial) == (4, 1)
    assert some.p_signed_rank == 0.5  # two patients differ: the largest of four ways to flip two signs, both sides


def test_few_patients_are_defined():
    two = paired_test([0.9, 0.8], [0.7, 0.9])
    assert np.isnan(two.interval_95_low) and np.isnan(two.interval_95_high)
    assert two.mean_difference == pytest.approx(0.05)
    with pytest.raises(ValueError):
        paired_test([], [])
    with pytest.raises(ValueError):
        paired_test([0.9], [0.8, 0.7])


def test_the_interval_can_be_repeated():
    assert paired_test(*values()) == paired_test(*values())
    assert paired_test(*values()).interval_95_low != paired_test(*values(), seed=1).interval_95_low


@pytest.mark.parametrize("seed", range(4))
def test_holm_is_the_closed_test_of_bonferroni(seed):
    """Corrected p = the largest, over all families that hold the test, of the family's Bonferroni p."""
    p = list(np.random.default_rng(seed).uniform(0, 0.2, 5))
    families = [family for size in range(1, 6) for family in combinations(range(5), size)]
    expected = [
        max(min(1.0, len(family) * min(p[i] for i in family)) for family in families if test in family)
        for test in range(5)
    ]
    assert holm(p) == pytest.approx(expected)


def test_holm_of_a_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
