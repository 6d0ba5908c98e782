"""Prediction on a Ray cluster: Ray Data streams the list of clips through actors that hold the model.

An actor writes a clip's files itself, beside their name and then moved into place, so that a clip done twice does no
harm; only names and reasons travel back. Ray restarts an actor that dies and gives its clips out again, without end.
The end is set here: how often a clip was begun is kept on disk, and after `ATTEMPTS` it is given up.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from echoplan.errors import EchoPlanError
from echoplan.files import naming_full_disk, partial_prefix
from echoplan.parallel_map import CaseResults, progress
from echoplan.ray_cluster import Cluster, connected, in_words, saying_when_stuck
from echoplan.ray_tasks import ATTEMPTS, SharedDisk, noting_sigterm, shared_disk

from .inputs import InputClip
from .predict_folder import result_path, segment_input, sweep_results, write_result
from .predictor import EchoPredictor

logger = logging.getLogger(__name__)

_CLIPS_AT_ONCE = 3  # in an actor: one is decoded, one is in the network, one is written
_MOST_CLIPS_A_TASK = 16
_TASKS_AN_ACTOR = 16  # at least, so that no actor is left with much to do when the others have ended
_NONE = -1


@dataclass(frozen=True)
class Attempts:
    """How often each clip was begun and not ended, kept beside the results so that it outlives a worker.

    Attributes:
        folder: one file a clip, one line an attempt: the node.
    """

    folder: Path

    def nodes(self, case: str) -> list[str]:
        """Where the clip was begun."""
        try:
            return (self.folder / case).read_text(encoding="utf-8").split()
        except FileNotFoundError:
            return []

    def begin(self, case: str) -> None:
        """Note that the clip is begun now."""
        with open(self.folder / case, "a", encoding="utf-8") as stream:
            stream.write(f"{socket.gethostname()}\n")

    def end(self, case: str) -> None:
        """Note that the clip, whatever came of it, did not end the process."""
        (self.folder / case).unlink(missing_ok=True)


@dataclass(frozen=True)
class Job:
    """What every actor is told.

    Attributes:
        models: how the predictor is made: arguments of `EchoPredictor.from_model_folders`, the device left out.
        device, threads: where the networks run, and with how many CPU threads.
        out: the results' folder, absolute.
        keep_probabilities: also write the class probabilities.
        attempts: where attempts are counted.
        disk: what a node must see.
    """

    models: Mapping[str, Any]
    device: str
    threads: int
    out: Path
    keep_probabilities: bool
    attempts: Attempts
    disk: SharedDisk


class ClipActor:
    """Predicts clips in a process of its own, on any node; the model is loaded once."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._gate = _Gate(_CLIPS_AT_ONCE)
        self._network = threading.Lock()
        self._problem = ""
        try:
            job.disk.check()
            sweep_results(job.out)  # of actors on this node that died
            torch.set_num_threads(job.threads)
            self._predictor = EchoPredictor.from_model_folders(**job.models, device=job.device)
        except EchoPlanError as error:  # told with the first clip: what Ray makes of it here is hard to read
            self._problem = str(error)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Predict the clips of a batch; several calls run at once.

        Args:
            batch: "clip", the `InputClip`s, and "replaces", as `_stamp` gives it.

        Returns:
            "case"; "failure", the reason or ""; "fatal", whether no other clip can escape it.
        """
        outcomes = [self._outcome(*clip) for clip in zip(batch["clip"], batch["replaces"], strict=True)]
        cases = [item.name for item in batch["clip"]]
        return {"case": cases, "failure": [text for text, _ in outcomes], "fatal": [fatal for _, fatal in outcomes]}

    def _outcome(self, item: InputClip, replaces: int) -> tuple[str, bool]:
        if self._problem:
            return self._problem, True
        try:
            failure, fatal = self._until_it_ends(item, replaces), False
        except EchoPlanError as error:
            failure, fatal = str(error), error.fatal
        self._job.attempts.end(item.name)
        return failure, fatal

    def _until_it_ends(self, item: InputClip, replaces: int) -> str:
        """Predict the clip, in up to `ATTEMPTS` attempts of all actors together; the reason if none did it."""
        attempts, reason = self._job.attempts, ""
        while _stamp(self._job.out, item.name) in (replaces, _NONE):  # else an actor that died had just finished it
            nodes = attempts.nodes(item.name)
            if len(nodes) >= ATTEMPTS:
                return reason or _given_up(nodes)
            with self._gate.passed(alone=bool(nodes)):  # it may have taken others with it the last time
                with naming_full_disk():
                    attempts.begin(item.name)
                try:
                    self._predict(item)
                    return ""
                except EchoPlanError:
                    raise
                except Exception as error:
                    reason = f"{type(error).__name__}: {error}"
                    logger.debug("case %s", item.name, exc_info=True)
                    _leave_if_gpu_is_lost(self._job.device)
        return ""

    def _predict(self, item: InputClip) -> None:
        prepared = self._predictor.prepare(item.read())
        with self._network:
            found = segment_input(item, prepared, self._predictor, keep_probabilities=self._job.keep_probabilities)
        write_result(item, self._predictor, found, self._job.out)


class _Gate:
    """Lets several threads in at a time, or one alone."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._free = threading.Semaphore(places)
        self._turn = threading.Lock()  # who wants all places is not overtaken

    @contextmanager
    def passed(self, *, alone: bool) -> Iterator[None]:
        """Inside the block: in."""
        taken = self._places if alone else 1
        with self._turn:
            for _ in range(taken):
                self._free.acquire()
        try:
            yield
        finally:
            self._free.release(taken)


