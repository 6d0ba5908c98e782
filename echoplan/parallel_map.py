"""Working through a list of cases: in parallel, past broken ones, with a progress bar."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from echoplan import layout
from echoplan.case_warnings import CaseWarnings, held_back, lines_of
from echoplan.cli import is_quiet
from echoplan.errors import EchoPlanError
from echoplan.files import write_json
from echoplan.workers import WorkerPool

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
        EchoPlanError: an error that no case can escape (a full disk). A worker process that dies fails its case alone.
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
    """A tqdm bar that is silent when standard error is not a terminal, and with --quiet."""
    silent = is_quiet() or not sys.stderr.isatty()
    return tqdm(items, desc=description, total=total, unit=unit, disable=silent, leave=False)


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
    with closing(WorkerPool(processes)) as pool:
        running = {pool.submit(case, attempt_quietly, function, *values): case for case, values in arguments.items()}
        for future in as_completed(running):
            record(results, running[future], *outcome_of(future))
            bar.update()


def outcome_of(future: Future[tuple[Any, CaseWarnings]]) -> tuple[Any, CaseWarnings]:
    """What a worker's `attempt_quietly` made of a case; a dead worker, and what cannot be sent, are failures, too."""
    outcome = attempt(future.result)
    return (outcome, ()) if isinstance(outcome, Failure) else outcome


def attempt_quietly(function: Callable[..., Any], *values: Any) -> tuple[Any, CaseWarnings]:
    """What `attempt` returns, and the warnings meanwhile."""
    with held_back() as said:
        outcome = attempt(function, *values)
    return outcome, [(str(message.msg), message.getMessage()) for message in said]


def attempt(function: Callable[..., Any], *values: Any) -> Any:
    """The function's value or a `Failure`: not every exception can be sent from a worker, but its text always can."""
    try:
        return function(*values)
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
