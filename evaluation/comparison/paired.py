"""Two methods on the same patients: paired tests, effect sizes, and the correction for several comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..agreement import resamples

if TYPE_CHECKING:
    import pandas as pd

SMALLEST_FOR_INTERVAL = 3


@dataclass(frozen=True)
class PairedTest:
    """A method against a baseline on the same patients, differences being method minus baseline; tests are two-sided.

    Attributes:
        n: patients.
        mean_difference: over patients, with interval_95_low and interval_95_high, a percentile bootstrap over patients;
            NaN with fewer than 3.
        rank_biserial: the matched-pairs rank-biserial correlation (R+ - R-) / (R+ + R-), R+ and R- being the sums of
            the ranks of positive and of negative differences (Kerby 2014): 1 where the method's value is larger in
            every patient who differs, 0 where nobody does.
        p_signed_rank: of Wilcoxon's signed-rank test; patients who do not differ are left out, 1 where nobody differs.
        p_rank_sum: of Wilcoxon's rank-sum test (Mann and Whitney's U), which does not know that the values are paired.
    """

    n: int
    mean_difference: float
    interval_95_low: float
    interval_95_high: float
    rank_biserial: float
    p_signed_rank: float
    p_rank_sum: float


def paired_test(
    values: Sequence[float], baseline: Sequence[float], *, bootstrap: int = 2000, seed: int = 0
) -> PairedTest:
    """Compare a method with a baseline on the same patients.

    Args:
        values, baseline: (n,) one value a patient, in the same order.
        bootstrap: resamples.
        seed: makes the interval repeatable.

    Raises:
        ValueError: the lengths differ, or there is no patient.

    Example:
        >>> from echoplan.evaluation import paired_test
        >>> found = paired_test([0.90, 0.92, 0.95, 0.91], [0.88, 0.91, 0.90, 0.91])
        >>> found.n, round(found.mean_difference, 3), found.rank_biserial, found.p_signed_rank
        (4, 0.02, 1.0, 0.25)
    """
    from scipy import stats  # takes a second, which commands that compare nothing need not wait for

    pairs = np.array(list(zip(values, baseline, strict=True)), dtype=np.float64)
    if not len(pairs):
        raise ValueError("there is no patient to compare")
    difference = pairs[:, 0] - pairs[:, 1]
    differing = difference[difference != 0]
    low, high = _interval_of_mean(difference, bootstrap, seed)
    ranks = stats.rankdata(np.abs(differing))
    return PairedTest(
        n=len(difference),
        mean_difference=float(difference.mean()),
        interval_95_low=low,
        interval_95_high=high,
        rank_biserial=float((ranks * np.sign(differing)).sum() / ranks.sum()) if len(differing) else 0.0,
        p_signed_rank=float(stats.wilcoxon(differing).pvalue) if len(differing) else 1.0,
        p_rank_sum=float(stats.mannwhitneyu(pairs[:, 0], pairs[:, 1], alternative="two-sided").pvalue),
    )


def _interval_of_mean(difference: NDArray[np.float64], bootstrap: int, seed: int) -> tuple[float, float]:
    count = len(difference)
    if count < SMALLEST_FOR_INTERVAL:
        return np.nan, np.nan
    means = np.concatenate([difference[chosen].mean(axis=1) for chosen in resamples(count, bootstrap, seed)])
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of one family of tests (Holm 1979), in the order given.

    With the m values in ascending order, the i-th (from 0) becomes the largest of (m - j) p_j over j <= i, at most 1.

    Example:
        >>> from echoplan.evaluation import holm
        >>> holm([0.01, 0.04])
        [0.02, 0.04]
    """
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(sorted((p, index) for index, p in enumerate(p_values))):
        largest = max(largest, (len(p_values) - rank) * p)
        corrected[index] = min(1.0, largest)
    return corrected


def compare_with_baseline(
    families: Iterable[tuple[tuple[str, ...], pd.DataFrame]],
    names: Sequence[str],
    baseline: str,
    *,
    bootstrap: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """The `paired_test` of each method against a baseline, and `p_signed_rank_holm` over the methods of a family.

    Args:
        families: what is compared, such as phase and measure, with its table: a row a patient, a column a method, NaN
            where a method has no value. A method that has no patient in common with the baseline is left out.
        names: of the columns that say what is compared.
        baseline: a method.
        bootstrap, seed: of the intervals.
    """
    import pandas as pd

    rows = []
    for family, values in families:
        tests = {}
        for method in values.columns.drop(baseline):
            pairs = values[[method, baseline]].dropna()
            if len(pairs):
                tests[method] = paired_test(pairs[method], pairs[baseline], bootstrap=bootstrap, seed=seed)
        corrected = holm([test.p_signed_rank for test in tests.values()])
        rows += [
            (*family, method, baseline, *astuple(test), p)
            for (method, test), p in zip(tests.items(), corrected, strict=True)
        ]
    figures = [field.name for field in fields(PairedTest)]
    return pd.DataFrame(rows, columns=[*names, "method", "baseline", *figures, "p_signed_rank_holm"])
