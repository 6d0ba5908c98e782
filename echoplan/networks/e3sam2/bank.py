"""What is remembered of a clip, and which frames are worth it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from echoplan.errors import EchoPlanError
from echoplan.networks.e3sam2.sam2_parts import MEMORIES

_POINTERS = 15  # object pointers kept beside the start frame's
_LEAST_IOU = 0.7
_TOLERATED_LOSS = 0.1  # of predicted IoU, for a memory that adds something new


@dataclass(frozen=True)
class Remembered:
    """One frame in memory.

    Attributes:
        frame: its index.
        features: ``(64, H/16, W/16)``.
        pointer: ``(256,)``.
        confidence: the predicted IoU of its mask, in [0, 1].
    """

    frame: int
    features: Tensor
    pointer: Tensor
    confidence: float


class MemoryBank(ABC):
    """The start frame, at most six frames besides, and the object pointers of these and of a few more.

    Frames stand in the order in which they were seen.
    """

    def __init__(self, start: Remembered) -> None:
        self.start = start
        self.others: list[Remembered] = []
        self.pointers: deque[tuple[int, Tensor]] = deque(maxlen=_POINTERS)

    def turned(self) -> MemoryBank:
        """A bank for the way in the other direction: the start frame alone."""
        return type(self)(self.start)

    def spatial(self) -> list[Remembered]:
        """The frames whose features are read, the start frame first."""
        return [self.start, *self.others]

    @property
    def shape(self) -> tuple[int, int]:
        """How many features and how many pointers are read."""
        return 1 + len(self.others), 1 + len(self.pointers)

    @abstractmethod
    def admits(self, confidence: float) -> bool:
        """Whether a frame of this confidence may enter, so that its memory must be encoded."""

    def add(self, new: Remembered) -> None:
        """Remember a frame that `admits` let in."""
        self.pointers.append((new.frame, new.pointer))
        if len(self.others) < MEMORIES - 1:
            self.others.append(new)
        elif (leaving := self.leaving(new)) is not None:
            del self.others[leaving]
            self.others.append(new)

    @abstractmethod
    def leaving(self, new: Remembered) -> int | None:
        """Which of the full bank's other frames makes room for a new one; None keeps them all."""


class LatestFrames(MemoryBank):
    """ "fifo": the last six frames, as in SAM2."""

    def admits(self, confidence: float) -> bool:
        """See `MemoryBank`: always."""
        return True

    def leaving(self, new: Remembered) -> int:
        """See `MemoryBank`: the oldest."""
        return 0


class ConfidentFrames(MemoryBank):
    """ "confidence": frames with a good mask that differ from each other.

    A frame enters if its predicted IoU is at least 0.7. Once the bank is full it takes the place of the frame most
    similar to the others, if it is itself less similar to them and its predicted IoU is lower by no more than 0.1. The
    idea is MedSAM-2's; nothing here is drawn at random.
    """

    def admits(self, confidence: float) -> bool:
        """See `MemoryBank`."""
        return confidence >= _LEAST_IOU

    def leaving(self, new: Remembered) -> int | None:
        """See `MemoryBank`."""
        if new.features.is_meta:
            return 0
        with torch.no_grad():
            return self._redundant(new)

    def _redundant(self, new: Remembered) -> int | None:
        everyone = torch.stack([each.features.flatten().float() for each in (*self.spatial(), new)])
        similarity = F.cosine_similarity(everyone[:, None], everyone[None], dim=2).fill_diagonal_(0)
        among_kept = similarity[1:-1, :-1].sum(dim=1)
        worst = int(among_kept.argmax())
        without_worst = similarity[-1, :-1].sum() - similarity[-1, 1 + worst]
        if not bool(without_worst < among_kept[worst]):
            return None
        return worst if new.confidence >= self.others[worst].confidence - _TOLERATED_LOSS else None


_BANKS: dict[str, type[MemoryBank]] = {"confidence": ConfidentFrames, "fifo": LatestFrames}


def bank_class(name: str) -> type[MemoryBank]:
    """The kind of bank called "confidence" or "fifo".

    Raises:
        EchoPlanError: there is no such kind.
    """
    if name not in _BANKS:
        raise EchoPlanError(f"memory cannot be {name!r}", remedy=f"choose one of {', '.join(_BANKS)}")
    return _BANKS[name]
