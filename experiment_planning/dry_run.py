"""A training step without a dataset: the very network, loss and optimizer of a method, on made-up clips."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echoplan.device import channels_last

from ..training.data import Batch
from ..training.methods import Method
from ..training.step import TrainStep


@dataclass(frozen=True)
class DryRun:
    """A step and a batch for it.

    Attributes:
        step: of the method's network, on its device.
        batch: "clip" and "labels" as a loader gives them, and what `extra_targets` adds; labels show a square.
    """

    step: TrainStep
    batch: Batch

    def make_optimizer_state(self) -> None:
        """What an optimizer makes in its first step, without the rest of that step."""
        for parameter in self.step.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.step.optimizer.step()
        self.step.optimizer.zero_grad(set_to_none=True)

    def take_step(self) -> None:
        """Forward pass, loss, backward pass, and a step of the optimizer, exactly as in training."""
        self.step(self.batch)

    def tensors(self) -> list[Any]:
        """All that is there between two steps."""
        return [*self.step.network.state_dict().values(), *self.step.optimizer.state.values(), self.batch]


def prepare_step(
    method: Method[Any],
    *,
    size: tuple[int, int],
    frames: int,
    batch_size: int,
    classes: int = 1,
    device: torch.device | str = "meta",
    autocast: Callable[[], AbstractContextManager[Any]] | None = None,
) -> DryRun:
    """Prepare a training step.

    Args:
        method: with its settings.
        size: (H, W).
        frames: T.
        batch_size: B.
        classes: K.
        device: "meta" computes nothing and allocates nothing; on a real one the step is taken for real.
        autocast: makes the context of forward passes; None takes the step's own.
    """
    device = torch.device(device)
    with device if device.type == "meta" else nullcontext():  # a real network is made on the CPU and moved, as trained
        network = method.build_network(size=size, classes=classes).to(device).train()
    if method.recipe.channels_last and device.type == "cuda":
        channels_last(network)

    def loss(batch: Batch) -> Tensor:
        method.epoch = method.recipe.epochs - 1  # when all terms count
        return method.loss(method.forward(network, batch), batch, epoch=method.epoch, record=lambda **_: None)

    step = TrainStep(
        network,
        method.recipe,
        loss,
        learning_rate=method.requirements.learning_rate,
        iterations=1000,
        device=device,
        autocast=autocast,
    )
    return DryRun(step, _made_up_batch(method, size, frames, batch_size, classes, device))


def _made_up_batch(
    method: Method[Any], size: tuple[int, int], frames: int, batch_size: int, classes: int, device: torch.device
) -> Batch:
    labels = np.zeros((frames, *size), np.uint8)
    labels[:, size[0] // 4 : -size[0] // 4, size[1] // 4 : -size[1] // 4] = 1
    targets = method.extra_targets(classes)
    sample: dict[str, np.ndarray] = {"clip": np.zeros((frames, 1, *size), np.float32), "labels": labels}
    sample |= {} if targets is None else targets(labels)
    batch: Batch = {name: torch.from_numpy(np.stack([value] * batch_size)) for name, value in sample.items()}
    # Without values networks begin by themselves: what the labels would make of chance, a forecast cannot know.
    told = None if device.type == "meta" else method.prompts(batch, training=True)
    if told is not None:
        batch["prompts"] = told
    return {
        "case": ["made up"] * batch_size,
        **{name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()},
    }
