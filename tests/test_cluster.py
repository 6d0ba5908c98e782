"""Cases on a cluster: what is handed to whom, and what a death costs; a stand-in for Ray runs threads here."""

from __future__ import annotations

import ast
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from echoplan import __version__
from echoplan.cluster import Cluster
from echoplan.cluster_map import ATTEMPTS, ClusterMap, Watch, check_node
from echoplan.errors import EchoPlanError, Terminated

ROOT = Path(__file__).parents[1]


class RayError(Exception):
    """What Ray raises of a worker's death."""


class RayTaskError(RayError):
    """What Ray raises of an error in a worker's own code."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Died(BaseException):
    """Raised by a case: its worker is gone."""


class Actor:
    """A worker in threads of this process; dead, all that it is asked fails."""

    def __init__(self, worker: Any, threads: int) -> None:
        self.pool, self.worker, self.dead = futures.ThreadPoolExecutor(threads), worker, threading.Event()

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *values: self.pool.submit(self.run, getattr(self.worker, name), values))

    def run(self, method: Callable[..., Any], values: tuple[Any, ...]) -> Any:
        try:
            answer = None if self.dead.is_set() else method(*values)
        except Died:
            self.dead.set()
        except Exception as error:
            raise RayTaskError(error) from error
        if self.dead.is_set():
            raise RayError("The actor died because its node has died.")
        return answer


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ClusterMap:
    """A cluster of the stand-in, with room for two workers of one case at a time."""

    def remote(kind: type) -> SimpleNamespace:
        return SimpleNamespace(
            options=lambda **options: SimpleNamespace(
                remote=lambda *told: Actor(kind(*told), options["max_concurrency"])
            )
        )

    def wait(asked: list[futures.Future[Any]], timeout: float) -> tuple[list[futures.Future[Any]], None]:
        done, _ = futures.wait(asked, timeout, return_when=futures.FIRST_COMPLETED)
        return list(done), None

    ray, exceptions = ModuleType("ray"), ModuleType("ray.exceptions")
    for name, value in {
        "remote": remote, "wait": wait, "get": lambda asked: asked.result(), "kill": lambda actor: actor.dead.set(),
        "available_resources": dict,
    }.items():  # fmt: skip
        setattr(ray, name, value)
    exceptions.RayError, exceptions.RayTaskError = RayError, RayTaskError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", exceptions)
    monkeypatch.setattr(Cluster, "nodes", lambda self: [{"CPU": 1.0}, {"CPU": 1.0}])
    return ClusterMap(Cluster(), {"CPU": 1.0}, tmp_path / "written", workers=2)


class Work:
    """A function that notes who is at work on what at the same time, and ends its worker as it is told to."""

    def __init__(self, deaths: dict[str, int] | None = None, error: Exception | None = None) -> None:
        self.deaths, self.error, self.lock = dict(deaths or {}), error, threading.Lock()
        self.begun: dict[str, int] = defaultdict(int)
        self.inside: set[tuple[str, int]] = set()
        self.beside: dict[tuple[str, int], set[tuple[str, int]]] = defaultdict(set)  # by case and attempt

    def __call__(self, case: str) -> str:
        with self.lock:
            self.begun[case] += 1
            me = case, self.begun[case]
            self.inside.add(me)
            for other in self.inside:
                self.beside[other].add(me)
                self.beside[me].add(other)
        threading.Event().wait(0.05)
        with self.lock:
            self.inside.remove(me)
        if self.error is not None:
            raise self.error
        if self.begun[case] <= self.deaths.get(case, 0):
            raise Died
        return case.upper()


def cases(names: str) -> dict[str, tuple[str]]:
    return {name: (name,) for name in names}


def test_cases_come_out_in_their_order_past_those_that_fail_or_kill(cluster: ClusterMap) -> None:
    work = Work({"b": 1, "d": 9})
    results = cluster(work, cases("abcde"))
    assert results.done == {"a": "A", "b": "B", "c": "C", "e": "E"} and list(results.done) == list("abce")
    assert work.begun["b"] == 2 and work.begun["d"] == ATTEMPTS
    assert results.failures["d"].startswith(f"its node died in each of {ATTEMPTS} attempts (on ")


def test_a_suspect_is_alone_in_its_worker(cluster: ClusterMap) -> None:
    """One worker with three cases at once: which of them killed it, only each alone can tell."""
    work = Work({"b": 2})
    results = replace(cluster, workers=1, cases_at_once=3)(work, cases("abcdefg"))
    assert len(results.done) == 7 and work.begun["b"] == 3 and sum(work.begun.values()) <= 7 + 2 + 2
    assert max(map(len, work.beside.values())) >= 3
    again = {me: beside for me, beside in work.beside.items() if me[1] > 1}
    assert again and all(beside == {me} for me, beside in again.items())


def test_errors_that_nobody_foresaw_are_tried_again(cluster: ClusterMap) -> None:
    for error, attempts, reason in (
        (RuntimeError("broken"), ATTEMPTS, "RuntimeError: broken"),
        (EchoPlanError("no clip"), 1, "no clip."),
    ):
        work = Work(error=error)
        assert cluster(work, cases("a")).failures == {"a": reason} and work.begun["a"] == attempts


def test_deaths_count_from_the_last_progress(cluster: ClusterMap) -> None:
    """A case that goes on a bit between its worker's deaths is not given up."""

    class Progress(Watch):
        def mark(self, case: str) -> object:
            return min(work.begun[case], 4)  # no more of it after the fourth attempt

    work = Work({"a": 99})
    reason = cluster(work, cases("a"), watch=Progress()).failures["a"]
    assert work.begun["a"] == 3 + ATTEMPTS and f"died in each of {ATTEMPTS} attempts" in reason


