"""echoplan_train"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from echoplan.cli import add_device, add_plans_name, add_processes, command, existing_path, folders, parser
from echoplan.device import choose_device
from echoplan.errors import EchoPlanError
from echoplan.files import read_json

from .fold import FoldSetup, prepare_fold
from .model_folder import ModelFolder
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
    where = folders()
    for name, trainer in trainers.items():
        for fold in _folds(
            options.fold, len(read_json(where.find_preprocessed(options.dataset) / "splits_final.json"))
        ):
            setup = prepare_fold(
                where,
                options.dataset,
                trainer=trainer.__name__,
                configuration=trainer.configuration,
                fold=fold,
                plans_name=options.plans_name,
            )
            _train_fold(
                trainer(
                    setup,
                    trainer.recipe_class().with_settings(settings),
                    device=choose_device(options.device),
                    seed=options.seed,
                    processes=options.np,
                    weights=options.pretrained_weights,
                    source=name,
                ),
                options,
            )
    return 0


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
    setup = trainer.setup
    finished = (setup.folder / "checkpoint_final.pth").exists()
    started = (setup.folder / "checkpoint_latest.pth").exists()
    if options.overwrite and setup.folder.exists():
        shutil.rmtree(setup.folder)
        finished = started = False
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
    if options.val or not summary_file.exists():
        model = ModelFolder.read(setup.model_folder)
        network = model.load_network(setup.fold, device=trainer.device)
        validate_fold(network, setup, stride=model.stride)
    _show(setup, summary_file)


def _show(setup: FoldSetup, summary_file: Path) -> None:
    dice = read_json(summary_file)["mean"][setup.description.target]["all"]["dice"]["mean"]
    print(
        f"fold {setup.fold}: validation Dice {dice:.4f} ({setup.description.target}), {setup.folder}", file=sys.stdout
    )
