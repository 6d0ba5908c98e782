"""A study carried out: every training that is not finished, other datasets, tables."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

import torch

from echoplan.errors import EchoPlanError
from echoplan.parallel_map import run_cases
from echoplan.paths import Folders

from ...evaluation.comparison.cross_dataset import CrossDataset
from ...evaluation.comparison.learning_curves import LearningCurves
from ...training.train_fold import train_fold, validation_dice
from .cross import judge_networks, prepare_dataset
from .results import read_results, write_outputs
from .study import Study, Training, write_plans

logger = logging.getLogger(__name__)


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
    study.write()
    write_plans(study)
    outcome = StudyOutcome(kept=[training.name for training in study.trainings if training.finished])
    todo = {training.name: training for training in study.trainings if not training.finished}
    arguments = {
        name: (training, device, f"{number}/{len(todo)}") for number, (name, training) in enumerate(todo.items(), 1)
    }
    results = run_cases(_train, arguments, description="trainings")
    outcome.trained, outcome.failures = list(results.done), results.failures
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
