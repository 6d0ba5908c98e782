"""One training on several processes: torchrun starts them, every one takes its share of each batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from echoplan.errors import EchoPlanError, Terminated

# How long a process waits for the others. They wait while the leader validates: after every epoch and, on whole clips,
# at a fold's end, which takes hours on large datasets. NCCL's own 10 minutes would end them. Nobody waits so long for a
# dead process: torchrun sees its end and ends the others.
PATIENCE = timedelta(hours=24)


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
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network as training steps call it: it starts from the leader's weights and averages gradients.

        Gradients are exchanged during the last backward pass of a step; `silent` keeps them at home.
        """
        if self.size == 1:
            return network
        return DistributedDataParallel(
            network,
            device_ids=[device] if device.type == "cuda" else None,
            # Parts that a batch does not use (switched-off ones) must not keep the others waiting.
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,  # `mean_statistics` counts every process's
        )

    def synchronise_norms(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Batch normalisation over the whole batch instead of a process's share; PyTorch has it for GPUs only.

        On CPUs every process normalises by the statistics of its own share (see `mean_statistics`).
        """
        if self.size == 1 or device.type != "cuda":
            return network
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)

    def exchanges_in_passes(self, network: nn.Module) -> bool:
        """Whether the processes wait for one another within a forward or backward pass, too."""
        return self.size > 1 and any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())

    def mean_statistics(self, network: nn.Module) -> None:
        """Where batch normalisation is not synchronised: make its running statistics the mean over the processes."""
        if self.size == 1:
            return
        norms = [item for item in network.modules() if isinstance(item, _BatchNorm)]
        statistics = [
            statistic for item in norms if not isinstance(item, nn.SyncBatchNorm)
            for statistic in (item.running_mean, item.running_var) if statistic is not None
        ]  # fmt: skip
        if statistics:
            # In float64, so that the mean of equal ones (of frozen layers) is what they are.
            flat = torch.cat([statistic.double() for statistic in statistics])
            dist.all_reduce(flat)
            _put_back(flat / self.size, statistics)

    def all_reduce(self, *values: float, device: torch.device) -> list[float]:
        """Each value's sum over the processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        return sums.tolist()

    def broadcast(self, value: Any) -> Any:
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
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    orderly = False
    try:
        yield World(dist.get_rank(), size), device
        orderly = True
    except Terminated:  # all at the same step
        orderly = True
        raise
    finally:
        # Not after an error, which the others may not share: NCCL's orderly end would wait for them, and they wait for
        # this process. It ends without, and torchrun ends them.
        if orderly:
            dist.destroy_process_group()


def silent(model: nn.Module | None) -> AbstractContextManager[None]:
    """Within it, passes of what `World.wrap` gave add to this process's own gradients and exchange none."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _put_back(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy what was put together in `flat` back to the tensors."""
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))
