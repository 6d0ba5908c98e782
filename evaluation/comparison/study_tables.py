"""A study's tables for people: learning curves, trends, and the cross-dataset table, as Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from .compare import EF_ERROR, MEASURES
from .cross_dataset import MEASURES as CROSS_MEASURES
from .cross_dataset import CrossDataset
from .learning_curves import DICE, LearningCurves
from .tables import Column, Table, blocks_table, number, p_text

_PHASES = {"all": "all", "end_diastole": "ED", "end_systole": "ES"}
_HEADINGS = {
    "dice": "Dice, %", "iou": "IoU, %", "hd_mm": "HD, mm", "hd95_mm": "HD95, mm", "assd_mm": "ASSD, mm",
    "hd_px": "HD, px", "hd95_px": "HD95, px", "assd_px": "ASSD, px", EF_ERROR: "EF error, points",
}  # fmt: skip
CURVE_NOTES = (
    "Every figure is the mean over the validated patients, each patient's frames averaged first, and then the seeds. "
    "The interval is a 95 % percentile bootstrap over those patients: chance of patients, not of training.",
    "SD over seeds: of the seeds' means over the same patients, n − 1; chance of training, and of which patients were "
    "drawn to train on.",
    "Slope: least squares of Dice over log2 of the training patients, so points of Dice for twice the patients, with "
    "a 95 % percentile bootstrap interval over the validated patients. A curve is said to rise where the interval and "
    "the slope of every single seed are above 0.",
)
CROSS_NOTES = (
    "Mean ± SD over labelled frames on the images' own grid; where a method has several networks (folds, seeds), each "
    "predicts alone and a frame's figures are averaged. The rows of the dataset trained on are cross-validation.",
    "HD is the largest distance between the outlines, HD95 the 95th percentile, ASSD the mean. A frame predicted empty "
    "has Dice 0 and the image's diagonal as each distance.",
    "Tests: Wilcoxon's signed-rank test on the means of the same patients, with the matched-pairs rank-biserial "
    "correlation as effect size; Holm corrects over the methods.",
)


def curve_tables(curves: LearningCurves) -> list[Table]:
    """The points of the curves, their trends, and the lines against the first at the most patients."""
    tables = [_points(curves), _errors(curves), _trends(curves), _contrasts(curves)]
    return [table for table in tables if table.blocks]


def cross_tables(cross: CrossDataset) -> list[Table]:
    """Figures by dataset, phase and method, and the paired tests."""
    shown = [name for name in CROSS_MEASURES if any(row.get(f"{name}_mean") is not None for row in cross.rows)]
    columns = [Column("patients", "patients", digits=0), Column("frames", "frames", digits=0)]
    columns += [_column(name, f"{name}_mean", f"{name}_sd") for name in shown]
    columns += [_column(EF_ERROR, EF_ERROR, "")]
    rows = [
        {**row, "trained on": row["trained_on"], "tested on": row["tested_on"], "phase": _PHASES[row["phase"]]}
        for row in cross.rows
    ]
    words = ("trained on", "tested on", "phase", "method")
    figures = blocks_table("Across datasets, mean ± SD over frames", rows, columns, words, by=words[1:3])
    return [table for table in (figures, _tests(cross)) if table.blocks]


def _column(measure: str, key: str, spread: str) -> Column:
    overlap = measure in ("dice", "iou")
    return Column(key, _HEADINGS[measure], "↑" if overlap else "↓", scale=100.0 if overlap else 1.0, spread=spread)


def _points(curves: LearningCurves) -> Table:
    headings = (
        "method",
        "patients",
        "trainings",
        "Dice, % ↑",
        "95 % interval",
        "SD over seeds",
        "ED",
        "ES",
        "IoU, % ↑",
    )
    blocks = []
    for _, block in groupby(curves.points, key=lambda row: _name(row, curves)):
        blocks.append(
            tuple(
                _cells(
                    _name(row, curves),
                    _size(row),
                    str(row["trainings"]),
                    _percent(row.get(DICE)),
                    _interval(row, DICE),
                    _percent(row.get(f"{DICE}_seed_sd")),
                    _percent(row.get("dice_ed")),
                    _percent(row.get("dice_es")),
                    _percent(row.get("iou_all")),
                )
                for row in block
            )
        )
    return Table(f"Learning curves, Dice of {curves.structure}", 2, headings, tuple(blocks))


def _errors(curves: LearningCurves) -> Table:
    """Distances and EF errors with their intervals."""
    keys = {f"{name}_all": _HEADINGS[name] for name in MEASURES if name not in ("dice", "iou")} | {
        EF_ERROR: _HEADINGS[EF_ERROR]
    }
    shown = {key: words for key, words in keys.items() if any(row.get(key) is not None for row in curves.points)}
    headings = ("method", "patients", *(f"{words} ↓ (95 % interval)" for words in shown.values()))
    blocks = [
        tuple(_cells(_name(row, curves), _size(row), *(_with_interval(row, key) for key in shown)) for row in block)
        for _, block in groupby(curves.points, key=lambda row: _name(row, curves))
    ]
    return Table("Learning curves, distances and ejection fraction", 2, headings, tuple(blocks) if shown else ())


def _trends(curves: LearningCurves) -> Table:
    headings = ("method", "sizes", "validated patients", "Dice points a doubling", "95 % interval", "of single seeds",
                "the curve")  # fmt: skip
    rows = []
    for row in curves.trends:
        bounds = row["interval_95"]
        rows.append(
            _cells(
                _name(row, curves),
                str(row["sizes"]),
                str(row["validated_patients"]),
                number(100 * row["dice_per_doubling"], 2),
                f"{number(100 * bounds[0], 2)} to {number(100 * bounds[1], 2)}" if bounds else "–",
                f"{number(100 * row['least_of_a_seed'], 2)} to {number(100 * row['largest_of_a_seed'], 2)}",
                row["trend"],
            )
        )
    return Table(
        "Slope of Dice over the logarithm of the training patients", 1, headings, (tuple(rows),) if rows else ()
    )


def _contrasts(curves: LearningCurves) -> Table:
    if not curves.contrasts:
        return Table("", 0, (), ())
    headings = ("method", "patients", "mean difference, Dice %", "95 % interval", "rank-biserial r", "p, signed-rank")
    rows = [
        _cells(_name(row, curves), str(row["n"]), *_test_cells(row, 100.0), p_text(row["p_signed_rank_holm"]))
        for row in curves.contrasts
    ]
    title = f"At the most patients, difference from {curves.contrasts[0]['baseline']}"
    return Table(title, 1, (*headings, "p, Holm"), (tuple(rows),))


def _tests(cross: CrossDataset) -> Table:
    headings = (
        "tested on", "phase", "measure", "method", "baseline", "patients", "mean difference", "95 % interval",
        "rank-biserial r", "p, signed-rank", "p, Holm",
    )  # fmt: skip
    blocks = []
    for _, block in groupby(cross.tests, key=lambda row: (row["tested_on"], row["phase"], row["measure"])):
        rows = []
        for row in block:
            scale = 100.0 if row["measure"] in ("dice", "iou") else 1.0
            rows.append(
                _cells(
                    row["tested_on"],
                    _PHASES[row["phase"]],
                    _HEADINGS[row["measure"]],
                    row["method"],
                    row["baseline"],
                    str(row["n"]),
                    *_test_cells(row, scale),
                    p_text(row["p_signed_rank_holm"]),
                )
            )
        blocks.append(tuple(rows))
    return Table("Paired tests, on the means of patients", 5, headings, tuple(blocks))


def _test_cells(row: Mapping[str, Any], scale: float) -> tuple[str, str, str, str]:
    bounds = row["interval_95"]
    return (
        number(scale * row["mean_difference"], 2),
        f"{number(scale * bounds[0], 2)} to {number(scale * bounds[1], 2)}" if bounds else "–",
        number(row["rank_biserial"], 2),
        p_text(row["p_signed_rank"]),
    )


def _cells(*texts: str) -> tuple[tuple[str, str], ...]:
    return tuple((text, "") for text in texts)


def _name(row: Mapping[str, Any], curves: LearningCurves) -> str:
    """The line that a row is of, told from the others."""
    return next(
        line.in_words(curves.lines)
        for line in curves.lines
        if (line.method, line.frames, line.augmentation) == (row["method"], row["frames"], row["augmentation"])
    )


def _size(row: Mapping[str, Any]) -> str:
    """The mean number of patients, and the share where one was asked for."""
    count = f"{row['patients']:g}" if float(row["patients"]).is_integer() else f"{row['patients']:.1f}"
    return f"{count} ({row['size']})" if row["size"].endswith("%") else count


def _percent(value: float | None) -> str:
    return "–" if value is None else number(100 * value, 2)


def _interval(row: Mapping[str, Any], key: str) -> str:
    low, high = row.get(f"{key}_95_low"), row.get(f"{key}_95_high")
    return "–" if low is None or high is None else f"{_percent(low)} to {_percent(high)}"


def _with_interval(row: Mapping[str, Any], key: str) -> str:
    value, low, high = (row.get(f"{key}{end}") for end in ("", "_95_low", "_95_high"))
    if value is None:
        return "–"
    bounds = "" if low is None or high is None else f" ({number(low, 2)} to {number(high, 2)})"
    return f"{number(value, 2)}{bounds}"
