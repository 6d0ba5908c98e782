"""The memory layout of a network's weights."""

from __future__ import annotations

import torch
from torch import nn

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(network: nn.Module) -> nn.Module:
    """Lay convolution weights out with the channels last, in place; convolutions in half precision want it on GPUs."""
    for parameter in network.parameters():
        if parameter.dim() in _LAYOUTS:
            parameter.data = parameter.data.contiguous(memory_format=_LAYOUTS[parameter.dim()])
    return network
