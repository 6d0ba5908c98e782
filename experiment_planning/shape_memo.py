"""Operations on meta tensors, answered from memory: a dry run repeats the same shapes frame after frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_UNKNOWN, _CALL, _FIRST = object(), object(), object()  # no answer yet; call each time; what was given first


class ShapeMemo:
    """Calls operations; what one answers on meta tensors depends on their shapes alone and is worked out only once.

    PyTorch works out most answers in Python, which takes longer than all else in a dry run. A change in place changes
    nothing where there are no values. Views, which share memory with what they are given, are always called.
    """

    def __init__(self) -> None:
        self._answers: dict[Any, Any] = {}

    def call(self, func: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """What `func(*args, **kwargs)` returns, new meta tensors where they are known."""
        try:
            key = (func, _key(args), _key(tuple(kwargs.items())))
            known = self._answers.get(key, _UNKNOWN)
        except (_NoMetaTensorError, TypeError):  # TypeError: something that cannot be looked up
            return func(*args, **kwargs)
        if known is _UNKNOWN:
            answer = func(*args, **kwargs)
            same = func._schema.is_mutable and bool(args) and answer is args[0] and _key(args) == key[1]
            self._answers[key] = _FIRST if same else _lesson(func, answer, (args, kwargs))
            return answer
        if known is _CALL:
            return func(*args, **kwargs)
        return args[0] if known is _FIRST else _made(known)


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


def _lesson(func: Any, answer: Any, given: Any) -> Any:
    """What to remember of an operation: the form of its answer, or `_CALL` where it is more than new tensors."""
    made, before = tensors_in(answer), {_memory(tensor) for tensor in tensors_in(given)}
    shares = any(not tensor.is_meta or _memory(tensor) in before for tensor in made)
    return _CALL if func._schema.is_mutable or shares or not made else _form(answer)


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _form(answer: Any) -> Any:
    if isinstance(answer, torch.Tensor):
        return torch.Size(answer.shape), answer.stride(), answer.dtype
    if isinstance(answer, (list, tuple)):
        return [_form(item) for item in answer]
    return None


def _made(form: Any) -> Any:
    if form is None:
        return None
    if isinstance(form, list):
        return tuple(_made(item) for item in form)
    size, stride, dtype = form
    return torch.empty_strided(size, stride, dtype=dtype, device="meta")


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors in (containers of) containers."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []
