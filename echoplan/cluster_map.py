"""Cases on a Ray cluster: what `echoplan.parallel_map.run_cases` does with processes, on all nodes there are."""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from echoplan.cluster import Cluster, SharedDisk, connected, in_words, noting_sigterm, shared_disk
from echoplan.errors import Terminated
from echoplan.parallel_map import CaseResults, Failure, attempt, progress, record

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # before work that kills its workers is given up
_LOOK_EVERY_SECONDS = 1.0
_FIRST_WORD_SECONDS, _WORD_SECONDS = 3.0, 30.0  # of silence, before a word on what is waited for


class Watch:
    """Is told of the cases while they are worked on; here a bar shows how many have ended."""

    def __init__(self, description: str, total: int) -> None:
        self._bar = progress(range(total), description=description)
        self._deaths: Counter[str] = Counter()
        self._nodes: dict[str, list[str]] = {}

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, case: str, node: str) -> None:
        """A worker on a node begins a case."""
        self._nodes.setdefault(case, []).append(node)

    def end(self, case: str, results: CaseResults) -> None:
        """A case has ended, well or not."""
        self._nodes.pop(case, None)
        self._bar.update()

    def why_give_up(self, case: str, why: str) -> str:
        """Why a case whose worker died, or that failed for another reason, is given up; empty: it is not."""
        self._deaths[case] += 1
        if self._deaths[case] < ATTEMPTS:
            logger.warning("%s is begun again: %s", case, why)
            return ""
        on = ", ".join(dict.fromkeys(self._nodes.get(case, ())))
        return (
            f"{why} in each of {ATTEMPTS} attempts{f' (on {on})' if on else ''}. What to do: it may need more memory "
            "than a node has; run the same command on it alone, without --engine, to see why."
        )

    def look(self) -> None:
        """About a second has passed."""


@dataclass(frozen=True)
class ClusterMap:
    """Works through cases on a cluster, called as `run_cases` is.

    Attributes:
        cluster: where.
        disk: what the workers must see.
        need: what a worker, a process, takes of a node: {"CPU": 2, "GPU": 1}.
        workers: how many at most; those that find no room wait for it.
        cases_at_once: how many cases a worker works on at a time, in threads.
        one_case_each: every case has a worker of its own; one that cannot start fails its case alone.
        errors_again: a case that raises something else than an EchoPlanError is tried again, as if its worker had died.
        threads: of PyTorch in each; None: as Ray starts them.
    """

    cluster: Cluster
    disk: SharedDisk
    need: Mapping[str, float]
    workers: int
    cases_at_once: int = 1
    one_case_each: bool = False
    errors_again: bool = False
    threads: int | None = None

    def __call__(
        self,
        function: Callable[..., Any],
        arguments: Mapping[str, tuple[Any, ...]],
        *,
        description: str = "",
        setup: tuple[Any, ...] | None = None,
        watch: Watch | None = None,
    ) -> CaseResults:
        """Call `function(*arguments[case])` for every case, and go on past the cases that fail.

        A case whose worker dies is tried again, alone in its worker, until `watch` gives it up.

        Args:
            function: a module-level function of EchoPlan; with `setup` a class whose instances are such functions.
            arguments: case name -> positional arguments.
            description: the progress bar's label.
            setup: arguments of the class, of which each worker makes an instance when it starts.
            watch: is told of the cases; None: a bar.

        Returns:
            The cases in their own order.

        Raises:
            EchoPlanError: no case can escape it (a full disk, a node that does not see the folders), or no node has
                what a worker takes.
            Terminated: SIGTERM came.
        """
        self.cluster.check(self.need)
        with watch or Watch(description, len(arguments)) as watch, noting_sigterm() as check_sigterm:
            shift = _Shift(self, (function, setup, self.disk, self.threads), arguments, watch)
            try:
                while shift.unfinished:
                    check_sigterm()
                    shift.step()
                    watch.look()
            finally:
                shift.end()
        done, failures = shift.results.done, shift.results.failures
        return CaseResults(
            {case: done[case] for case in arguments if case in done},
            {case: failures[case] for case in arguments if case in failures},
        )


@dataclass(frozen=True)
class ClusterCases:
    """An engine for many small cases: connects to a cluster, and works there on one case a CPU.

    Attributes:
        written, read: absolute folders; all nodes must see them under these paths.
        address: as `connected` takes it.
    """

    written: Path
    read: Path
    address: str | None = None

    def __call__(
        self, function: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]], *, description: str = ""
    ) -> CaseResults:
        """See `ClusterMap`."""
        need = {"CPU": 1.0}
        with connected(self.address) as cluster, shared_disk(self.written, self.read) as disk:
            room = cluster.room(need)
            logger.info("%s %d cases on %s", description, len(arguments), in_words({"CPU": room}))
            # More workers than fit, so that a node that joins finds work at once.
            run = ClusterMap(cluster, disk, need, workers=2 * room + 100, threads=1)
            return run(function, arguments, description=description)


