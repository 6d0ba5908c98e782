"""A forecast checked with real training steps, where there is a GPU."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from echoplan.device import reproducible

from ..training.methods import Method
from .dry_run import prepare_step
from .memory import CONTEXT_GB, GIGABYTE, MARGIN, MemoryModel

logger = logging.getLogger(__name__)

_DEVICE = "cuda"  # the first GPU, as `--device auto` takes


@dataclass(frozen=True)
class StepMemory:
    """What a real step took.

    Attributes:
        gb: the most memory of its tensors, in GB (1024^3 bytes), the context not included; None: it ran out of memory.
        free_gb: what was free on the GPU before it.
    """

    gb: float | None
    free_gb: float


TakeStep = Callable[..., StepMemory]


@dataclass(frozen=True)
class CheckedBatch:
    """What real steps made of a batch size.

    Attributes:
        size: the largest batch that fits; 0: not even one sample does.
        words: what to add to the batch's rule.
        evidence: the numbers behind them.
    """

    size: int
    words: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)


def gpu_here() -> Any:
    """The properties of the first GPU (name, total_memory in bytes); None where there is none, or it cannot be used."""
    try:
        return torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    except RuntimeError as error:
        logger.warning("the GPU cannot be used, and is planned for as if there were none: %s", error)
        return None


def can_check(gpu: Any, target_gb: float) -> bool:
    """Whether a batch that is planned for a GPU of so many GB has to fit the one that is here (see `gpu_here`)."""
    if gpu is None:
        return False
    # An "80 GB" GPU has 79.1 GB; what is planned for it leaves the margin free and so fits all the same.
    fits = target_gb * (1 - MARGIN) <= gpu.total_memory / GIGABYTE
    if not fits:
        logger.info("planned for a larger GPU than the one here: no real step checks the forecasts of memory")
    return fits


def check_batch(
    batch: int,
    model: MemoryModel,
    target_gb: float,
    method: Method[Any],
    *,
    take_step: TakeStep | None = None,
    **shape: Any,
) -> CheckedBatch:
    """Take a real step with the batch that the forecast allows, and lower the batch until it fits.

    A step that takes more than the target has the forecast scaled by what was measured, and the batch chosen anew by
    the planner's rule; one that runs out of memory has it halved, as training would. Each lower batch is tried too.

    Args:
        batch: what the forecast allows.
        model: the forecast.
        target_gb: of the GPU planned for.
        method: with its settings.
        take_step: None takes `measured_step`.
        shape: size, frames and classes, as `measured_step` has them.
    """
    take_step = take_step or measured_step
    wanted = batch
    lowered: list[str] = []
    while batch:
        forecast = model.gb(batch) - CONTEXT_GB
        try:
            step = take_step(method, batch_size=batch, **shape)
        except Exception as error:  # a driver, or what a user's own network may raise: no reason not to plan
            reason = f"{type(error).__name__}: {error}"
            logger.warning("%s: no real step could check the forecast of its memory: %s", method.name, reason)
            return CheckedBatch(batch, _lowered(wanted, batch, lowered), {"check_failed": reason})
        if step.gb is None:
            lowered.append(f"a real step with {batch} ran out of memory ({step.free_gb:.1f} GB were free)")
            batch //= 2
            continue
        ratio = step.gb / forecast
        if step.gb + CONTEXT_GB > target_gb:
            lowered.append(f"a real step with {batch} took {step.gb + CONTEXT_GB:.1f} GB, {ratio:.0%} of the forecast")
            scaled = replace(model, fixed_gb=model.fixed_gb * ratio, per_sample_gb=model.per_sample_gb * ratio)
            batch = scaled.largest_batch(target_gb, at_most=batch - 1)
            continue
        evidence = {
            "measured_gb": round(step.gb, 2),
            "forecast_gb": round(forecast, 2),
            "measured_over_forecast": round(ratio, 3),
        }
        found = f"; a real step with {batch} took {ratio:.0%} of the forecast"
        return CheckedBatch(batch, _lowered(wanted, batch, lowered) + found, evidence)
    return CheckedBatch(0, _lowered(wanted, 0, lowered))


def _lowered(wanted: int, batch: int, reasons: list[str]) -> str:
    return f"; lowered from {wanted} to {batch}: {', '.join(reasons)}" if reasons else ""


def measured_step(
    method: Method[Any], *, batch_size: int, size: tuple[int, int], frames: int, classes: int
) -> StepMemory:
    """Take one training step on the GPU: the one that `measure_memory` simulates, with real tensors.

    Args:
        method: with its settings.
        batch_size: B.
        size: (H, W) of the input.
        frames: T.
        classes: K.

    Raises:
        Exception: whatever CUDA or the network may raise, but for a lack of memory.
    """
    free_gb = torch.cuda.mem_get_info()[0] / GIGABYTE
    gb, shortages = None, _shortages()
    try:
        with warnings.catch_warnings(), reproducible(torch.device(_DEVICE), exact=method.recipe.deterministic):
            warnings.simplefilter("ignore")
            gb = _peak_gb(method, batch_size=batch_size, size=size, frames=frames, classes=classes)
    except Exception:  # a step makes an error of its own of a lack of memory
        if _shortages() == shortages:
            raise
    # Out of the except block, which holds on to the tensors; the next step finds the memory free.
    gc.collect()
    torch.cuda.empty_cache()
    return StepMemory(gb, free_gb)


def _shortages() -> int:
    """How often the GPU had no memory left for this process."""
    return torch.cuda.memory_stats().get("num_ooms", 0)


def _peak_gb(method: Method[Any], **shape: Any) -> float | None:
    before = torch.cuda.memory_allocated()
    run = prepare_step(method, device=_DEVICE, **shape)
    run.make_optimizer_state()
    torch.cuda.reset_peak_memory_stats()
    run.take_step()
    torch.cuda.synchronize()
    if run.step.accumulation > 1:  # it ran out of memory, and was taken in parts
        return None
    return (torch.cuda.max_memory_allocated() - before) / GIGABYTE
