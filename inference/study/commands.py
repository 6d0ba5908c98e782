"""echoplan_study, echoplan_reproduce"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from echoplan.cli import folders, report_failures
from echoplan.dataset import EchoDataset
from echoplan.device import choose_device
from echoplan.errors import EchoPlanError
from echoplan.networks.weights import weights_options
from echoplan.options import planning
from echoplan.paths import Folders

from ...evaluation.comparison.study_report import trend_statements
from ...experiment_planning.commands import plan_and_preprocess
from ...training.methods import find_method
from ...training.recipe import parse_settings
from ...training.train_fold import FoldJob
from .grid import Cell, StudyRequest
from .published import PAPERS
from .reproduce import Reproduction, cells_of_tables, check_labels, describe, make_request, test_networks
from .reproduced import reproduced, write_results
from .run import run_study, train_study
from .study import Study, plan_study

_QUIET = "echoplan.training"  # each training's own lines are in its folder's log


def study(options: argparse.Namespace) -> int:
    """echoplan_study DATASET -tr TRAINER ..."""
    where = folders()
    request = _request(options, where)
    made = plan_study(where, request, processes=options.np)
    _print_grid(made)
    if options.dry_run:
        return 0
    with weights_options(random="--set pretrained=false"), _own_lines_only():
        outcome = run_study(where, made, device=choose_device(options.device), processes=options.np)
    print(f"{len(outcome.trained)} trained, {len(outcome.kept)} were finished before")
    if outcome.curves is not None:
        for line in trend_statements(outcome.curves):
            print(line)
        cross = ", cross_dataset.csv, .md, .tex" if outcome.cross is not None else ""
        print(f"written: learning_curves.csv, .md, .tex, .png, .svg{cross} and report.html in {made.folder}")
    return report_failures(outcome.failures, work="study")


def reproduce(options: argparse.Namespace) -> int:
    """echoplan_reproduce PAPER -d DATASET ..."""
    where, paper, device = folders(), PAPERS[options.paper], choose_device(options.device)
    raw = EchoDataset.read(where.find_raw(options.dataset))
    tables = paper.chosen(raw.description.published, tuple(options.tables))
    common, own = _settings(options.set)
    if options.epochs is not None:
        common["epochs"] = options.epochs
    request = make_request(options.paper, tables, options.dataset, seeds=options.seeds, settings=common,
                           trainer_settings=own, plans_name=options.plans_name, name=options.name)  # fmt: skip
    stray = sorted({*dict(options.weights)} - {row.trainer for table in paper.tables for row in table.rows})
    if stray:
        raise EchoPlanError(f"--weights names a trainer that the paper does not train: {', '.join(stray)}")
    for trainer in request.trainers:
        find_method(trainer).check_dataset(raw.description)
    others = {name: EchoDataset.read(where.find_raw(name)).description for name in options.external}
    for name, other in others.items():
        check_labels(name, other, raw.description)
    external = {other.published: name for name, other in others.items()}
    weights = dict(options.weights)
    print(f"{paper.citation}: table {', '.join(dict.fromkeys(table.number for table in tables))} on {options.dataset}")
    if options.dry_run:
        print(*describe(where, paper, tables, request, weights=weights, external=external, device=device), sep="\n")
        return 0
    cells = cells_of_tables(tables, request)
    made = _planned_study(where, request, cells, weights, options)
    reproduction = Reproduction(paper, tables, made, external, weights)
    with weights_options("--weights TRAINER=FILE", "--set pretrained=false"), _own_lines_only():
        failures = train_study(made, device=device).failures
        failures |= test_networks(where, reproduction, device=device)
    print(write_results(reproduction, reproduced(reproduction, device=device), failures))
    print(f"written: reproduced.csv, .md, .tex in {made.folder}")
    return report_failures(failures, work=f"reproducing {options.paper}")


def _planned_study(
    where: Folders,
    request: StudyRequest,
    cells: Sequence[Cell],
    weights: Mapping[str, Path],
    options: argparse.Namespace,
) -> Study:
    """The study; the dataset is planned and preprocessed as the papers did where it is not yet."""
    for cell in cells:
        find_method(cell.trainer).with_settings(request.settings_of(cell))
    sizes = [f"--size={'x'.join(map(str, options.size))}"] if options.size else []
    sizes += [f"--frames={options.frames}"] if options.frames else []
    try:
        made = plan_study(where, request, cells=cells, weights=weights, processes=options.np)
        if not sizes:  # a plan that is there may have others
            return made
    except EchoPlanError as error:
        print(f"not ready yet ({error.problem}): planned and preprocessed now")
    asked = ["-d", options.dataset, "-tr", *request.trainers, "--protocol", "paper", "-p", request.plans_name]
    if plan_and_preprocess(planning.plan_and_preprocess().parse_args([*asked, *sizes, "-np", str(options.np)])):
        print("some cases are left out, as said above")
    return plan_study(where, request, cells=cells, weights=weights, processes=options.np)


def _request(options: argparse.Namespace, where: Folders) -> StudyRequest:
    common, own = _settings(options.set)
    if "augmentation" in common or any("augmentation" in settings for settings in own.values()):
        raise EchoPlanError("a study takes the augmentation as a list", remedy="say --augmentation POLICY ...")
    if options.epochs is not None:
        common["epochs"] = options.epochs
    return StudyRequest(
        dataset=options.dataset,
        trainers=tuple(options.trainers),
        name=options.name,
        sizes=tuple(options.train_sizes),
        clip_lengths=tuple(options.clip_lengths),
        augmentations=tuple(options.augmentation),
        grid=_grid(options.grid),
        folds=options.folds or tuple(FoldJob(options.dataset, 0, options.trainers[0]).folds(where)),
        seeds=tuple(options.seeds),
        settings=common,
        trainer_settings=own,
        test_on=tuple(options.test_on),
        test_every_size=options.test_every_size,
        plans_name=options.plans_name,
        ef_method=options.ef_method,
        ef_reference=options.ef_reference,
    )


def _settings(assignments: Sequence[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Settings of all recipes, and those of single trainers by the trainer's name."""
    common: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {}
    for name, value in parse_settings(assignments).items():
        trainer, separator, key = name.partition(":")
        if separator:
            own.setdefault(trainer, {})[key] = value
        else:
            common[name] = value
    return common, own


