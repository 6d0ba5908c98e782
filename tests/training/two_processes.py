"""Work done in two processes, forked from this one, that have joined as torchrun's do."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from echoplan.errors import EchoPlanError
from echoplan.files import read_json, write_json
from echoplan.training.distributed import World, joined


def in_two(work: Callable[[World], Any], folder: Path) -> list[Any]:
    """What `work` gives in each of two processes that have joined, or the words of its EchoPlanError."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    pair = [fork.Process(target=one_of_two, args=(rank, port, work, folder)) for rank in range(2)]
    for process in pair:
        process.start()
    deadline = time.monotonic() + 500
    for process in pair:
        process.join(deadline - time.monotonic())
    hanging = [process for process in pair if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, "they wait for each other for ever"
    return [read_json(folder / f"answer_{rank}.json") for rank in range(2)]


def one_of_two(rank: int, port: int, work: Callable[[World], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined(os.environ, torch.device("cpu")) as (world, _):
        try:
            answer = work(world)
        except EchoPlanError as error:
            answer = str(error)
        write_json(folder / f"answer_{rank}.json", answer)