def test_what_no_case_can_escape_ends_the_work(cluster: ClusterMap, tmp_path: Path) -> None:
    with pytest.raises(EchoPlanError, match="the disk is full"):
        cluster(Work(error=EchoPlanError("the disk is full", fatal=True)), cases("abc"))
    strange = replace(cluster, read=(tmp_path / "nowhere",))
    with pytest.raises(EchoPlanError, match="does not see"):
        strange(Work(), cases("abc"))
    # With a worker of its own each case fails alone: others may be at work on better nodes.
    failures = replace(strange, one_case_each=True)(Work(), cases("ab")).failures
    assert list(failures) == ["a", "b"] and "does not see" in failures["a"]
    with pytest.raises(EchoPlanError, match="a worker takes 3 CPUs, which no node has: 2 nodes with 2 CPUs"):
        replace(cluster, need={"CPU": 3.0})(Work(), cases("a"))


def test_a_terminated_case_is_begun_again(cluster: ClusterMap) -> None:
    came: list[str] = []

    def terminated(case: str) -> str:
        came.append(case)
        if len(came) == 1:
            raise Terminated
        return case

    assert replace(cluster, one_case_each=True)(terminated, cases("a")).done == {"a": "a"} and came == ["a", "a"]


def test_a_node_that_sees_other_files_is_named(cluster: ClusterMap, tmp_path: Path) -> None:
    (tmp_path / "read").mkdir()
    token = tmp_path / "token"
    token.touch()
    check_node(token, (tmp_path / "read",), __version__)
    for wrong, match in (
        ((token, (tmp_path / "nowhere",), __version__), r"the node .* does not see .*nowhere.*share"),
        ((tmp_path / "read" / "token", (), __version__), r"does not see .*read\)"),
        ((token, (), "0.0"), rf"has EchoPlan {__version__}, the command 0.0"),
    ):
        with pytest.raises(EchoPlanError, match=match):
            check_node(*wrong, patience_s=0)
    cluster(str.upper, cases("a"))
    assert list((tmp_path / "written").iterdir()) == []


def test_room_is_counted_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    have = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 3.0}, {"CPU": 1.0, "GPU": 2.0}]
    monkeypatch.setattr(Cluster, "nodes", lambda self: have)
    assert Cluster().room({"CPU": 2}) == 3
    assert Cluster().room({"GPU": 1, "CPU": 1}) == 2
    assert Cluster().room({"CPU": 8}) == 0


def test_ray_is_imported_by_functions_only() -> None:
    top = [
        str(path.relative_to(ROOT))
        for room in ("echoplan", "preprocessing", "training", "inference", "experiment_planning", "evaluation")
        for path in (ROOT / room).rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if any(name.split(".")[0] == "ray" for name in imported(node))
    ]
    assert top == []


def imported(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""] if node.level == 0 else []
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
