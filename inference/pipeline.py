"""Clips on their way through the networks of this process: decoded ahead of them, judged, written, measured behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from echoplan import layout
from echoplan.case_warnings import CaseWarnings
from echoplan.device import is_out_of_memory
from echoplan.errors import EchoPlanError
from echoplan.imageio import Clip
from echoplan.inputs import InputClip, digest
from echoplan.masks import find_mask, save_mask
from echoplan.networks.batches import in_groups
from echoplan.parallel_map import CaseResults, Failure, attempt_quietly, log_warnings, outcome_of, progress, record
from echoplan.workers import WorkerPool

from ..preprocessing.probabilities import SAVED_TYPE, save_probabilities
from .clip_labels import ClipLabels
from .ensemble import PreparedInput, Segmentation
from .predictor import EchoPredictor
from .reporting import EarlyMeasurements

_BYTES_WAITING = 2**28  # of clips before the networks, and of what was found behind them; one clip may always wait


class Helpers:
    """What works beside the networks: processes or, without them, a thread that reads ahead.

    Args:
        processes: how many; 0: none, and what needs no reading is done at once by who asks for it.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._pool = WorkerPool(processes) if processes else None
        self._reader = None if processes else ThreadPoolExecutor(1)

    def read(self, name: str, function: Callable[..., Any], *values: Any) -> Future[Any]:
        """Have a clip read; `attempt_quietly` what is called."""
        if self._pool is not None:
            return self._pool.submit(name, attempt_quietly, function, *values)
        assert self._reader is not None
        return self._reader.submit(attempt_quietly, function, *values)

    def work(self, name: str, function: Callable[..., Any], *values: Any) -> Future[Any]:
        """Have anything else done; `attempt_quietly` what is called."""
        if self._pool is not None:
            return self._pool.submit(name, attempt_quietly, function, *values)
        done: Future[Any] = Future()
        done.set_result(attempt_quietly(function, *values))
        return done

    def close(self) -> None:
        """Give up what is not done."""
        if self._pool is not None:
            self._pool.close()
        if self._reader is not None:
            self._reader.shutdown(wait=False, cancel_futures=True)


@dataclass
class _Clip:
    """A clip on its way."""

    item: InputClip
    prepared: PreparedInput
    said: list[tuple[str, str]]
    bytes: int = 0  # of what was found
    finished: Future[Any] | None = None


@dataclass(frozen=True)
class Pipeline:
    """Predicts in this process, with helpers.

    Attributes:
        predictor: whose networks work in this thread.
        helpers: read ahead, and write behind.
        early: measures patients whose clips have ended.
    """

    predictor: EchoPredictor
    helpers: Helpers
    early: EarlyMeasurements | None = None

    def predict(self, todo: Sequence[InputClip], source: Path, out: Path, *, keep_probabilities: bool) -> CaseResults:
        """Write the results of the clips in `todo` to `out`; cases come back in their order."""
        with progress(range(len(todo)), description="predicting") as bar:
            stream = _Stream(self, out, keep_probabilities, bar.update)
            try:
                stream.run(todo)
            finally:
                log_warnings(stream.results, of=len(todo))
        done, failures = stream.results.done, stream.results.failures
        return CaseResults(
            {item.name: done[item.name] for item in todo if item.name in done},
            {item.name: failures[item.name] for item in todo if item.name in failures},
            stream.results.warnings,
        )


