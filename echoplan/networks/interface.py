"""What goes into a network and what comes out of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from echoplan.device import upload
from echoplan.errors import EchoPlanError

Maps = TypeVar("Maps", np.ndarray, Tensor)
FrameIndices = int | slice | list[int] | Tensor


@dataclass
class ClipOutput:
    """A network's answer in training mode.

    Attributes:
        logits: ``(B, T, K, H, W)``, the answer the network also gives in evaluation mode.
        auxiliary: what only the loss needs, by name. Used by the networks here: ``"deep_supervision"``, a list of
            ``(B, T, K, h, w)`` at ever lower resolution; ``"stages"``, a list of ``(B, T, K, H, W)``, the earliest
            stage first and without the last, which `logits` holds.

    Example:
        >>> import torch
        >>> from echoplan.networks import build_network
        >>> network = build_network("unet", size=(32, 32), base_features=4).train()
        >>> output = network(torch.zeros(1, 2, 1, 32, 32))
        >>> output.logits.shape
        torch.Size([1, 2, 1, 32, 32])
        >>> [logits.shape[-1] for logits in output.auxiliary["deep_supervision"]]
        [16]
    """

    logits: Tensor
    auxiliary: dict[str, Any] = field(default_factory=dict)


class ClipFrames(Protocol):
    """Frames as `segment_parts` reads them: a Tensor (T, h, w) float32, or what makes parts of one when asked."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, h, w)"""
        ...

    @property
    def device(self) -> torch.device:
        """Where the frames lie; indices are asked for there."""
        ...

    def __len__(self) -> int:
        """T"""
        ...

    def __getitem__(self, indices: FrameIndices) -> Tensor:
        """(n, h, w) of n indices."""
        ...


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


def frames_at(places: Sequence[int], frames: StreamedFrames, device: torch.device) -> Tensor:
    """Some frames (n, C, H, W) on a network's device; nobody waits for it."""
    # A list as an index of a tensor would wait for a GPU.
    taken = torch.stack([frames[place] for place in places]) if isinstance(frames, Tensor) else frames[[*places]]
    return upload(taken, device)


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


@runtime_checkable
class AbreastNetwork(StreamingNetwork, Protocol):
    """A `StreamingNetwork` that can walk several clips together."""

    def streams(self, frames: StreamedFrames, clips: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """What `stream` gives, of clips of these lengths that follow each other in `frames`.

        No clip changes another's result, but for the rounding of sums that are taken in another order.
        """
        ...


@runtime_checkable
class FrameEncodingNetwork(Protocol):
    """What `segment_parts` asks of a network whose windows can share what it makes of each frame by itself.

    Its answer to a clip is `decode_window(encode_frames(clip))`.
    """

    def encode_frames(self, clip: Tensor) -> tuple[Tensor, ...]:
        """``(B, T, C, H, W)`` -> features, each ``(B, T, ...)``, in which no frame depends on another."""
        ...

    def decode_window(self, features: Sequence[Tensor]) -> Tensor:
        """Features of the frames of windows, each ``(B, T, ...)`` -> logits ``(B, T, K, H, W)``."""
        ...


def labels_from_probabilities(probabilities: Maps) -> Maps:
    """The most probable label of every pixel, of an array or of a tensor where it lies.

    Args:
        probabilities: (K, ...) in [0, 1]. K = 1: one structure, taken where it reaches 0.5; else one map a label, the
            background first. Pixels where all maps are zero (outside a crop) are background.

    Returns:
        (...) uint8 labels.
    """
    if isinstance(probabilities, Tensor):
        labels = probabilities[0] >= 0.5 if len(probabilities) == 1 else probabilities.argmax(dim=0)
        return labels.to(torch.uint8)
    if len(probabilities) == 1:
        return (probabilities[0] >= 0.5).astype(np.uint8)
    return probabilities.argmax(axis=0).astype(np.uint8)


def check_multiple(network: str, size: Sequence[int], multiple: int) -> None:
    """Refuse frames (H, W) whose edges a network cannot halve as often as it does."""
    if size[0] % multiple or size[1] % multiple:
        raise EchoPlanError(
            f"{network} takes frames whose edges are multiples of {multiple} pixels, not {size[0]} x {size[1]}",
            remedy="resize or pad the frames",
        )
