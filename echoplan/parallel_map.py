"""Working through a list of cases: in parallel, past broken ones, with a progress bar."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from echoplan import layout
from echoplan.case_warnings import CaseWarnings, held_back, lines_of
from echoplan.errors import EchoPlanError
from echoplan.files import write_json

logger = logging.getLogger(__name__)
_STARTING_SECONDS = 8.0  # each worker imports PyTorch first
Item = TypeVar("Item")


@dataclass
class CaseResults:
    """What a pass over many cases left.

    Attributes:
        done: each finished case's return value.
        failures: each broken case's reason, one line.
        warnings: what was said of each case that was worked on here.
    """

    done: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, CaseWarnings] = field(default_factory=dict)

    def __len__(self) -> int:
        """The cases worked on so far."""
        return len(self.done) + len(self.failures)


def run_cases(
    function: Callable[..., Any],
    arguments: Mapping[str, tuple[Any, ...]],
    *,
    processes: int = 0,
    description: str = "",
    trial: bool = True,
) -> CaseResults:
    """Call `function(*arguments[case])` for every case, and go on past the cases that fail.

    Warnings that a case logs are held back and logged at the end: one line a kind, with how many cases it is of.

    Args:
        function: a module-level function (worker processes import it by name).
        arguments: case name -> positional arguments.
        processes: worker processes; 0 works in this process.
        description: the progress bar's label.
        trial: work in this process until it is clear that workers, which take seconds to start, would pay; False starts
            them at once.

    Raises:
        EchoPlanError: an error that no case can escape (a full disk), or a worker process that died; the message names
            the cases it was working on.
    """
    results = CaseResults()
    waiting = dict(arguments)
    workers = min(processes, len(waiting)) if len(waiting) > 1 else 0
    started = time.monotonic()
    try:
        with progress(list(waiting), description=description) as bar:
            while waiting and not (workers and _workers_pay(started, len(results), len(waiting), workers, trial)):
                case = next(iter(waiting))
                record(results, case, *attempt_quietly(function, *waiting.pop(case)))
                bar.update()
            if waiting:
                _run_in_pool(function, waiting, workers, results, bar)
    finally:
        log_warnings(results, of=len(arguments))
    return results


def log_warnings(results: CaseResults, *, of: int) -> None:
    """One line a kind of warning, with how many of the cases it is of."""
    for line in lines_of(results.warnings, of=of):
        logger.warning("%s", line)


def write_warnings(folder: Path, results: CaseResults) -> None:
    """Write all warnings of a pass to warnings.json in a folder, case by case; nothing where there are none."""
    file = folder / layout.WARNINGS_FILE
    if results.warnings:
        write_json(file, {case: [message for _, message in said] for case, said in results.warnings.items()})
        logger.warning("%d of %d cases have warnings, listed in %s", len(results.warnings), len(results), file)


def _workers_pay(started: float, done: int, left: int, workers: int, trial: bool) -> bool:
    if not trial:
        return True
    if not done:
        return False
    seconds_left = (time.monotonic() - started) / done * left
    return seconds_left * (1 - 1 / workers) > _STARTING_SECONDS


def progress(items: Iterable[Item], *, description: str, total: int | None = None, unit: str = "case") -> tqdm[Item]:
    """A tqdm bar that is silent when standard error is not a terminal."""
    return tqdm(items, desc=description, total=total, unit=unit, disable=not sys.stderr.isatty(), leave=False)


@dataclass(frozen=True)
class Failure:
    """Why a case failed.

    Attributes:
        reason: one line.
        traceback: of an error that nobody foresaw.
        again: whether the case may be tried again: its worker ended, not the case itself.
    """

    reason: str
    traceback: str = ""
    again: bool = False


def _run_in_pool(
    function: Callable[..., Any],
    arguments: Mapping[str, tuple[Any, ...]],
    processes: int,
    results: CaseResults,
    bar: tqdm[Any],
) -> None:
    waiting = list(arguments.items())[::-1]
    running: dict[Future[Any], str] = {}
    # Spawned, not forked: a fork of a process that runs threads (torch, blosc2) can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_obey_parent)
    try:
        while waiting or running:
            # No more in flight than workers, so that a dead worker's cases can be named.
            while waiting and len(running) < processes:
                case, values = waiting.pop()
                with undisturbed():
                    running[pool.submit(_attempt_in_worker, function, *values)] = case
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                outcome = attempt(future.result)  # what cannot be sent is a failure, too
                record(results, running[future], *((outcome, ()) if isinstance(outcome, Failure) else outcome))
                del running[future]
                bar.update()
    except BaseException as error:
        cut_off = [case for future, case in running.items() if not future.done() or future.exception() is not None]
        for worker in list((pool._processes or {}).values()):
            worker.terminate()  # do not let a long case hold up Ctrl-C
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise _worker_died(cut_off) from error
        raise
    pool.shutdown()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold SIGTERM and Ctrl-C back inside the block: a worker that is only half started could not be ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number)) or signal.SIG_DFL
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for missed in came:
            signal.raise_signal(missed)


def _obey_parent() -> None:
    """In a worker: Ctrl-C is the parent's to handle, and when it ends a worker, half-written files are removed.

    A worker ends with its parent too: one whose parent was killed would wait for work for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _leave(*_: Any) -> None:
    raise SystemExit(1)


def _attempt_in_worker(function: Callable[..., Any], *values: Any) -> tuple[Any, CaseWarnings]:
    try:
        return attempt_quietly(function, *values)
    except SystemExit:
        os._exit(1)  # the executor would go on with this worker


def attempt_quietly(function: Callable[..., Any], *values: Any) -> tuple[Any, CaseWarnings]:
    """What `attempt` returns, and the warnings meanwhile."""
    with held_back() as said:
        outcome = attempt(function, *values)
    return outcome, [(str(message.msg), message.getMessage()) for message in said]


def attempt(function: Callable[..., Any], *values: Any) -> Any:
    """The function's value or a `Failure`: not every exception can be sent from a worker, but its text always can."""
    try:
        return function(*values)
    except BrokenProcessPool:
        raise
    except EchoPlanError as error:
        if error.fatal:
            raise
        return Failure(str(error))
    except Exception as error:
        return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())


def record(results: CaseResults, case: str, outcome: Any, said: CaseWarnings = ()) -> None:
    """Keep what `attempt` returned of a case, and the warnings meanwhile."""
    if said:
        results.warnings[case] = said
    if not isinstance(outcome, Failure):
        results.done[case] = outcome
        return
    results.failures[case] = outcome.reason
    if outcome.traceback:
        logger.debug("case %s\n%s", case, outcome.traceback)


def _worker_died(cases: Iterable[str]) -> EchoPlanError:
    return EchoPlanError(
        f"a worker process died while working on {', '.join(sorted(cases))}",
        remedy="it may have run out of memory: run the same command again with fewer workers (-np); what is finished "
        "is kept",
    )
