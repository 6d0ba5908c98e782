"""How much goes through a network together: what keeps its device busy, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import torch
from torch import nn

from echoplan.networks.interface import AbreastNetwork, StreamingNetwork

ClipT = TypeVar("ClipT")
PIXELS_AT_ONCE = 32 * 256 * 256  # bounds a network's memory: 32 frames at 256 x 256

_ON_CPU = 8  # a CPU is as quick with so small a part of it: more clips together would only end later
_WAYS = 2  # from its start frame a walk may go both ways at once
_MOST_ABREAST = 16  # clips
_LONG = 32  # times the pixels at once: clips that are so long together do not wait for another one


@dataclass
class BatchSize:
    """How many windows go through a network together, as many as planned until the GPU's memory is too small for them.

    Attributes:
        windows: at a time, or clips that an `AbreastNetwork` walks together; fewer after a lack of memory, for all that
            share this object.
    """

    windows: int

    def halve(self, windows: int) -> None:
        """Take note that memory was too small for so many, when the error that said so is gone: it holds on to them."""
        torch.cuda.empty_cache()
        self.windows = min(self.windows, -(-windows // 2))


def network_device(network: nn.Module, default: torch.device | str = "cpu") -> torch.device:
    """Where a network is; `default` for one without tensors."""
    tensor = next(chain(network.parameters(), network.buffers()), None)
    return torch.device(default) if tensor is None else tensor.device


def can_share_batches(network: nn.Module) -> bool:
    """Whether several clips can go through a network together."""
    return isinstance(network, AbreastNetwork) or not isinstance(network, StreamingNetwork)


def windows_together(network: nn.Module, *, frames: int, size: Sequence[int]) -> int:
    """How many windows of T frames (h, w) go through a network together, or clips that an `AbreastNetwork` walks."""
    if isinstance(network, AbreastNetwork):
        return _clips_abreast(network, size)
    return max(1, PIXELS_AT_ONCE // (frames * math.prod(size)))


def are_enough(network: nn.Module, clips: Sequence[Sequence[int]]) -> bool:
    """Whether clips (T, h, w) keep a network's device busy: with more together the first would only end later."""
    if not can_share_batches(network):
        return True
    pixels, at_once = sum(math.prod(clip) for clip in clips), _pixels_at_once(network)
    if isinstance(network, AbreastNetwork):
        return len(clips) >= _clips_abreast(network, clips[0][1:]) or pixels >= _LONG * at_once
    return pixels >= at_once


def in_groups(
    clips: Iterable[ClipT], *, share: Callable[[ClipT, ClipT], bool], enough: Callable[[Sequence[ClipT]], bool]
) -> Iterator[list[ClipT]]:
    """Clips that go through networks together, in their order.

    Args:
        clips: one after another.
        share: whether two of them can share batches.
        enough: whether a group is large enough.
    """
    group: list[ClipT] = []
    for clip in clips:
        if group and not share(group[0], clip):
            yield group
            group = []
        group.append(clip)
        if enough(group):
            yield group
            group = []
    if group:
        yield group


def _clips_abreast(network: nn.Module, size: Sequence[int]) -> int:
    return max(1, min(_MOST_ABREAST, _pixels_at_once(network) // (_WAYS * math.prod(size))))


def _pixels_at_once(network: nn.Module) -> int:
    return PIXELS_AT_ONCE // (_ON_CPU if network_device(network).type == "cpu" else 1)
