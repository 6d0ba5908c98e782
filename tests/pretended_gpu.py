"""Tensors with values in ordinary memory that say they live on a GPU: what fails on a GPU fails on any machine.

Two kinds of tensors together raise as they would on a GPU, and so do kernels that CUDA lacks. Every place where the
host would wait for the GPU is counted, with the line of the project that asks for it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.amp.autocast_mode import autocast
from torch.nn.utils import clip_grad
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
GPU = torch.device("cuda", 0)
_CPU = torch.device("cpu")
_INDEXED = {aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put_.default, aten.index_put.default,
            aten._index_put_impl_.default, aten._unsafe_index_put.default}  # fmt: skip
_COPIES = {aten._to_copy.default, aten.copy_.default}
# Their result depends on values: its size, or a number that Python asks for.
_WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2",
    "aten::unique_dim", "aten::unique_consecutive", "aten::unique_dim_consecutive", "aten::bincount",
    "aten::linalg_inv_ex", "aten::linalg_solve_ex", "aten::multinomial",
}  # fmt: skip
# What CPUs compute in integers, and CUDA has for floating types alone.
_FLOATING_ONLY = {
    "aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::addmv", "aten::mv", "aten::dot",
    "aten::convolution", "aten::max_pool2d_with_indices", "aten::max_pool3d_with_indices", "aten::avg_pool2d",
    "aten::upsample_bilinear2d", "aten::upsample_bicubic2d", "aten::upsample_trilinear3d",
    "aten::_upsample_bilinear2d_aa", "aten::grid_sampler_2d", "aten::_adaptive_avg_pool2d",
}  # fmt: skip
_IN_PROJECT = ("/echoplan/", "/training/", "/inference/", "/evaluation/", "/preprocessing/", "/experiment_planning/")


class Waits(Counter[str]):
    """Why and where the host waited for the GPU -> how often."""

    def add(self, why: str) -> None:
        self[f"{why} at {_where()}"] += 1


WAITS = Waits()


class OnGPU(Tensor):
    """A tensor that says it is on `GPU`; `inner` has its values. To PyTorch's C++ it is one of the CPU's."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> OnGPU:
        made: OnGPU = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            requires_grad=requires_grad,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: OnGPU) -> None:
        torch.Tensor.data.__set__(self, value)
        self.inner = value.inner

    def __repr__(self, **_: Any) -> str:
        return f"OnGPU({tuple(self.shape)}, {self.dtype})"

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        device, dtype, _, layout = _parsed_to(args, kwargs)
        if device is None or device.type == "cuda":
            kept = {"memory_format": layout} if layout is not None else {}
            return super().to(dtype or self.dtype, copy=kwargs.get("copy", False), **kept)
        WAITS.add("fetched from the GPU")
        return _Fetched.apply(self if dtype is None else super().to(dtype))

    def cpu(self, *_: Any) -> Tensor:
        return self.to("cpu")

    def cuda(self, *_: Any, **__: Any) -> Tensor:
        return self

    def tolist(self) -> Any:
        WAITS.add("tolist")
        return self.inner.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")

    def __array__(self, *_: Any) -> Any:
        return self.numpy()

    def pin_memory(self, *_: Any) -> Any:
        raise RuntimeError("cannot pin a tensor of a GPU")

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": GPU, **options})


class _Fetched(torch.autograd.Function):
    """The values in ordinary memory."""

    @staticmethod
    def forward(ctx: Any, value: OnGPU) -> Tensor:
        return value.inner.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return OnGPU(gradient)


