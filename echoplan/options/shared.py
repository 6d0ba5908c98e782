"""Options that several commands take, and the types of their values."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from echoplan import layout
from echoplan.cluster import check_engine
from echoplan.models import DEFAULT, shipped_model
from echoplan.options import choices
from echoplan.options.parser import Parser

# Datasets, trainers, folds -------------------------------------------------------------------------------------------


def add_dataset(to: Parser, help: str, *, several: bool = False, required: bool = True, bare: bool = True) -> None:
    """-d, --dataset, and unless not `bare` the same without a name: `dataset`, a list where several may be given."""
    if bare:
        to.add_argument("given_dataset", nargs="*" if several else "?", metavar="DATASET", help=f"{help}; or by -d")
    needed = required and not bare
    to.add_argument("-d", "--dataset", nargs="+" if several else None, required=needed, metavar="DATASET", help=help)

    def settle(chosen: argparse.Namespace) -> None:
        given = vars(chosen).pop("given_dataset", None)
        if given and chosen.dataset:
            to.error(f"the dataset is named twice, by -d and as {given if isinstance(given, str) else ' '.join(given)}")
        chosen.dataset = chosen.dataset or given or None
        if required and not chosen.dataset:
            to.error("no dataset is named: give DATASET, or -d DATASET")

    to.checks.append(settle)


def add_dataset_and_folds(to: Parser, dataset_help: str, folds_help: str) -> None:
    """DATASET FOLD ..., or -d and -f: `dataset`, and `folds` as `add_folds` has them."""
    add_dataset(to, dataset_help)
    to.add_argument("given_folds", nargs="*", type=_fold, metavar="FOLD", help=f"{folds_help}; or by -f")
    add_folds(to, folds_help, default=())

    def settle(chosen: argparse.Namespace) -> None:
        given = vars(chosen).pop("given_folds", None) or []
        if chosen.dataset and getattr(chosen, "given_dataset", None):  # -d DATASET FOLD
            try:
                given = [_fold(chosen.given_dataset), *given]
            except argparse.ArgumentTypeError as error:
                to.error(str(error))
            chosen.given_dataset = None
        if bool(given) == (chosen.folds != ()):
            to.error("the folds are named twice" if given else "no fold is named: give a number, or all")
        chosen.folds = _folds(to, given, "FOLD") if given else chosen.folds

    to.checks.insert(0, settle)


def add_folds(to: Parser, help: str, *, default: tuple[int, ...] | None = None) -> None:
    """-f, --folds: numbers as a sorted tuple; "all" as None."""
    to.add_argument("-f", "--folds", nargs="+", default=default, metavar="FOLD", type=_fold, action=_Folds, help=help)


def add_trainers(to: Parser, help: str, **more: Any) -> None:
    """-tr, --trainers: names, or path/to/file.py:Class."""
    to.add_argument("-tr", "--trainers", nargs="+", metavar="TRAINER", help=help, **more)


def add_trainer(to: Parser, help: str, **more: Any) -> None:
    """-tr of commands that take one: `trainer`."""
    to.add_argument("-tr", "--trainers", dest="trainer", metavar="TRAINER", help=help, **more)


def add_plans_name(to: Parser, *, default: str | None = layout.DEFAULT_PLANS) -> None:
    """-p: which plan of the dataset, where there are several."""
    to.add_argument("-p", "--plans_name", default=default, metavar="NAME", help="the plan's name")


def add_models(to: Parser) -> None:
    """Which model, beside its dataset: trainers, plan, configuration, folds, or folders; and which checkpoint."""
    add_trainers(to, "which trainer's model; several are an ensemble")
    add_plans_name(to, default=None)
    to.add_argument("-c", "--configuration", metavar="CONFIGURATION", help="which configuration's model")
    add_folds(to, "which folds, or all; every fold trained if not given")
    add_model_folders(to)
    to.add_argument("-chk", "--checkpoint", choices=("final", "best"), default="final", help="which checkpoint")


def add_model_folders(to: Parser, *, bare: bool = False) -> None:
    """-m, --model: model folders anywhere, and whether their code may run; with `bare` also without a name."""
    help = f"a model folder anywhere; several are an ensemble; {DEFAULT}: the model that comes with EchoPlan"
    if bare:
        to.add_argument("given_models", nargs="*", type=model_folder, metavar="MODEL", help=f"{help}; or by -m")
    to.add_argument("-m", "--model", dest="models", nargs="+", type=model_folder, metavar="MODEL", help=help)
    to.add_argument("--trust_code", action="store_true", help="run the code of a trainer that the model brings along, "
                    "where it is none of your own results")  # fmt: skip

    def settle(chosen: argparse.Namespace) -> None:
        given = vars(chosen).pop("given_models", None)
        if bool(given) == bool(chosen.models):
            to.error("the model is named twice" if given else "no model is named: give MODEL, or -m MODEL")
        chosen.models = given or chosen.models

    if bare:
        to.checks.append(settle)


# What there is already -----------------------------------------------------------------------------------------------


def add_continue(to: Parser, help: str = "", *, old: Sequence[str] = ()) -> None:
    """--c, --continue: `resume`. Without a help the command goes on by itself, and takes the option for granted."""
    told = help or "go on where it stopped, as the same command does without"
    action = to.add_argument("--c", "--continue", dest="resume", action="store_true", help=told)
    to.also(action, *old)
    if help:
        to.resume = ("--c", "--continue", *old)


def add_overwrite(to: Parser, help: str = "do again what is there already") -> None:
    """--overwrite."""
    to.add_argument("--overwrite", action="store_true", help=help)


def add_output(to: Parser, help: str, *, required: bool = True, metavar: str = "OUT") -> argparse.Action:
    """-o, --output: a path."""
    return to.add_argument("-o", "--output", type=Path, required=required, metavar=metavar, help=help)


# How it is computed --------------------------------------------------------------------------------------------------


def add_processes(to: Parser) -> None:
    """-np: how many worker processes; 0 works in this process."""
    default = min(8, os.cpu_count() or 1)
    to.add_argument("-np", type=_count, default=default, metavar="N", help="worker processes; 0: none")


def add_device(to: Parser) -> None:
    """--device: where networks run."""
    action = to.add_argument("--device", type=_device, default="auto", metavar="DEVICE",
                             help="auto (a GPU where there is one), cpu, mps, cuda, or one of several GPUs: cuda:1",
                             )  # fmt: skip
    to.also(action, "-device")


def add_engine(to: Parser, *needing: str) -> None:
    """--engine and --address: what spreads the work over machines.

    Args:
        to: gets them.
        needing: more options of the parser that mean nothing without the engine, by their attribute's name.
    """
    to.add_argument("--engine", choices=("ray",), help="spread the work with Ray; see docs/scaling.md")
    to.add_argument("--address", metavar="HOST:PORT",
                    help="with --engine: the Ray cluster, or auto for the one this machine is part of; not given: "
                    "$RAY_ADDRESS, else this machine alone")  # fmt: skip
    to.checks.append(lambda chosen: check_engine(chosen, *needing))


def add_settings(to: Parser, help: str) -> None:
    """--set: settings of recipes."""
    to.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=help)


def add_epochs(to: Parser) -> None:
    """--epochs."""
    to.add_argument("--epochs", type=positive_count, metavar="N", help="instead of the recipe's")


def add_size(to: Parser, help: str, *, square: bool = False) -> None:
    """--size: (rows, columns), or where it has to be square the side."""
    metavar = "N" if square else "N|HxW"
    to.add_argument("--size", type=_square if square else image_size, metavar=metavar, help=help)


# EF ------------------------------------------------------------------------------------------------------------------


def add_ef_method(to: Parser, help: str = "the rule for volumes", *, default: str | None = "simpson") -> None:
    """--ef_method: the rule for volumes; --method is an earlier spelling."""
    to.also(to.add_argument("--ef_method", choices=choices.VOLUME_RULES, default=default, help=help), "--method")


def add_ef_reference(to: Parser) -> None:
    """--ef_reference: what EF is compared with."""
    to.add_argument("--ef_reference", choices=("masks", "table"), default="masks",
                    help="the reference EF: that of the reference masks by the same rule where there are such, or "
                    "always the dataset's own")  # fmt: skip


def add_coverage(to: Parser) -> None:
    """--coverage: of intervals."""
    to.add_argument("--coverage", type=_coverage, default=choices.COVERAGE, metavar="SHARE",
                    help="how often the intervals of EF and volumes hold the reference")  # fmt: skip


def add_find_phases(to: Parser) -> None:
    """--find_phases: ED and ES of the masks, whatever a table says."""
    to.add_argument("--find_phases", action="store_true",
                    help="find end-diastole and end-systole even where cases.csv gives them")  # fmt: skip


# Types ---------------------------------------------------------------------------------------------------------------


def existing_path(text: str) -> Path:
    """An argparse type: a path that must exist."""
    path = Path(text).expanduser()
    if not path.exists():
        what = "is a link that leads nowhere" if path.is_symlink() else "does not exist"
        raise argparse.ArgumentTypeError(f"{text} {what}")
    return path


def model_folder(text: str) -> Path:
    """An argparse type: a folder, or the name of a model that comes with EchoPlan."""
    shipped = None if Path(text).exists() else shipped_model(text)
    return shipped or existing_path(text)


def weights_file(text: str) -> Path:
    """An argparse type: a file, or the name of a model that comes with EchoPlan, for its checkpoint."""
    shipped = None if Path(text).exists() else shipped_model(text)
    if shipped is None:
        return existing_path(text)
    _, checkpoint = next(layout.folds_with(shipped, layout.checkpoint_file("final")))
    return checkpoint


def positive_count(text: str) -> int:
    """An argparse type: 1, 2, 3, ..."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1, 2, 3, ...")
    return int(text)