@dataclass(frozen=True)
class RayEngine:
    """Predicts on a Ray cluster.

    Attributes:
        models: as in `Job`.
        device: "auto" (GPUs where the cluster has any), "cuda" or "cpu".
        address: as `connected` takes it.
        actors: how many; None: as many as the cluster has room for.
        cpus_per_actor: cores of each, its network's threads where it has no GPU.
    """

    models: Mapping[str, Any]
    device: str = "auto"
    address: str | None = None
    actors: int | None = None
    cpus_per_actor: int = 1

    def predict(self, todo: Sequence[InputClip], source: Path, out: Path, *, keep_probabilities: bool) -> CaseResults:
        """Write the results of the clips in `todo` to `out`.

        Raises:
            EchoPlanError: Ray is not installed or no cluster answers, no node has what an actor takes, a node does not
                see the files, or a full disk.
            Terminated: SIGTERM came, noticed as a clip ends.
        """
        out, source = out.absolute(), source.absolute()
        folders = [Path(folder) for folder, _ in self.models["folders"]]
        with (
            connected(self.address) as cluster,
            _attempts(out) as attempts,
            shared_disk(attempts.folder, source, *folders) as disk,
        ):
            device, need = self._place(cluster)
            cluster.wait_for(need)
            room = min(self.actors or cluster.room(need), len(todo))
            logger.info("predicting %d clips with %d actors of %s", len(todo), room, in_words(need))
            job = Job(
                models=self.models,
                device=device,
                threads=self.cpus_per_actor,
                out=out,
                keep_probabilities=keep_probabilities,
                attempts=attempts,
                disk=disk,
            )
            failures: dict[str, str] = {}
            bar = progress([], description="predicting", total=len(todo))
            with bar, saying_when_stuck(cluster, need, failures), noting_sigterm() as check_sigterm:
                for row in _outcomes(job, todo, room, need):
                    check_sigterm()
                    if row["fatal"]:
                        raise EchoPlanError(row["failure"], fatal=True)
                    failures[row["case"]] = row["failure"]
                    bar.update()
        return _in_order(todo, failures)

    def _place(self, cluster: Cluster) -> tuple[str, dict[str, float]]:
        """The networks' device, and what an actor takes of the cluster."""
        if self.device == "mps":
            raise EchoPlanError("Ray does not know the device mps", remedy="use --device cpu, or leave --engine out")
        with_gpu = {"GPU": 1.0, "CPU": float(self.cpus_per_actor)}
        device = self.device
        if device == "auto":
            device = "cuda" if cluster.room(with_gpu) else "cpu"
        return device, with_gpu if device == "cuda" else {"CPU": float(self.cpus_per_actor)}


def _outcomes(
    job: Job, todo: Sequence[InputClip], actors: int, need: Mapping[str, float]
) -> Iterator[Mapping[str, Any]]:
    """What came of each clip, as clips end."""
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext
    from ray.exceptions import RayError

    context = DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1  # what Ray itself loses is listed; the rest goes on
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"clip": replace(item, path=item.path.absolute()), "replaces": _stamp(job.out, item.name)} for item in todo]
    clips_a_task = max(1, min(_MOST_CLIPS_A_TASK, len(rows) // (actors * _TASKS_AN_ACTOR)))
    with DataContext.current(context):
        clips = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // clips_a_task))
        outcomes = clips.map_batches(
            ClipActor,
            fn_constructor_args=[job],
            batch_size=None,
            num_cpus=need["CPU"],
            num_gpus=need.get("GPU"),
            compute=ActorPoolStrategy(
                size=actors,
                max_concurrent_calls_per_actor=_CLIPS_AT_ONCE,
                max_tasks_in_flight_per_actor=_CLIPS_AT_ONCE + 1,
                enable_true_multi_threading=True,
            ),
        )
        try:
            yield from outcomes.iter_rows()
        except RayError as error:
            raise EchoPlanError(
                f"Ray gave up: {str(error).strip().splitlines()[0]}",
                remedy="run the same command again with --continue_prediction; what is finished is kept",
            ) from error


def _in_order(todo: Sequence[InputClip], failures: Mapping[str, str]) -> CaseResults:
    """The results in the clips' own order, their paths as the user wrote them."""
    results = CaseResults()
    for item in todo:
        reason = failures.get(item.name, "Ray lost it: predict again with --continue_prediction")
        if reason:
            results.failures[item.name] = reason.replace(str(item.path.absolute()), str(item.path))
        else:
            results.done[item.name] = None
    return results


@contextmanager
def _attempts(out: Path) -> Iterator[Attempts]:
    """The counts of this run; those of an earlier one, which was killed, are swept with what else it left."""
    # A folder of this run's own: other parts of the same work may be predicted into `out` at the same time.
    attempts = Attempts(out / f"{partial_prefix()}attempts-{uuid.uuid4().hex}")
    with naming_full_disk(out):
        attempts.folder.mkdir(parents=True)
    try:
        yield attempts
    finally:
        shutil.rmtree(attempts.folder, ignore_errors=True)


def _stamp(out: Path, case: str) -> int:
    """Which result a clip has: when it was written, in ns; `_NONE` where it has none."""
    try:
        return result_path(out, case).stat().st_mtime_ns
    except FileNotFoundError:
        return _NONE


def _given_up(nodes: Sequence[str]) -> str:
    return (
        f"the worker died in each of {len(nodes)} attempts (on {', '.join(dict.fromkeys(nodes))}). What to do: it may "
        "need more memory than the node has; predict this clip alone, without --engine, to see why."
    )


def _leave_if_gpu_is_lost(device: str) -> None:
    """End the process if its GPU answers no more: only a new one can use it again, and Ray starts one."""
    if device == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)
