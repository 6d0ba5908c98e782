"""Which parameters learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from echoplan.networks.e3sam2.settings import LEARNING_PARTS


def _last_stage(network: Any) -> list[nn.Module]:
    trunk = network.encoder.trunk
    return [block.attn for block in trunk.blocks[trunk.stage_ends[-2] + 1 :]]


_PARTS: dict[str, Callable[[Any], list[nn.Module | None]]] = {
    "adapters": lambda network: [network.encoder.adapters, network.edges, network.prompting.locator],
    "decoder": lambda network: [network.decoder],
    "memory": lambda network: [network.memory],
    "all_but_trunk": lambda network: [network.encoder.neck, network.prompting],
    "last_stage": _last_stage,
    "all": lambda network: [network.encoder.trunk],
}


def set_trainable(network: nn.Module, part: str) -> None:
    """Let a named part of an `E3SAM2` learn, and nothing else.

    Args:
        network: changed in place.
        part: of `LEARNING_PARTS`, see `SAM2Settings`.
    """
    network.requires_grad_(False)
    for name in LEARNING_PARTS[: LEARNING_PARTS.index(part) + 1]:
        for module in _PARTS[name](network):
            if module is not None:
                module.requires_grad_(True)
    # Masks that are given are believed, and need no more than SAM2 learned of them.
    network.prompting.shrink.requires_grad_(False)
    if network.prompting.automatic != "mask":
        network.prompting.encoder.mask_downscaling.requires_grad_(False)
