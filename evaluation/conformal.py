"""Conformal prediction intervals: from the errors of cross-validation to a range with a stated coverage.

The errors are signed (Linusson, Johansson, Lofstrom: Signed-error conformal regression, PAKDD 2014) and come from
cross-validation (cross-conformal prediction: Vovk, Annals of Mathematics and Artificial Intelligence 2015). Patient i
was left out of the network of fold k(i), which fell short of the reference by e_i. The measurement mu of a new patient
comes from the average of the networks. With n patients the interval of coverage 1 - a is

    [ mu + floor(a/2 (n + 1))-th smallest e_i,   mu + ceil((1 - a/2)(n + 1))-th smallest e_i ].

Signed, because networks err to one side: one that draws the end-systolic cavity too large has an EF too low in most
patients, and +- the error's size would be wide on the wrong side too. Each end takes 2 / a - 1 patients; with fewer,
down to 1 / a - 1, the ends are mu -+ |e_i| at rank ceil((1 - a)(n + 1)); with fewer still there is none.

The errors are those of single networks, which differ from one another, while the average of the networks is what is
reported. What a network adds to all its patients alike therefore counts only in the mean: e_i is moved by the mean
error of its fold to that of all folds (and stretched by sqrt(m / (m - 1)) for the m patients which that mean is taken
from). The average still errs less than a network alone, so the intervals rather cover more than they state. CV+
(Barber, Candes, Ramdas, Tibshirani, Annals of Statistics 2021), which puts each error on its own network's
measurement, has a proven bound, but counts the networks' differences twice here and covers still more.

With one fold this is the split-conformal interval (Vovk, Gammerman, Shafer 2005; Lei et al. 2018), whose coverage is at
least 1 - a for exchangeable patients, whatever the distribution.

Why errors are not divided by a difficulty: the folds' disagreement, the natural one, does not exist in
cross-validation, where one network alone has not seen a patient. It is reported beside the interval, and flags a
patient where it is large.

An ejection fraction's error is counted in points. A volume's is log(reference / predicted), because it grows with the
volume: a range in percent fits large hearts and small ones, and never reaches below zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from echoplan.errors import EchoPlanError

EF, EDV, ESV = QUANTITIES = ("ef_percent", "edv_ml", "esv_ml")
DEFAULT_COVERAGE = 0.9
_LARGEST_EF = 100.0


@dataclass(frozen=True)
class Interval:
    """A range that holds the reference with the stated coverage.

    Attributes:
        low, high: in the quantity's unit.
        coverage: 0 to 1.
        patients: how many cross-validated patients it rests on.
        too_low, too_high: in how many of them the measurement was below the reference, and above it.
        median_error: of theirs, the reference less the measurement: in points of EF, in percent of a measured volume.
    """

    low: float
    high: float
    coverage: float
    patients: int
    too_low: int
    too_high: int
    median_error: float


def check_coverage(coverage: float) -> float:
    """The coverage as a float.

    Raises:
        EchoPlanError: it does not lie between 0 and 1.
    """
    if not 0 < coverage < 1:
        raise EchoPlanError(f"a coverage of {coverage} is none", remedy="give a number between 0 and 1, such as 0.9")
    return float(coverage)


def smallest_sample(coverage: float) -> int:
    """The fewest patients whose errors bound an interval of this coverage: n >= 1 / (1 - coverage) - 1."""
    coverage = check_coverage(coverage)
    return math.ceil(round(coverage / (1 - coverage), 9))


def two_sided_sample(coverage: float) -> int:
    """The fewest patients whose errors bound each side by itself: n >= 2 / (1 - coverage) - 1."""
    return smallest_sample((1 + check_coverage(coverage)) / 2)


def coverage_range(patients: int, coverage: float) -> tuple[float, float]:
    """What share of all further patients intervals can hold, by the chance of who the calibrated patients are.

    Stated coverage is a mean over samples of n patients; the share that one such sample's intervals hold follows a beta
    distribution (Vovk, Conditional validity of inductive conformal predictors, 2012): with j of the n + 1 ranks between
    the ends, Beta(j, n + 1 - j). Given are its 5th and 95th percentile.

    Example:
        >>> [tuple(round(end, 2) for end in coverage_range(patients, 0.9)) for patients in (10, 40, 450)]
        [(0.74, 0.99), (0.82, 0.97), (0.88, 0.92)]
    """
    from scipy.special import betaincinv

    if patients < two_sided_sample(coverage):
        between = math.ceil(round(check_coverage(coverage) * (patients + 1), 9))
    else:
        outside = math.floor(round((1 - check_coverage(coverage)) / 2 * (patients + 1), 9))
        between = patients + 1 - 2 * outside
    low, high = betaincinv(between, patients + 1 - between, (0.05, 0.95)).tolist()
    return low, high


def conformal_quantile(values: ArrayLike, coverage: float) -> float:
    """The ceil(coverage (n + 1))-th smallest value; infinite where there are too few. NaN (not measured) is left out.

    A further value, exchangeable with these, is at most this large with a probability of at least `coverage`, and
    without ties of at most coverage + 1 / (n + 1).
    """
    known = np.asarray(values, dtype=np.float64).ravel()
    known = np.sort(known[~np.isnan(known)])
    # Rounded first: 0.9 x 10 must not become rank 10 by the last bit of a float.
    rank = math.ceil(round(check_coverage(coverage) * (len(known) + 1), 9))
    return float(known[rank - 1]) if rank <= len(known) else math.inf


def signed_bounds(least: ArrayLike, largest: ArrayLike, coverage: float) -> tuple[float, float]:
    """How far the reference lies below and above a measurement, at this coverage; infinite where nothing bounds it.

    Args:
        least, largest: (n,) the least and the largest error (reference - predicted) in patient i, the same where it was
            measured once. NaN leaves the patient out.
        coverage: between 0 and 1.
    """
    errors = np.stack([np.asarray(least, dtype=np.float64), np.asarray(largest, dtype=np.float64)])
    low, high = errors[:, ~np.isnan(errors).any(axis=0)]
    coverage = check_coverage(coverage)
    each = (1 + coverage) / 2
    if len(low) < two_sided_sample(coverage):
        each, high = coverage, np.maximum(np.abs(low), np.abs(high))
        low = -high
    return -conformal_quantile(-low, each), conformal_quantile(high, each)


def centred_by_fold(folds: ArrayLike, least: ArrayLike, largest: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Errors as if every fold's network had the mean error of all.

    Args:
        folds: (n,) the fold of patient i.
        least, largest: (n,) as for `signed_bounds`, finite.

    Returns:
        both errors, moved and stretched. A fold of a single patient, whose mean is that patient, stays as it is, and so
        does everything where there is one fold.
    """
    folds = np.asarray(folds)
    errors = np.stack([np.asarray(least, dtype=np.float64), np.asarray(largest, dtype=np.float64)])
    if len(np.unique(folds)) == 1:
        return errors[0], errors[1]
    middle, moved = errors.mean(), errors.copy()
    for fold in np.unique(folds):
        own = folds == fold
        count = int(own.sum())
        if count > 1:
            stretch = math.sqrt(count / (count - 1))
            moved[:, own] = middle + (errors[:, own] - errors[:, own].mean()) * stretch
    return moved[0], moved[1]


