"""Two methods on the same patients: paired tests, effect sizes, and the correction for several comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..agreement import resamples

_SMALLEST_FOR_INTERVAL = 3


def paired_test(
    values: Sequence[float], baseline: Sequence[float], *, bootstrap: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Compare a method with a baseline on the same patients, differences being method minus baseline.

    The result holds n and

    - mean_difference, and interval_95 [low, high] of it, a percentile bootstrap over patients; None with fewer than 3;
    - rank_biserial, the matched-pairs rank-biserial correlation (R+ - R-) / (R+ + R-), R+ and R- being the sums of the
      ranks of positive and of negative differences (Kerby 2014): 1 where the method's value is larger in every patient
      who differs, 0 where nobody does;
    - p_signed_rank, Wilcoxon's signed-rank test; patients who do not differ are left out, 1 where nobody differs;
    - p_rank_sum, Wilcoxon's rank-sum test (Mann and Whitney's U), which does not know that the values are paired.

    Both tests are two-sided.

    Args:
        values, baseline: (n,) one value a patient, in the same order.
        bootstrap: resamples.
        seed: makes the interval repeatable.

    Raises:
        ValueError: the lengths differ, or there is no patient.
    """
    from scipy import stats  # takes a second, which commands that compare nothing need not wait for

    pairs = np.array(list(zip(values, baseline, strict=True)), dtype=np.float64)
    if not len(pairs):
        raise ValueError("there is no patient to compare")
    difference = pairs[:, 0] - pairs[:, 1]
    differing = difference[difference != 0]
    return {
        "n": len(difference),
        "mean_difference": float(difference.mean()),
        "interval_95": _interval_of_mean(difference, bootstrap, seed),
        "rank_biserial": _rank_biserial(differing),
        "p_signed_rank": float(stats.wilcoxon(differing).pvalue) if len(differing) else 1.0,
        "p_rank_sum": float(stats.mannwhitneyu(pairs[:, 0], pairs[:, 1], alternative="two-sided").pvalue),
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of one family of tests (Holm 1979), in the order given.

    With the m values in ascending order, the i-th (from 0) becomes the largest of (m - j) p_j over j <= i, at most 1.
    """
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(sorted((p, index) for index, p in enumerate(p_values))):
        largest = max(largest, (len(p_values) - rank) * p)
        corrected[index] = min(1.0, largest)
    return corrected


def _rank_biserial(differing: NDArray[np.float64]) -> float:
    if not len(differing):
        return 0.0
    from scipy.stats import rankdata

    ranks = rankdata(np.abs(differing))
    return float((ranks * np.sign(differing)).sum() / ranks.sum())


def _interval_of_mean(difference: NDArray[np.float64], bootstrap: int, seed: int) -> list[float] | None:
    count = len(difference)
    if count < _SMALLEST_FOR_INTERVAL:
        return None
    means = np.concatenate([difference[chosen].mean(axis=1) for chosen in resamples(count, bootstrap, seed)])
    return [float(bound) for bound in np.percentile(means, (2.5, 97.5))]
