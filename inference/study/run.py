"""A study carried out: every training that is not finished, other datasets, and the files that it ends with."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from echoplan import layout
from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path, read_json, write_text
from echoplan.parallel_map import run_cases
from echoplan.paths import Folders, dataset_name

from ...evaluation.comparison.cross_dataset import CrossDataset, cross_dataset
from ...evaluation.comparison.learning_curve_plots import as_png, as_svg, draw_learning_curves
from ...evaluation.comparison.learning_curves import TRAINING, LearningCurves, learning_curves
from ...evaluation.comparison.scores import read_scores, write_parts
from ...evaluation.comparison.study_report import (
    CROSS_NOTES,
    CURVE_NOTES,
    cross_tables,
    curve_tables,
    write_study_report,
)
from ...evaluation.comparison.tables import Table, latex_tables, markdown_page
from ...training.train_fold import train_fold, validation_dice
from .cross import OtherDataset, judge_networks, prepare_dataset
from .study import Study, Training, cells_of, trainings_of, validated_folds, write_plans

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

CURVES, CROSS = "learning_curves", "cross_dataset"
_ENDS = ["interval_95_low", "interval_95_high"]


@dataclass
class StudyOutcome:
    """What a run of a study left.

    Attributes:
        trained: trainings finished now. kept: finished before.
        failures: what is not done -> reason.
        curves, cross: what the files hold; None where nothing was finished, or no other dataset asked for.
    """

    trained: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    curves: LearningCurves | None = None
    cross: CrossDataset | None = None


def run_study(where: Folders, study: Study, *, device: torch.device | str = "cpu", processes: int = 0) -> StudyOutcome:
    """Do what is not done yet of a study, and write its files.

    A training that was started goes on from its checkpoint, a finished one is left as it is, and a broken one does not
    stop the others.

    Args:
        where: raw, preprocessed, results.
        study: of `plan_study`.
        device: where networks run.
        processes: worker processes of reading references and judging.

    Raises:
        EchoPlanError: the study was begun with other settings, the disk is full, or another dataset cannot be tested.
        Terminated: SIGTERM came; what was done is saved.
    """
    outcome = train_study(study, device=device)
    others = []
    for name in study.request.test_on:
        other, failures = prepare_dataset(where, name, study, processes=processes)
        outcome.failures |= {f"{other.name}, {case}": reason for case, reason in failures.items()}
        outcome.failures |= judge_networks(study, other, device=str(device), processes=processes)
        others.append(other)
    validated, across = read_results(study, others)
    if len(validated):
        outcome.curves, outcome.cross = write_outputs(study, validated, across, outcome.failures)
    return outcome


def train_study(study: Study, *, device: torch.device | str = "cpu") -> StudyOutcome:
    """Do the trainings that are not finished; see `run_study`."""
    study.write()
    write_plans(study)
    outcome = StudyOutcome(kept=[training.name for training in study.trainings if training.finished])
    todo = {training.name: training for training in study.trainings if not training.finished}
    arguments = {
        name: (training, device, f"{number}/{len(todo)}") for number, (name, training) in enumerate(todo.items(), 1)
    }
    results = run_cases(_train, arguments, description="trainings")
    outcome.trained, outcome.failures = list(results.done), results.failures
    return outcome


def _train(training: Training, device: torch.device | str, number: str) -> None:
    started = time.monotonic()
    try:
        summary = train_fold(training.job, training.setup, device=device, resume=True)
    except EchoPlanError as error:
        if "other settings" in error.problem:
            raise EchoPlanError(error.problem, file=error.file, remedy="give the study another --name") from error
        raise
    dice = validation_dice(summary, training.setup.description.target)
    logger.info("%s %s: Dice %.4f (%.0f s)", number, training.name, dice, time.monotonic() - started)


def read_results(study: Study, others: Sequence[OtherDataset] = ()) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scores of every finished training, those of earlier and larger requests too, in the order of study.json.

    Returns:
        the cross-validation of all, as `learning_curves` takes it; and, as `cross_dataset` takes it, what those that
        were tested on other datasets did there and in cross-validation. Empty where there is nothing.
    """
    import pandas as pd

    validated, across = [], []
    ef: Any = {"rule": study.request.ef_method, "reference": study.request.ef_reference}
    here = dataset_name(study.results)
    for cell, model in trainings_of(study, cells_of(study.folder)):
        for fold in validated_folds(model):
            folder = model / layout.fold_folder(fold)
            train = read_json(folder / layout.DEBUG_FILE)["train"]
            training: dict[str, str | int] = {
                "method": cell.label, "frames": cell.frames, "augmentation": cell.augmentation, "size": cell.size,
                "patients": len({study.patients[case] for case in train}), "clips": len(train),
                "fold": fold, "seed": cell.seed,
            }  # fmt: skip
            scores = read_scores(folder / layout.VALIDATION, study.patients, study.description.target, **ef).assign(
                **training
            )
            validated.append(scores)
            tested = [other for other in others if (other.tested(folder) / layout.SUMMARY_FILE).is_file()]
            if tested:
                across.append(scores.assign(**training, trained_on=here, tested_on=here, within=True))
            for other in tested:
                scores = read_scores(other.tested(folder), other.patients, other.target, **ef)
                across.append(scores.assign(**training, trained_on=here, tested_on=other.name, within=False))
    return tuple(pd.concat(tables, ignore_index=True) if tables else pd.DataFrame() for tables in (validated, across))


