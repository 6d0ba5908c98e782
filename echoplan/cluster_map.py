"""Cases on a Ray cluster: what `echoplan.parallel_map.run_cases` does with processes, on all nodes there are."""

from __future__ import annotations

import logging
import socket
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from echoplan import __version__
from echoplan.case_warnings import CaseWarnings
from echoplan.cluster import Cluster, in_words
from echoplan.errors import EchoPlanError, Terminated
from echoplan.files import naming_full_disk
from echoplan.parallel_map import CaseResults, Failure, attempt_quietly, log_warnings, progress, record
from echoplan.termination import Termination

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # before work that kills its workers is given up
_LOOK_EVERY_SECONDS = 1.0
_FIRST_WORD_SECONDS, _WORD_SECONDS = 3.0, 30.0  # of silence, before a word on what is waited for
_PATIENCE_SECONDS = 20.0  # network disks show a new file late


class Watch:
    """Is told of the cases while they are worked on; here a bar shows how many have ended."""

    def __init__(self, description: str = "", total: int = 0) -> None:
        self._bar = progress(range(total), description=description)

    def begin(self, case: str, node: str) -> None:
        """A worker on a node begins a case."""

    def end(self, case: str, outcome: Any) -> None:
        """A case has ended; its value or a `Failure`."""
        self._bar.update()

    def look(self) -> None:
        """About a second has passed."""

    def mark(self, case: str) -> object:
        """Something that changes when a case makes progress; a worker's death after that is its first again."""
        return None

    def close(self) -> None:
        """There is no more to see."""
        self._bar.close()


@dataclass(frozen=True)
class ClusterMap:
    """Works through cases on a cluster, called as `run_cases` is.

    Attributes:
        cluster: where.
        need: what a worker, a process, takes of a node: {"CPU": 2, "GPU": 1}; it has as many threads as CPUs.
        written, read: absolute folders that workers write to and read; all nodes must see them under these paths.
        workers: how many at most; None: more than fit, so that a node that joins finds work at once.
        cases_at_once: how many cases a worker works on at a time, in threads.
        one_case_each: every case has a worker of its own; one that cannot start fails its case alone.
    """

    cluster: Cluster
    need: Mapping[str, float]
    written: Path
    read: tuple[Path, ...] = ()
    workers: int | None = None
    cases_at_once: int = 1
    one_case_each: bool = False

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

        Warnings that a case logs are held back and logged at the end, as by `run_cases`. A case whose worker dies, or
        that fails with anything but an EchoPlanError, is tried again, alone in its worker.

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
        room = self.cluster.room(self.need)
        logger.info("%d cases; workers at a time: %d, each of %s", len(arguments), room, in_words(self.need))
        watch = watch or Watch(description, len(arguments))
        # Inside a call of Ray, which is no Python code, an exception of a signal's handler would become another one.
        with _token(self.written) as token, Termination() as termination:
            shift = _Shift(self, (function, setup, token, self.read, __version__), arguments, watch)
            try:
                while len(shift.results) < len(arguments):
                    if termination.requested:
                        raise Terminated
                    shift.step()
                    watch.look()
            finally:
                shift.end()
                watch.close()
                log_warnings(shift.results, of=len(arguments))
        done, failures = shift.results.done, shift.results.failures
        return CaseResults(
            {case: done[case] for case in arguments if case in done},
            {case: failures[case] for case in arguments if case in failures},
            shift.results.warnings,
        )


@contextmanager
def _token(folder: Path) -> Iterator[Path]:
    """A file that only this run has: who sees it, sees the folder that is meant."""
    token = folder / f".run-{uuid.uuid4().hex}"
    with naming_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        token.touch()
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


