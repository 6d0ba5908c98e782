"""One training on several processes: torchrun starts them, every one takes its share of each batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from echoplan.errors import EchoPlanError


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Attributes:
        rank: this one's number; 0 writes the files and speaks.
        size: how many there are; 1 is an ordinary training.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network as training steps call it: gradients become the mean over the processes."""
        if self.size == 1:
            return network
        # Parts that a batch does not use (frozen ones, switched-off ones) must not keep the others waiting.
        return DistributedDataParallel(
            network, device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=True
        )

    def synchronise_norms(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Batch normalisation over the whole batch instead of a process's share; PyTorch has it for GPUs only."""
        if self.size == 1 or device.type != "cuda":
            return network
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)

    def total(self, *values: float, device: torch.device) -> list[float]:
        """Each value's sum over the processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        return sums.tolist()

    def from_leader(self, value: Any) -> Any:
        """What the leading process has; the others wait for it."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def joined(environment: Mapping[str, str], device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """The world that torchrun describes, and this process's own device; an ordinary training without torchrun.

    Args:
        environment: where torchrun says RANK, WORLD_SIZE and LOCAL_RANK.
        device: what the user chose; of several GPUs each process takes its own.

    Raises:
        EchoPlanError: there are more processes than GPUs.
    """
    size = int(environment.get("WORLD_SIZE", "1"))
    if "RANK" not in environment or size == 1:
        yield World(), device
        return
    if device.type == "cuda":
        local = int(environment.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise EchoPlanError(
                f"{local + 1} processes or more on this machine, but {torch.cuda.device_count()} GPU(s)",
                remedy="start torchrun with as many processes a machine as it has GPUs (--nproc_per_node)",
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), size), device
    finally:
        dist.destroy_process_group()
