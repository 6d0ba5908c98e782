"""echoplan_train, echoplan_compare_prompts"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean, stdev
from typing import Any

from torch import nn

from echoplan.cli import folders, report_failures
from echoplan.device import choose_device
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


def train(options: argparse.Namespace) -> int:
    """echoplan_train DATASET FOLD -tr TRAINER"""
    settings = parse_settings(options.set)
    if options.epochs is not None:
        settings["epochs"] = options.epochs
    if options.augmentation is not None:
        settings["augmentation"] = options.augmentation
    where, stop_at = folders(), None
    if options.stop_after is not None:
        stop_at = time.time() + 3600 * options.stop_after
    if options.engine:
        return _train_on_cluster(options, _jobs(options, settings, where), where)
    with joined(os.environ, choose_device(options.device)) as (world, device):
        found: dict[str, list[float]] = {}
        for job in _jobs(options, settings, where):
            setup = job.setup(where)
            summary = train_fold(
                job,
                setup,
                device=device,
                world=world,
                resume=options.resume,
                validate=options.val,
                overwrite=options.overwrite,
                stop_at=stop_at,
            )
            if world.is_main:
                target = setup.description.target
                each = [f", {name} {dice:.4f}" for name, dice in dice_by_dataset(summary, target).items()]
                dice = validation_dice(summary, target)
                print(f"fold {job.fold}: validation Dice {dice:.4f} ({target}{''.join(each)}), {setup.folder}")
                found.setdefault(setup.model_folder.name, []).append(dice)
        print("".join(f"{name}: {over_folds(dices)}\n" for name, dices in found.items() if len(dices) > 1), end="")
    return 0


def over_folds(dices: Sequence[float]) -> str:
    """Several folds' validation Dice in a line."""
    return f"validation Dice {mean(dices):.4f} ± {stdev(dices):.4f} (mean ± SD of {len(dices)} folds)"


def compare_prompts(options: argparse.Namespace) -> int:
    """echoplan_compare_prompts DATASET FOLD -tr TRAINER"""
    find_method(options.trainer)
    where = folders()
    job = FoldJob(options.dataset, 0, options.trainer, plans_name=options.plans_name)
    for fold in job.folds(where, options.folds):
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
    results, before = engine.train(
        jobs, where, resume=options.resume, validate=options.val, overwrite=options.overwrite
    )
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
            weights=options.weights,
        )
        for name in options.trainers
    ]
    return [replace(job, fold=fold) for job in jobs for fold in job.folds(where, options.folds)]
