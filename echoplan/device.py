"""Where networks run, and how their weights lie there."""

from __future__ import annotations

import torch
from torch import nn

from echoplan.errors import EchoPlanError

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        EchoPlanError: the device asked for is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    kind = name.split(":")[0]
    if not available.get(kind, False):
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise EchoPlanError(f"no device {name!r} here (there is: {there})", remedy="use --device auto")
    return torch.device(name)


def fast_dtype(device: torch.device) -> torch.dtype:
    """The floating type in which a device computes fastest without a loss that matters.

    On a GPU bfloat16 where the hardware has it, else float16; on a CPU bfloat16 where it multiplies in it (AVX512-BF16,
    AMX), else float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and _cpu_multiplies_bfloat16() else torch.float32


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
