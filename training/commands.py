"""echoplan_train, echoplan_compare_prompts"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from echoplan.cli import add_device, add_plans_name, add_processes, command, existing_path, folders, parser
from echoplan.device import choose_device
from echoplan.errors import EchoPlanError
from echoplan.files import read_json
from echoplan.networks.streaming import StreamingNetwork

from .fold import FoldSetup, prepare_fold
from .model_folder import ModelFolder
from .parallel import joined
from .prompts import PROMPT_KINDS, prompt_of_case
from .recipe import parse_settings
from .trainers import EchoTrainer, find_trainer
from .validation import validate_fold


@command
def train(arguments: Sequence[str]) -> int:
    """echoplan_train DATASET FOLD -tr TRAINER"""
    options = _parser().parse_args(arguments)
    trainers = {name: find_trainer(name) for name in options.trainers}
    settings = parse_settings(options.set)
    if options.epochs is not None:
        settings["epochs"] = options.epochs
    with joined(os.environ, choose_device(options.device)) as (world, device):
        for name, trainer in trainers.items():
            for setup in _setups(trainer, options):
                recipe = trainer.recipe_class().with_settings(settings)
                _train_fold(
                    trainer(
                        setup,
                        recipe,
                        device=device,
                        seed=options.seed,
                        processes=options.np,
                        weights=options.pretrained_weights,
                        source=name,
                        world=world,
                    ),
                    options,
                )
    return 0


def _setups(trainer: type[EchoTrainer], options: argparse.Namespace) -> Iterator[FoldSetup]:
    """The folds that FOLD names, one after the other."""
    where = folders()
    count = len(read_json(where.find_preprocessed(options.dataset) / "splits_final.json"))
    for fold in _folds(options.fold, count):
        yield prepare_fold(
            where,
            options.dataset,
            trainer=trainer.__name__,
            configuration=trainer.configuration,
            fold=fold,
            plans_name=options.plans_name,
        )


@command
def compare_prompts(arguments: Sequence[str]) -> int:
    """echoplan_compare_prompts DATASET FOLD -tr TRAINER"""
    made = parser(
        "echoplan_compare_prompts",
        "What a click would add: a promptable method's validation cases begun by itself, with a point from the label, "
        "and with a point near it. Only the first is what echoplan_predict does.",
    )
    made.add_argument("dataset", metavar="DATASET", help="name, id or folder name")
    made.add_argument("fold", metavar="FOLD", help="a trained fold")
    made.add_argument("-tr", dest="trainer", default="E3SAM2Trainer", metavar="TRAINER", help="a promptable trainer")
    add_plans_name(made)
    add_device(made)
    options = made.parse_args(arguments)
    trainer = find_trainer(options.trainer)
    for setup in _setups(trainer, options):
        model = ModelFolder.read(setup.model_folder)
        network = model.load_network(setup.fold, device=choose_device(options.device))
        if not isinstance(network, StreamingNetwork) or "prompts" not in signature(network.stream).parameters:
            raise EchoPlanError(f"{trainer.__name__} takes no prompts", remedy="choose E3SAM2Trainer or SAM2Trainer")
        print(f"fold {setup.fold}, {len(setup.val)} cases       Dice %   IoU %   HD95 mm  ASSD mm")
        for kind in PROMPT_KINDS:
            summary = validate_fold(
                network,
                setup,
                stride=model.stride,
                folder=setup.folder / "prompts" / kind,
                prompt=partial(prompt_of_case, setup.store, kind=kind),
            )
            print(f"{kind:24} {_figures(summary['mean'][setup.description.target]['all'])}")
        print(f"written: {setup.folder / 'prompts'}")
    return 0


def _figures(means: Mapping[str, Any]) -> str:
    values = [(100, "dice"), (100, "iou"), (1, "hd95_mm"), (1, "assd_mm")]
    known = [f"{scale * means[name]['mean']:8.2f}" if name in means else "       –" for scale, name in values]
    return " ".join(known)


def _parser() -> argparse.ArgumentParser:
    made = parser("echoplan_train", "Train a method on one fold, or on all folds one after another.")
    made.add_argument("dataset", metavar="DATASET", help="name, id or folder name")
    made.add_argument("fold", metavar="FOLD", help="0 to 4, or all")
    made.add_argument("-tr", dest="trainers", nargs="+", default=["UNetTrainer"], metavar="TRAINER",
                      help="trainer names, or path/to/file.py:Class")  # fmt: skip
    add_plans_name(made)
    made.add_argument("--epochs", type=int, default=None, help="instead of the recipe's")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the recipe")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--c", action="store_true", help="resume after the last whole epoch")
    made.add_argument("--val", action="store_true", help="only validate a finished training again")
    made.add_argument("--overwrite", action="store_true", help="throw away a training that is there and start again")
    made.add_argument(
        "-pretrained_weights", type=existing_path, default=None, metavar="FILE", help="weights to start from"
    )
    add_processes(made)
    add_device(made)
    return made


def _folds(text: str, count: int) -> list[int]:
    if text == "all":
        return list(range(count))
    if not text.isdigit():
        raise EchoPlanError(f"FOLD is {text!r}; it must be 0 to {count - 1}, or all")
    return [int(text)]


def _train_fold(trainer: EchoTrainer, options: argparse.Namespace) -> None:
    setup, world = trainer.setup, trainer.world
    # Asked before anybody writes: what a process finds must not depend on how fast the others are.
    finished, started = world.from_leader(_progress(setup, options) if world.leads else None)
    if (finished or started) and not (options.c or options.val):
        raise EchoPlanError(
            f"fold {setup.fold} is {'trained' if finished else 'partly trained'} already",
            file=setup.folder,
            remedy="--c goes on where it stopped, --val validates again, --overwrite starts again",
        )
    if options.val and not finished:
        raise EchoPlanError(f"fold {setup.fold} is not trained to its end", file=setup.folder, remedy="resume with --c")
    if not finished:
        trainer.run_training(resume=started)
    summary_file = setup.folder / "validation" / "summary.json"
    if not world.leads:
        return
    if options.val or not summary_file.exists():
        model = ModelFolder.read(setup.model_folder)
        network = model.load_network(setup.fold, device=trainer.device)
        validate_fold(network, setup, stride=model.stride)
    _show(setup, summary_file)


def _progress(setup: FoldSetup, options: argparse.Namespace) -> tuple[bool, bool]:
    """Whether the fold is trained to its end, and whether its training was started; --overwrite clears both."""
    if options.overwrite and setup.folder.exists():
        shutil.rmtree(setup.folder)
    return tuple((setup.folder / f"checkpoint_{name}.pth").exists() for name in ("final", "latest"))


def _show(setup: FoldSetup, summary_file: Path) -> None:
    dice = read_json(summary_file)["mean"][setup.description.target]["all"]["dice"]["mean"]
    print(
        f"fold {setup.fold}: validation Dice {dice:.4f} ({setup.description.target}), {setup.folder}", file=sys.stdout
    )