def _grid(assignments: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Setting -> its values; a comma inside brackets belongs to a value."""
    grid = {}
    for assignment in assignments:
        name, separator, values = assignment.partition("=")
        if not separator or not values or name in grid:
            raise EchoPlanError(f"--grid takes KEY=A,B, each key once, not {assignment!r}")
        grid[name.strip()] = tuple(value.strip() for value in re.split(r",(?![^\[]*\])", values))
    return grid


def _print_grid(made: Study) -> None:
    cells = dict.fromkeys(training.cell for training in made.trainings)
    print(f"{made.folder}")
    for cell in cells:
        own = [training for training in made.trainings if training.cell == cell]
        done = sum(training.finished for training in own)
        begun = sum(training.started and not training.finished for training in own)
        patients = sorted({len({made.patients[case] for case in training.setup.train}) for training in own})
        state = f"{done} finished" if done else ""
        state += f"{', ' if done and begun else ''}{begun} begun" if begun else ""
        amount = f"{len(own)} fold(s), {' or '.join(map(str, patients))} patients"
        print(f"  {cell.name}: {amount}{f' ({state})' if state else ''}")
    left = sum(not training.finished for training in made.trainings)
    gigabytes = made.disk_bytes() / 1e9
    print(f"{len(made.trainings)} trainings, {left} to do, about {gigabytes:.2g} GB of checkpoints and predictions")


@contextmanager
def _own_lines_only() -> Iterator[None]:
    """On the console one line a training: what trainings say epoch by epoch goes to their logs alone."""

    def wanted(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or not record.name.startswith(_QUIET)

    handlers = list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(wanted)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(wanted)
