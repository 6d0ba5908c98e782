"""One training step: precision, gradient, clipping, schedule, and batches that are too large for the GPU's memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from echoplan.device import fast_dtype, is_out_of_memory
from echoplan.errors import EchoPlanError

from .data import Batch, split_batch
from .distributed import World, silent
from .recipe import Recipe


class TrainStep:
    """Moves a network's weights by one batch a call.

    A batch that is too large for the GPU's memory is taken in two parts from then on, whose gradients are added.

    Args:
        network: what is trained; frozen parameters stay out.
        recipe: optimizer, precision, clipping.
        loss: the training loss of a batch, or of a part of one.
        learning_rate: at the start.
        iterations: of the whole training; the schedule ends there.
        device: decides what "auto" precision means.
        world: the processes that train together.
        model: the network as `loss` calls it, where processes exchange gradients (`World.wrap`).
        autocast: makes the context of forward passes; None: that of the recipe's precision.
        say: takes a line for the log.

    Attributes:
        iteration: steps taken so far.
        accumulation: in how many parts a batch is taken.
        trying: whether steps are taken within `trial`.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        loss: Callable[[Batch], Tensor],
        *,
        learning_rate: float,
        iterations: int,
        device: torch.device,
        world: World | None = None,
        model: nn.Module | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.network = network
        self.recipe = recipe
        self.loss = loss
        self.learning_rate = learning_rate
        self.iterations = iterations
        self.device = device
        self.world = world or World()
        self.model = model
        self.say = say
        self.iteration = 0
        self.accumulation = 1
        self.dtype = choose_precision(recipe.precision, device, network)
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = _build_optimizer(_parameter_groups(network, recipe.rate_factors()), recipe, learning_rate)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self._autocast = autocast
        self.trying = False

    def __call__(self, batch: Batch, share: float = 1.0) -> float:
        """Move the weights by one batch.

        Args:
            batch: this process's samples.
            share: which they are of the batch of all processes.

        Returns:
            This process's part of the batch's mean loss.

        Raises:
            EchoPlanError: the loss is not finite, or the GPU's memory is too small: for a sample or half a batch, for
                the optimizer's state, or, with several processes, for what `RoomCheck` had found room for.
        """
        self.optimizer.zero_grad(set_to_none=True)
        parts, total, shortage = split_batch(batch, self.accumulation), 0.0, False
        loss: Tensor | None = None
        try:
            for number, (share_of_part, part) in enumerate(parts, 1):
                with nullcontext() if number == len(parts) and not self.trying else silent(self.model):
                    with self.autocast():
                        # Gradients are averaged over the processes: times their number, the loss is the batch's mean.
                        loss = self.loss(part) * (share * share_of_part * self.world.size)
                    total += self._finite(loss)
                    self.scaler.scale(loss).backward()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if self.world.exchanges_in_passes(self.network):
                raise _cannot_be_halved(batch, share, self.world) from error
            shortage = True
        loss = None  # like the error, which is gone here, it holds on to the tensors that filled the memory
        if self._must_halve(batch, shortage):
            return self(batch, share)
        self.world.mean_statistics(self.network)
        rate = self.scheduled_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)  # checkpoints of old have none
        with _explaining_lack_of_memory():
            if self.recipe.gradient_clip is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.parameters, self.recipe.gradient_clip)
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.iteration += 1
        return total / self.world.size

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for forward passes."""
        if self._autocast is not None:
            return self._autocast()
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def scheduled_rate(self) -> float:
        """The learning rate of the step to come."""
        recipe, since_warmup = self.recipe, self.iteration - self.recipe.warmup_iterations
        if since_warmup < 0:
            return self.learning_rate * (self.iteration + 1) / recipe.warmup_iterations
        return poly_rate(
            self.learning_rate, since_warmup, self.iterations, recipe.poly_power, end=recipe.final_learning_rate
        )

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Within it steps keep their gradients at home, so that several processes can halve their batches together."""
        self.trying = True
        try:
            yield
        finally:
            self.trying = False

    def _must_halve(self, batch: Batch, shortage: bool) -> bool:
        """Whether the batch is to be taken again in two parts, for this process or another one had too little memory.

        In several processes none may run out of memory within a step that is no trial: the others wait there for its
        gradients.
        """
        samples = len(batch["case"])
        if self.world.size > 1 and not self.trying:
            if shortage:
                raise EchoPlanError(
                    f"the GPU's memory was large enough for {samples} samples when the training began, and no longer "
                    "is; another program may have filled it",
                    remedy="resume with --c, which halves the batches if it must",
                )
            return False
        hopeless = shortage and (self.accumulation > 1 or samples < 2)
        short, lost = self.world.all_reduce(float(shortage), float(hopeless), device=self.device)
        if lost:
            raise _too_small(-(-samples // self.accumulation))
        if not short:
            return False
        self.accumulation = 2
        torch.cuda.empty_cache()
        self.say(
            f"out of GPU memory with a batch of {samples}: from now on in 2 parts whose gradients are added, "
            "which is slower; plan again with a smaller --gpu_memory_target to avoid it"
        )
        return True

    def _finite(self, loss: Tensor) -> float:
        """The loss as a number; on the meta device, where planning tries steps, it has no value."""
        number = 0.0 if loss.is_meta else float(loss.detach())
        if not math.isfinite(number):
            raise EchoPlanError(
                f"the loss became {number} at iteration {self.iteration}",
                remedy="train again with a lower learning rate (--set learning_rate=...) or --set precision=float32",
            )
        return number

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "iteration": self.iteration,
            "precision": str(self.dtype),
        }

    def restore(
        self, *, optimizer: dict[str, Any], scaler: dict[str, Any], iteration: int, precision: str | None = None
    ) -> None:
        """Put back what `state` gave.

        Another device may compute in another precision: weights and the optimizer's memory, which are of 32 bits, go on
        in it. The scaler of float16 goes on with its scale if it had one, and else begins as in a new training.
        """
        self.optimizer.load_state_dict(optimizer)
        if self.scaler.is_enabled() and scaler:  # a training in another precision leaves no state
            self.scaler.load_state_dict(scaler)
        self.iteration = iteration
        if precision not in (None, str(self.dtype)):
            self.say(f"warning: trained in {precision} so far, and from here on in {self.dtype}, as this device does")


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


def _parameter_groups(network: nn.Module, factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """The parameters that learn, one group for each factor of the learning rate; the usual one's is the first."""
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            factor = next((factor for start, factor in factors.items() if name.startswith(start)), 1.0)
            groups.setdefault(factor, []).append(parameter)
    return [{"params": members, "factor": factor} for factor, members in groups.items() if members]


def _build_optimizer(groups: list[dict[str, Any]], recipe: Recipe, rate: float) -> torch.optim.Optimizer:
    # One kernel for all of a tensor's arithmetic; planning's trial steps, on no device, have none.
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


def _too_small(samples: int) -> EchoPlanError:
    return EchoPlanError(
        f"the GPU's memory is too small for {samples} sample(s) at a time",
        remedy="plan again with a smaller --gpu_memory_target or --size",
    )


def _cannot_be_halved(batch: Batch, share: float, world: World) -> EchoPlanError:
    """With synchronised batch normalisation the others wait within their passes, where they cannot be told."""
    samples = len(batch["case"])
    if samples < 2:
        return _too_small(samples)
    fewer = max(round(samples / share) // 2, world.size)
    return EchoPlanError(
        f"the GPU's memory is too small for {samples} samples at a time, and batches cannot be halved on the way where "
        "batch normalisation works over several GPUs",
        remedy=f"start again with --overwrite --set batch_size={fewer}; or, where another program had filled the "
        "memory, resume with --c",
    )


@contextmanager
def _explaining_lack_of_memory() -> Iterator[None]:
    """A lack of memory for what the optimizer remembers: smaller batches would not help."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise EchoPlanError(
            "the GPU's memory is too small for the network and its optimiser",
            remedy="take a larger GPU, a smaller variant of the method, or --set optimiser=sgd",
        ) from error