def check_node(token: Path, read: tuple[Path, ...], version: str, patience_s: float = _PATIENCE_SECONDS) -> None:
    """Raise an EchoPlanError that names this node if it sees other files than the command, or has another EchoPlan."""
    node = socket.gethostname()
    if version != __version__:
        raise EchoPlanError(
            f"the node {node} has EchoPlan {__version__}, the command {version}",
            remedy="install one version on all nodes",
            fatal=True,
        )
    missing = [folder for folder in read if not folder.exists()]
    deadline = time.monotonic() + patience_s
    while not missing and not token.exists():
        if time.monotonic() > deadline:
            missing = [token.parent]
        time.sleep(0.2)
    if missing:
        raise EchoPlanError(
            f"the node {node} does not see what the command sees",
            file=missing[0],
            remedy="what is read and written must lie on a disk that all nodes share, under the same path",
            fatal=True,
        )


class _Worker:
    """In a process of its own on any node."""

    def __init__(self, function: Callable[..., Any], setup: tuple[Any, ...] | None, *seen: Any) -> None:
        self._function, self._setup, self._seen = function, setup, seen

    def begin(self, threads: int) -> str:
        """Make ready; this node's name."""
        import torch

        check_node(*self._seen)
        torch.set_num_threads(threads)
        if self._setup is not None:
            self._function = self._function(*self._setup)
        return socket.gethostname()

    def work(self, values: tuple[Any, ...]) -> tuple[Any, CaseWarnings]:
        """A case's value, or a `Failure`; and the warnings meanwhile."""
        try:
            return attempt_quietly(self._function, *values)
        except Terminated:
            return Failure("it was terminated", again=True), ()


@dataclass(eq=False)
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
        self._most = 2 * run.cluster.room(run.need) + 100 if run.workers is None else run.workers
        self._waiting = deque(arguments)
        self._attempts: Counter[tuple[str, object]] = Counter()  # by case and its progress
        self._nodes: dict[str, list[str]] = {}
        self._hands: list[_Hand] = []
        self._asked: dict[Any, tuple[_Hand, str | None]] = {}  # None: asked to begin
        self._begun = False
        self._silent_since, self._patience = time.monotonic(), _FIRST_WORD_SECONDS

    def step(self) -> None:
        """Hand out what there is room for, and hear what has ended, for a second at most."""
        import ray

        while len(self._hands) < min(self._most, len(self._arguments) - len(self.results)):
            hand = _Hand(self._worker.remote(*self._told))
            self._hands.append(hand)
            self._asked[hand.actor.begin.remote(max(1, int(self._run.need["CPU"])))] = hand, None
        for hand in self._hands:
            while hand.node is not None and self._waiting and self._may_take(hand, self._waiting[0]):
                case = self._waiting.popleft()
                self._watch.begin(case, hand.node)
                self._nodes.setdefault(case, []).append(hand.node)
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
        suspects = {suspect for suspect, _ in self._attempts}
        if suspects & {case, *hand.cases}:
            return not hand.cases
        return len(hand.cases) < self._run.cases_at_once

    def _hear(self, reference: Any, hand: _Hand, case: str | None) -> None:
        """What a worker answers, or how it died."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        said: CaseWarnings = ()
        try:
            answer = ray.get(reference)
            if case is not None:
                answer, said = answer
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
        if isinstance(answer, Failure) and (answer.again or answer.traceback):
            attempted = case, self._watch.mark(case)
            self._attempts[attempted] += 1
            if self._attempts[attempted] < ATTEMPTS:
                logger.warning("%s is begun again: %s", case, answer.reason)
                self._waiting.append(case)
                return
            answer = self._given_up(case, answer)
        record(self.results, case, answer, said)
        self._watch.end(case, answer)

    def _given_up(self, case: str, last: Failure) -> Failure:
        if not last.again:
            return last  # its own error says more
        on = ", ".join(dict.fromkeys(self._nodes.get(case, ())))
        return Failure(
            f"{last.reason} in each of {ATTEMPTS} attempts{f' (on {on})' if on else ''}. What to do: it may need more "
            "memory than a node has; run the same command on it alone, without --engine, to see why."
        )

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
