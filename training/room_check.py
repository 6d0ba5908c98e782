"""Whether batches have room in every GPU's memory, found out by several processes together before they train."""

from __future__ import annotations

import io

import torch

from .checkpoint import random_state, restore_random_state
from .data import Batch
from .metrics import MetricAverager
from .step import TrainStep


class RoomCheck:
    """Before the first batch, and before any larger one: two steps of each process on its own, of which nothing stays.

    Of several processes none may run out of memory within a step: the others wait there for its gradients. In these
    trials they exchange none, and halve the batch together where one has no room. The first step makes what the
    optimizer remembers; only the second has all in memory that later ones have.

    Args:
        step: whose batches.
        metrics: what the loss records; put back, too.
    """

    def __init__(self, step: TrainStep, metrics: MetricAverager) -> None:
        self.step = step
        self.metrics = metrics
        self.largest = 0  # samples of all processes for which there is room

    def __call__(self, batch: Batch, share: float, samples: int) -> None:
        """Find out about a batch of which this process has a share; `samples` are those of all processes."""
        if self.step.world.size == 1 or samples <= self.largest:
            return
        step, network = self.step, self.step.network
        before = io.BytesIO()  # not on the GPU, whose memory is what this is about
        torch.save({"network": network.state_dict(), "step": step.state()}, before)
        metrics, random = self.metrics.state(), random_state()
        with step.trial():
            for _ in range(2):
                step(batch, share)
        step.optimizer.zero_grad(set_to_none=True)
        before.seek(0)
        state = torch.load(before, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        step.restore(**state["step"])
        self.metrics.restore(metrics)
        restore_random_state(random)
        self.largest = samples
