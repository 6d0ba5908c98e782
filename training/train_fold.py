"""One fold's training as plain values, and carried out: what a command line, a study or a cluster's task asks for."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from filelock import FileLock, Timeout

from echoplan import layout
from echoplan.errors import EchoPlanError
from echoplan.files import partial_prefix, read_json, sweep_partial_files, write_json
from echoplan.paths import Folders
from echoplan.plans import Plan, ResolvedPlan

from .distributed import World
from .fold import FoldSetup, prepare_fold, read_splits
from .initialization import network_settings_of
from .methods import Method, find_method, method_registry
from .model_folder import ModelFolder
from .resume_check import as_started
from .trainer import Trainer
from .validation import judge_sampled, validate_fold

_log = logging.getLogger(__name__)
_PATIENCE = 5.0  # seconds


@dataclass(frozen=True)
class FoldJob:
    """What to train, in values that can be sent to another process.

    Attributes:
        dataset: name, id or folder name.
        fold: its number.
        trainer: as `-tr` names it.
        settings: changed settings of the recipe. A training that goes on has those that it was started with.
        plans_name: the plan's file name without its ending.
        seed: of the weights, the order and the augmentation; None: that of the training that goes on, or 0.
        processes: data-loading workers.
        weights: a file with weights to start from.
    """

    dataset: str
    fold: int
    trainer: str = "UNetTrainer"
    settings: Mapping[str, Any] = field(default_factory=dict)
    plans_name: str = layout.DEFAULT_PLANS
    seed: int | None = None
    processes: int = 0
    weights: Path | None = None

    @property
    def name(self) -> str:
        """As users are told of it."""
        return f"{self.trainer.rpartition(':')[2]} fold {self.fold}"

    def method(self, plan: ResolvedPlan | None = None) -> Method[Any]:
        """The method with the plan's and the job's settings, and of its network those of a checkpoint it starts from.

        Raises:
            EchoPlanError: there is no such method or setting, or the checkpoint cannot be read.
        """
        method, planned = find_method(self.trainer), {} if plan is None else plan.settings
        begun = {} if self.weights is None else network_settings_of(self.weights, method)
        return method.with_settings({**begun, **planned, **self.settings})

    def plan(self, where: Folders) -> ResolvedPlan:
        """What is planned for the trainer.

        Raises:
            EchoPlanError: the dataset is not planned for it.
        """
        method = self.method()
        # One of the project's own is in the plan with what its paper asks for, or has to be planned first.
        configuration = None if self.trainer in method_registry() else method.configuration
        file = where.find_preprocessed(self.dataset) / layout.plan_file(self.plans_name)
        return Plan.read(file).resolve(method.name, configuration=configuration)

    def folds(self, where: Folders, wanted: Sequence[int] | None = None) -> list[int]:
        """The wanted folds, or all that the trainer's plan has.

        Raises:
            EchoPlanError: the dataset is not planned for the trainer.
        """
        splits = read_splits(where.find_preprocessed(self.dataset), self.plan(where))
        return list(range(len(splits)) if wanted is None else wanted)

    def setup(self, where: Folders) -> FoldSetup:
        """The fold's plan, store and cases.

        Raises:
            EchoPlanError: see `prepare_fold`.
        """
        return prepare_fold(where, self.dataset, self.plan(where), trainer=self.method().name, fold=self.fold)


def train_fold(
    job: FoldJob,
    setup: FoldSetup,
    *,
    device: torch.device | str = "cpu",
    world: World | None = None,
    resume: bool = False,
    validate: bool = False,
    overwrite: bool = False,
    stop_at: float | None = None,
) -> Path:
    """Train a fold to its end and validate it, doing only what is not done yet.

    Args:
        job: what to train.
        setup: of `FoldJob.setup`.
        device: where to train.
        world: the processes that train together.
        resume: go on with a training that was started; a finished one is left as it is.
        validate: only validate a finished training again.
        overwrite: throw away what is there, and start again.
        stop_at: when to stop, as `time.time` counts, with what is done saved; None: at the end.

    Returns:
        validation/summary.json of the fold; where a paper's split has test cases, test/summary.json lies beside it.

    Raises:
        EchoPlanError: something is there, and nothing was said of what to do with it; it was started with other
            settings than the job's; another process trains the fold just now; or the method cannot train on this
            dataset.
        Terminated: SIGTERM came, the time was up, or a file asked to stop; what was done is saved.
    """
    world, method, seed = world or World(), job.method(setup.plan), job.seed or 0
    method.check_dataset(setup.description)
    with fold_lock(setup) if world.is_main else nullcontext():
        # Asked before anybody writes: what a process finds must not depend on how fast the others are.
        finished, started = world.broadcast(fold_progress(setup, overwrite=overwrite) if world.is_main else None)
        check_progress(setup, finished, started, resume=resume, validate=validate)
        if finished or started:
            checkpoint = setup.folder / layout.checkpoint_file("final" if finished else "latest")
            method, seed = as_started(checkpoint, method, job.settings, job.seed)
        if not finished:
            trainer = Trainer(
                method,
                setup,
                device=device,
                seed=seed,
                processes=job.processes,
                weights=job.weights,
                source=job.trainer,
                world=world,
                resume=started,
                stop_at=stop_at,
            )
            trainer.run_training()
        if world.is_main and (validate or not setup.summary.exists()):
            _validate(method, setup, device)
    return setup.summary


def _validate(method: Method[Any], setup: FoldSetup, device: torch.device | str) -> None:
    network = ModelFolder.read(setup.model_folder).load_network(setup.fold, device=device, trust_code=True)
    prompt = method.prompt_of_cases(network, setup)
    if setup.test:
        judge_sampled(network, setup, setup.test, setup.folder / layout.TEST, prompt=prompt)
    if setup.plan.judging == "sampled":
        judge_sampled(network, setup, setup.val, setup.summary.parent, prompt=prompt)
    else:
        validate_fold(network, setup, prompt=prompt)


@contextmanager
def fold_lock(setup: FoldSetup) -> Iterator[None]:
    """Hold a fold as long as this lasts, so that no second training writes into its folder.

    The system lets go of it when the process ends, however it ends. On a network drive it keeps processes of several
    machines apart where the drive has locks.

    Raises:
        EchoPlanError: another process trains the fold; its machine, number and start are named.
    """
    holder = setup.model_folder / layout.lock_holder_file(setup.fold)
    holder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(holder.with_name(layout.lock_file(setup.fold)))
    try:
        # Not at once: workers of a killed training live, and hold on to it, a moment longer.
        lock.acquire(timeout=_PATIENCE)
    except Timeout as error:
        about = read_json(holder) if holder.exists() else {}
        who = ", ".join(f"{what} {about[what]}" for what in ("process", "machine", "since") if what in about)
        raise EchoPlanError(
            f"fold {setup.fold} is being trained just now{f' ({who})' if who else ''}",
            file=setup.folder,
            remedy="wait for it, or stop it and go on with --c",
        ) from error
    except (OSError, NotImplementedError):
        _log.warning("%s is on a drive without locks: two trainings of one fold would not notice each other", holder)
        yield
        return
    try:
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        write_json(holder, {"process": os.getpid(), "machine": socket.gethostname(), "since": since})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def validation_dice(summary: Path, target: str) -> float:
    """The mean Dice of a structure over all labelled frames of a fold's validation; of several datasets, their mean."""
    each = dice_by_dataset(summary, target)
    return fmean(each.values()) if each else _mean_dice(read_json(summary), target)


