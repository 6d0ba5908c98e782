"""echoplan_study, echoplan_reproduce"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from echoplan.cli import (
    add_device,
    add_ef_options,
    add_plans_name,
    add_processes,
    command,
    existing_path,
    folders,
    parser,
    report_failures,
)
from echoplan.dataset import EchoDataset
from echoplan.device import choose_device
from echoplan.errors import EchoPlanError
from echoplan.networks.weights import weights_options
from echoplan.paths import Folders

from ...evaluation import VOLUME_RULES
from ...evaluation.comparison.study_report import trend_statements
from ...experiment_planning.commands import planned_and_preprocessed
from ...training.methods import find_method
from ...training.recipe import parse_settings
from .grid import EVERYTHING, Cell, StudyRequest
from .published import PAPERS
from .reproduce import Reproduction, cells_of_tables, check_labels, describe, make_request, test_networks
from .reproduced import reproduced, write_results
from .run import run_study, train_study
from .study import Study, plan_study

_QUIET = "echoplan.training"  # each training's own lines are in its folder's log


@command()
def study(arguments: Sequence[str]) -> int:
    """echoplan_study DATASET -tr TRAINER ..."""
    options = _parser().parse_args(arguments)
    where, request = folders(), _request(options)
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


@command()
def reproduce(arguments: Sequence[str]) -> int:
    """echoplan_reproduce PAPER -d DATASET ..."""
    options = _reproduce_parser().parse_args(arguments)
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
    sizes = [f"--{name}={getattr(options, name)}" for name in ("size", "frames") if getattr(options, name)]
    try:
        made = plan_study(where, request, cells=cells, weights=weights, processes=options.np)
        if not sizes:  # a plan that is there may have others
            return made
    except EchoPlanError as error:
        print(f"not ready yet ({error.problem}): planned and preprocessed now")
    asked = ["-d", options.dataset, "-tr", *request.trainers, "--protocol", "paper", "-p", request.plans_name]
    if planned_and_preprocessed([*asked, *sizes, "-np", str(options.np)]):
        print("some cases are left out, as said above")
    return plan_study(where, request, cells=cells, weights=weights, processes=options.np)


def _reproduce_parser() -> argparse.ArgumentParser:
    made = parser(
        "echoplan_reproduce",
        "Train a paper's tables anew, as its authors ran them (--protocol paper), and print each row beside what was "
        "printed, with the noise of seeds and patients, and what in the paper's protocol leaks. Begin with --dry_run. "
        "The same command goes on where it stopped.",
    )
    made.add_argument("paper", choices=tuple(PAPERS), help="which paper")
    made.add_argument("-d", dest="dataset", required=True, metavar="DATASET", help="CAMUS or EchoNet-Dynamic")
    made.add_argument("--tables", nargs="+", default=[], metavar="N", help="only these of the paper's tables")
    made.add_argument("--external", nargs="+", default=[], metavar="DATASET",
                      help="other converted datasets that tables also test on")  # fmt: skip
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="of the trainings")
    made.add_argument("--epochs", type=int, default=None, help="instead of the papers'")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                      help="change a setting of all recipes, or of one: TRAINER:KEY=VALUE")  # fmt: skip
    made.add_argument("--weights", nargs="+", type=_weights_of, default=[], metavar="TRAINER=FILE",
                      help="pretrained weights that are not in the usual places")  # fmt: skip
    made.add_argument("--name", default="", help="the study's folder, where reproduce_<paper> has other settings")
    made.add_argument("--size", metavar="N|HxW", help="instead of the papers' sizes")
    made.add_argument("--frames", metavar="T", help="instead of the papers' frames")
    made.add_argument("--dry_run", action="store_true", help="list the runs, their hours and what is missing")
    add_plans_name(made, default="Paper")
    add_processes(made)
    add_device(made)
    return made


def _weights_of(text: str) -> tuple[str, Path]:
    """An argparse type: TRAINER=FILE."""
    trainer, separator, file = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not TRAINER=FILE")
    path = existing_path(file)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{file} is no file")
    return trainer, path


def _parser() -> argparse.ArgumentParser:
    made = parser(
        "echoplan_study",
        "How much do more patients, longer clips and another augmentation bring? Trains every combination of what is "
        "named, on every fold and seed, and draws learning curves. It costs as many whole trainings as the product of "
        "all lists (frame trainers are not repeated for clip lengths); --dry_run says how many, and how much disk. The "
        "same command goes on where it stopped, a longer list keeps what is finished.",
    )
    made.add_argument("dataset", metavar="DATASET", help="name, id or folder name")
    made.add_argument("-tr", dest="trainers", nargs="+", required=True, metavar="TRAINER",
                      help="trainer names, or path/to/file.py:Class")  # fmt: skip
    made.add_argument("--train_sizes", nargs="+", default=[EVERYTHING], metavar="N",
                      help="patients to train on: numbers, or shares such as 50%%; nested draws")  # fmt: skip
    made.add_argument("--clip_lengths", nargs="+", type=int, default=[], metavar="T",
                      help="frames a clip of the clip trainers, instead of the plan's")  # fmt: skip
    made.add_argument("--augmentation", nargs="+", default=[], metavar="POLICY",
                      help="generic, ultrasound, none, or parts joined by +, instead of the recipes' own")  # fmt: skip
    made.add_argument("--grid", action="append", default=[], metavar="KEY=A,B",
                      help="train with each value of a setting of the recipes, or of one's: TRAINER:KEY=A,B; several "
                      "grids multiply")  # fmt: skip
    made.add_argument("--folds", nargs="+", type=int, default=[0], metavar="FOLD", help="of the dataset's splits")
    made.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED",
                      help="of weights, order, augmentation, and of which patients are drawn")  # fmt: skip
    made.add_argument("--epochs", type=int, default=None, help="instead of the recipes'")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                      help="change a setting of all recipes, or of one: TRAINER:KEY=VALUE")  # fmt: skip
    made.add_argument("--test_on", nargs="+", default=[], metavar="DATASET",
                      help="also predict the labelled cases of these raw datasets and compare")  # fmt: skip
    made.add_argument("--test_every_size", action="store_true",
                      help="with the trainings on all sizes, not only the largest")  # fmt: skip
    made.add_argument("--name", default="study", help="the study's folder in results/<Dataset>/studies")
    made.add_argument("--dry_run", action="store_true", help="print what would be trained, and stop")
    add_ef_options(made, VOLUME_RULES)
    add_plans_name(made)
    add_processes(made)
    add_device(made)
    return made


def _request(options: argparse.Namespace) -> StudyRequest:
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
        folds=tuple(options.folds),
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
