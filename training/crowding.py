"""Batches too large for the GPU's memory: halved, by all processes that train together at once."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from echoplan.errors import EchoPlanError

from .data import Batch, split_batch

if TYPE_CHECKING:
    from .trainers.base import EchoTrainer


def gradient_that_fits(trainer: EchoTrainer, batch: Batch, share: float) -> float:
    """Compute the gradient of a batch as a whole or, from the first time that its memory is too small on, in two parts.

    Of several processes all go over to two parts as soon as one must. They ask one another when their passes are over
    and before any gradient is exchanged, so that nobody waits for one who failed.

    Args:
        trainer: whose network; its `accumulation` says in how many parts.
        batch: this process's samples.
        share: of the batch of all processes, which they are.

    Returns:
        This process's part of the mean loss.

    Raises:
        EchoPlanError: half a batch, or a single sample, is too large, or the loss is not finite.
    """
    count = len(batch["case"])
    while True:
        loss, fits = _try(trainer, batch, share)
        hopeless = not fits and (trainer.accumulation > 1 or count < 2)
        crowded, lost = trainer.world.total(float(not fits), float(hopeless), device=trainer.device)
        if lost:
            raise _too_small(-(-count // trainer.accumulation))
        if not crowded:
            return loss
        trainer.accumulation = 2
        torch.cuda.empty_cache()
        trainer.log.say(
            f"out of GPU memory with a batch of {count}: from now on in 2 parts whose gradients are added, "
            "which is slower; plan again with a smaller --gpu_memory_target to avoid it"
        )


def _try(trainer: EchoTrainer, batch: Batch, share: float) -> tuple[float, bool]:
    """The loss with its gradient, and whether there was memory for it."""
    parts = split_batch(batch, trainer.accumulation)
    losses = [(share * own, partial(trainer.part_loss, part)) for own, part in parts]
    try:
        return trainer.optimisation.gradient(losses), True
    except torch.OutOfMemoryError as error:
        if trainer.world.exchanges_in_passes(trainer.network):
            raise _cannot_be_halved(trainer, len(batch["case"])) from error
    # Only here, out of the except block: the error held on to the tensors that filled the memory.
    return 0.0, False


def _too_small(samples: int) -> EchoPlanError:
    return EchoPlanError(
        f"the GPU's memory is too small for {samples} sample(s) at a time",
        remedy="plan again with a smaller --gpu_memory_target or --size",
    )


def _cannot_be_halved(trainer: EchoTrainer, count: int) -> EchoPlanError:
    """With synchronised batch normalisation the others wait within their passes, where they cannot be told."""
    if count < 2:
        return _too_small(count)
    fewer = max(trainer.training_batches.batch_size // 2, trainer.world.size)
    return EchoPlanError(
        f"the GPU's memory is too small for {count} samples at a time, and batches cannot be halved on the way where "
        "batch normalisation works over several GPUs",
        remedy=f"start again with --overwrite --set batch_size={fewer}; or, where another program had filled the "
        "memory, resume with --c",
    )
