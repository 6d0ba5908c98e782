"""echoplan_train, echoplan_compare_prompts"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from echoplan.cli import (
    add_device,
    add_plans_name,
    add_processes,
    command,
    existing_path,
    fold_text,
    folders,
    parser,
    positive_count,
    report_failures,
)
from echoplan.cluster import add_engine, check_engine
from echoplan.device import choose_device
from echoplan.models import DEFAULT, shipped_model
from echoplan.paths import Folders

from ..evaluation.metrics import summarise
from .distributed import joined
from .fold import FoldSetup
from .methods import find_method
from .model_folder import ModelFolder
from .prompts import CasePrompts, prompt_kinds, without_begun
from .ray_engine import RayTraining, results_table
from .recipe import parse_settings
from .train_fold import FoldJob, dice_by_dataset, train_fold, validation_dice
from .validation import validate_fold


@command(resume="--c")
def train(arguments: Sequence[str]) -> int:
    """echoplan_train DATASET FOLD -tr TRAINER"""
    options = _parser().parse_args(arguments)
    check_engine(options, "gpus_per_fold", "cpus_per_fold", "processes_per_fold")
    settings = parse_settings(options.set)
    if options.epochs is not None:
        settings["epochs"] = options.epochs
    if options.augmentation is not None:
        settings["augmentation"] = options.augmentation
    where = folders()
    if options.engine:
        return _train_on_cluster(options, _jobs(options, settings, where), where)
    with joined(os.environ, choose_device(options.device)) as (world, device):
        for job in _jobs(options, settings, where):
            setup = job.setup(where)
            summary = train_fold(
                job,
                setup,
                device=device,
                world=world,
                resume=options.c,
                validate=options.val,
                overwrite=options.overwrite,
            )
            if world.is_main:
                target = setup.description.target
                each = [f", {name} {dice:.4f}" for name, dice in dice_by_dataset(summary, target).items()]
                dice = validation_dice(summary, target)
                print(f"fold {job.fold}: validation Dice {dice:.4f} ({target}{''.join(each)}), {setup.folder}")
    return 0


@command()
def compare_prompts(arguments: Sequence[str]) -> int:
    """echoplan_compare_prompts DATASET FOLD -tr TRAINER"""
    made = parser(
        "echoplan_compare_prompts",
        "What a prompt would add: a promptable method's validation cases begun by itself, with points, boxes and masks "
        "from the labels, and with points and boxes near these. Only the first is what echoplan_predict does.",
    )
    made.add_argument("dataset", metavar="DATASET", help="name, id or folder name")
    made.add_argument("fold", type=fold_text, metavar="FOLD", help="a trained fold, or all")
    made.add_argument("-tr", dest="trainer", default="E3SAM2Trainer", metavar="TRAINER", help="a promptable trainer")
    add_plans_name(made)
    add_device(made)
    options = made.parse_args(arguments)
    find_method(options.trainer)
    where = folders()
    job = FoldJob(options.dataset, 0, options.trainer, plans_name=options.plans_name)
    for fold in job.folds(where, options.fold):
        setup = replace(job, fold=fold).setup(where)
        model = ModelFolder.read(setup.model_folder)
        network = model.load_network(setup.fold, device=choose_device(options.device), trust_code=True)
        kinds = prompt_kinds(network)
        print(f"fold {setup.fold}, {len(setup.val)} cases       Dice %   IoU %   HD95 mm  ASSD mm")
        for kind in kinds:
            for name, means in _compared(network, setup, kind).items():
                print(f"{name:24} {_figures(means)}")
        if "mask" in kinds:
            print("A mask is the answer in its own frame, which is left out of its line.")
        print(f"written: {setup.folder / 'prompts'}")
    return 0


def _compared(network: nn.Module, setup: FoldSetup, kind: str) -> dict[str, Mapping[str, Any]]:
    """The means of one kind of prompt, by the name of their line; none where no frame is left to judge."""
    prompts = CasePrompts(network, setup, kind)
    summary = validate_fold(network, setup, folder=setup.folder / "prompts" / kind, prompt=prompts)
    target = setup.description.target
    judged = without_begun(summary["per_case"], prompts.begun) if kind == "mask" else summary["per_case"]
    means = summarise(judged.values(), target)
    return {kind: means["all"]} if means else {}


def _figures(means: Mapping[str, Any]) -> str:
    values = [(100, "dice"), (100, "iou"), (1, "hd95_mm"), (1, "assd_mm")]
    figures = [f"{scale * means[name]['mean']:8.2f}" if name in means else "       –" for scale, name in values]
    return " ".join(figures)


def _train_on_cluster(options: argparse.Namespace, jobs: Sequence[FoldJob], where: Folders) -> int:
    engine = RayTraining(
        options.address,
        options.device,
        gpus=options.gpus_per_fold,
        cpus=options.cpus_per_fold,
        processes=options.processes_per_fold,
    )
    results, before = engine.train(jobs, where, resume=options.c, validate=options.val, overwrite=options.overwrite)
    print(
        f"validation Dice{f', {before} of {len(jobs)} done before' if before else ''}\n{results_table(jobs, results)}"
    )
    return report_failures(results.failures, work="training")


def _jobs(options: argparse.Namespace, settings: Mapping[str, Any], where: Folders) -> list[FoldJob]:
    """All folds of all trainers; a misspelt trainer or setting is found before the first one trains."""
    for name in options.trainers:
        find_method(name).with_settings(settings)
    jobs = [
        FoldJob(
            options.dataset,
            0,
            trainer=name,
            settings=settings,
            plans_name=options.plans_name,
            seed=options.seed,
            processes=options.np,
            weights=options.pretrained_weights,
        )
        for name in options.trainers
    ]
    return [replace(job, fold=fold) for job in jobs for fold in job.folds(where, options.fold)]


def _parser() -> argparse.ArgumentParser:
    made = parser("echoplan_train", "Train a method on one fold, or on all folds one after another.")
    made.add_argument("dataset", metavar="DATASET", help="name, id or folder name; A+B trains on several")
    made.add_argument("fold", type=fold_text, metavar="FOLD", help="0 to 4, or all")
    made.add_argument("-tr", dest="trainers", nargs="+", default=["UNetTrainer"], metavar="TRAINER",
                      help="trainer names, or path/to/file.py:Class")  # fmt: skip
    add_plans_name(made)
    made.add_argument("--epochs", type=int, default=None, help="instead of the recipe's")
    made.add_argument("--augmentation", default=None, metavar="POLICY",
                      help="generic (the method's own), ultrasound, none, or parts joined by +")  # fmt: skip
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the recipe")
    made.add_argument("--seed", type=int, help="of weights, order and augmentation; 0 if not given")
    made.add_argument("--c", action="store_true", help="go on where the training stopped, with its settings")
    made.add_argument("--val", action="store_true", help="only validate a finished training again")
    made.add_argument("--overwrite", action="store_true", help="throw away a training that is there and start again")
    made.add_argument(
        "-pretrained_weights",
        type=_weights,
        default=None,
        metavar="FILE",
        help="weights to start from: published ones, or a checkpoint of the same trainer trained on other data, whose "
        f"network's settings are taken; {DEFAULT}: the model that comes with EchoPlan",
    )
    add_processes(made)
    add_device(made)
    add_engine(made)
    made.add_argument("--gpus_per_fold", type=_amount, metavar="N",
                      help="with --engine: 0.5 puts two folds on a GPU, 2 trains a fold on two; not given: 1 where the "
                      "cluster has GPUs")  # fmt: skip
    made.add_argument("--cpus_per_fold", type=positive_count, metavar="N", help="with --engine: not given: by -np")
    made.add_argument("--processes_per_fold", type=positive_count, metavar="N",
                      help="with --engine: processes that train a fold together; not given: one a GPU")  # fmt: skip
    return made


def _weights(text: str) -> Path:
    """An argparse type: a file, or the name of a model that comes with EchoPlan."""
    shipped = None if Path(text).exists() else shipped_model(text)
    if shipped is None:
        return existing_path(text)
    model = ModelFolder.read(shipped)
    return model.checkpoint(model.folds()[0])


def _amount(text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = -1.0
    if not 0 <= amount < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount such as 0.5, 1 or 2")
    return amount
