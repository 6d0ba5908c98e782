"""Batches too large for the GPU's memory: halved, by all processes that train together at once."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING

import torch

from echoplan.errors import EchoPlanError

from .checkpoint import random_state, restore_random_state
from .data import Batch, split_batch
from .distributed import silent

if TYPE_CHECKING:
    from .methods.base import EchoTrainer


def gradient_that_fits(trainer: EchoTrainer, batch: Batch, share: float) -> float:
    """Compute the gradient of a batch as a whole or, from the first time that its memory is too small on, in two parts.

    Of several processes none may run out of memory within a pass: the others wait there for its gradients. Before the
    first batch, and before any larger one, they find out whether there is room (`_rehearse`).

    Args:
        trainer: whose network; its `accumulation` says in how many parts.
        batch: this process's samples.
        share: of the batch of all processes, which they are.

    Returns:
        This process's part of the mean loss.

    Raises:
        EchoPlanError: half a batch, or a single sample, is too large, or the loss is not finite; with several
            processes also where memory became too small after the rehearsal.
    """
    if trainer.world.size == 1:
        return _halving(trainer, batch, share)
    count = trainer.training_batches.count(trainer.progress.batches)
    if count > trainer.rehearsed:
        _rehearse(trainer, batch, share)
        trainer.rehearsed = count
    loss, fits = _passes(trainer, batch, share)
    if not fits:
        raise EchoPlanError(
            f"the GPU's memory was large enough for {len(batch['case'])} samples when the training began, and no "
            "longer is; another program may have filled it",
            remedy="resume with --c, which halves the batches if it must",
        )
    return loss


def _halving(trainer: EchoTrainer, batch: Batch, share: float) -> float:
    """Pass and, where one process has no room, pass again in two parts on all; they must exchange no gradients."""
    count = len(batch["case"])
    while True:
        loss, fits = _passes(trainer, batch, share)
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


def _rehearse(trainer: EchoTrainer, batch: Batch, share: float) -> None:
    """Find out together whether the batch has room: two steps of each process on its own, of which nothing remains.

    The first step makes what the optimiser remembers; only the second has all in memory that later ones have.
    """
    optimisation = trainer.optimisation
    before = io.BytesIO()  # not on the GPU, whose memory is what this is about
    torch.save({"network": trainer.network.state_dict(), **optimisation.state()}, before)
    recorded, random = trainer.recorded.state(), random_state()
    for _ in range(2):
        with silent(trainer.parallel):
            _halving(trainer, batch, share)
        optimisation.move()
    optimisation.optimiser.zero_grad(set_to_none=True)
    before.seek(0)
    state = torch.load(before, map_location="cpu", weights_only=True)
    trainer.network.load_state_dict(state["network"])
    optimisation.restore(state)
    trainer.recorded.restore(recorded)
    restore_random_state(random)


def _passes(trainer: EchoTrainer, batch: Batch, share: float) -> tuple[float, bool]:
    """The loss with its gradient, and whether there was memory for it."""
    size = trainer.world.size
    parts = split_batch(batch, trainer.accumulation)
    # Gradients are averaged over the processes: times their number, it is the mean over the whole batch.
    losses = [(share * own * size, partial(trainer.part_loss, part)) for own, part in parts]
    try:
        return trainer.optimisation.gradient(losses, before_last=partial(silent, trainer.parallel)) / size, True
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
