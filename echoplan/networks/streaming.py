"""Networks that go through a clip of any length frame by frame, carrying a memory of fixed size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from torch import Tensor


class StreamedFrames(Protocol):
    """A clip as a streaming network reads it: a Tensor (T, C, H, W), or what makes parts of one when asked for them."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, C, H, W)"""
        ...

    def __len__(self) -> int:
        """T"""
        ...

    def __getitem__(self, indices: slice | list[int]) -> Tensor:
        """(n, C, H, W) float32, on any device."""
        ...


@runtime_checkable
class StreamingNetwork(Protocol):
    """What `segment_parts` asks of a network that needs no windows."""

    def stream(self, frames: StreamedFrames) -> Iterator[tuple[int, Tensor]]:
        """Logits of every frame, each once, in whatever order the network walks.

        Memory does not grow with the clip's length: frames are taken to the network's device as they are needed.

        Yields:
            the frame's index and its logits (K, H, W) on the network's device.
        """
        ...