class _Worker:
    """In a process of its own on any node."""

    def __init__(
        self, function: Callable[..., Any], setup: tuple[Any, ...] | None, disk: SharedDisk, threads: int | None
    ) -> None:
        self._function, self._setup, self._disk, self._threads = function, setup, disk, threads

    def begin(self) -> str:
        """Make ready; this node's name."""
        self._disk.check()
        if self._threads is not None:
            import torch

            torch.set_num_threads(self._threads)
        if self._setup is not None:
            self._function = self._function(*self._setup)
        return socket.gethostname()

    def work(self, values: tuple[Any, ...]) -> Any:
        """A case's value, or a `Failure`."""
        try:
            return attempt(self._function, *values)
        except Terminated:
            return Failure("it was terminated", again=True)


@dataclass
class _Hand:
    """A worker as the command sees it: where it is, once it has begun, and the cases it works on."""

    actor: Any
    node: str | None = None
    cases: set[str] = field(default_factory=set)


class _Shift:
    """Cases that wait, the workers, and what they are asked just now."""

    def __init__(
        self, run: ClusterMap, told: tuple[Any, ...], arguments: Mapping[str, tuple[Any, ...]], watch: Watch
    ) -> None:
        import ray

        self.results = CaseResults()
        self._run, self._told, self._arguments, self._watch = run, told, arguments, watch
        self._worker = ray.remote(_Worker).options(
            num_cpus=run.need["CPU"],
            num_gpus=run.need.get("GPU", 0),
            max_restarts=0,
            max_concurrency=run.cases_at_once,
        )
        self._waiting = deque(arguments)
        self._suspects: set[str] = set()
        self._hands: list[_Hand] = []
        self._asked: dict[Any, tuple[_Hand, str | None]] = {}  # None: asked to begin
        self._begun = False
        self._silent_since, self._patience = time.monotonic(), _FIRST_WORD_SECONDS

    @property
    def unfinished(self) -> int:
        """How many cases wait or are worked on."""
        return len(self._arguments) - len(self.results)

    def step(self) -> None:
        """Hand out what there is room for, and hear what has ended, for a second at most."""
        import ray

        while len(self._hands) < min(self._run.workers, self.unfinished):
            hand = _Hand(self._worker.remote(*self._told))
            self._hands.append(hand)
            self._asked[hand.actor.begin.remote()] = hand, None
        for hand in self._hands:
            while hand.node is not None and self._waiting and self._may_take(hand, self._waiting[0]):
                case = self._waiting.popleft()
                self._watch.begin(case, hand.node)
                hand.cases.add(case)
                self._asked[hand.actor.work.remote(self._arguments[case])] = hand, case
        ended, _ = ray.wait(list(self._asked), timeout=_LOOK_EVERY_SECONDS)
        for reference in ended:
            self._hear(reference, *self._asked.pop(reference))
        if ended or any(hand.cases for hand in self._hands):
            self._silent_since = time.monotonic()
        elif time.monotonic() - self._silent_since > self._patience:
            self._say_what_is_waited_for()

    def _may_take(self, hand: _Hand, case: str) -> bool:
        """A case that may have ended a worker is alone in the next one: it may have taken others with it."""
        if case in self._suspects or self._suspects & hand.cases:
            return not hand.cases
        return len(hand.cases) < self._run.cases_at_once

    def _hear(self, reference: Any, hand: _Hand, case: str | None) -> None:
        """What a worker answers, or how it died."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            answer = ray.get(reference)
        except RayTaskError as error:
            if not (self._run.one_case_each and case is None):
                raise (error.cause or error) from None
            answer = Failure(str(error.cause))  # of this case alone: the others train on
        except RayError as error:
            answer = Failure(_last_words(error), again=True)
            self._dismiss(hand)
        if case is None and isinstance(answer, str):
            hand.node, self._begun = answer, True
            return
        if case is None:  # it could not begin: the next case is told so
            self._dismiss(hand)
            if not self._waiting:
                return
            case = self._waiting.popleft()
        hand.cases.discard(case)
        if self._run.one_case_each:
            self._dismiss(hand)
        self._note(case, answer)

    def _note(self, case: str, answer: Any) -> None:
        if isinstance(answer, Failure) and (answer.again or (answer.traceback and self._run.errors_again)):
            reason = self._watch.why_give_up(case, answer.reason)
            if not reason:
                self._suspects.add(case)
                self._waiting.append(case)
                return
            answer = Failure(reason if answer.again else answer.reason)
        record(self.results, case, answer)
        self._watch.end(case, self.results)

    def _dismiss(self, hand: _Hand) -> None:
        import ray

        with suppress(ValueError):  # several of its cases may tell that it has died
            self._hands.remove(hand)
            ray.kill(hand.actor)

    def _say_what_is_waited_for(self) -> None:
        need = self._run.need
        if not self._begun:
            self._run.cluster.check(need)  # the node that had it may have gone
        state = self._run.cluster.state(need)
        logger.warning("%d wait for room or start; each takes %s: %s", len(self._waiting), in_words(need), state)
        self._silent_since, self._patience = time.monotonic(), _WORD_SECONDS

    def end(self) -> None:
        """End the workers."""
        for hand in list(self._hands):
            self._dismiss(hand)


def _last_words(error: Exception) -> str:
    """One line of what Ray says of a worker's death."""
    told = str(error)
    if "running low on memory" in told:
        return "its node ran out of memory"
    return "its node died" if "node has died" in told else "its worker died"
