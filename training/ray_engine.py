"""Folds times trainers on a Ray cluster: each fold in a process that resumes from its checkpoint when it has died.

A worker trains as `echoplan_train` does and writes its files itself; the command only follows metrics.jsonl. A fold is
given up only after several deaths without any progress.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from echoplan import layout
from echoplan.cluster import Cluster, connected, in_words, shared_disk
from echoplan.cluster_map import ATTEMPTS, ClusterMap, Watch
from echoplan.errors import EchoPlanError
from echoplan.parallel_map import CaseResults
from echoplan.paths import Folders

from .fold import FoldSetup
from .progress import FoldView
from .torchrun import train_together
from .train_fold import FoldJob, check_progress, fold_progress, train_fold, validation_dice

logger = logging.getLogger(__name__)

_PASSED_ON = ("ECHOPLAN_WEIGHTS",)  # of the command's environment


def train_fold_on_node(
    job: FoldJob,
    where: Folders,
    device: str,
    *,
    processes: int = 1,
    threads: int = 1,
    validate: bool = False,
    environment: Mapping[str, str] | None = None,
) -> float:
    """What a worker does: train what is not trained yet of a fold; the validation Dice.

    Args:
        job, where: the fold and the three folders; all paths absolute.
        device: "cuda" or "cpu".
        processes: more than one train together, under torchrun.
        threads: CPU threads of each.
        validate: only validate a finished training again.
        environment: variables of the command that matter.

    Raises:
        EchoPlanError: it failed, for whatever reason.
        Terminated: SIGTERM came, or a process of several was killed.
    """
    os.environ.update(environment or {})
    setup = job.setup(where)
    try:
        if processes > 1:
            train_together(job, where, processes=processes, device=device, threads=threads, validate=validate)
        else:
            train_fold(job, setup, device=device, resume=True, validate=validate)
    except EchoPlanError:
        raise
    except Exception as error:
        raise EchoPlanError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}".rstrip()) from error
    return _dice(setup)


@dataclass
class FoldRun:
    """A fold and what has come of it.

    Attributes:
        job: what to train.
        setup: its folders; None where it cannot be trained at all.
        dice: of its validation, once it is done.
        failure: why it was given up.
        before: it was done before.
        deaths: of its workers since it last made progress.
        checkpoint: when its last checkpoint was written, in ns, at the last of them.
    """

    job: FoldJob
    setup: FoldSetup | None = None
    dice: float | None = None
    failure: str | None = None
    before: bool = False
    deaths: int = 0
    checkpoint: int = -1

    @property
    def name(self) -> str:
        """As users are told of it."""
        return f"{self.job.trainer.rpartition(':')[2]} fold {self.job.fold}"

    def why_give_up(self, why: str) -> str:
        """Why the fold is not worth another try now that its worker has ended before its time; empty: it is."""
        latest = -1
        if self.setup is not None and (file := self.setup.folder / layout.checkpoint_file("latest")).exists():
            latest = file.stat().st_mtime_ns
        self.deaths = 1 if latest != self.checkpoint else self.deaths + 1
        self.checkpoint = latest
        if self.deaths < ATTEMPTS:
            logger.warning("%s: %s; it is handed out again and resumes", self.name, why)
            return ""
        return (
            f"{why}, {self.deaths} times without progress. What to do: it may need more memory than a node has; train "
            "this fold without --engine to see why, or go on with --c."
        )


class FoldWatch(Watch):
    """A line a fold that trains."""

    def __init__(self, runs: Mapping[str, FoldRun], *, overwrite: bool) -> None:
        self._runs, self._view = runs, FoldView()
        self._to_overwrite = set(runs if overwrite else ())

    def __enter__(self) -> FoldWatch:
        self._view.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._view.__exit__(None, None, None)

    def begin(self, case: str, node: str) -> None:
        """See `Watch`; what is to be overwritten goes only now that there is room for the new training."""
        run = self._runs[case]
        logger.info("%s: begins on %s", case, node)
        if run.setup is not None:
            if case in self._to_overwrite:
                fold_progress(run.setup, overwrite=True)
                self._to_overwrite.remove(case)
            self._view.begin(case, run.setup.folder, run.job.method(run.setup.plan).recipe.epochs)

    def end(self, case: str, results: CaseResults) -> None:
        """See `Watch`."""
        self._view.end(case)
        run = self._runs[case]
        run.dice, run.failure = results.done.get(case), results.failures.get(case)
        if run.dice is None:
            logger.warning("%s: failed", case)
        else:
            logger.info("%s: validation Dice %.4f", case, run.dice)

    def why_give_up(self, case: str, why: str) -> str:
        """See `Watch`."""
        self._view.end(case)
        return self._runs[case].why_give_up(why)

    def look(self) -> None:
        """See `Watch`."""
        self._view.look()


@dataclass(frozen=True)
class RayTraining:
    """Trains folds on a Ray cluster.

    Attributes:
        address: as `echoplan.cluster.connected` takes it.
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
        where = where.absolute()
        runs = [
            _looked_at(_with_absolute_paths(job), where, resume=resume, validate=validate, overwrite=overwrite)
            for job in jobs
        ]
        names = [run.name for run in runs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise EchoPlanError(f"{twice[0]} is asked for twice", remedy="name every trainer once")
        todo = {run.name: run for run in runs if run.setup is not None and not run.before}
        setup = next((run.setup for run in todo.values() if run.setup is not None), None)
        if setup is None:
            return runs
        with connected(self.address) as cluster, shared_disk(setup.model_folder.parent, setup.preprocessed) as disk:
            need, device = self._need(cluster, jobs[0].processes)
            processes = self.processes or max(1, int(need.get("GPU", 0)))
            logger.info("training %d folds, each on %s", len(todo), in_words(need))
            train = partial(
                train_fold_on_node,
                where=where,
                device=device,
                processes=processes,
                threads=max(1, int(need["CPU"]) // processes),
                validate=validate,
                environment={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            )
            run_cases = ClusterMap(cluster, disk, need, workers=len(todo), one_case_each=True)
            arguments = {name: (run.job,) for name, run in todo.items()}
            run_cases(train, arguments, watch=FoldWatch(todo, overwrite=overwrite))
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
    if finished and not validate and (setup.folder / layout.VALIDATION / layout.SUMMARY_FILE).exists():
        return FoldRun(job, setup, dice=_dice(setup), before=True)
    return FoldRun(job, setup)


def _dice(setup: FoldSetup) -> float:
    return validation_dice(setup.folder / layout.VALIDATION / layout.SUMMARY_FILE, setup.description.target)


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
