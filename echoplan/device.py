"""Where networks run, and how their weights lie there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from echoplan.errors import EchoPlanError

logger = logging.getLogger(__name__)

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
# What libraries say, beside torch.OutOfMemoryError, where memory is too small for them: as RuntimeErrors.
_SHORTAGES = ("out of memory", "ALLOC_FAILED")


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" takes CUDA, then MPS, then the CPU.

    A GPU is tried with one kernel. Where it fails, "auto" takes the next device with a warning. Under torchrun "auto"
    and "cuda" mean the process's own GPU.

    Args:
        name: "auto", "cpu", "mps", "cuda", or one of several GPUs, "cuda:1".

    Raises:
        EchoPlanError: the device asked for is not there, or fails.
    """
    if name == "auto":
        return torch.device(_first_that_works())
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EchoPlanError(f"there is no device {name!r}", remedy="use --device auto, cpu, cuda or cuda:1") from error
    if device.type != "cpu" and (problem := _trouble(device)):
        raise EchoPlanError(problem, remedy="use --device auto")
    return device


def _first_that_works() -> str:
    for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if there:
            if (problem := _trouble(torch.device(name))) is None:
                return name
            logger.warning("%s; taking another device", problem)
    return "cpu"


def _trouble(device: torch.device) -> str | None:
    """Why a device cannot be used, in words; None where a kernel ran on it."""
    count = torch.cuda.device_count() if device.type == "cuda" and torch.cuda.is_available() else 0
    there = {"cuda": count > (device.index or 0), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        here = ", ".join([*(f"cuda:{index}" for index in range(count)), *(["mps"] if there["mps"] else []), "cpu"])
        return f"no device '{device}' here (there is: {here})"
    try:
        prepare_device(device)
        torch.ones(8, device=device).add(1).sum().item()
    except RuntimeError as error:
        return f"{_described(device)} cannot be used: {str(error).strip().partition(chr(10))[0]}"
    return None


def _described(device: torch.device) -> str:
    if device.type != "cuda":
        return f"the device {device}"
    try:
        gpu = torch.cuda.get_device_properties(device)
    except RuntimeError:  # not even that
        return f"the GPU {device}"
    kinds = " ".join(torch.cuda.get_arch_list()) or "none"
    return f"the GPU {gpu.name} (sm_{gpu.major}{gpu.minor}; PyTorch {torch.__version__} is built for {kinds})"


def prepare_device(device: torch.device) -> None:
    """Have this process use a GPU as EchoPlan does; nothing for other devices. To be called before its first kernel.

    A GPU that is named, or the process's own under torchrun, becomes the current one, whose random numbers checkpoints
    keep. cuBLAS gets the workspaces in which it computes the same in every run. Attention leaves cuDNN aside, which
    builds a plan for each new shape.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.enable_cudnn_sdp(False)
    index = os.environ.get("LOCAL_RANK") if device.index is None else device.index
    if index is not None and int(index) < torch.cuda.device_count():
        torch.cuda.set_device(int(index))


@contextmanager
def reproducible(device: torch.device, *, exact: bool = False) -> Iterator[None]:
    """Within it CPUs compute the same to the bit in every run, and GPUs where `exact` says so; afterwards as before.

    A GPU pays for it in speed (bilinear resizing alone becomes some 45 kernels).

    Args:
        device: where it is computed.
        exact: on any device: operations that cannot be exact are refused.

    Raises:
        EchoPlanError: an operation has no exact kernel, and `exact` asks for it.
    """
    fills: Any = torch.utils.deterministic  # a property of the module, which its types do not know
    attention = torch.backends.cuda
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled, efficient = fills.fill_uninitialized_memory, attention.mem_efficient_sdp_enabled()
    torch.use_deterministic_algorithms(exact or device.type == "cpu", warn_only=not exact and device.type == "cpu")
    fills.fill_uninitialized_memory = False
    attention.enable_mem_efficient_sdp(efficient and not exact)  # its gradient is never exact, flash attention's can be
    try:
        yield
    except RuntimeError as error:
        if exact and "deterministic" in str(error):
            problem = str(error).strip().partition("\n")[0].partition(". ")[0]
            raise EchoPlanError(
                f"this training cannot be exact on {device}: {problem}", remedy="train without --set deterministic=true"
            ) from error
        raise
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        fills.fill_uninitialized_memory = filled
        attention.enable_mem_efficient_sdp(efficient)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's memory is too small: PyTorch's own, or that of CUDA, cuBLAS, cuDNN or MPS.

    Example:
        >>> is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
        True
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORTAGES)


def fast_dtype(device: torch.device) -> torch.dtype:
    """The floating type in which a device computes fastest without a loss that matters.

    On a GPU bfloat16 where the hardware has it, else float16; on a CPU bfloat16 where it multiplies in it (AVX512-BF16,
    AMX), else float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and _cpu_multiplies_bfloat16() else torch.float32


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on another device; nobody waits until it has come to a GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def mixed_precision(device: torch.device, wanted: bool | None = None) -> torch.autocast:
    """The context for networks that are not trained there: in `fast_dtype`, or as they are where that is float32.

    Args:
        device: where they are.
        wanted: whether that is asked for; None: where the device is a GPU that has bfloat16.
    """
    dtype = fast_dtype(device)
    if wanted is None:
        wanted = device.type == "cuda" and dtype == torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=wanted and dtype != torch.float32)


def _cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16; older PyTorch cannot tell and says no."""
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)


def channels_last(network: nn.Module) -> nn.Module:
    """Lay convolution weights out with the channels last, in place; convolutions in half precision want it on GPUs."""
    for parameter in network.parameters():
        if parameter.dim() in _CHANNELS_LAST:
            parameter.data = parameter.data.contiguous(memory_format=_CHANNELS_LAST[parameter.dim()])
    return network
