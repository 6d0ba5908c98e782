"""Learning curves: what more patients, longer clips or another augmentation bring, with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..agreement import resamples
from .paired import SMALLEST_FOR_INTERVAL, compare_with_baseline
from .scores import (
    EF_ERROR,
    FIGURES,
    JUDGED_FRAMES,
    exact_sd,
    figures,
    mean_over_frames,
    patient_means,
    sd_over_frames,
)

if TYPE_CHECKING:
    import pandas as pd

DICE = "dice_all"
CURVE = ["method", "frames", "augmentation"]
TRAINING = [*CURVE, "size", "patients", "clips", "fold", "seed"]
_SHORT = {"all": "all", "end_diastole": "ed", "end_systole": "es", "ed_es": "ed_es"}


class Line(NamedTuple):
    """What stays the same along a learning curve: the trainer's name, T (1 for single frames), and the policy."""

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
class LearningCurves:
    """What the trainings of a study show.

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
    cells: pd.DataFrame
    points: pd.DataFrame
    trends: pd.DataFrame
    contrasts: pd.DataFrame


def learning_curves(scores: pd.DataFrame, structure: str, *, bootstrap: int = 2000, seed: int = 0) -> LearningCurves:
    """Summarise a study's trainings.

    Args:
        scores: the validation of each training as `read_scores` has it, with the columns `TRAINING`: `method`, `frames`
            (T) and `augmentation` of the line; `size`, the patients asked for ("10" or "50%"), and the `patients` and
            `clips` trained on; `fold`, `seed`.
        structure: whose masks they are of.
        bootstrap, seed: of the intervals.
    """
    import pandas as pd

    means = _patient_values(scores)
    points, trends, largest = [], [], {}
    for line, rows in scores.groupby(CURVE, sort=False):
        sizes = rows.drop_duplicates(TRAINING).groupby("size", sort=False)["patients"].agg(fmean)
        order = sizes.sort_values(kind="stable").index
        own = means[(means[CURVE] == list(line)).all(axis=1)]
        about = dict(zip(CURVE, line, strict=True))
        for size in order:
            points.append(about | _point(rows[rows["size"] == size], own[own["size"] == size], bootstrap, seed))
        dice = own[own["measure"] == DICE]
        largest[Line._make(line)] = dice[dice["size"] == order[-1]].groupby("patient", sort=False)["value"].agg(fmean)
        trend = _trend(dice, order, bootstrap, seed)
        if trend:
            trends.append(about | trend)
    return LearningCurves(
        structure=structure,
        lines=tuple(largest),
        cells=_cells(scores),
        points=pd.DataFrame(points),
        trends=pd.DataFrame(trends),
        contrasts=_contrasts(largest, bootstrap, seed),
    )


def _patient_values(scores: pd.DataFrame) -> pd.DataFrame:
    """The long table of each training's means over the frames of its patients; `measure` is "dice_all", "hd95_mm_es",
    ..., "ef_absolute_error". A training's patient has all measures in a row.
    """
    means = patient_means(scores, TRAINING)
    by_phase = means["metric"] + "_" + means["phase"].map(_SHORT)
    means["measure"] = by_phase.where(means["metric"] != EF_ERROR, EF_ERROR)
    together = means.groupby([*TRAINING, "patient"], sort=False).ngroup()
    return means.iloc[together.argsort(kind="stable")]


def _cells(scores: pd.DataFrame) -> pd.DataFrame:
    """The figures that summary.json has of each training."""
    judged = scores[scores["metric"] == JUDGED_FRAMES].groupby(TRAINING, sort=False)["patient"]
    cells = judged.nunique().to_frame("validated_patients")
    for phase, rows in scores.groupby("phase"):
        found = figures(rows, TRAINING, FIGURES, mean=mean_over_frames, sd=sd_over_frames)
        means = {f"{name}_mean": name for name in FIGURES if f"{name}_mean" in found}
        found = found[["frames", *means]].astype({"frames": "Int64"}).rename(columns=means)
        cells = cells.join(found.add_suffix(f"_{_SHORT[str(phase)]}"))
    errors = scores[scores["metric"] == EF_ERROR].groupby(TRAINING)["value"]
    cells[EF_ERROR] = errors.agg(fmean)
    cells["ef_patients"] = errors.size().reindex(cells.index, fill_value=0)
    return cells.reset_index()


def _point(rows: pd.DataFrame, means: pd.DataFrame, bootstrap: int, seed: int) -> dict[str, Any]:
    """Of one line and size."""
    trainings, patients = rows.drop_duplicates(TRAINING), rows["patient"].unique()
    measures = means["measure"].unique()
    over_seeds = means.groupby(["patient", "measure"])["value"].agg(fmean).unstack("measure")
    matrix = over_seeds.reindex(index=patients, columns=measures).to_numpy()
    point = {
        "size": trainings["size"].iloc[0],
        "patients": fmean(trainings["patients"]),
        "clips": fmean(trainings["clips"]),
        "folds": trainings["fold"].nunique(),
        "seeds": trainings["seed"].nunique(),
        "trainings": len(trainings),
        "validated_patients": len(patients),
    }
    for name, middle, low, high in zip(
        measures, *mean_with_interval(matrix, bootstrap=bootstrap, seed=seed), strict=True
    ):
        sd = _seed_sd(means[means["measure"] == name], list(trainings["seed"].unique()))
        point |= {name: middle, f"{name}_95_low": low, f"{name}_95_high": high, f"{name}_seed_sd": sd}
    return point


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
    ends = np.full((2, matrix.shape[1]), np.nan)
    for column in np.flatnonzero(counts >= SMALLEST_FOR_INTERVAL):
        ends[:, column] = np.nanpercentile(means[:, column], (2.5, 97.5))
    return middle.tolist(), ends[0].tolist(), ends[1].tolist()


def _seed_sd(means: pd.DataFrame, seeds: list[int]) -> float:
    """SD over seeds of the mean over those patients whom every seed validated; NaN of a single seed."""
    by_seed = means.groupby(["patient", "seed"])["value"].last().unstack("seed").reindex(columns=seeds).dropna()
    return exact_sd(by_seed.agg(fmean)) if len(by_seed) else np.nan


def _trend(dice: pd.DataFrame, sizes: Sequence[str], bootstrap: int, seed: int) -> dict[str, Any] | None:
    """The slope over all seeds with its interval, and the least and the largest slope of a single seed.

    The interval knows the chance of patients alone. A curve is said to rise or fall where the interval and every
    seed's own slope say so.

    Args:
        dice: a line's Dice, a row a training and patient.
        sizes: from few patients to many.
        bootstrap, seed: of the interval.
    """
    slopes = _patient_slopes(dice, sizes)
    if not slopes:
        return None
    alone = [fmean(own) for _, rows in dice.groupby("seed") if (own := _patient_slopes(rows, sizes))]
    (slope,), (low,), (high,) = mean_with_interval(np.array(slopes)[:, None], bootstrap=bootstrap, seed=seed)
    word = "not clear"
    if min(low, *alone) > 0 or max(high, *alone) < 0:
        word = "rises" if low > 0 else "falls"
    return {
        "sizes": len(sizes),
        "validated_patients": len(slopes),
        "seeds": dice["seed"].nunique(),
        "dice_per_doubling": slope,
        "least_of_a_seed": min(alone, default=np.nan),
        "largest_of_a_seed": max(alone, default=np.nan),
        "trend": word,
        "interval_95_low": low,
        "interval_95_high": high,
    }


def _patient_slopes(dice: pd.DataFrame, sizes: Sequence[str]) -> list[float]:
    """Least squares of each patient's Dice over log2 of the training patients, of those validated at every size.

    The mean of the patients' slopes is the slope of their means.
    """
    curves = dice.assign(doublings=np.log2(dice["patients"])).groupby(["patient", "size"])[["doublings", "value"]]
    curves = curves.agg(fmean).unstack("size").dropna()
    there = [size for size in sizes if size in set(dice["size"])]
    slopes = []
    for _, curve in curves.iterrows() if len(there) > 1 else ():
        x, y = (curve[name][there].to_numpy() for name in ("doublings", "value"))
        if np.ptp(x) > 0:
            slopes.append(float(np.polyfit(x, y, 1)[0]))
    return slopes


def _contrasts(largest: dict[Line, pd.Series[float]], bootstrap: int, seed: int) -> pd.DataFrame:
    import pandas as pd

    lines = {line.in_words(largest): line for line in largest}
    values = pd.DataFrame({name: largest[line] for name, line in lines.items()}).sort_index()
    tests = compare_with_baseline([((), values)], [], values.columns[0], bootstrap=bootstrap, seed=seed)
    about = pd.DataFrame([lines[name] for name in tests["method"]], columns=CURVE)
    return about.join(tests.drop(columns="method"))