def signed_error(quantity: str, predicted: float | None, reference: float | None) -> float:
    """How far a measurement falls short of its reference, on the scale its interval is made on; NaN if one is missing.

    reference - predicted in EF points, log(reference / predicted) for a volume.
    """
    return _scaled(quantity, reference) - _scaled(quantity, predicted)


def prediction_interval(
    quantity: str,
    value: float,
    by_fold: Mapping[int, float | None],
    errors: Sequence[tuple[int, float, float]],
    coverage: float,
) -> Interval:
    """The interval of one measurement of a new patient.

    It always holds `value`, the measurement reported, which is made from the average of the networks. Otherwise EF is
    cut to 0 .. 100 %; a volume lies above 0 by construction.

    Args:
        quantity: "ef_percent", "edv_ml" or "esv_ml".
        value: the measurement reported.
        by_fold: fold -> what that fold's network alone measures, None where it cannot, which leaves the patient without
            an interval; cross-validated patients of other folds are left out.
        errors: (fold, least, largest error) of each cross-validated patient; patients with a NaN are left out.
        coverage: between 0 and 1.

    Raises:
        EchoPlanError: there are too few patients, or the networks cannot measure this one.
    """
    used = [item for item in errors if item[0] in by_fold and math.isfinite(item[1]) and math.isfinite(item[2])]
    needed = smallest_sample(coverage)
    if len(used) < needed:
        raise EchoPlanError(
            f"{len(used)} cross-validated patients are too few: {100 * coverage:g} % coverage takes {needed}"
        )
    if any(by_fold[fold] is None for fold, *_ in used):
        raise EchoPlanError("one of the folds' networks finds nothing to measure")
    below, above = signed_bounds(*centred_by_fold(*zip(*used, strict=True)), coverage)
    low, high = _scaled(quantity, value) + below, _scaled(quantity, value) + above
    if quantity == EF:
        low, high = (min(max(end, 0.0), _LARGEST_EF) for end in (low, high))
    else:
        low, high = math.exp(low), math.exp(high)
    middle = np.array([(least + largest) / 2 for _, least, largest in used])
    median = float(np.median(middle)) if quantity == EF else 100 * math.expm1(float(np.median(middle)))
    sides = int(np.count_nonzero(middle > 0)), int(np.count_nonzero(middle < 0))
    return Interval(min(low, value), max(high, value), coverage, len(used), *sides, median)


def _scaled(quantity: str, value: float | None) -> float:
    """The value on the scale of its error; NaN where it is missing or has none."""
    if value is None or not math.isfinite(value):
        return math.nan
    if quantity == EF:
        return float(value)
    return math.log(value) if value > 0 else math.nan
