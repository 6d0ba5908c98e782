"""Networks that go through a clip of any length frame by frame, carrying a memory of fixed size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class StreamingNetwork(Protocol):
    """What `segment_clip` asks of a network that needs no windows."""

    def stream(self, frames: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Logits of every frame, each once, in whatever order the network walks.

        Memory does not grow with the clip's length: frames are taken to the network's device as they are needed.

        Args:
            frames: (T, C, H, W) float32, on any device.

        Yields:
            the frame's index and its logits (K, H, W) on the network's device.
        """
        ...
