"""Which parameters learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from echoplan.errors import EchoPlanError


def _last_stage(network: Any) -> list[nn.Module]:
    trunk = network.encoder.trunk
    return [block.attn for block in trunk.blocks[trunk.stage_ends[-2] + 1 :]]


# Each with those before it.
_STEPS: dict[str, Callable[[Any], list[nn.Module | None]]] = {
    "adapters": lambda network: [network.encoder.adapters, network.edges, network.prompting.locator],
    "decoder": lambda network: [network.decoder],
    "memory": lambda network: [network.memory],
    "all_but_trunk": lambda network: [network.encoder.neck, network.prompting],
    "last_stage": _last_stage,
    "all": lambda network: [network.encoder.trunk],
}


def set_trainable(network: nn.Module, trainable: str) -> None:
    """Let a named part of an `E3SAM2` learn, and nothing else.

    Args:
        network: changed in place.
        trainable: "adapters" (adapters, edges and coarse head), "decoder" (and the mask decoder), "memory" (and memory
            attention and encoder), "all_but_trunk", "last_stage" (and the attention of the trunk's last stage), "all".

    Raises:
        EchoPlanError: there is no such part.
    """
    names = list(_STEPS)
    if trainable not in names:
        raise EchoPlanError(f"trainable cannot be {trainable!r}", remedy=f"choose one of {', '.join(names)}")
    network.requires_grad_(False)
    for name in names[: names.index(trainable) + 1]:
        for part in _STEPS[name](network):
            if part is not None:
                part.requires_grad_(True)
    # Masks that are given are believed, and need no more than SAM2 learned of them.
    network.prompting.shrink.requires_grad_(False)
    if network.prompting.automatic != "mask":
        network.prompting.encoder.mask_downscaling.requires_grad_(False)
