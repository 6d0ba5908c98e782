"""How much GPU memory a training step takes, found without allocating any: the very network runs on the meta device."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from echoplan.errors import EchoPlanError

from ..training.methods import Method
from .dry_run import prepare_step

GIGABYTE = 1024**3
CONTEXT_GB = 0.6  # CUDA context, cuBLAS and cuDNN workspaces
MARGIN = 0.1  # of the target: fragmentation, and the convolutions' scratch space
_BLOCK = 512  # bytes; PyTorch's CUDA allocator hands out multiples of it


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
        if getattr(func, "__name__", "") == "scaled_dot_product_attention" and not _learns_mask(*args, **kwargs):
            return _fused_attention(*args, **kwargs)
        return func(*args, **kwargs)

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """What is remembered for the length of a forward pass."""
        yield


def _learns_mask(query: Any, key: Any, value: Any, attn_mask: torch.Tensor | None = None, *_: Any, **__: Any) -> bool:
    """Whether the mask is a bias that learns, of which not every fused kernel has the gradient: the map is built."""
    return attn_mask is not None and attn_mask.requires_grad


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
        # Autocast too casts a weight once for a forward pass.
        self._weights: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}

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
            whose, cast = self._weights.get(id(value), (None, value))
            if whose is None or whose() is not value:  # a leaf that is gone may leave its number to another
                cast = value.to(dtype)
                self._weights[id(value)] = weakref.ref(value), cast
            return cast
        if isinstance(value, dict):
            return {key: self._cast(item, dtype) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._cast(item, dtype) for item in value)
        return value


class MemoryTracker(TorchDispatchMode):
    """Inside the block, follows every storage that an operation returns until it is freed.

    torch.distributed._tools has a tracker too. It is private, counts no 512-byte blocks, works out every shape anew (3
    to 9 times as slow on a training step), and stops at networks that compute parts of the forward pass again.

    Attributes:
        live: bytes held by storages alive.
        peak: the most they were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()
        self._memo = ShapeMemo()

    def watch(self, value: Any) -> None:
        """Count what is there already: tensors, and containers of them."""
        for tensor in _tensors_in(value):
            self._count(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = self._memo.call(func, args, kwargs or {})
        self.watch(result)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class ShapeMemo:
    """Calls operations; what one answers on meta tensors depends on their shapes alone and is worked out only once.

    A training step repeats the same shapes frame after frame, and PyTorch works out most answers in Python, which takes
    longer than all else. A change in place changes nothing where there are no values. Views, which share memory with
    what they are given, are always called.
    """

    def __init__(self) -> None:
        self._answers: dict[Any, Callable[..., Any]] = {}

    def call(self, func: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """What `func(*args, **kwargs)` returns, new meta tensors where their shapes are known."""
        try:
            key = func, _key(args), _key(tuple(kwargs.items()))
            answer = self._answers.get(key)
        except (_NoMetaTensorError, TypeError):  # TypeError: something that cannot be looked up
            return func(*args, **kwargs)
        if answer is not None:
            return answer(*args, **kwargs)
        result = func(*args, **kwargs)
        made, given = _tensors_in(result), {_memory(tensor) for tensor in _tensors_in((args, kwargs))}
        if func._schema.is_mutable and args and result is args[0] and _key(args) == key[1]:
            self._answers[key] = _first
        elif func._schema.is_mutable or not made or any(not it.is_meta or _memory(it) in given for it in made):
            self._answers[key] = func  # more than new tensors
        else:
            self._answers[key] = partial(_made, _form(result))
        return result


class _NoMetaTensorError(Exception):
    pass


def _key(value: Any) -> Any:
    """Something that is equal for arguments that get equal answers."""
    if isinstance(value, torch.Tensor):
        if not value.is_meta:
            raise _NoMetaTensorError
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple([_key(item) for item in value])
    return type(value), value  # True, 1 and 1.0 are equal, and promote types differently


def _first(*args: Any, **_: Any) -> Any:
    return args[0]


def _form(result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return torch.Size(result.shape), result.stride(), result.dtype
    return [_form(item) for item in result] if isinstance(result, (list, tuple)) else None


def _made(form: Any, *_: Any, **__: Any) -> Any:
    """New meta tensors of a form."""
    if form is None:
        return None
    if isinstance(form, list):
        return tuple(_made(item) for item in form)
    size, stride, dtype = form
    return torch.empty_strided(size, stride, dtype=dtype, device="meta")


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors in (containers of) containers."""
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in _tensors_in(item)]
