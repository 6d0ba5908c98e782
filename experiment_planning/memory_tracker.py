"""Peak memory of tensors, real ones or those of the meta device, which have a size and no content.

torch.distributed._tools has a tracker too. It is private, counts no 512-byte blocks, works out every shape anew (3 to 9
times as slow on a training step), and stops at networks that compute parts of the forward pass again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_BLOCK = 512  # bytes; PyTorch's CUDA allocator hands out multiples of it


class MemoryTracker(TorchDispatchMode):
    """Inside the block, follows every storage that an operation returns until it is freed.

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
