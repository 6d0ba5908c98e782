"""Ray, the engine for more than one machine: the options that name it, the cluster connected to, and what it has.

Ray is an optional extra, imported when it is asked for. Nothing here knows what is computed.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from echoplan.errors import EchoPlanError
from echoplan.extras import how_to_install

_THIS_MACHINE = "local"  # Ray's word for a cluster of this machine alone, which ends with the command
_OBJECT_STORE_BYTES = 200 * 2**20  # of a cluster of our own; only names and reasons travel through it


def check_engine(options: argparse.Namespace, *needing: str) -> None:
    """Refuse options that mean nothing without --engine, and --engine without Ray.

    Args:
        options: as `options.shared.add_engine` gives them.
        needing: more options that need the engine, by their attribute's name.

    Raises:
        EchoPlanError: such an option is given without --engine, or Ray is not installed.
    """
    if options.engine:
        _require_ray()
        return
    for name in ("address", *needing):
        if getattr(options, name) is not None:
            raise EchoPlanError(f"--{name} is for the engine only", remedy="add --engine ray")


def _require_ray() -> None:
    # As Python itself looks for it: a folder named ray in the working directory has no __init__.py and is not meant.
    spec = importlib.util.find_spec("ray")
    if spec is None or spec.origin is None:
        raise EchoPlanError("Ray is not installed", remedy=how_to_install("ray"))


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

    def device(self, choice: str) -> str:
        """The device, "cuda" or "cpu", that an option --device means; "auto" is GPUs where any node has one.

        Raises:
            EchoPlanError: Ray does not know such a device.
        """
        if choice == "auto":
            return "cuda" if self.room({"GPU": 1.0}) else "cpu"
        if choice == "mps":
            raise EchoPlanError("Ray does not know the device mps", remedy="use --device cpu, or leave --engine out")
        if ":" in choice:
            raise EchoPlanError(f"Ray chooses among GPUs itself, {choice} cannot be asked for", remedy="--device cuda")
        return choice

    def check(self, need: Mapping[str, float]) -> None:
        """Raise an EchoPlanError if no node has what one worker takes, not even when it is empty."""
        if not self.room(need):
            raise EchoPlanError(
                f"a worker takes {in_words(need)}, which no node has: {self.state(need)}",
                remedy="start a node that has it, or let a worker take less (--device cpu, fewer CPUs or GPUs each)",
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
    _require_ray()
    import ray

    if ray.is_initialized():
        yield Cluster()
        return
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        _connect(address or os.environ.get("RAY_ADDRESS") or _THIS_MACHINE)
    finally:
        if main:  # connecting to Ray changes what SIGTERM means here
            signal.signal(signal.SIGTERM, before)
    try:
        yield Cluster()
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    import ray

    options: dict[str, Any] = {}
    if address == _THIS_MACHINE:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of a clinic's machine is told to anybody
        os.environ.setdefault("RAY_worker_niceness", "0")  # as quick as a command without the engine
        options = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        # What workers print does not matter to users: reasons come back with the results.
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # Ray raises many kinds, and says what it means by their words alone
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EchoPlanError(
            f"no Ray cluster to work with at {address}: {reason}",
            remedy="start one with `ray start --head`, or join one with `ray start --address HOST:PORT`, with the same "
            "versions of Python and Ray; without --address, Ray works on this machine alone",
        ) from error


def in_words(need: Mapping[str, float]) -> str:
    """{"CPU": 2, "GPU": 1} -> "2 CPUs and 1 GPU"."""
    return " and ".join(f"{amount:g} {kind}{'' if amount == 1 else 's'}" for kind, amount in need.items())
