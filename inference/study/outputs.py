"""The files that a study ends with: CSV, Markdown, LaTeX, figure, page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from echoplan import layout
from echoplan.files import atomic_path, read_json, write_csv, write_text
from echoplan.paths import dataset_name

from ...evaluation.comparison.cross_dataset import CrossDataset, JudgedNetwork, cross_dataset
from ...evaluation.comparison.learning_curve_plots import as_png, as_svg, draw_learning_curves
from ...evaluation.comparison.learning_curves import CellResult, LearningCurves, learning_curves
from ...evaluation.comparison.study_report import write_study_report
from ...evaluation.comparison.study_tables import CROSS_NOTES, CURVE_NOTES, cross_tables, curve_tables
from ...evaluation.comparison.tables import latex_tables, markdown_page
from .study import Study

CURVES, CROSS = "learning_curves", "cross_dataset"


def write_outputs(
    study: Study,
    results: Sequence[CellResult],
    tested: Sequence[JudgedNetwork],
    failures: Mapping[str, str],
) -> tuple[LearningCurves, CrossDataset | None]:
    """Write learning_curves.{csv,md,tex,png,svg}, cross_dataset.{csv,md,tex} and report.html into the study's folder.

    Args:
        study: the study.
        results: one a finished training, at least one.
        tested: networks on other datasets, and their cross-validation; none where none was asked for.
        failures: what is not done -> reason, for the page.
    """
    folder, target = study.folder, study.description.target
    title = f"Study {study.request.name} of {dataset_name(study.results)}"
    curves = learning_curves(results, target)
    figure = draw_learning_curves(curves)
    svg, tables = as_svg(figure), curve_tables(curves)
    _write_curve_rows(folder / f"{CURVES}.csv", curves)
    write_text(folder / f"{CURVES}.md", markdown_page(title, [], tables, CURVE_NOTES))
    write_text(folder / f"{CURVES}.tex", latex_tables(tables, CURVE_NOTES))
    write_text(folder / f"{CURVES}.svg", svg)
    with atomic_path(folder / f"{CURVES}.png") as temporary:
        temporary.write_bytes(as_png(figure))
    sections = [("Figures", tables, CURVE_NOTES)]
    cross = cross_dataset(tested) if tested else None
    if cross is not None:
        _write_cross_rows(folder / f"{CROSS}.csv", cross)
        across = cross_tables(cross)
        write_text(folder / f"{CROSS}.md", markdown_page(f"{title}, on other datasets", [], across, CROSS_NOTES))
        write_text(folder / f"{CROSS}.tex", latex_tables(across, CROSS_NOTES))
        sections.append(("On other datasets", across, CROSS_NOTES))
    write_study_report(
        folder / layout.REPORT_PAGE,
        title=title,
        curves=curves,
        figure_svg=svg,
        sections=sections,
        failures=failures,
        details=_details(study, results),
    )
    return curves, cross


def _write_curve_rows(path: Path, curves: LearningCurves) -> None:
    """A row a training, then a row a point, told apart by `row`; trends and contrasts follow."""
    rows = [{"row": "training", **row} for row in curves.cells]
    rows += [{"row": "point", **row} for row in curves.points]
    rows += [{"row": "trend", **_bounds_apart(row)} for row in curves.trends]
    rows += [{"row": "contrast", **_bounds_apart(row)} for row in curves.contrasts]
    write_csv(path, rows, list(dict.fromkeys(key for row in rows for key in row)))


def _write_cross_rows(path: Path, cross: CrossDataset) -> None:
    rows = [{"row": "figures", **row} for row in cross.rows]
    rows += [{"row": "paired_test", **_bounds_apart(row)} for row in cross.tests]
    write_csv(path, rows, list(dict.fromkeys(key for row in rows for key in row)))


def _bounds_apart(row: Mapping[str, Any]) -> dict[str, Any]:
    bounds = row["interval_95"] or (None, None)
    return {key: value for key, value in row.items() if key != "interval_95"} | {
        "interval_95_low": bounds[0], "interval_95_high": bounds[1],
    }  # fmt: skip


def _details(study: Study, results: Sequence[CellResult]) -> dict[str, Any]:
    content = read_json(study.folder / layout.STUDY_FILE)
    settings = {**content["settings"]}
    for trainer, own in content["trainer_settings"].items():
        settings |= {f"{trainer}:{name}": value for name, value in own.items()}
    return {
        "Dataset": study.results.name,
        "Trainings": len(results),
        "Folds": ", ".join(map(str, sorted({result.fold for result in results}))),
        "Seeds": ", ".join(map(str, sorted({result.seed for result in results}))),
        "Settings": ", ".join(f"{name}={value}" for name, value in settings.items()) or "the recipes' own",
        "Versions": ", ".join(f"{name} {version}" for name, version in content["versions"].items()),
    }
