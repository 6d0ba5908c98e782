"""What is remembered of clips, which frames are worth it, and how memories are written and read."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from echoplan.networks.e3sam2.sam2_parts import (
    MEMORIES,
    MEMORY_WIDTH,
    WIDTH,
    build_memory_attention,
    build_memory_encoder,
    sam2_module,
    sine_positions,
)

_MOST_POINTERS = 16  # object pointers that are kept, the start frame's included
_LEAST_IOU = 0.7
_TOLERATED_LOSS = 0.1  # of predicted IoU, for a memory that adds something new
_POINTER_TOKENS = WIDTH // MEMORY_WIDTH
_MASK_SCALE, _MASK_BIAS = 20.0, -10.0  # of mask probabilities, for the memory encoder

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
        frames = _joined(self.frames, new.entries("features", "seen", "confidence"))
        pointers = _joined(self.pointers, new.entries("pointer", "frame")) if self.pointers else {}
        self.frames = frames if self.count < self.size else _without(frames, self.dropped(frames))
        full = bool(pointers) and pointers["frame"].shape[1] > _MOST_POINTERS
        self.pointers = _without(pointers, 1) if full else pointers

    @abstractmethod
    def dropped(self, frames: Entries) -> Tensor | int:
        """Which of a full bank's entries and the new one, the last, goes; of all walks alike, or ``(n,)`` of each."""


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
        enters &= confidence[:, -1:] > confidence.gather(1, twin) - _TOLERATED_LOSS
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

    def add(self, new: Remembered) -> None:
        """See `MemoryBank`."""
        there = {"there": (new.confidence >= _LEAST_IOU).unsqueeze(1)}
        frames = _joined(self.frames, {**new.entries("features", "seen", "confidence"), **there})
        self.frames = frames if self.count < self.size else _without(frames, self.dropped(frames))
        if self.pointers:
            pointers = _joined(self.pointers, {**new.entries("pointer", "frame"), **there})
            full = pointers["frame"].shape[1] > _MOST_POINTERS
            self.pointers = _without(pointers, _first_missing(pointers["there"], otherwise=1)) if full else pointers

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
        enters &= confidence[:, -1:] >= confidence.gather(1, 1 + worst) - _TOLERATED_LOSS
        return _first_missing(frames["there"], otherwise=torch.where(enters, 1 + worst, self.size).squeeze(1))


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
    return {name: _taken(value, staying) for name, value in entries.items()}


def _taken(values: Tensor, places: Tensor) -> Tensor:
    """Of values ``(n, m, ...)`` those at places ``(n, k)``: ``(n, k, ...)``."""
    rows = torch.arange(len(values), device=values.device).unsqueeze(1)
    return values[rows, places]


def _first_missing(there: Tensor, *, otherwise: Tensor | int) -> Tensor:
    """The new entry ``(n,)`` where it does not enter, else the first that is not there, else what else goes."""
    missing = ~there
    instead = torch.where(missing[:, :-1].any(dim=1), missing.byte().argmax(dim=1), otherwise)
    return torch.where(missing[:, -1], there.shape[1] - 1, instead)


