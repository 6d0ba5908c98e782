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
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from echoplan import layout
from echoplan.cluster import Cluster, connected
from echoplan.cluster_map import ClusterMap, Watch
from echoplan.errors import EchoPlanError
from echoplan.parallel_map import CaseResults, Failure, progress
from echoplan.paths import Folders

from .fold import FoldSetup
from .metrics import read_metrics
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
        threads: CPU threads of all together.
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
            os.environ["OMP_NUM_THREADS"] = str(max(1, threads // processes))
            train_together(job, where, processes=processes, device=device, validate=validate)
        else:
            train_fold(job, setup, device=device, resume=True, validate=validate)
    except EchoPlanError:
        raise
    except Exception as error:
        raise EchoPlanError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}".rstrip()) from error
    return validation_dice(setup.summary, setup.description.target)


class FoldWatch(Watch):
    """On a terminal a line for each fold that trains: its epoch and its validation Dice; elsewhere messages alone."""

    def __init__(self, setups: Mapping[str, FoldSetup], epochs: Mapping[str, int], *, overwrite: bool) -> None:
        self._setups, self._epochs = setups, epochs
        self._to_overwrite = set(setups if overwrite else ())
        self._bars: dict[str, Any] = {}

    def begin(self, case: str, node: str) -> None:
        """See `Watch`; what is to be overwritten goes only now that there is room for the new training."""
        logger.info("%s: begins on %s", case, node)
        if case in self._to_overwrite:
            fold_progress(self._setups[case], overwrite=True)
            self._to_overwrite.remove(case)
        self._close(case)
        self._bars[case] = progress([], description=case, total=self._epochs[case], unit="epoch")

    def end(self, case: str, outcome: Any) -> None:
        """See `Watch`."""
        self._close(case)
        if isinstance(outcome, Failure):
            logger.warning("%s: failed", case)
        else:
            logger.info("%s: validation Dice %.4f", case, outcome)

    def mark(self, case: str) -> object:
        """When the fold's last checkpoint was written."""
        latest = self._setups[case].folder / layout.checkpoint_file("latest")
        return latest.stat().st_mtime_ns if latest.exists() else None

    def look(self) -> None:
        """Show what the folds have written since."""
        for case, bar in self._bars.items():
            entries = [] if bar.disable else read_metrics(self._setups[case].folder)
            if len(entries) > bar.n:
                dice = entries[-1].get("val_dice")
                bar.n = len(entries)
                bar.set_postfix_str("" if dice is None else f"Dice {dice:.4f}")

    def close(self) -> None:
        """See `Watch`."""
        for case in list(self._bars):
            self._close(case)

    def _close(self, case: str) -> None:
        if case in self._bars:
            self._bars.pop(case).close()


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
    ) -> tuple[CaseResults, int]:
        """Train all folds to their end, as many at a time as there is room for, and go on past those that fail.

        Args:
            jobs: of one dataset, with the same data-loading workers; no fold of a trainer twice.
            where: the three folders.
            resume, validate, overwrite: as in `train_fold`.

        Returns:
            The validation Dice of each job, or why it failed, by the jobs' names; and how many were done before.

        Raises:
            EchoPlanError: Ray is not installed or no cluster answers, or no node has what a fold takes.
        """
        where = where.absolute()
        names = [job.name for job in jobs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise EchoPlanError(f"{twice[0]} is asked for twice", remedy="name every trainer once")
        results, todo, setups = CaseResults(), {}, {}
        for job in map(_with_absolute_paths, jobs):
            try:
                setup = job.setup(where)
                finished, started = fold_progress(setup)
                if not overwrite:
                    check_progress(setup, finished, started, resume=resume, validate=validate)
            except EchoPlanError as error:
                results.failures[job.name] = str(error)
                continue
            if finished and not (validate or overwrite) and setup.summary.exists():
                results.done[job.name] = validation_dice(setup.summary, setup.description.target)
            else:
                todo[job.name], setups[job.name] = job, setup
        before = len(results.done)
        if todo:
            with connected(self.address) as cluster:
                trained = self._run(cluster, todo, setups, where, validate=validate, overwrite=overwrite)
            results.done |= trained.done
            results.failures |= trained.failures
        return results, before

    def _run(
        self,
        cluster: Cluster,
        jobs: Mapping[str, FoldJob],
        setups: Mapping[str, FoldSetup],
        where: Folders,
        *,
        validate: bool,
        overwrite: bool,
    ) -> CaseResults:
        setup = next(iter(setups.values()))
        need, device = self._need(cluster, next(iter(jobs.values())).processes)
        train = partial(
            train_fold_on_node,
            where=where,
            device=device,
            processes=self.processes or max(1, int(need.get("GPU", 0))),
            threads=int(need["CPU"]),
            validate=validate,
            environment={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        )
        written, read = setup.model_folder.parent, (setup.preprocessed,)
        run_cases = ClusterMap(cluster, need, written, read, workers=len(jobs), one_case_each=True)
        epochs = {name: job.method(setups[name].plan).recipe.epochs for name, job in jobs.items()}
        watch = FoldWatch(setups, epochs, overwrite=overwrite)
        with logging_redirect_tqdm():  # messages do not break the lines
            return run_cases(train, {name: (job,) for name, job in jobs.items()}, watch=watch)

    def _need(self, cluster: Cluster, loaders: int) -> tuple[dict[str, float], str]:
        """What a fold takes of the cluster, and its device."""
        gpus = self.gpus
        if gpus is None:
            gpus = 1.0 if cluster.device(self.device) == "cuda" else 0.0
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


def results_table(jobs: Sequence[FoldJob], results: CaseResults) -> str:
    """The validation Dice of each fold (rows) and trainer (columns), and the trainers' means over their folds."""
    import pandas as pd

    rows = pd.DataFrame(
        [(job.fold, job.trainer.rpartition(":")[2], results.done.get(job.name)) for job in jobs],
        columns=["fold", "trainer", "dice"],
    ).astype({"dice": float})
    words = rows["dice"].map("{:.4f}".format, na_action="ignore").fillna("failed")
    table = rows.assign(words=words).pivot(index="fold", columns="trainer", values="words").fillna("")
    means = rows.groupby("trainer")["dice"].agg(lambda own: own.mean(skipna=False))
    table.loc["mean"] = means.map("{:.4f}".format, na_action="ignore").fillna("-")
    return table[rows["trainer"].unique()].rename_axis(index=None, columns="fold").to_string()
