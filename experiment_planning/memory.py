"""How much GPU memory a training step takes, found without allocating any: the very network runs on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from echoplan.errors import EchoPlanError

GIGABYTE = 1024**3
CONTEXT_GB = 0.6  # CUDA context, cuBLAS and cuDNN workspaces
MARGIN = 0.1  # of the target: fragmentation, the loss's own tensors, the convolutions' scratch space
_OPTIMISER_STATES = {"sgd": 1, "adam": 2, "adamw": 2}  # tensors of the weights' size that an optimiser keeps


@dataclass(frozen=True)
class MemoryModel:
    """Memory of one training step as a straight line over the batch size.

    Attributes:
        fixed_gb: weights, buffers, gradients, optimiser state, and what activations do not depend on the batch.
        per_sample_gb: activations kept for the backward pass, for one clip or frame.
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


def measure_memory(
    trainer: Any, *, size: tuple[int, int], frames: int, classes: int, settings: Mapping[str, Any] | None = None
) -> MemoryModel:
    """Build a trainer's network on the meta device and count what its forward pass keeps for the backward pass.

    A tensor is counted once however often it is saved; mixed precision is followed unless the recipe asks for float32.

    Args:
        trainer: a trainer class: `build_network` and, where it has one, `recipe_class`.
        size: (H, W) of the input.
        frames: T.
        classes: K.
        settings: changed settings of the recipe.

    Raises:
        EchoPlanError: the network cannot run without data, as when it looks at values to decide what to compute.
    """
    recipe = trainer.recipe_class().with_settings(settings or {}) if hasattr(trainer, "recipe_class") else None
    precision = "float32" if getattr(recipe, "precision", "auto") == "float32" else "mixed"
    arguments = {} if recipe is None else recipe.to_dict()
    try:
        with torch.device("meta"):
            network = trainer.build_network(size=size, classes=classes, settings=arguments).train()
            one, two = (_saved_bytes(network, (batch, frames, 1, *size), precision) for batch in (1, 2))
    except EchoPlanError:
        raise
    except Exception as error:  # whatever a user's own network may raise
        raise EchoPlanError(
            f"the memory of {getattr(trainer, '__name__', trainer)} cannot be simulated at {size[0]} x {size[1]}, "
            f"{frames} frame(s): {type(error).__name__}: {error}",
            remedy="a network must run on torch's meta device: no .item(), no numpy(), no branch on a tensor's values",
        ) from error
    per_sample = max(0, two - one)
    fixed = _parameter_bytes(network, getattr(recipe, "optimiser", "adam")) + max(0, one - per_sample)
    return MemoryModel(fixed / GIGABYTE, per_sample / GIGABYTE, precision)


class _MixedPrecision(TorchFunctionMode):
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

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(func, "__name__", "")
        kwargs = kwargs or {}
        if name in self._HALF or name in self._FULL:
            dtype = torch.bfloat16 if name in self._HALF else torch.float32
            args, kwargs = self._cast(args, dtype), self._cast(kwargs, dtype)
        return func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, torch.Tensor):
            if not value.is_floating_point() or value.dtype == dtype:
                return value
            if not (value.is_leaf and value.requires_grad):
                return value.to(dtype)
            return self._weights.setdefault(id(value), value.to(dtype))
        if isinstance(value, dict):
            return {key: self._cast(item, dtype) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._cast(item, dtype) for item in value)
        return value


def _saved_bytes(network: nn.Module, shape: tuple[int, ...], precision: str) -> int:
    """Bytes of distinct storages that autograd keeps, input and output included, weights and buffers not."""
    own = {_key(tensor) for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # holding the storages keeps their keys from being used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if _key(tensor) not in own:
            kept[_key(tensor)] = tensor.untyped_storage()
        return tensor

    clip = torch.empty(shape, dtype=torch.float32, device="meta")
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        _MixedPrecision() if precision == "mixed" else nullcontext(),
    ):
        output = network(clip)
    for tensor in (clip, *_tensors(output)):
        pack(tensor)
    return sum(storage.nbytes() for storage in kept.values())


def _tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in _tensors(value)]
    if isinstance(output, (list, tuple)):
        return [tensor for value in output for tensor in _tensors(value)]
    return _tensors(vars(output)) if hasattr(output, "__dict__") else []


def _parameter_bytes(network: nn.Module, optimiser: str) -> int:
    """Weights and buffers; for what is trained, gradients and the optimiser's state too."""
    weights = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    trained = sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)
    return weights + trained * (1 + _OPTIMISER_STATES[optimiser])


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
