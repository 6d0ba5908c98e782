"""What is remembered of a clip, which frames are worth it, and how memories are written and read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.errors import EchoPlanError
from echoplan.networks.e3sam2.sam2_parts import (
    MEMORIES,
    MEMORY_WIDTH,
    WIDTH,
    build_memory_attention,
    build_memory_encoder,
    sam2_module,
)

_POINTERS = 15  # object pointers kept beside the start frame's
_LEAST_IOU = 0.7
_TOLERATED_LOSS = 0.1  # of predicted IoU, for a memory that adds something new
_MOST_POINTERS = 16
_MASK_SCALE, _MASK_BIAS = 20.0, -10.0  # of mask probabilities, for the memory encoder


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


class Memory(nn.Module):
    """What joins the frames of a clip.

    Args:
        grid: side of the top features' grid.
    """

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.attention = build_memory_attention(grid)
        self.encoder = build_memory_encoder()
        self.pointer_age = nn.Linear(WIDTH, MEMORY_WIDTH)
        # For a memory 1, 2, ... 6 admitted frames back, and last for the start frame's.
        self.age = nn.Parameter(torch.zeros(MEMORIES, 1, 1, MEMORY_WIDTH))
        self.nothing = nn.Parameter(torch.zeros(1, 1, WIDTH))
        for parameter in (self.age, self.nothing):
            nn.init.trunc_normal_(parameter, std=0.02)

    def without(self, top: Tensor) -> Tensor:
        """Top features ``(N, 256, h, w)`` of start frames, marked as such."""
        return top + self.nothing.view(1, -1, 1, 1)

    def read(
        self, top: Tensor, positions: Tensor, *, banks: Sequence[MemoryBank], frames: Sequence[int], length: int
    ) -> Tensor:
        """Top features with what the banks hold.

        Args:
            top: ``(N, 256, h, w)`` of one frame of each of N clips.
            positions: ``(1, 256, h, w)``, the grid's position encoding.
            banks: the clips' memories, all of one `shape`.
            frames: the frames' indices in their clips.
            length: frames in a clip.

        Returns:
            ``(N, 256, h, w)``.
        """
        memories, marks = zip(
            *(self._tokens(bank, frame, length) for bank, frame in zip(banks, frames, strict=True)), strict=True
        )
        pointer_tokens = banks[0].shape[1] * (WIDTH // MEMORY_WIDTH)
        tokens = self.attention(
            curr=_sequence(top),
            curr_pos=_sequence(positions).expand(-1, len(top), -1),
            memory=torch.stack(memories, dim=1),
            memory_pos=torch.stack(marks, dim=1),
            num_obj_ptr_tokens=pointer_tokens,
        )
        return tokens.permute(1, 2, 0).reshape(top.shape)

    def write(self, top: Tensor, masks: Tensor) -> Tensor:
        """Memories ``(N, 64, h, w)`` of N frames.

        Args:
            top: ``(N, 256, h, w)``, before memories were read.
            masks: logits ``(N, 1, H, W)``.
        """
        probability = masks.sigmoid() * _MASK_SCALE + _MASK_BIAS
        return self.encoder(top, probability, skip_mask_sigmoid=True)["vision_features"]

    def _tokens(self, bank: MemoryBank, frame: int, length: int) -> tuple[Tensor, Tensor]:
        """The tokens of one bank and their positions, each ``(L, 64)``, the pointers' last."""
        spatial = torch.stack([each.features for each in bank.spatial()])  # (n, 64, h, w)
        grid = self.encoder.position_encoding(spatial[:1]).flatten(2).transpose(1, 2)  # (1, h * w, 64)
        back = torch.arange(len(bank.others) - 1, -1, -1, device=spatial.device)
        age = torch.cat([self.age[-1:], self.age[back]]).flatten(1, 2)  # (n, 1, 64)
        pointers = torch.stack([bank.start.pointer, *(pointer for _, pointer in bank.pointers)])
        memories = [spatial.flatten(2).transpose(1, 2).flatten(0, 1), pointers.reshape(-1, MEMORY_WIDTH)]
        marks = [(grid + age).flatten(0, 1), self._pointer_marks(bank, frame, length)]
        return torch.cat(memories), torch.cat(marks)

    def _pointer_marks(self, bank: MemoryBank, frame: int, length: int) -> Tensor:
        """How long ago each pointer was made, ``(4 * pointers, 64)``: a pointer takes four tokens."""
        ages = [abs(frame - seen) for seen in (bank.start.frame, *(seen for seen, _ in bank.pointers))]
        relative = torch.tensor(ages, device=self.age.device) / (min(length, _MOST_POINTERS) - 1)
        waves = sam2_module("modeling.sam2_utils").get_1d_sine_pe(relative, dim=WIDTH)
        return self.pointer_age(waves).repeat_interleave(WIDTH // MEMORY_WIDTH, dim=0)


def _sequence(maps: Tensor) -> Tensor:
    """``(N, C, h, w)`` -> ``(h * w, N, C)``."""
    return maps.flatten(2).permute(2, 0, 1)