def image_size(text: str) -> tuple[int, int]:
    """An argparse type: N or HxW, as (rows, columns)."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None or int(match[1]) == 0 or match[2] == "0":
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; give 256 or 192x256 (height x width)")
    return int(match[1]), int(match[2] or match[1])


def label(text: str) -> tuple[str, int | None]:
    """An argparse type: NAME=VALUE, or NAME."""
    name, equals, value = text.partition("=")
    if not name or (equals and not value.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE, as in LV=1, and no NAME")
    return name, int(value) if equals else None


def numbered(labels: Sequence[tuple[str, int | None]]) -> dict[str, int]:
    """Name -> value of what `label` gives: those without a value count on from 1."""
    return {name: place if value is None else value for place, (name, value) in enumerate(labels, start=1)}


def named_path(text: str) -> tuple[str, Path]:
    """An argparse type: NAME=PATH, which must exist."""
    name, _, path = text.partition("=")
    if not name or not path:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=PATH")
    return name, existing_path(path)


def positive_amount(text: str) -> float:
    """An argparse type: a number above 0."""
    amount = _number(text)
    if not 0 < amount < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return amount


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _square(text: str) -> int:
    height, width = image_size(text)
    if height != width:
        raise argparse.ArgumentTypeError(f"{text!r} is not square, as it has to be here; give {height}, say")
    return height


def _coverage(text: str) -> float:
    if not 0 < _number(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1, such as 0.9")
    return float(text)


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, cpu, mps, cuda or cuda:1")
    return text


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not 0, 1, 2, ...")
    return int(text)


def _fold(text: str) -> int | str:
    if re.fullmatch(r"[23]d(_\w+)?", text):  # what nnU-Net's users are used to type before the fold
        raise argparse.ArgumentTypeError(
            f"{text!r} is no fold but a configuration, which is not named here: each trainer has its own; give the "
            "dataset and a fold's number, or all"
        )
    if text == "all":
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a fold: give numbers from 0, or all")
    return int(text)


def _folds(to: argparse.ArgumentParser, values: Sequence[int | str], option: str) -> tuple[int, ...] | None:
    if "all" in values and len(values) > 1:
        to.error(f"{option}: give numbers or all, not both")
    return None if "all" in values else tuple(sorted({int(value) for value in values}))


class _Folds(argparse.Action):
    def __call__(
        self, to: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, _folds(to, values, option or "-f"))