def dice_by_dataset(summary: Path, target: str) -> dict[str, float]:
    """The mean Dice of a structure in each source dataset that the fold validates; empty where there is only one."""
    return {name: _mean_dice(part, target) for name, part in read_json(summary).get("datasets", {}).items()}


def _mean_dice(summary: Mapping[str, Any], target: str) -> float:
    dice: float = summary["mean"][target]["all"]["dice"]["mean"]
    return dice


def check_progress(setup: FoldSetup, finished: bool, started: bool, *, resume: bool, validate: bool) -> None:
    """Raise an EchoPlanError if something is there and nothing was said of what to do with it; see `train_fold`."""
    if (finished or started) and not (resume or validate):
        raise EchoPlanError(
            f"fold {setup.fold} is {'trained' if finished else 'partly trained'} already",
            file=setup.folder,
            remedy="--c goes on where it stopped, --val validates again, --overwrite starts again",
        )
    if validate and not finished:
        remedy = "go on with --c instead of --val" if started else "train it first: the same command without --val"
        raise EchoPlanError(f"fold {setup.fold} is not trained to its end", file=setup.folder, remedy=remedy)


def fold_progress(setup: FoldSetup, *, overwrite: bool = False) -> tuple[bool, bool]:
    """Whether the fold is trained to its end, and whether its training was started; overwriting clears both.

    What a killed process left half-written or half-removed is removed.
    """
    sweep_partial_files(setup.folder)
    sweep_partial_files(setup.model_folder, below=False)  # its other folds may be at work
    if overwrite and setup.folder.exists():
        # Moved away in one step: killed while it removes file after file, it could leave a final checkpoint, or the
        # summary of a validation that the new training would then take for its own.
        discarded = setup.folder.with_name(partial_prefix() + setup.folder.name)
        setup.folder.rename(discarded)
        shutil.rmtree(discarded)
    final, latest = (setup.folder / layout.checkpoint_file(kind) for kind in ("final", "latest"))
    return final.exists(), latest.exists()
