"""Cases on a Ray cluster: what `echoplan.parallel_map.run_cases` does with processes, on all nodes there are."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from echoplan.parallel_map import CaseResults, progress, run_cases
from echoplan.paths import Folders
from echoplan.ray_cluster import connected, in_words, saying_when_stuck
from echoplan.ray_tasks import ATTEMPTS, SharedDisk, last_words, noting_sigterm, own_error, shared_disk

logger = logging.getLogger(__name__)

_NEED = {"CPU": 1.0}
_LOOK_EVERY_SECONDS = 1.0
_SPARE = 100  # cases handed out beyond what fits, so that a node that joins finds work at once


@dataclass(frozen=True)
class RayCases:
    """Works through cases on a cluster, a CPU each.

    Attributes:
        folders: absolute; all nodes must see them under these paths.
        address: as `echoplan.ray_cluster.connected` takes it.
    """

    folders: Folders
    address: str | None = None

    def __call__(
        self, function: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]], *, description: str = ""
    ) -> CaseResults:
        """Call `function(*arguments[case])` for every case, and go on past the cases that fail.

        A case whose worker dies is given out again, `ATTEMPTS` times in all.

        Args:
            function: a module-level function of EchoPlan.
            arguments: case name -> positional arguments.
            description: the progress bar's label.

        Returns:
            The cases in their own order.

        Raises:
            EchoPlanError: no case can escape it (a full disk, a node that does not see the folders, no Ray).
        """
        results = CaseResults()
        with connected(self.address) as cluster, shared_disk(self.folders.preprocessed, self.folders.raw) as disk:
            cluster.wait_for(_NEED)
            room = cluster.room(_NEED)
            logger.info("%s %d cases on %s", description, len(arguments), in_words({"CPU": room}))
            bar = progress([], description=description, total=len(arguments))
            with bar, saying_when_stuck(cluster, _NEED, results), noting_sigterm() as check_sigterm:

                def step(cases: int) -> None:
                    check_sigterm()
                    bar.update(cases)

                _work_through(function, arguments, disk, 2 * room + _SPARE, results, step)
        return CaseResults(
            {case: results.done[case] for case in arguments if case in results.done},
            {case: results.failures[case] for case in arguments if case in results.failures},
        )


def _work_through(
    function: Callable[..., Any],
    arguments: Mapping[str, tuple[Any, ...]],
    disk: SharedDisk,
    at_once: int,
    results: CaseResults,
    step: Callable[[int], None],
) -> None:
    import ray
    from ray.exceptions import RayError

    task = ray.remote(num_cpus=_NEED["CPU"], max_retries=0)(_work_case)
    waiting = deque(arguments)
    deaths: Counter[str] = Counter()
    running: dict[Any, str] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            case = waiting.popleft()
            running[task.remote(function, case, arguments[case], disk)] = case
        finished, _ = ray.wait(list(running), timeout=_LOOK_EVERY_SECONDS)
        step(0)
        for reference in finished:
            case = running.pop(reference)
            try:
                found = ray.get(reference)
            except RayError as error:
                own = own_error(error)
                if own is not None:
                    raise own from None
                deaths[case] += 1
                if deaths[case] < ATTEMPTS:
                    logger.warning("case %s is begun again: %s", case, last_words(error))
                    waiting.append(case)
                    continue
                found = CaseResults(failures={case: _given_up(error)})
            results.done |= found.done
            results.failures |= found.failures
            step(1)


def _work_case(function: Callable[..., Any], case: str, values: tuple[Any, ...], disk: SharedDisk) -> CaseResults:
    """In a worker: one case, and why it failed if it did."""
    disk.check()
    torch.set_num_threads(1)  # the workers are the parallelism
    return run_cases(function, {case: values})


def _given_up(error: Exception) -> str:
    return (
        f"{last_words(error)} in each of {ATTEMPTS} attempts. What to do: the case may need more memory than a node "
        "has; run the same command without --engine, with -np 0, to see why."
    )
