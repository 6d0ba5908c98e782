"""How much GPU memory a training step takes, found without allocating any: the very network runs on the meta device."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from echoplan.errors import EchoPlanError

from ..training.methods import Method
from .dry_run import prepare_step
from .memory_tracker import MemoryTracker

GIGABYTE = 1024**3
CONTEXT_GB = 0.6  # CUDA context, cuBLAS and cuDNN workspaces
MARGIN = 0.1  # of the target: fragmentation, and the convolutions' scratch space


@dataclass(frozen=True)
class MemoryModel:
    """Memory of one training step as a straight line over the batch size.

    Attributes:
        fixed_gb: what does not depend on the batch: weights, buffers, gradients, optimiser state.
        per_sample_gb: what one clip or frame more takes at the step's peak.
        precision: "mixed" (16-bit convolutions and products) or "float32".
    """

    fixed_gb: float
    per_sample_gb: float
    precision: str = "mixed"

    def gb(self, batch_size: int) -> float:
        """GB (1024^3 bytes) of a step with this batch, the context included, the margin not."""
        return CONTEXT_GB + self.fixed_gb + batch_size * self.per_sample_gb

    def largest_batch(self, target_gb: float, *, at_most: int) -> int:
        """The largest batch size up to `at_most` that leaves the margin free; 0 where not even one sample fits."""
        fitting = (batch for batch in range(at_most, 0, -1) if self.gb(batch) <= target_gb * (1 - MARGIN))
        return next(fitting, 0)


def measure_memory(method: Method[Any], *, size: tuple[int, int], frames: int, classes: int) -> MemoryModel:
    """Take a method's training step on the meta device, and track the memory it would take.

    The step is the training's own: network, loss, backward pass, optimiser. Its peak is a convex function of the batch
    size (at first the weights, later the activations decide), so the straight line through a batch of one and the
    paper's batch is never below it in between. Mixed precision is followed unless the recipe asks for float32.

    Args:
        method: with its settings.
        size: (H, W) of the input.
        frames: T.
        classes: K.

    Raises:
        EchoPlanError: the step cannot run without data, as when it looks at values to decide what to compute.
    """
    precision = "float32" if method.recipe.precision == "float32" else "mixed"
    most = max(2, method.requirements.batch_size)
    try:
        first, last = (
            peak_bytes(method, size=size, frames=frames, classes=classes, batch_size=batch) for batch in (1, most)
        )
    except EchoPlanError:
        raise
    except Exception as error:  # whatever a user's own network may raise
        raise EchoPlanError(
            f"the memory of {method.name} cannot be simulated at {size[0]} x {size[1]}, "
            f"{frames} frame(s): {type(error).__name__}: {error}",
            remedy="a network must run on torch's meta device: no .item(), no numpy(), no branch on a tensor's values",
        ) from error
    per_sample = (last - first) / (most - 1)
    return MemoryModel((first - per_sample) / GIGABYTE, per_sample / GIGABYTE, precision)


def peak_bytes(
    method: Method[Any],
    *,
    size: tuple[int, int],
    frames: int,
    classes: int,
    batch_size: int,
    device: str = "meta",
) -> int:
    """The most memory that tensors take during a training step, the optimiser's state included, in bytes.

    Args:
        method, size, frames, classes: see `measure_memory`.
        batch_size: B.
        device: "meta", or a real one: then the step is computed, and the same tensors are counted.
    """
    mode: _FusedAttention | None = None
    if device == "meta":
        mode = _FusedAttention() if method.recipe.precision == "float32" else _MixedPrecision()
    run = prepare_step(
        method,
        size=size,
        frames=frames,
        batch_size=batch_size,
        classes=classes,
        device=device,
        autocast=None if mode is None else mode.forward_pass,
    )
    run.make_optimizer_state()
    tracker = MemoryTracker()
    tracker.watch(run.tensors())
    collects = gc.isenabled()
    gc.disable()  # when it comes to reference cycles depends on what ran before: a forecast must not
    try:
        with tracker, mode or nullcontext():
            run.take_step()
    finally:
        if collects:
            gc.enable()
    return tracker.peak


class _FusedAttention(TorchFunctionMode):
    """Attention without its map, as fused kernels compute it; the meta device would build the map."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "scaled_dot_product_attention":
            return _fused_attention(*args, **kwargs)
        return func(*args, **kwargs)

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """What is remembered for the length of a forward pass."""
        yield


def _fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> torch.Tensor:
    # Dropout inside a fused kernel keeps no more than a seed.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]


class _MixedPrecision(_FusedAttention):
    """What autocast does on a GPU, for meta tensors, which it passes over: products in 16 bits, norms in 32."""

    _HALF = frozenset({
        "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "matmul",
        "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention",
    })  # fmt: skip
    _FULL = frozenset({
        "softmax", "log_softmax", "layer_norm", "group_norm", "logsumexp", "exp", "log", "pow", "__pow__", "norm",
        "prod", "cumsum",
    })  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[int, torch.Tensor] = {}  # autocast too casts a weight once for a forward pass

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Weights are cast once in it. Outside of it, in a backward pass that computes parts again, they are too."""
        yield
        self._weights.clear()

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(func, "__name__", "")
        kwargs = kwargs or {}
        if name in self._HALF or name in self._FULL:
            dtype = torch.bfloat16 if name in self._HALF else torch.float32
            args, kwargs = self._cast(args, dtype), self._cast(kwargs, dtype)
        return super().__torch_function__(func, types, args, kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, torch.Tensor):
            if not value.is_floating_point() or value.dtype == dtype:
                return value
            if not (value.is_leaf and value.requires_grad):
                return value.to(dtype)
            if id(value) not in self._weights:
                self._weights[id(value)] = value.to(dtype)
            return self._weights[id(value)]
        if isinstance(value, dict):
            return {key: self._cast(item, dtype) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._cast(item, dtype) for item in value)
        return value