class _Stream:
    """The clips of one call, from their files to their results."""

    def __init__(self, pipeline: Pipeline, out: Path, keep_probabilities: bool, ended: Callable[[], object]) -> None:
        self.results = CaseResults()
        self._predictor, self._helpers, self._early = pipeline.predictor, pipeline.helpers, pipeline.early
        self._light = pipeline.predictor.without_networks()
        self._out, self._keep_probabilities, self._ended = out, keep_probabilities, ended
        self._behind: deque[_Clip] = deque()

    def run(self, todo: Sequence[InputClip]) -> None:
        for group in self._groups(self._prepared(todo)):
            for clip, found in self._through_networks(group):
                clip.bytes = found.nbytes
                what = clip.item, self._light, clip.prepared, found, self._out
                clip.finished = self._helpers.work(clip.item.name, finish_clip, *what)
                del found, what
                self._behind.append(clip)
                self._settle()
        self._settle(wait=True)

    def _prepared(self, todo: Sequence[InputClip]) -> Iterator[_Clip]:
        """The clips in their order, on the networks' grids; some are made while those before them are worked on."""
        waiting: deque[tuple[InputClip, Future[Any]]] = deque()
        items, largest = iter(todo), 1

        def read_ahead() -> None:
            most = max(1, min(2 * self._helpers.processes, _BYTES_WAITING // largest))
            while len(waiting) < most and (item := next(items, None)) is not None:
                waiting.append((item, self._helpers.read(item.name, prepare_clip, item, self._light)))

        read_ahead()
        while waiting:
            item, coming = waiting.popleft()
            read_ahead()
            prepared, said = outcome_of(coming)
            del coming
            if isinstance(prepared, Failure):
                self._end(item, prepared, said)
                continue
            largest = max(largest, *(grid.frames.nbytes for grid in prepared.on_grids))
            clip = _Clip(item, prepared, list(said))
            del prepared  # the clip's frames go when it lets them go
            yield clip

    def _groups(self, clips: Iterator[_Clip]) -> Iterator[list[_Clip]]:
        """Clips that go through the networks together: short ones that keep them busy, or one alone."""
        return in_groups(
            clips,
            share=lambda one, other: self._predictor.share_batches(one.prepared, other.prepared),
            enough=lambda group: self._predictor.are_enough([clip.prepared for clip in group]),
        )

    def _through_networks(self, group: list[_Clip]) -> Iterator[tuple[_Clip, ClipLabels]]:
        """Each clip of a group and what the networks find in it; clips that fail together are tried one by one."""
        inputs = [(clip.item, clip.prepared) for clip in group]
        outcome, said = attempt_quietly(find_in_clips, inputs, self._predictor, self._keep_probabilities)
        if isinstance(outcome, Failure) and len(group) > 1:
            for clip in group:
                yield from self._through_networks([clip])
            return
        del inputs
        for clip in group:
            clip.said += said
            clip.prepared = replace(clip.prepared, on_grids=())
            if isinstance(outcome, Failure):
                self._end(clip.item, outcome, clip.said)
            else:
                yield clip, outcome.pop(0)

    def _settle(self, *, wait: bool = False) -> None:
        """Take note of the clips that have ended; wait for some where too many have not, or for all."""
        while self._behind:
            held = sum(clip.bytes for clip in self._behind)
            crowded = len(self._behind) > 2 * self._helpers.processes or (
                len(self._behind) > 1 and held > _BYTES_WAITING
            )
            first = self._behind[0]
            if first.finished is None or not (wait or crowded or first.finished.done()):
                return
            self._behind.popleft()
            outcome, said = outcome_of(first.finished)
            self._end(first.item, outcome, [*first.said, *said])

    def _end(self, item: InputClip, outcome: Any, said: CaseWarnings) -> None:
        record(self.results, item.name, outcome, said)
        self._ended()
        if self._early is not None:
            self._early.settle(item, find_mask(self._out, item.name) if item.name in self.results.done else None)


def prepare_clip(item: InputClip, predictor: EchoPredictor) -> PreparedInput:
    """A clip's file, read and brought to the networks' grids."""
    return predictor.prepare(item.read())


def find_in_clips(
    inputs: Sequence[tuple[InputClip, PreparedInput]], predictor: EchoPredictor, keep_probabilities: bool
) -> list[ClipLabels]:
    """What the networks find in clips that share batches.

    Raises:
        EchoPlanError: the GPU's memory is too small for a single window.
    """
    try:
        return predictor.find(
            [prepared for _, prepared in inputs], keep_probabilities=SAVED_TYPE if keep_probabilities else None
        )
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        torch.cuda.empty_cache()
        raise EchoPlanError(
            "the GPU ran out of memory",
            file=inputs[0][0].path,
            remedy="predict this clip again with --device cpu",
        ) from error


def finish_clip(
    item: InputClip, predictor: EchoPredictor, prepared: PreparedInput, found: ClipLabels, out: Path
) -> None:
    """Judge what the networks found in a clip, and write it."""
    case, _ = item.case.with_phases_in(prepared.clip.shape[0])
    ed_frame, es_frame = case.ed_frame, case.es_frame
    phases = None if ed_frame is None or es_frame is None else (ed_frame, es_frame)
    write_result(item, predictor, predictor.judge(prepared, found, phases=phases), out)


def origin(item: InputClip, predictor: EchoPredictor) -> str:
    """Which model makes a clip's result, and of what: another where either has changed."""
    return f"{predictor.identity} {digest(item.content())}"


def write_result(item: InputClip, predictor: EchoPredictor, found: Segmentation, out: Path) -> None:
    """Write the evidence, the probabilities if they were kept, and at last the mask: it says that the clip is finished.

    An older mask goes first, or a process killed in between would leave it beside evidence of another model.
    """
    evidence = replace(found.evidence, origin=origin(item, predictor))
    find_mask(out, item.name).unlink(missing_ok=True)
    evidence.write(out / layout.EVIDENCE / layout.probabilities_file(item.name))
    if found.probabilities is not None:
        save_probabilities(out / layout.probabilities_file(item.name), found.probabilities)
    clip, mask = found.clip, found.mask
    del found  # what is written is in memory beside its copies in the file's own form
    mask = mask if clip.crop is None else clip.crop.to_file(mask)  # on the file's own grid, as other programs expect
    like = Clip(mask, clip.spacing_mm, clip.frame_time_ms, space=clip.space)
    save_mask(out, item.name, mask, like=like)