class Memory(nn.Module):
    """What joins the frames of a clip.

    Args:
        grid: side of the top features' grid.
        tokens: what is read of a frame in memory: "features", or "sam2", see `E3SAM2Settings.memory_tokens`.
        drawn: whether frames are drawn from the memory by chance.
    """

    places: Tensor

    def __init__(self, grid: int, *, tokens: str = "sam2", drawn: bool = False) -> None:
        super().__init__()
        self.drawn = drawn
        self.attention = build_memory_attention(grid)
        self.encoder = build_memory_encoder()
        places = sine_positions(MEMORY_WIDTH, grid)
        self.register_buffer("places", places.flatten(2).transpose(1, 2), persistent=False)  # (1, h * w, 64)
        self.has_marks = tokens == "sam2"
        if self.has_marks:
            self.pointer_age = nn.Linear(WIDTH, MEMORY_WIDTH)
            # For a memory 1, 2, ... 6 admitted frames back, and last for the start frame's.
            self.age = nn.Parameter(torch.zeros(MEMORIES, 1, 1, MEMORY_WIDTH))
            self.nothing = nn.Parameter(torch.zeros(1, 1, WIDTH))
            for parameter in (self.age, self.nothing):
                nn.init.trunc_normal_(parameter, std=0.02)

    def without(self, top: Tensor) -> Tensor:
        """Top features ``(N, 256, h, w)`` of frames that have no memory to read, marked as such."""
        return top + self.nothing.view(1, -1, 1, 1) if self.has_marks else top

    def read(
        self,
        top: Tensor,
        positions: Tensor,
        *,
        bank: MemoryBank,
        frames: Tensor,
        lengths: Tensor,
        draw: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Top features with what the bank holds.

        Args:
            top: ``(n, 256, h, w)`` of one frame of each of n walks.
            positions: ``(1, 256, h, w)``, the grid's position encoding.
            bank: the walks' memories, or one that all of them read.
            frames: ``(n,)``, the frames' indices in their clips.
            lengths: ``(n,)``, how many frames these have.
            draw: draws entries ``(n, k)`` by their chances ``(n, m)``.

        Returns:
            ``(n, 256, h, w)``.
        """
        entries, pointers = (
            {name: _for_training(value.expand(len(top), *value.shape[1:])) for name, value in each.items()}
            for each in (bank.frames, bank.pointers)
        )
        there, ages = entries.get("there"), self._ages(entries) if self.has_marks else None
        if self.drawn:
            chosen = draw(_likeness(top, entries["seen"], there))
            entries["features"], there = _taken(entries["features"], chosen), None
            ages = None if ages is None else _taken(ages, chosen)
        tokens = entries["features"].flatten(3).transpose(2, 3)  # (n, m, h * w, 64)
        marks = self.places.unsqueeze(0).expand_as(tokens) if ages is None else self.places.unsqueeze(0) + ages
        parts, mark_parts, bias = [tokens.flatten(1, 2)], [marks.flatten(1, 2)], [_bias(there, tokens)]
        if self.has_marks:
            split = pointers["pointer"].unflatten(2, (_POINTER_TOKENS, MEMORY_WIDTH))
            parts.append(split.flatten(1, 2))
            mark_parts.append(self._pointer_marks(frames.unsqueeze(1) - pointers["frame"], lengths))
            bias.append(_bias(pointers.get("there"), split))
        with _Biased(None if "there" not in bank.frames else torch.cat(bias, dim=1)):
            found = self.attention(
                curr=_sequence(top),
                curr_pos=_sequence(positions).expand(-1, len(top), -1),
                memory=torch.cat(parts, dim=1).transpose(0, 1),
                memory_pos=torch.cat(mark_parts, dim=1).transpose(0, 1),
                num_obj_ptr_tokens=parts[-1].shape[1] if self.has_marks else 0,
            )
        return found.permute(1, 2, 0).reshape(top.shape)

    def write(self, top: Tensor, masks: Tensor) -> Tensor:
        """Memories ``(N, 64, h, w)`` of N frames.

        Args:
            top: ``(N, 256, h, w)``, before memories were read.
            masks: logits ``(N, 1, H, W)``.
        """
        probability = masks.sigmoid() * _MASK_SCALE + _MASK_BIAS
        return self.encoder(top, probability, skip_mask_sigmoid=True)["vision_features"]

    def _ages(self, entries: Entries) -> Tensor:
        """How many admitted frames ago each entry was seen, as marks ``(n, m, 1, 64)``; the start frame's own first."""
        rows, count = entries["features"].shape[:2]
        there = entries.get("there")
        if there is None:
            marks = torch.cat([self.age[-1:], self.age[: count - 1].flip(0)]).squeeze(1)
            return marks.unsqueeze(0).expand(rows, -1, -1, -1)
        since = there.flip(1).cumsum(dim=1).flip(1) - there.long()
        since = torch.cat([torch.full_like(since[:, :1], MEMORIES - 1), since[:, 1:]], dim=1)
        return F.embedding(since, self.age.flatten(0, 2)).unsqueeze(2)

    def _pointer_marks(self, distances: Tensor, lengths: Tensor) -> Tensor:
        """How far away pointers were made ``(n, p)``, as marks ``(n, 4 p, 64)``: a pointer takes four tokens."""
        relative = distances.abs() / (lengths.clamp(2, _MOST_POINTERS) - 1).unsqueeze(1)
        waves = sam2_module("modeling.sam2_utils").get_1d_sine_pe(relative, dim=WIDTH)
        return self.pointer_age(waves).repeat_interleave(_POINTER_TOKENS, dim=1)


@torch.no_grad()
def _likeness(top: Tensor, seen: Tensor, there: Tensor | None) -> Tensor:
    """The chances ``(n, m)`` of what is drawn for top features ``(n, 256, h, w)``: a softmax of their likeness.

    Features are compared as the authors do, those in memory channel by channel and the frame's pixel by pixel, which
    leaves little but chance.
    """
    own = top.permute(0, 2, 3, 1).flatten(1).float()
    likeness = (F.normalize(seen.flatten(2).float(), dim=2) @ F.normalize(own, dim=1).unsqueeze(2)).squeeze(2)
    return (likeness if there is None else likeness.masked_fill(~there, -math.inf)).softmax(dim=1)


def _for_training(value: Tensor) -> Tensor:
    """The same, also where a clip of the validation left it and training reads it."""
    return value.clone() if value.is_inference() and not torch.is_inference_mode_enabled() else value


def _bias(there: Tensor | None, tokens: Tensor) -> Tensor:
    """For attention to tokens ``(n, m, k, C)``, of which there are some only ``(n, m)``: 0 or -inf, ``(n, m * k)``."""
    if there is None:
        return tokens.new_zeros(len(tokens), tokens.shape[1] * tokens.shape[2])
    missing = torch.zeros_like(there, dtype=tokens.dtype).masked_fill(~there, -math.inf)
    return missing.repeat_interleave(tokens.shape[2], dim=1)


class _Biased(TorchFunctionMode):
    """Adds a bias ``(n, keys)`` to attention over so many keys, for which SAM2's modules have no place."""

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = bias

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self.bias is not None and args[1].shape[2] == self.bias.shape[1]:
            kwargs = {**kwargs, "attn_mask": self.bias[:, None, None].to(args[0].dtype)}
        return func(*args, **kwargs)


def _sequence(maps: Tensor) -> Tensor:
    """``(N, C, h, w)`` -> ``(h * w, N, C)``."""
    return maps.flatten(2).permute(2, 0, 1)
