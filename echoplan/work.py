"""Working through a list of cases: in parallel, past broken ones, with a progress bar."""

from __future__ import annotations

import logging
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tqdm import tqdm

from echoplan.errors import EchoPlanError

logger = logging.getLogger(__name__)
Item = TypeVar("Item")


@dataclass
class CaseResults:
    """What a pass over many cases left.

    Attributes:
        done: each finished case's return value.
        failures: each broken case's reason, one line.
    """

    done: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def run_cases(
    function: Callable[..., Any],
    arguments: Mapping[str, tuple[Any, ...]],
    *,
    processes: int = 0,
    description: str = "",
) -> CaseResults:
    """Call `function(*arguments[case])` for every case, and go on past the cases that fail.

    Args:
        function: a module-level function (worker processes import it by name).
        arguments: case name -> positional arguments.
        processes: worker processes; 0 works in this process.
        description: the progress bar's label.

    Raises:
        EchoPlanError: an error that no case can escape (a full disk), or a worker process that died; the message names
            the cases it was working on.
    """
    if processes == 0 or len(arguments) < 2:
        return _run_here(function, arguments, description)
    return _run_in_pool(function, arguments, min(processes, len(arguments)), description)


def progress(items: Iterable[Item], *, description: str, total: int | None = None, unit: str = "case") -> tqdm[Item]:
    """A tqdm bar that is silent when standard error is not a terminal."""
    return tqdm(items, desc=description, total=total, unit=unit, disable=not sys.stderr.isatty(), leave=False)


def _run_here(function: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]], description: str) -> CaseResults:
    results = CaseResults()
    for case, values in progress(arguments.items(), description=description, total=len(arguments)):
        _record(results, case, lambda values=values: function(*values))
    return results


def _run_in_pool(
    function: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]], processes: int, description: str
) -> CaseResults:
    results = CaseResults()
    waiting = list(arguments.items())[::-1]
    running: dict[Future[Any], str] = {}
    # Spawned, not forked: a fork of a process that runs threads (torch, blosc2) can hang.
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        with progress([], description=description, total=len(arguments)) as bar:
            while waiting or running:
                # No more in flight than workers, so that a dead worker's cases can be named.
                while waiting and len(running) < processes:
                    case, values = waiting.pop()
                    running[pool.submit(function, *values)] = case
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                in_flight = ", ".join(sorted(running.values()))
                for future in finished:
                    _record(results, running.pop(future), future.result, in_flight)
                    bar.update()
    except BaseException:
        for worker in list((pool._processes or {}).values()):
            worker.terminate()  # do not let a long case hold up Ctrl-C
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return results


def _record(results: CaseResults, case: str, call: Callable[[], Any], in_flight: str = "") -> None:
    try:
        results.done[case] = call()
    except BrokenProcessPool as error:
        raise EchoPlanError(
            f"a worker process died while working on {in_flight}",
            remedy="it may have run out of memory: run the same command again with fewer workers (-np); what is "
            "finished is kept",
        ) from error
    except EchoPlanError as error:
        if error.fatal:
            raise
        results.failures[case] = str(error)
    except Exception as error:
        logger.debug("case %s", case, exc_info=True)
        results.failures[case] = f"{type(error).__name__}: {error}"
