"""Learning curves: what more patients, longer clips or another augmentation bring, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..agreement import resamples
from ..metrics import summarise
from .compare import EF_ERROR
from .paired import holm, paired_test
from .patient_means import ef_errors, patient_means

_SMALLEST_FOR_INTERVAL = 3
_SHORT = {"all": "all", "end_diastole": "ed", "end_systole": "es"}
DICE = "dice_all"


@dataclass(frozen=True)
class Line:
    """What stays the same along a learning curve.

    Attributes:
        method: the trainer's name.
        frames: T; 1 for a method that takes single frames.
        augmentation: the policy.
    """

    method: str
    frames: int
    augmentation: str

    def in_words(self, others: Iterable[Line] = ()) -> str:
        """The method, and of the rest what tells it from the others."""
        others = tuple(others)
        words = [self.method]
        if self.frames > 1 and len({line.frames for line in others if line.method == self.method}) > 1:
            words.append(f"T {self.frames}")
        if len({line.augmentation for line in others}) > 1:
            words.append(self.augmentation)
        return ", ".join(words)


@dataclass(frozen=True)
class CellResult:
    """The validation of one training.

    Attributes:
        line: method, clip length, augmentation.
        size: the patients asked for, "10" or "50%".
        patients, clips: trained on.
        seed, fold: of the training.
        per_case: case -> figures of its frames, as `evaluate_folder` gives them.
        patient_of: case -> patient.
        ef_rows: patient -> row of the EF table.
    """

    line: Line
    size: str
    patients: int
    clips: int
    seed: int
    fold: int
    per_case: Mapping[str, Mapping[str, Any]]
    patient_of: Mapping[str, str]
    ef_rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def by_patient(self, structure: str) -> dict[str, dict[str, float]]:
        """patient -> "dice_all", "hd95_mm_es", ..., "ef_absolute_error" -> the mean over his or her frames."""
        values = {
            patient: {f"{measure}_{_SHORT[phase]}": value for (phase, measure), value in own.items()}
            for patient, own in patient_means(self.per_case, self.patient_of, structure).items()
        }
        for patient, error in ef_errors(self.ef_rows).items():
            values.setdefault(patient, {})[EF_ERROR] = error
        return values


@dataclass(frozen=True)
class LearningCurves:
    """What the trainings of a study show; rows hold plain values.

    Attributes:
        structure: whose masks.
        lines: in the order to show.
        cells: a row a training: means over frames.
        points: a row a line and size: means over patients, each patient's values averaged over the seeds. With every
            measure m come m_95_low and m_95_high, a percentile bootstrap over the validated patients, and m_seed_sd,
            the SD over seeds of their means (n - 1), which is the chance of training and not of patients.
        trends: a row a line with two sizes or more: the slope of Dice over log2 of the training patients, its interval
            over patients, and the range of the seeds' own slopes.
        contrasts: at the most patients, each line against the first: `paired_test` of the patients' Dice.
    """

    structure: str
    lines: tuple[Line, ...]
    cells: list[dict[str, Any]]
    points: list[dict[str, Any]]
    trends: list[dict[str, Any]]
    contrasts: list[dict[str, Any]]


def learning_curves(
    results: Sequence[CellResult], structure: str, *, bootstrap: int = 2000, seed: int = 0
) -> LearningCurves:
    """Summarise a study's trainings.

    Args:
        results: one a training, of any number of lines, sizes, seeds and folds.
        structure: whose masks.
        bootstrap, seed: of the intervals.
    """
    lines = tuple(dict.fromkeys(result.line for result in results))
    values = {id(result): result.by_patient(structure) for result in results}
    points, trends = [], []
    largest: dict[Line, dict[str, float]] = {}
    for line in lines:
        groups = _by_size([result for result in results if result.line == line])
        for size, group in groups.items():
            points.append(_point(line, size, group, [values[id(result)] for result in group], bootstrap, seed))
        largest[line] = _over_seeds([values[id(result)] for result in list(groups.values())[-1]], DICE)
        trend = _trend(groups, lambda result: values[id(result)], bootstrap, seed)
        if trend is not None:
            trends.append({**_about(line), **trend})
    return LearningCurves(
        structure=structure,
        lines=lines,
        cells=[_cell(result, structure) for result in results],
        points=points,
        trends=trends,
        contrasts=_contrasts(largest, bootstrap, seed),
    )


def _by_size(results: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    """Size asked for -> its trainings, from few patients to many."""
    groups: dict[str, list[CellResult]] = {}
    for result in results:
        groups.setdefault(result.size, []).append(result)
    return dict(sorted(groups.items(), key=lambda item: fmean(result.patients for result in item[1])))


def _about(line: Line) -> dict[str, Any]:
    return {"method": line.method, "frames": line.frames, "augmentation": line.augmentation}


def _cell(result: CellResult, structure: str) -> dict[str, Any]:
    """The figures that `evaluate_folder` gives of one training."""
    row: dict[str, Any] = {
        **_about(result.line),
        "size": result.size,
        "patients": result.patients,
        "clips": result.clips,
        "fold": result.fold,
        "seed": result.seed,
        "validated_patients": len({result.patient_of.get(case, case) for case in result.per_case}),
    }
    for phase, found in summarise(result.per_case.values(), structure).items():
        row[f"frames_{_SHORT[phase]}"] = found["frames"]
        row |= {f"{name}_{_SHORT[phase]}": item["mean"] for name, item in found.items() if isinstance(item, Mapping)}
    errors = ef_errors(result.ef_rows)
    row[EF_ERROR] = fmean(errors.values()) if errors else None
    row["ef_patients"] = len(errors)
    return row


def _point(
    line: Line,
    size: str,
    group: Sequence[CellResult],
    values: Sequence[Mapping[str, Mapping[str, float]]],
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    patients = list(dict.fromkeys(patient for own in values for patient in own))
    keys = list(dict.fromkeys(key for own in values for item in own.values() for key in item))
    matrix = np.full((len(patients), len(keys)), np.nan)
    for column, key in enumerate(keys):
        means = _over_seeds(values, key)
        for row, patient in enumerate(patients):
            matrix[row, column] = means.get(patient, np.nan)
    middle, low, high = mean_with_interval(matrix, bootstrap=bootstrap, seed=seed)
    found: dict[str, Any] = {
        **_about(line),
        "size": size,
        "patients": fmean(result.patients for result in group),
        "clips": fmean(result.clips for result in group),
        "folds": len({result.fold for result in group}),
        "seeds": len({result.seed for result in group}),
        "trainings": len(group),
        "validated_patients": len(patients),
    }
    for column, key in enumerate(keys):
        found[key] = middle[column]
        found[f"{key}_95_low"], found[f"{key}_95_high"] = low[column], high[column]
        found[f"{key}_seed_sd"] = _seed_sd(group, values, key)
    return {name: None if isinstance(item, float) and np.isnan(item) else item for name, item in found.items()}


def mean_with_interval(
    matrix: NDArray[np.float64], *, bootstrap: int = 2000, seed: int = 0
) -> tuple[list[float], list[float], list[float]]:
    """Mean, and 95 % percentile bootstrap interval over the rows, of every column.

    Args:
        matrix: (patients, measures); NaN where a patient has no value. One resample of patients serves all columns.
        bootstrap, seed: of the interval.

    Returns:
        means, lower and upper ends, one a column; the ends are NaN with fewer than 3 values.
    """
    if not len(matrix):
        nothing = [np.nan] * matrix.shape[1]
        return nothing, nothing, nothing
    known = ~np.isnan(matrix)
    filled, counts = np.where(known, matrix, 0.0), known.sum(axis=0)
    with np.errstate(invalid="ignore"):
        middle = filled.sum(axis=0) / counts
        drawn = []
        for chosen in resamples(len(matrix), bootstrap, seed):
            weights = np.stack([np.bincount(row, minlength=len(matrix)) for row in chosen]).astype(np.float64)
            drawn.append((weights @ filled) / (weights @ known))
    means = np.concatenate(drawn)
    means[:, counts < _SMALLEST_FOR_INTERVAL] = np.nan
    ends = np.full((2, matrix.shape[1]), np.nan)
    for column in np.flatnonzero(counts >= _SMALLEST_FOR_INTERVAL):
        ends[:, column] = np.nanpercentile(means[:, column], (2.5, 97.5))
    return middle.tolist(), ends[0].tolist(), ends[1].tolist()


def _over_seeds(values: Sequence[Mapping[str, Mapping[str, float]]], key: str) -> dict[str, float]:
    """patient -> mean over the trainings that validated the patient."""
    each: dict[str, list[float]] = {}
    for own in values:
        for patient, measures in own.items():
            if key in measures:
                each.setdefault(patient, []).append(measures[key])
    return {patient: fmean(found) for patient, found in each.items()}


def _seed_sd(
    group: Sequence[CellResult], values: Sequence[Mapping[str, Mapping[str, float]]], key: str
) -> float | None:
    """SD over seeds of the mean over those patients whom every seed validated."""
    seeds: dict[int, dict[str, float]] = {}
    for result, own in zip(group, values, strict=True):
        seeds.setdefault(result.seed, {}).update({p: item[key] for p, item in own.items() if key in item})
    common = set.intersection(*(set(own) for own in seeds.values()))
    if len(seeds) < 2 or not common:
        return None
    return stdev(fmean(own[patient] for patient in sorted(common)) for own in seeds.values())


def _trend(
    groups: Mapping[str, Sequence[CellResult]],
    values: Callable[[CellResult], Mapping[str, Mapping[str, float]]],
    bootstrap: int,
    seed: int,
) -> dict[str, Any] | None:
    """The slope over all seeds with its interval, and the least and the largest slope of a single seed.

    The interval knows the chance of patients alone. A curve is said to rise or fall where the interval and every
    seed's own slope say so.
    """
    if len(groups) < 2:
        return None
    slopes = _patient_slopes(groups, values)
    if not slopes:
        return None
    seeds = sorted({result.seed for group in groups.values() for result in group})
    alone = []
    for number in seeds:
        own = {size: [result for result in group if result.seed == number] for size, group in groups.items()}
        found = _patient_slopes({size: group for size, group in own.items() if group}, values)
        alone += [fmean(found)] if found else []
    (slope,), (low,), (high,) = mean_with_interval(np.array(slopes)[:, None], bootstrap=bootstrap, seed=seed)
    bounds = None if np.isnan(low) else [low, high]
    word = "not clear"
    if bounds is not None and (min(low, *alone) > 0 or max(high, *alone) < 0):
        word = "rises" if low > 0 else "falls"
    return {
        "sizes": len(groups),
        "validated_patients": len(slopes),
        "seeds": len(seeds),
        "dice_per_doubling": slope,
        "interval_95": bounds,
        "least_of_a_seed": min(alone, default=None),
        "largest_of_a_seed": max(alone, default=None),
        "trend": word,
    }


def _patient_slopes(
    groups: Mapping[str, Sequence[CellResult]], values: Callable[[CellResult], Mapping[str, Mapping[str, float]]]
) -> list[float]:
    """Least squares of each patient's Dice over log2 of the training patients, of those validated at every size.

    The mean of the patients' slopes is the slope of their means.
    """
    curves: list[dict[str, tuple[float, float]]] = []
    for group in groups.values():
        sizes: dict[str, list[float]] = {}
        for result in group:
            for patient in values(result):
                sizes.setdefault(patient, []).append(float(np.log2(result.patients)))
        means = _over_seeds([values(result) for result in group], DICE)
        curves.append({patient: (fmean(sizes[patient]), mean) for patient, mean in means.items()})
    slopes = []
    for patient in sorted(set.intersection(*(set(curve) for curve in curves))) if len(curves) > 1 else ():
        x, y = np.array([curve[patient] for curve in curves]).T
        if np.ptp(x) > 0:
            slopes.append(float(np.polyfit(x, y, 1)[0]))
    return slopes


def _contrasts(largest: Mapping[Line, Mapping[str, float]], bootstrap: int, seed: int) -> list[dict[str, Any]]:
    if len(largest) < 2:
        return []
    first, *others = largest
    rows = []
    for line in others:
        common = sorted(set(largest[first]) & set(largest[line]))
        if common:
            pairs = [[largest[one][patient] for patient in common] for one in (line, first)]
            found = paired_test(*pairs, bootstrap=bootstrap, seed=seed)
            rows.append({**_about(line), "baseline": first.in_words(largest), **found})
    corrected = holm([row["p_signed_rank"] for row in rows])
    return [row | {"p_signed_rank_holm": p} for row, p in zip(rows, corrected, strict=True)]