class _Everywhere(TorchDispatchMode):
    """Has tensors made on the pretended GPU, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def _dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors: list[Tensor] = []
    inner_args, inner_kwargs = _unwrapped(args, tensors), _unwrapped(kwargs, tensors)
    ours = any(isinstance(tensor, OnGPU) for tensor in tensors)
    asked = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    # What autograd makes from nothing, it makes where C++ believes that the gradients are.
    made_by_autograd = not tensors and asked == "cpu" and torch._C._current_graph_task_id() != -1
    on_gpu = ours or asked == "cuda" or made_by_autograd
    if ours:
        _check(func, args, tensors)
    if on_gpu and func in _COPIES:
        target, source = (args[0], args[1]) if func is aten.copy_.default else (None, args[0])
        if target is None or isinstance(target, OnGPU):
            if not isinstance(source, OnGPU) and not (kwargs.get("non_blocking") and source.is_pinned()):
                WAITS.add("brought to the GPU")
        else:
            WAITS.add("copied from the GPU")
            on_gpu = False
    if asked == "cuda":
        inner_kwargs["device"] = _CPU
    inner_kwargs.pop("pin_memory", None)
    result = func(*inner_args, **inner_kwargs)
    return _wrapped(func, args, kwargs, result) if on_gpu else result


def _check(func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    """Raise where a GPU would, and count where the host would wait."""
    name = func._schema.name
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, OnGPU) and tensor.dim() > 0]
    if func in _INDEXED:
        for index in args[1]:
            if index is None:
                continue
            if isinstance(index, OnGPU) and not isinstance(args[0], OnGPU):
                raise RuntimeError(f"indices should be on the same device as the indexed tensor (cpu), at {_where()}")
            if index.dtype in (torch.bool, torch.uint8):
                WAITS.add("boolean index")
            if not isinstance(index, OnGPU):
                WAITS.add("index brought to the GPU")
    elif elsewhere and func not in _COPIES:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found cuda:0 and cpu: {func} at {_where()}"
        )
    if name in _WAITING or (name == "aten::repeat_interleave" and len(tensors) > 1):
        WAITS.add(name)
    if name in _FLOATING_ONLY and not tensors[0].is_floating_point():
        raise RuntimeError(f'"{name}" not implemented for {tensors[0].dtype} on cuda, at {_where()}')


def _unwrapped(value: Any, tensors: list[Tensor]) -> Any:
    """The same with `inner` for each of ours; the tensors in it are added to the list."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.inner if isinstance(value, OnGPU) else value
    if isinstance(value, (list, tuple)):
        return [_unwrapped(item, tensors) for item in value]
    if isinstance(value, dict):
        return {name: _unwrapped(item, tensors) for name, item in value.items()}
    return value


def _wrapped(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    schema = func._schema
    if schema.is_mutable and len(schema.returns) == 1 and _is_written(schema.returns[0]):
        place, argument = next(each for each in enumerate(schema.arguments) if _is_written(each[1]))
        return args[place] if place < len(args) else kwargs[argument.name]  # the very tensor that was changed
    return _as_ours(result)


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _as_ours(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if isinstance(value, OnGPU) else OnGPU(value)
    return type(value)(_as_ours(item) for item in value) if isinstance(value, (list, tuple)) else value


def _parsed_to(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    if args and isinstance(args[0], Tensor):
        return args[0].device, args[0].dtype, False, None
    return torch._C._nn._parse_to(*args, **{name: value for name, value in kwargs.items() if name != "copy"})


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """As CUDA computes it; the CPU's kernel makes a tensor where C++ believes that the labels are."""
    return (labels.unsqueeze(-1) == torch.arange(classes, device=labels.device)).long()


def _where() -> str:
    """The innermost line of the project, and who called it."""
    frame, lines = sys._getframe(1), []
    while frame is not None and len(lines) < 2:
        file = frame.f_code.co_filename
        if any(part in file for part in _IN_PROJECT) and "site-packages/torch" not in file and "/tests/" not in file:
            lines.append(f"{file.split('site-packages/')[-1]}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(lines) or "no line of the project"


@contextmanager
def pretended_gpu() -> Iterator[Waits]:
    """Within it "cuda" is there. Gives the waits since it began; `clear` begins anew."""
    own_init, own_group = autocast.__init__, clip_grad._group_tensors_by_device_and_dtype

    def init(self: autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
        own_init(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    def pin(self: Tensor, *_: Any) -> Tensor:
        pinned = self.clone()
        pinned.is_pinned = lambda *_: True
        return pinned

    def group(tensors: Any, with_indices: bool = False) -> Any:
        grouped = own_group(tensors, with_indices)
        return {(tensors[0][0].device, dtype): members for (_, dtype), members in grouped.items()}

    lifted = torch._C._only_lift_cpu_tensors()
    multithreaded = torch.autograd.is_multithreading_enabled()
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    WAITS.clear()
    with (
        mock.patch.object(autocast, "__init__", init),
        mock.patch.object(Tensor, "pin_memory", pin),
        # Inference mode hands over whole operations that other modes take apart.
        mock.patch.object(torch._C, "_InferenceMode", lambda on: torch.no_grad() if on else nullcontext()),
        mock.patch.object(clip_grad, "_group_tensors_by_device_and_dtype", group),
        mock.patch.object(F, "one_hot", _one_hot),
        mock.patch.object(torch.cuda, "_lazy_init", lambda: None),
        mock.patch.object(torch.cuda, "is_bf16_supported", lambda **_: True),
        mock.patch.object(torch.cuda, "reset_peak_memory_stats", lambda *_: None),
        mock.patch.object(torch.cuda, "max_memory_allocated", lambda *_: 0),
        _Everywhere(),
    ):
        torch._C._set_only_lift_cpu_tensors(True)
        torch.autograd.set_multithreading_enabled(False)
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter moved is another object
        try:
            yield WAITS
        finally:
            torch._C._set_only_lift_cpu_tensors(lifted)
            torch.autograd.set_multithreading_enabled(multithreaded)
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