def write_outputs(
    study: Study, validated: pd.DataFrame, across: pd.DataFrame, failures: Mapping[str, str]
) -> tuple[LearningCurves, CrossDataset | None]:
    """Write learning_curves.{csv,md,tex,png,svg}, cross_dataset.{csv,md,tex} and report.html into the study's folder.

    Args:
        study: the study.
        validated, across: of `read_results`; at least one training, and no rows across where none was asked for.
        failures: what is not done -> reason, for the page.
    """
    folder, title = study.folder, f"Study {study.request.name} of {dataset_name(study.results)}"
    curves = learning_curves(validated, study.description.target)
    figure = draw_learning_curves(curves)
    svg, tables = as_svg(figure), curve_tables(curves)
    write_text(folder / f"{CURVES}.svg", svg)
    with atomic_path(folder / f"{CURVES}.png") as temporary:
        temporary.write_bytes(as_png(figure))
    rows = {"training": curves.cells, "point": curves.points, "trend": curves.trends, "contrast": curves.contrasts}
    _write(folder / CURVES, title, rows, tables, CURVE_NOTES)
    sections = [("Figures", tables, CURVE_NOTES)]
    cross = None if across.empty else cross_dataset(across)
    if cross is not None:
        tables = cross_tables(cross)
        rows = {"figures": cross.rows, "paired_test": cross.tests}
        _write(folder / CROSS, f"{title}, on other datasets", rows, tables, CROSS_NOTES)
        sections.append(("On other datasets", tables, CROSS_NOTES))
    write_study_report(
        folder / layout.REPORT_PAGE,
        title=title,
        curves=curves,
        figure_svg=svg,
        sections=sections,
        failures=failures,
        details=_details(study, validated),
    )
    return curves, cross


def _write(
    path: Path, title: str, rows: Mapping[str, pd.DataFrame], tables: Sequence[Table], notes: Sequence[str]
) -> None:
    """CSV, with the intervals of tests behind what they are of, Markdown and LaTeX."""
    ordered = {name: part[[*part.columns.drop(_ENDS, errors="ignore"), *part.columns.intersection(_ENDS)]]
               for name, part in rows.items()}  # fmt: skip
    write_parts(path.with_suffix(".csv"), "row", ordered)
    write_text(path.with_suffix(".md"), markdown_page(title, [], tables, notes))
    write_text(path.with_suffix(".tex"), latex_tables(tables, notes))


def _details(study: Study, validated: pd.DataFrame) -> dict[str, str | int]:
    content = read_json(study.folder / layout.STUDY_FILE)
    settings = {**content["settings"]}
    for trainer, own in content["trainer_settings"].items():
        settings |= {f"{trainer}:{name}": value for name, value in own.items()}
    return {
        "Dataset": study.results.name,
        "Trainings": len(validated.drop_duplicates(TRAINING)),
        "Folds": ", ".join(map(str, sorted(validated["fold"].unique()))),
        "Seeds": ", ".join(map(str, sorted(validated["seed"].unique()))),
        "Settings": ", ".join(f"{name}={value}" for name, value in settings.items()) or "the recipes' own",
        "Versions": ", ".join(f"{name} {version}" for name, version in content["versions"].items()),
    }
