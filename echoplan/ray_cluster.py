"""Ray, the engine for more than one machine: the cluster connected to, what it has, and waiting for room in it.

Ray is an optional extra, imported when it is asked for. Nothing here knows what is computed.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager, suppress
from typing import Any

from echoplan.errors import EchoPlanError

logger = logging.getLogger(__name__)

_OWN = "local"  # Ray's word for a cluster of this machine alone, which ends with the command
_OBJECT_STORE_BYTES = 200 * 2**20  # of a cluster of our own; only lists of names travel through it
_FIRST_WORD_SECONDS, _WORD_SECONDS = 3.0, 30.0


def add_engine(to: argparse.ArgumentParser) -> None:
    """--engine and --address: what spreads the work over machines."""
    to.add_argument("--engine", choices=("ray",), help="spread the work with Ray; see docs/scaling.md")
    to.add_argument("--address", metavar="HOST:PORT",
                    help="with --engine: the Ray cluster, or auto for the one this machine is part of; not given: "
                    "$RAY_ADDRESS, else this machine alone")  # fmt: skip


def check_engine(options: argparse.Namespace, *needing: str) -> None:
    """Refuse options that mean nothing without --engine, and --engine without Ray.

    Args:
        options: as `add_engine`'s parser gives them.
        needing: more options that need the engine, by their attribute's name.

    Raises:
        EchoPlanError: such an option is given without --engine, or Ray is not installed.
    """
    if options.engine:
        require_ray()
        return
    for name in ("address", *needing):
        if getattr(options, name) is not None:
            raise EchoPlanError(f"--{name} is for the engine only", remedy="add --engine ray")


def require_ray() -> None:
    """Raise an EchoPlanError that says how to install Ray, where it is missing."""
    # As Python itself looks for it: a folder named ray in the working directory has no __init__.py and is not meant.
    found = importlib.util.find_spec("ray")
    if found is None or found.origin is None:
        raise EchoPlanError("Ray is not installed", remedy="pip install 'echoplan[ray]'")


class Cluster:
    """The cluster that this process is connected to."""

    def nodes(self) -> list[dict[str, float]]:
        """What each living node has, taken or free: {"CPU": 16.0, "GPU": 2.0, ...}."""
        import ray

        return [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def room(self, need: Mapping[str, float]) -> int:
        """How many workers fit in the cluster when it is empty; one worker stays on one node."""
        wanted = {kind: amount for kind, amount in need.items() if amount > 0}
        return sum(
            min(int(node.get(kind, 0) / amount + 1e-9) for kind, amount in wanted.items()) for node in self.nodes()
        )

    def wait_for(self, need: Mapping[str, float]) -> None:
        """Return once one worker has room, and say meanwhile what is waited for.

        Args:
            need: what the worker takes, such as {"CPU": 2, "GPU": 1}.

        Raises:
            EchoPlanError: no node has that much, not even when it is empty.
        """
        from ray.util.placement_group import placement_group, remove_placement_group

        self.check(need)
        group = placement_group([dict(need)])
        try:
            seconds = _FIRST_WORD_SECONDS
            while not group.wait(seconds):
                self.check(need)  # the node that had it may have gone
                logger.warning("waiting for %s: %s", in_words(need), self.state(need))
                seconds = _WORD_SECONDS
        finally:
            remove_placement_group(group)

    def check(self, need: Mapping[str, float]) -> None:
        """Raise an EchoPlanError if no node has what one worker takes, not even when it is empty."""
        if self.room(need):
            return
        raise EchoPlanError(
            f"a worker takes {in_words(need)}, which no node has: {self.state(need)}",
            remedy="start a node that has it, or let a worker take less (--device cpu, fewer CPUs or GPUs for each)",
        )

    def state(self, need: Mapping[str, float]) -> str:
        """What the cluster has of the kinds in `need`, and how much of it is free, in words."""
        import ray

        free = ray.available_resources()
        nodes = self.nodes()
        kinds = [
            f"{in_words({kind: sum(node.get(kind, 0) for node in nodes)})}, {free.get(kind, 0):g} free" for kind in need
        ]
        return f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'} with {'; '.join(kinds)}"


@contextmanager
def connected(address: str | None = None) -> Iterator[Cluster]:
    """The Ray cluster inside the block; one that this process is connected to already is used and left as it is.

    Args:
        address: HOST:PORT of its head, "auto" for the one this machine is part of; None takes $RAY_ADDRESS, as all of
            Ray does, and where that is not set, starts one on this machine that ends with the block.

    Raises:
        EchoPlanError: Ray is not installed, or the cluster does not answer or has another version.
    """
    require_ray()
    import ray

    if ray.is_initialized():
        yield Cluster()
        return
    with _own_signals():
        _connect(address or os.environ.get("RAY_ADDRESS") or _OWN)
    try:
        yield Cluster()
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    import ray

    own: dict[str, Any] = {}
    if address == _OWN:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of a clinic's machine is told to anybody
        os.environ.setdefault("RAY_worker_niceness", "0")  # as quick as a command without the engine
        own = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        # What workers print does not matter to users: reasons come back with the results.
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # Ray raises many kinds, and says what it means by their words alone
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EchoPlanError(
            f"no Ray cluster to work with at {address}: {reason}",
            remedy="start one with `ray start --head`, or join one with `ray start --address HOST:PORT`, with the same "
            "versions of Python and Ray; without --address, Ray works on this machine alone",
        ) from error


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what SIGTERM means here: connecting to Ray changes it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def saying_when_stuck(cluster: Cluster, need: Mapping[str, float], progress: Sized) -> Iterator[None]:
    """Log what the cluster has while nothing comes, so that nobody waits for a worker that cannot start.

    Args:
        cluster: where the work is done.
        need: what one worker takes.
        progress: grows with each result.
    """
    over = threading.Event()

    def watch() -> None:
        seen = len(progress)
        while not over.wait(_WORD_SECONDS):
            if len(progress) == seen:
                with suppress(Exception):  # the cluster may be going down; the main thread says so
                    logger.warning("no result for %.0f s: %s; a worker takes %s", _WORD_SECONDS, cluster.state(need),
                                   in_words(need))  # fmt: skip
            seen = len(progress)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def in_words(need: Mapping[str, float]) -> str:
    """{"CPU": 2, "GPU": 1} -> "2 CPUs and 1 GPU"."""
    return " and ".join(f"{amount:g} {kind}{'' if amount == 1 else 's'}" for kind, amount in need.items())
