"""Folds times trainers on a Ray cluster: each fold a task that resumes from its checkpoint when its worker dies.

A task trains as `echoplan_train` does, in a process of its own, and writes its files itself; the command only follows
metrics.jsonl. Retries are the command's, not Ray's: a fold is given up only after several deaths without any progress.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from echoplan import layout
from echoplan.errors import EchoPlanError, Terminated
from echoplan.paths import Folders
from echoplan.ray_cluster import Cluster, connected, in_words
from echoplan.ray_tasks import ATTEMPTS, SharedDisk, absolute, last_words, noting_sigterm, own_error, shared_disk

from .fold import FoldSetup
from .methods import find_trainer
from .progress import FoldView
from .together import train_together
from .train_fold import FoldJob, check_progress, fold_progress, train_fold, validation_dice

logger = logging.getLogger(__name__)

_LOOK_EVERY_SECONDS = 1.0
_WORD_SECONDS = 60.0  # between two words on what is waited for
_PASSED_ON = ("ECHOPLAN_WEIGHTS",)  # of the command's environment
_BEGUN, _DONE, _FAILED, _TERMINATED = "begun", "done", "failed", "terminated"


@dataclass(frozen=True)
class FoldTask:
    """What a worker is told.

    Attributes:
        job: the fold; all its paths absolute.
        where: the three folders, absolute.
        disk: what the node must see.
        device: "cuda" or "cpu".
        processes: more than one train together, under torchrun.
        threads: CPU threads of each.
        validate: only validate a finished training again.
        environment: variables of the command that matter.
    """

    job: FoldJob
    where: Folders
    disk: SharedDisk
    device: str
    processes: int = 1
    threads: int = 1
    validate: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    def train(self) -> float:
        """Train what is not trained yet; the validation Dice."""
        self.disk.check()
        os.environ.update(self.environment)
        setup = self.job.setup(self.where)
        if self.processes > 1:
            train_together(
                self.job, self.where, processes=self.processes, device=self.device, threads=self.threads,
                validate=self.validate,
            )  # fmt: skip
            summary = setup.folder / layout.VALIDATION / layout.SUMMARY_FILE
        else:
            trainer = self.job.make_trainer(setup, device=torch.device(self.device))
            summary = train_fold(trainer, resume=True, validate=self.validate)
        return validation_dice(summary, setup.description.target)


def _train_in_worker(task: FoldTask) -> Iterator[tuple[str, Any]]:
    """The task: says where it begins, then what came of it."""
    yield _BEGUN, socket.gethostname()
    try:
        yield _DONE, task.train()
    except EchoPlanError as error:
        yield _FAILED, str(error)
    except Terminated:
        yield _TERMINATED, "it was terminated"
    except Exception as error:
        logger.debug("fold %d", task.job.fold, exc_info=True)
        yield _FAILED, f"{type(error).__name__}: {error}\n{traceback.format_exc()}".rstrip()


@dataclass
class FoldRun:
    """A fold and what has come of it.

    Attributes:
        job: what to train.
        setup: its folders; None where it cannot be trained at all.
        node: where it trains now; None while it waits.
        dice: of its validation, once it is done.
        failure: why it was given up.
        before: it was done before.
        deaths: since it last made progress.
        seen: which checkpoint it had at its last death.
    """

    job: FoldJob
    setup: FoldSetup | None = None
    node: str | None = None
    dice: float | None = None
    failure: str | None = None
    before: bool = False
    deaths: int = 0
    seen: int = -1

    @property
    def name(self) -> str:
        """As users are told of it."""
        return f"{self.job.trainer.rpartition(':')[2]} fold {self.job.fold}"

    def goes_on(self, why: str) -> bool:
        """Whether the fold is worth another try now that its worker has ended before its time; else it has failed."""
        self.node = None
        now = self._checkpoint()
        self.deaths = 1 if now != self.seen else self.deaths + 1
        self.seen = now
        if self.deaths < ATTEMPTS:
            logger.warning("%s: %s; it is handed out again and resumes", self.name, why)
            return True
        self.failure = (
            f"{why}, {self.deaths} times without progress. What to do: it may need more memory than a node has; train "
            "this fold without --engine to see why, or go on with --c."
        )
        logger.warning("%s: given up", self.name)
        return False

    def _checkpoint(self) -> int:
        try:
            return (
                0 if self.setup is None else (self.setup.folder / layout.checkpoint_file("latest")).stat().st_mtime_ns
            )
        except FileNotFoundError:
            return -1


@dataclass(frozen=True)
class RayTraining:
    """Trains folds on a Ray cluster.

    Attributes:
        address: as `echoplan.ray_cluster.connected` takes it.
        device: "auto" (GPUs where the cluster has any), "cuda" or "cpu".
        gpus: of a fold; a part of 1 lets several folds share a GPU. None: 1 on GPUs, 0 on CPUs.
        cpus: of a fold; None: its data-loading workers and one, but not more than its share of a node.
        processes: that train a fold together; None: as many as it has GPUs.
    """

    address: str | None = None
    device: str = "auto"
    gpus: float | None = None
    cpus: int | None = None
    processes: int | None = None

    def train(
        self,
        jobs: Sequence[FoldJob],
        where: Folders,
        *,
        resume: bool = False,
        validate: bool = False,
        overwrite: bool = False,
    ) -> list[FoldRun]:
        """Train all folds to their end, as many at a time as there is room for, and go on past those that fail.

        Args:
            jobs: of one dataset, with the same data-loading workers; no fold of a trainer twice.
            where: the three folders.
            resume, validate, overwrite: as in `train_fold`.

        Returns:
            What came of each job, in their order.

        Raises:
            EchoPlanError: Ray is not installed or no cluster answers, or no node has what a fold takes.
        """
        where = absolute(where)
        runs = [
            _looked_at(_with_absolute_paths(job), where, resume=resume, validate=validate, overwrite=overwrite)
            for job in jobs
        ]
        names = [run.name for run in runs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise EchoPlanError(f"{twice[0]} is asked for twice", remedy="name every trainer once")
        todo = [(run, run.setup) for run in runs if run.setup is not None and not run.before]
        if not todo:
            return runs
        first, setup = todo[0]
        with (
            connected(self.address) as cluster,
            shared_disk(setup.model_folder.parent, setup.preprocessed) as disk,
        ):
            need, device = self._need(cluster, first.job.processes)
            cluster.wait_for(need)
            for _, setup in todo:
                fold_progress(setup, overwrite=overwrite)
            processes = self.processes or max(1, int(need.get("GPU", 0)))
            logger.info("training %d folds, each on %s", len(todo), in_words(need))
            task = FoldTask(
                first.job,
                where,
                disk,
                device,
                processes=processes,
                threads=max(1, int(need["CPU"]) // processes),
                validate=validate,
                environment={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            )
            _follow(cluster, need, [_Followed(run, setup, replace(task, job=run.job)) for run, setup in todo])
        return runs

    def _need(self, cluster: Cluster, loaders: int) -> tuple[dict[str, float], str]:
        """What a fold takes of the cluster, and its device."""
        if self.device == "mps":
            raise EchoPlanError("Ray does not know the device mps", remedy="use --device cpu, or leave --engine out")
        gpus = self.gpus
        if gpus is None:
            there = self.device == "cuda" or (self.device == "auto" and cluster.room({"GPU": 1.0}) > 0)
            gpus = 1.0 if there else 0.0
        if gpus > 1 and gpus != int(gpus):
            raise EchoPlanError(f"{gpus:g} GPUs cannot train a fold", remedy="use a part of 1, or a whole number")
        if (gpus > 0) != (self.device == "cuda") and self.device != "auto":
            raise EchoPlanError(f"--gpus_per_fold {gpus:g} contradicts --device {self.device}", remedy="leave one out")
        if self.processes and gpus and self.processes != max(1, int(gpus)):
            raise EchoPlanError(
                "every process of a fold has a GPU of its own",
                remedy="say --gpus_per_fold N instead of --processes_per_fold",
            )
        cpus = float(self.cpus or _share_of_cpus(cluster, gpus, loaders + 1))
        return ({"GPU": gpus, "CPU": cpus}, "cuda") if gpus else ({"CPU": cpus}, "cpu")


def _share_of_cpus(cluster: Cluster, gpus: float, wanted: int) -> int:
    """CPUs for a fold that leave as much for each other fold on the node."""
    shares = [
        node.get("CPU", 0) / max(node["GPU"] / gpus, 1) if gpus else node.get("CPU", 0)
        for node in cluster.nodes()
        if not gpus or node.get("GPU", 0) >= gpus
    ]
    return max(1, min(wanted, int(max(shares, default=1))))


def _with_absolute_paths(job: FoldJob) -> FoldJob:
    file, separator, name = job.trainer.rpartition(":")
    trainer = f"{Path(file).expanduser().absolute()}:{name}" if separator and file.endswith(".py") else job.trainer
    return replace(job, trainer=trainer, weights=None if job.weights is None else job.weights.absolute())


def _looked_at(job: FoldJob, where: Folders, *, resume: bool, validate: bool, overwrite: bool) -> FoldRun:
    """The fold as it is before anything is done: to be trained, done before, or impossible."""
    try:
        setup = job.setup(where)
        finished, started = fold_progress(setup)
        if overwrite:
            return FoldRun(job, setup)
        check_progress(setup, finished, started, resume=resume, validate=validate)
    except EchoPlanError as error:
        return FoldRun(job, failure=str(error))
    summary = setup.folder / layout.VALIDATION / layout.SUMMARY_FILE
    if finished and not validate and summary.exists():
        return FoldRun(job, setup, dice=validation_dice(summary, setup.description.target), before=True)
    return FoldRun(job, setup)


@dataclass(frozen=True)
class _Followed:
    run: FoldRun
    setup: FoldSetup
    task: FoldTask


def _follow(cluster: Cluster, need: Mapping[str, float], work: Sequence[_Followed]) -> None:
    """Hand out the folds, hear what comes of them, and hand out again those whose workers died."""
    import ray

    task = ray.remote(num_cpus=need["CPU"], num_gpus=need.get("GPU", 0), max_retries=0, max_calls=1)(_train_in_worker)
    running = {task.remote(item.task): item for item in work}
    silent_since = time.monotonic()
    with noting_sigterm() as check_sigterm, FoldView() as view:
        while running:
            check_sigterm()
            heard, _ = ray.wait(list(running), timeout=_LOOK_EVERY_SECONDS)
            for stream in heard:
                item = running[stream]
                kind, value = _hear(stream)
                if kind == _BEGUN:
                    item.run.node = value
                    logger.info("%s: begins on %s", item.run.name, value)
                    view.begin(item.run.name, item.setup.folder, _epochs(item.task.job))
                    continue
                del running[stream]
                view.end(item.run.name)
                if kind == _TERMINATED and item.run.goes_on(value):
                    running[task.remote(item.task)] = item
                elif kind != _TERMINATED:
                    _note(item.run, kind, value)
            waiting = sum(item.run.node is None for item in running.values())
            if heard or waiting < len(running):
                silent_since = time.monotonic()
            elif time.monotonic() - silent_since > _WORD_SECONDS:
                logger.warning(
                    "%d folds wait for room or start; each takes %s: %s", waiting, in_words(need), cluster.state(need)
                )
                silent_since = time.monotonic()
            view.look()


def _hear(stream: Any) -> tuple[str, Any]:
    """What a task says next, or how its worker died."""
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(next(stream))
    except RayError as error:
        own = own_error(error)
        return (_TERMINATED, last_words(error)) if own is None else (_FAILED, f"{type(own).__name__}: {own}")


def _note(run: FoldRun, kind: str, value: Any) -> None:
    """The end of a fold."""
    if kind == _DONE:
        run.dice = value
        logger.info("%s: validation Dice %.4f", run.name, value)
    else:
        run.failure = value
        logger.warning("%s: failed", run.name)


def _epochs(job: FoldJob) -> int:
    return find_trainer(job.trainer).recipe_class().with_settings(job.settings).epochs


def results_table(runs: Sequence[FoldRun]) -> str:
    """The validation Dice of each fold (rows) and trainer (columns), and the trainers' means over their folds."""
    trainers = list(dict.fromkeys(run.job.trainer for run in runs))
    folds = sorted({run.job.fold for run in runs})
    cells = {(run.job.fold, run.job.trainer): run for run in runs}
    columns = [["fold", *map(str, folds), "mean"]]
    for trainer in trainers:
        mine = [cells[fold, trainer] for fold in folds]
        done = [run.dice for run in mine if run.dice is not None]
        mean = f"{sum(done) / len(done):.4f}" if len(done) == len(mine) else "-"
        shown = ["failed" if run.dice is None else f"{run.dice:.4f}" for run in mine]
        columns.append([trainer.rpartition(":")[2], *shown, mean])
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
