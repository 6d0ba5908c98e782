"""Peak memory of tensors, real ones or those of the meta device, which have a size and no content."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .shape_memo import ShapeMemo, tensors_in

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
        for tensor in tensors_in(value):
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
