"""One optimisation step: precision, gradient, clipping, schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
        self.optimiser = _build_optimiser(_groups(network, recipe.rate_factors()), recipe, learning_rate)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for forward passes."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def gradient(
        self,
        losses: Sequence[tuple[float, Callable[[], torch.Tensor]]],
        *,
        before_last: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> float:
        """Compute the loss of a batch and its gradient; the loss as a number.

        Args:
            losses: of each part of the batch its share and its mean loss. Gradients add up, and the activations of one
                part at a time are in memory.
            before_last: makes the context of all parts but the last.

        Raises:
            EchoPlanError: the loss is not finite.
        """
        self.optimiser.zero_grad(set_to_none=True)
        *first, last = losses
        total = 0.0
        for part in first:
            with before_last():
                total += self._backward(*part)
        return total + self._backward(*last)

    def move(self) -> None:
        """Move the weights by the gradient that is there.

        Raises:
            EchoPlanError: there is no memory for what the optimiser remembers; smaller batches would not help.
        """
        self._set_rate()
        try:
            if self.recipe.gradient_clip is not None:
                self.scaler.unscale_(self.optimiser)
                nn.utils.clip_grad_norm_(self.parameters, self.recipe.gradient_clip)
            self.scaler.step(self.optimiser)
        except torch.OutOfMemoryError as error:
            raise EchoPlanError(
                "the GPU's memory is too small for the network and its optimiser",
                remedy="take a larger GPU, a smaller variant of the method, or --set optimiser=sgd",
            ) from error
        self.scaler.update()
        self.iteration += 1

    def _set_rate(self) -> None:
        recipe = self.recipe
        rate = poly_rate(
            self.learning_rate, self.iteration, self.iterations, recipe.poly_power, end=recipe.final_learning_rate
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)  # checkpoints of old have none

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


def poly_rate(start: float, iteration: int, iterations: int, power: float, *, end: float = 0.0) -> float:
    """end + (start - end) * (1 - iteration / iterations) ** power, the schedule of nnU-Net, PKEcho-Net and EchoForge.

    Where it ends at zero the last step is the one before it; any other end is the last step's.
    """
    steps = iterations if end == 0 else max(iterations - 1, 1)
    return end + (start - end) * (1 - min(iteration, iterations - 1) / steps) ** power


def choose_precision(name: str, device: torch.device, network: nn.Module | None = None) -> torch.dtype:
    """The dtype of forward passes for a recipe's `precision`; "auto" is the device's fastest (`fast_dtype`).

    Networks with 3D convolutions train in float32 on CPUs: PyTorch's bfloat16 gradient of narrow ones writes beyond its
    memory there, and the process crashes.
    """
    if name == "auto":
        in_3d = network is not None and any(isinstance(module, nn.Conv3d) for module in network.modules())
        return torch.float32 if in_3d and device.type == "cpu" else fast_dtype(device)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _groups(network: nn.Module, factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """The parameters that learn, one group for each factor of the learning rate; the usual one's is the first."""
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            factor = next((factor for start, factor in factors.items() if name.startswith(start)), 1.0)
            groups.setdefault(factor, []).append(parameter)
    return [{"params": members, "factor": factor} for factor, members in groups.items() if members]


def _build_optimiser(groups: list[dict[str, Any]], recipe: Recipe, rate: float) -> torch.optim.Optimizer:
    # One kernel for all of a tensor's arithmetic; planning's rehearsals, on no device, have none.
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(
            groups,
            rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov and recipe.momentum > 0,
            weight_decay=recipe.weight_decay,
            fused=fused,
        )
    kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, rate, weight_decay=recipe.weight_decay, fused=fused)
