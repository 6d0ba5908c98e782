"""How well measurements agree with their references: correlation, bias, limits of agreement, errors, intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STATISTICS = (
    "pearson_r",
    "spearman_r",
    "icc_2_1",
    "bias",
    "sd_of_differences",
    "limits_of_agreement_low",
    "limits_of_agreement_high",
    "mae",
    "rmse",
)
_SMALLEST_FOR_CORRELATION = 3
_CHUNK_VALUES = 2_000_000  # resampled values held in memory at a time


def agreement(
    predicted: Sequence[float | None],
    reference: Sequence[float | None],
    *,
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Agreement of paired measurements, differences being predicted minus reference.

    pearson_r, spearman_r; icc_2_1 (two-way random effects, absolute agreement, single measurement: Shrout and Fleiss
    1979); bias (signed mean difference); sd_of_differences (n - 1); limits_of_agreement_low/high (bias +- 1.96 SD:
    Bland and Altman 1986); mae; rmse; n pairs used; failures (reference there, prediction missing); and intervals_95,
    the percentile bootstrap interval [low, high] of each statistic.

    A pair without a reference is left out; None and NaN both mean missing. What is not defined is None: correlations
    with fewer than three pairs or constant values, the SD with one pair, everything with none, intervals with fewer
    than three.

    Args:
        predicted, reference: (n,) in one unit.
        bootstrap: resamples; 0 leaves the intervals out.
        seed: makes the intervals repeatable.

    Raises:
        ValueError: the lengths differ.

    Example:
        >>> from echoplan.evaluation import agreement
        >>> found = agreement([60.0, 42.0, 55.0, None], [58.0, 45.0, 56.0, 50.0], bootstrap=0)
        >>> found["n"], found["failures"], round(found["mae"], 2)
        (3, 1, 2.0)
    """
    pairs = [(_number(p), _number(r)) for p, r in zip(predicted, reference, strict=True)]
    values = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    values = values[np.isfinite(values[:, 1])]
    used = values[np.isfinite(values[:, 0])]
    count = len(used)
    result: dict[str, Any] = dict.fromkeys(_STATISTICS)
    if count:
        result.update(zip(_STATISTICS, map(_defined, _statistics(used[None])[0]), strict=True))
    result |= {"n": count, "failures": len(values) - count}
    result["intervals_95"] = _intervals(used, bootstrap, seed)
    return result


def _statistics(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Statistics (B, 9) of B resamples (B, n, 2), NaN where one is not defined."""
    predicted, reference = pairs[..., 0], pairs[..., 1]
    count = pairs.shape[1]
    difference = predicted - reference
    bias = difference.mean(axis=1)
    undefined = np.full(len(pairs), np.nan)
    sd = difference.std(axis=1, ddof=1) if count > 1 else undefined
    enough = count >= _SMALLEST_FOR_CORRELATION
    columns = (
        _correlation(predicted, reference) if enough else undefined,
        _correlation(_ranks(predicted), _ranks(reference)) if enough else undefined,
        _icc_2_1(pairs) if enough else undefined,
        bias,
        sd,
        bias - 1.96 * sd,
        bias + 1.96 * sd,
        np.abs(difference).mean(axis=1),
        np.sqrt(np.square(difference).mean(axis=1)),
    )
    return np.stack(columns, axis=1)


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    # Rounding leaves a constant row a spread of about 1e-16 of its size, which must count as none.
    constant = (np.ptp(first, axis=1) == 0) | (np.ptp(second, axis=1) == 0)
    first = first - first.mean(axis=1, keepdims=True)
    second = second - second.mean(axis=1, keepdims=True)
    spread = np.sqrt(np.square(first).sum(axis=1) * np.square(second).sum(axis=1))
    r = (first * second).sum(axis=1) / np.where(constant, 1.0, spread)
    return np.where(constant, np.nan, np.clip(r, -1.0, 1.0))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.stats import rankdata  # takes a second, which commands that compare nothing need not wait for

    return rankdata(values, axis=1)


def _icc_2_1(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    count, raters = pairs.shape[1:]
    grand = pairs.mean(axis=(1, 2), keepdims=True)
    subject, rater = pairs.mean(axis=2, keepdims=True), pairs.mean(axis=1, keepdims=True)
    between_subjects = raters * np.square(subject - grand).sum(axis=(1, 2)) / (count - 1)
    between_raters = count * np.square(rater - grand).sum(axis=(1, 2)) / (raters - 1)
    error = np.square(pairs - subject - rater + grand).sum(axis=(1, 2)) / ((count - 1) * (raters - 1))
    below = between_subjects + (raters - 1) * error + raters * (between_raters - error) / count
    constant = np.ptp(pairs, axis=(1, 2)) == 0
    return np.where(constant, np.nan, (between_subjects - error) / np.where(constant, 1.0, below))


def _intervals(used: NDArray[np.float64], bootstrap: int, seed: int) -> dict[str, list[float] | None]:
    count = len(used)
    if count < _SMALLEST_FOR_CORRELATION or bootstrap < 1:
        return dict.fromkeys(_STATISTICS)
    drawn = np.concatenate([_statistics(used[chosen]) for chosen in resamples(count, bootstrap, seed)])
    return {
        name: [float(bound) for bound in np.percentile(column[np.isfinite(column)], (2.5, 97.5))]
        if np.isfinite(column).any()
        else None
        for name, column in zip(_STATISTICS, drawn.T, strict=True)
    }


def resamples(count: int, bootstrap: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Bootstrap resamples of `count` items as indices (B, count), in parts that fit into memory, `bootstrap` in all."""
    random = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_VALUES // count)
    for start in range(0, bootstrap, chunk):
        yield random.integers(count, size=(min(chunk, bootstrap - start), count))


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _defined(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
