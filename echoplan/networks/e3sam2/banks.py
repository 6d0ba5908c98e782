"""What is remembered of clips, and which frames are worth it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_POINTERS = 16  # object pointers that are kept, the start frame's included
_LEAST_IOU = 0.7
_TOLERATED_LOSS = 0.1  # of predicted IoU, for a memory that adds something new
_OBJECT = "object_"  # before the names of what object pointers have, in a bank's state

Entries = Mapping[str, Tensor]  # of memories, by name, each (n, m, ...)


@dataclass(frozen=True)
class Remembered:
    """A frame of each of n walks, to be remembered.

    Attributes:
        frame: ``(n,)``, its index.
        features: ``(n, 64, H/16, W/16)``.
        seen: ``(n, 256, H/16, W/16)``, its top features as the mask decoder saw them, without gradient; None where
            nothing is drawn from memory.
        pointer: ``(n, 256)``; None where object pointers are not read.
        confidence: ``(n,)``, the predicted IoU of its mask, in [0, 1].
    """

    frame: Tensor
    features: Tensor
    seen: Tensor | None
    pointer: Tensor | None
    confidence: Tensor

    def of_row(self, row: int) -> Remembered:
        """The frame of one walk."""
        found = {name: value[row : row + 1] for name, value in vars(self).items() if value is not None}
        return replace(self, **found)

    def entries(self, *names: str) -> dict[str, Tensor]:
        """What there is of some attributes, each ``(n, 1, ...)``."""
        found = {name: getattr(self, name) for name in names}
        return {name: value.unsqueeze(1) for name, value in found.items() if value is not None}


class MemoryBank(ABC):
    """The frames in memory of n walks side by side, and the object pointers of these and of a few more.

    Entries stand in the order in which they were seen. How many there are never depends on values, so that nobody has
    to wait for these: what is not worth it goes by value.

    Args:
        start: the start frames, which begin it.
        size: frames of a walk at most, the start frame included.
    """

    def __init__(self, start: Remembered, size: int) -> None:
        self.size = size
        self.frames: Entries = start.entries("features", "seen", "confidence")
        self.pointers: Entries = start.entries("pointer", "frame") if start.pointer is not None else {}

    @property
    def count(self) -> int:
        """Frames of a walk that are read."""
        return self.frames["features"].shape[1]

    def of_rows(self, rows: Sequence[int] | slice) -> MemoryBank:
        """The memories of some of the walks."""

        bank = object.__new__(type(self))
        bank.size = self.size
        bank.frames, bank.pointers = (
            {name: rows_of(rows, value) for name, value in entries.items()} for entries in (self.frames, self.pointers)
        )
        return bank

    def add(self, new: Remembered) -> None:
        """Remember a frame of each walk, where it is worth it."""
        there = {"there": self.worth(new).unsqueeze(1)} if "there" in self.frames else {}
        frames = _joined(self.frames, {**new.entries("features", "seen", "confidence"), **there})
        if self.count == self.size:
            frames = _without(frames, _first_missing(frames, otherwise=self.dropped(frames)))
        self.frames = frames
        if self.pointers:
            pointers = _joined(self.pointers, {**new.entries("pointer", "frame"), **there})
            full = pointers["frame"].shape[1] > MOST_POINTERS
            self.pointers = _without(pointers, _first_missing(pointers, otherwise=1)) if full else pointers

    def worth(self, new: Remembered) -> Tensor:
        """Which of the new frames are worth to be read at all, ``(n,)``."""
        return torch.ones_like(new.confidence, dtype=torch.bool)

    @abstractmethod
    def dropped(self, frames: Entries) -> Tensor | int:
        """Which of a full bank's entries and the new one, the last, goes; of all walks alike, or ``(n,)`` of each."""

    def state(self) -> dict[str, Tensor]:
        """What is in memory, in tensors whose shapes stay as they are when frames are added.

        Free places are taken by entries that are not "there", which are not read and go first.
        """
        pointers = _filled_up(self.pointers, MOST_POINTERS) if self.pointers else {}
        return {**_filled_up(self.frames, self.size), **{_OBJECT + name: value for name, value in pointers.items()}}

    @classmethod
    def of_state(cls, state: Entries, size: int) -> MemoryBank:
        """The memory that has this `state`."""
        bank = object.__new__(cls)
        bank.size = size
        bank.frames = {name: value for name, value in state.items() if not name.startswith(_OBJECT)}
        bank.pointers = {name.removeprefix(_OBJECT): state[name] for name in state if name.startswith(_OBJECT)}
        return bank


class LatestFrames(MemoryBank):
    """ "fifo": the start frame and the last frames, as in SAM2."""

    def dropped(self, frames: Entries) -> int:
        """See `MemoryBank`: the oldest."""
        return 1


