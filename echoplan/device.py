"""Where networks run."""

from __future__ import annotations

import torch

from echoplan.errors import EchoPlanError


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
