"""One optimisation step: precision, gradient, clipping, schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from echoplan.device import fast_dtype
from echoplan.errors import EchoPlanError

from .recipe import Recipe


class Optimisation:
    """Optimiser, learning rate schedule, mixed precision and gradient clipping of one network.

    Args:
        network: what is trained; frozen parameters stay out.
        recipe: optimiser, precision, clipping.
        learning_rate: at the start.
        iterations: of the whole training; the schedule ends there.
        device: decides what "auto" precision means.
    """

    def __init__(
        self, network: nn.Module, recipe: Recipe, *, learning_rate: float, iterations: int, device: torch.device
    ) -> None:
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.recipe = recipe
        self.learning_rate = learning_rate
        self.iterations = iterations
        self.iteration = 0
        self.device = device
        self.dtype = choose_precision(recipe.precision, device, network)
        self.optimiser = _build_optimiser(self.parameters, recipe, learning_rate)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for forward passes."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def step(self, losses: Sequence[tuple[float, Callable[[], torch.Tensor]]]) -> float:
        """Compute the loss of a batch, its gradient, and move the weights; the loss as a number.

        Args:
            losses: of each part of the batch its share and its mean loss. Gradients add up, and the activations of one
                part at a time are in memory.

        Raises:
            EchoPlanError: the loss is not finite.
        """
        rate = poly_rate(self.learning_rate, self.iteration, self.iterations, self.recipe.poly_power)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        number = sum(self._backward(share, loss) for share, loss in losses)
        if self.recipe.gradient_clip is not None:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.gradient_clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.iteration += 1
        return number

    def _backward(self, share: float, loss: Callable[[], torch.Tensor]) -> float:
        with self.autocast():
            value = loss() * share
        number = 0.0 if value.is_meta else float(value.detach())  # a rehearsal has no values
        if not math.isfinite(number):
            raise EchoPlanError(
                f"the loss became {number} at iteration {self.iteration}",
                remedy="train again with a lower learning rate (--set learning_rate=...) or --set precision=float32",
            )
        self.scaler.scale(value).backward()
        return number

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimiser.param_groups[0]["lr"])

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "iteration": self.iteration,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.iteration = state["iteration"]


def poly_rate(start: float, iteration: int, iterations: int, power: float) -> float:
    """start * (1 - iteration / iterations) ** power, the schedule of nnU-Net, PKEcho-Net and EchoForge."""
    return start * (1 - min(iteration, iterations - 1) / iterations) ** power


def choose_precision(name: str, device: torch.device, network: nn.Module | None = None) -> torch.dtype:
    """The dtype of forward passes for a recipe's `precision`; "auto" is the device's fastest (`fast_dtype`).

    Networks with 3D convolutions train in float32 on CPUs: PyTorch's bfloat16 gradient of narrow ones writes beyond its
    memory there, and the process crashes.
    """
    if name == "auto":
        in_3d = network is not None and any(isinstance(module, nn.Conv3d) for module in network.modules())
        return torch.float32 if in_3d and device.type == "cpu" else fast_dtype(device)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _build_optimiser(parameters: list[nn.Parameter], recipe: Recipe, rate: float) -> torch.optim.Optimizer:
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(
            parameters, rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0, weight_decay=recipe.weight_decay
        )
    kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
    return kind(parameters, rate, weight_decay=recipe.weight_decay)