class DiverseFrames(MemoryBank):
    """ "medsam2": frames that differ from each other, as MedSAM-2 keeps them and E3SAM2's authors after it.

    The bank fills with the first frames. Then a new one looks for the frame least like it, and for the frame most like
    that one: where these two are more alike than the new one is to the former, the latter leaves, unless the new one's
    predicted IoU is lower by 0.1 or more. The start frame, too, may leave.
    """

    @torch.no_grad()
    def dropped(self, frames: Entries) -> Tensor:
        """See `MemoryBank`."""
        directions = F.normalize(frames["features"].flatten(2).float(), dim=2)
        likeness = directions @ directions.transpose(1, 2)
        own = likeness[:, -1, :-1]
        unlike = own.argmin(dim=1, keepdim=True)
        self_likeness = torch.eye(self.size, dtype=torch.bool, device=own.device)
        others = likeness[:, :-1, :-1].masked_fill(self_likeness, -math.inf)
        neighbours = others.gather(1, unlike.unsqueeze(2).expand(-1, -1, self.size)).squeeze(1)
        twin = neighbours.argmax(dim=1, keepdim=True)
        enters = own.gather(1, unlike) < neighbours.gather(1, twin)
        confidence = frames["confidence"]
        enters = enters & (confidence[:, -1:] > confidence.gather(1, twin) - _TOLERATED_LOSS)
        return torch.where(enters, twin, self.size).squeeze(1)


class ConfidentFrames(MemoryBank):
    """ "confidence": the start frame, and frames with a good mask that differ from each other.

    A frame enters if its predicted IoU is at least 0.7. Once the bank is full it takes the place of the frame most
    similar to the others, if it is itself less similar to them and its predicted IoU is lower by no more than 0.1. The
    idea is MedSAM-2's; nothing here is drawn at random. Entries that did not enter are `there` no more: they are not
    read, and go first.
    """

    def __init__(self, start: Remembered, size: int) -> None:
        super().__init__(start, size)
        there = torch.ones_like(start.confidence, dtype=torch.bool).unsqueeze(1)
        self.frames = {**self.frames, "there": there}
        self.pointers = {**self.pointers, "there": there} if self.pointers else {}

    def worth(self, new: Remembered) -> Tensor:
        """See `MemoryBank`."""
        return new.confidence >= _LEAST_IOU

    @torch.no_grad()
    def dropped(self, frames: Entries) -> Tensor | int:
        """See `MemoryBank`."""
        if self.size == 1:
            return 1
        features, confidence = frames["features"].flatten(2).float(), frames["confidence"]
        itself = torch.eye(self.size + 1, dtype=torch.bool, device=features.device)
        similarity = F.cosine_similarity(features[:, :, None], features[:, None], dim=3).masked_fill(itself, 0)
        among_kept = similarity[:, 1:-1, :-1].sum(dim=2)
        worst = among_kept.argmax(dim=1, keepdim=True)
        without_worst = similarity[:, -1, :-1].sum(dim=1, keepdim=True) - similarity[:, -1].gather(1, 1 + worst)
        enters = without_worst < among_kept.gather(1, worst)
        enters = enters & (confidence[:, -1:] >= confidence.gather(1, 1 + worst) - _TOLERATED_LOSS)
        return torch.where(enters, 1 + worst, self.size).squeeze(1)


BANKS: dict[str, type[MemoryBank]] = {
    "medsam2": DiverseFrames,
    "confidence": ConfidentFrames,
    "fifo": LatestFrames,
}


def rows_of(rows: Sequence[int] | slice, values: Tensor) -> Tensor:
    """Some rows of values ``(n, ...)``; no index goes to their device, and nobody waits."""
    return values[rows] if isinstance(rows, slice) else torch.stack([values[row] for row in rows])


def _joined(kept: Entries, new: Entries) -> dict[str, Tensor]:
    return {name: torch.cat([value, new[name]], dim=1) for name, value in kept.items()}


def _without(entries: Entries, dropped: Tensor | int) -> dict[str, Tensor]:
    """All entries of each row but one."""
    if isinstance(dropped, int):
        parts = slice(None, dropped), slice(dropped + 1, None)
        return {name: torch.cat([value[:, part] for part in parts], dim=1) for name, value in entries.items()}
    count = next(iter(entries.values())).shape[1] - 1
    places = torch.arange(count, device=dropped.device)
    staying = places + (places >= dropped.unsqueeze(1))
    return {name: taken(value, staying) for name, value in entries.items()}


def taken(values: Tensor, places: Tensor) -> Tensor:
    """Of values ``(n, m, ...)`` those at places ``(n, k)``: ``(n, k, ...)``."""
    rows = torch.arange(len(values), device=values.device).unsqueeze(1)
    return values[rows, places]


def _first_missing(entries: Entries, *, otherwise: Tensor | int) -> Tensor | int:
    """The new entry ``(n,)``, the last, where it is not there, else the first that is not, else what else goes."""
    if "there" not in entries:
        return otherwise
    missing = ~entries["there"]
    instead = torch.where(missing[:, :-1].any(dim=1), missing.byte().argmax(dim=1), otherwise)
    return torch.where(missing[:, -1], missing.shape[1] - 1, instead)


def _filled_up(entries: Entries, size: int) -> dict[str, Tensor]:
    """The entries of each row and, up to `size`, others that are not there."""
    some = next(iter(entries.values()))
    known = {"there": torch.ones(some.shape[:2], dtype=torch.bool, device=some.device), **entries}
    free = len(some), size - some.shape[1]
    return {name: torch.cat([value, value.new_zeros(*free, *value.shape[2:])], dim=1) for name, value in known.items()}
