"""A study's tables for people, and report.html with all of it: one page without a network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from echoplan.files import write_text

from ..report.page import page_template
from .cross_dataset import CrossDataset
from .learning_curves import CURVE, DICE, LearningCurves, Line
from .scores import EF_ERROR, FIGURES, MEASURES, OVERLAPS, records
from .tables import (
    MISSING,
    PHASE_WORDS,
    Column,
    Table,
    WordColumn,
    columns_of_tests,
    filled,
    in_units_shown,
    make_table,
    measure_column,
)

if TYPE_CHECKING:
    import pandas as pd

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
_POINTS = (
    Column("trainings", "trainings", digits=0),
    Column("Dice, % ↑", DICE, scale=100),
    Column("95 % interval", interval=f"{DICE}_95", scale=100),
    Column("SD over seeds", f"{DICE}_seed_sd", scale=100),
    Column("ED", "dice_ed", scale=100),
    Column("ES", "dice_es", scale=100),
    Column("IoU, % ↑", "iou_all", scale=100),
)
_SLOPE = Column("Dice points a doubling", "dice_per_doubling", scale=100)
_SLOPE_INTERVAL = Column("95 % interval", interval="interval_95", scale=100)
_TRENDS = (
    Column("sizes", "sizes", digits=0),
    Column("validated patients", "validated_patients", digits=0),
    _SLOPE,
    _SLOPE_INTERVAL,
    Column("of single seeds", interval="seeds", scale=100),
    WordColumn("the curve", "trend"),
)
_SPACED = {"trained_on": "trained on", "tested_on": "tested on"}


def curve_tables(curves: LearningCurves) -> list[Table]:
    """The points of the curves, their trends, and the lines against the first at the most patients."""
    points = _named(curves.points, curves)
    points["patients"] = list(map(_size, points["patients"], points["size"]))
    distances = [name for name in MEASURES if name in FIGURES and name not in OVERLAPS]
    errors = [
        Column(f"{column.heading} ↓ (95 % interval)", column.key, interval=f"{column.key}_95")
        for column in [*(measure_column(name, f"{name}_all") for name in distances), measure_column(EF_ERROR)]
    ]
    title, words = f"Learning curves, Dice of {curves.structure}", ["method", "patients"]
    tables = [make_table(title, points, words, _POINTS, by=["method"])]
    if errors := filled(errors, points):
        title = "Learning curves, distances and ejection fraction"
        tables.append(make_table(title, points, words, errors, by=["method"]))
    if len(curves.trends):
        trends = _named(curves.trends, curves).rename(
            columns={"least_of_a_seed": "seeds_low", "largest_of_a_seed": "seeds_high"}
        )
        title = "Slope of Dice over the logarithm of the training patients"
        tables.append(make_table(title, trends, ["method"], _TRENDS))
    if len(curves.contrasts):
        contrasts = in_units_shown(_named(curves.contrasts, curves).assign(measure="dice"))
        title = f"At the most patients, difference from {contrasts['baseline'].iloc[0]}"
        tables.append(make_table(title, contrasts, ["method"], columns_of_tests("mean difference, Dice %")))
    return tables


def cross_tables(cross: CrossDataset) -> list[Table]:
    """Figures by dataset, phase and method, and the paired tests."""
    rows = cross.rows.assign(phase=cross.rows["phase"].map(PHASE_WORDS)).rename(columns=_SPACED)
    columns = [Column("patients", "patients", digits=0), Column("frames", "frames", digits=0)]
    columns += [measure_column(name, f"{name}_mean", spread=f"{name}_sd") for name in MEASURES]
    columns += [measure_column(EF_ERROR)]
    words = ["trained on", "tested on", "phase", "method"]
    title = "Across datasets, mean ± SD over frames"
    tables = [make_table(title, rows, words, filled(columns, rows), by=["tested on", "phase"])]
    if len(cross.tests):
        words = ["tested on", "phase", "measure", "method", "baseline"]
        tests = in_units_shown(cross.tests).assign(phase=cross.tests["phase"].map(PHASE_WORDS)).rename(columns=_SPACED)
        tables.append(
            make_table("Paired tests, on the means of patients", tests, words, columns_of_tests(), by=words[:3])
        )
    return tables


def trend_statements(curves: LearningCurves) -> list[str]:
    """A sentence a line that has a trend."""
    statements = []
    for row in records(_named(curves.trends, curves)):
        word = row["trend"] if row["trend"] in ("rises", "falls") else "has no clear trend"
        slope, bounds = (column.text(row) for column in (_SLOPE, _SLOPE_INTERVAL))
        interval = "no interval" if bounds == MISSING else f"95 % interval {bounds}"
        statements.append(
            f"{row['method']} {word}: {slope} points of Dice for twice the patients ({interval}, "
            f"{row['validated_patients']} patients, {row['sizes']} sizes)."
        )
    return statements


def _named(rows: pd.DataFrame, curves: LearningCurves) -> pd.DataFrame:
    """The rows with their lines in words, told from the others, as `method`."""
    lines = rows[CURVE].itertuples(index=False, name=None) if len(rows) else ()
    return rows.assign(method=[Line(*line).in_words(curves.lines) for line in lines])


def _size(patients: float, asked: str) -> str:
    """The mean number of patients, and the share where one was asked for."""
    count = f"{patients:g}" if patients.is_integer() else f"{patients:.1f}"
    return f"{count} ({asked})" if asked.endswith("%") else count


def write_study_report(
    path: str | Path,
    *,
    title: str,
    curves: LearningCurves,
    figure_svg: str,
    sections: Sequence[tuple[str, Sequence[Table], Sequence[str]]],
    failures: Mapping[str, str],
    details: Mapping[str, str | int],
) -> None:
    """Write self-contained HTML: what the curves say, the figure, the tables, what is missing, how it came about.

    Args:
        path: the HTML file.
        title: the heading.
        curves: for the statements on top.
        figure_svg: the figure's SVG.
        sections: (heading, tables, notes) in the order to show.
        failures: what is not done -> reason.
        details: what to record at the foot; plain words and numbers.
    """
    page = page_template("study.html.j2").render(
        title=title,
        statements=trend_statements(curves),
        figure=base64.b64encode(figure_svg.encode("utf-8")).decode("ascii"),
        figure_words=f"Dice of {curves.structure} over the patients trained on; the tables below hold the figures",
        sections=sections,
        failures=failures,
        details=details,
    )
    write_text(path, page)
