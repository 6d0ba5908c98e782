"""What is remembered of a clip, which frames are worth it, and how memories are written and read."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        seen: ``(256, H/16, W/16)``, its top features as the mask decoder saw them, without gradient.
        pointer: ``(256,)``; None where object pointers are not read.
        confidence: ``()``, the predicted IoU of its mask, in [0, 1].
    """

    frame: int
    features: Tensor
    seen: Tensor
    pointer: Tensor | None
    confidence: Tensor


class MemoryBank(ABC):
    """The frames in a clip's memory, and the object pointers of these and of a few more.

    Frames stand in the order in which they were seen.

    Args:
        start: the start frame, which begins it.
        size: frames at most, the start frame included.
    """

    def __init__(self, start: Remembered, size: int) -> None:
        self.start, self.size = start, size
        self.others: list[Remembered] = []
        self.pointers: deque[tuple[int, Tensor]] = deque(maxlen=_POINTERS)

    def turned(self) -> MemoryBank:
        """A bank for the way in the other direction: the start frame alone."""
        return type(self)(self.start, self.size)

    def stacked(self, name: str) -> Tensor:
        """An attribute of the frames that are read, ``(n, ...)``, the start frame first while it is there."""
        return torch.stack([getattr(each, name) for each in (self.start, *self.others)])

    @property
    def count(self) -> int:
        """Frames that are read."""
        return 1 + len(self.others)

    @property
    def shape(self) -> tuple[int, int]:
        """How many features and how many pointers are read."""
        return self.count, 1 + len(self.pointers)

    def admits(self, confidence: Tensor) -> bool:
        """Whether a frame of this confidence may enter, so that its memory must be encoded."""
        return True

    def add(self, new: Remembered) -> None:
        """Remember a frame that `admits` let in."""
        if new.pointer is not None:
            self.pointers.append((new.frame, new.pointer))
        if self.count < self.size:
            self.others.append(new)
        elif self.others and (leaving := self.leaving(new)) is not None:
            del self.others[leaving]
            self.others.append(new)

    @abstractmethod
    def leaving(self, new: Remembered) -> int | None:
        """Which of the full bank's other frames makes room for a new one; None keeps them all."""


class LatestFrames(MemoryBank):
    """ "fifo": the start frame and the last frames, as in SAM2."""

    def leaving(self, new: Remembered) -> int:
        """See `MemoryBank`: the oldest."""
        return 0


class ConfidentFrames(MemoryBank):
    """ "confidence": the start frame, and frames with a good mask that differ from each other.

    A frame enters if its predicted IoU is at least 0.7. Once the bank is full it takes the place of the frame most
    similar to the others, if it is itself less similar to them and its predicted IoU is lower by no more than 0.1. The
    idea is MedSAM-2's; nothing here is drawn at random.
    """

    def admits(self, confidence: Tensor) -> bool:
        """See `MemoryBank`."""
        return confidence.is_meta or bool(confidence >= _LEAST_IOU)

    def leaving(self, new: Remembered) -> int | None:
        """See `MemoryBank`."""
        if new.features.is_meta:
            return 0
        with torch.no_grad():
            return self._redundant(new)

    def _redundant(self, new: Remembered) -> int | None:
        everyone = torch.cat([self.stacked("features"), new.features[None]]).flatten(1).float()
        similarity = F.cosine_similarity(everyone[:, None], everyone[None], dim=2).fill_diagonal_(0)
        among_kept = similarity[1:-1, :-1].sum(dim=1)
        worst = int(among_kept.argmax())
        without_worst = similarity[-1, :-1].sum() - similarity[-1, 1 + worst]
        if not bool(without_worst < among_kept[worst]):
            return None
        return worst if bool(new.confidence >= self.others[worst].confidence - _TOLERATED_LOSS) else None


class DiverseFrames(MemoryBank):
    """ "medsam2": frames that differ from each other, as MedSAM-2 keeps them and E3SAM2's authors after it.

    The bank fills with the first frames. Then a new one looks for the frame least like it, and for the frame most like
    that one: where these two are more alike than the new one is to the former, the latter leaves, unless the new one's
    predicted IoU is lower by 0.1 or more. The start frame, too, may leave. All of it stays in tensors of a fixed size.
    """

    def __init__(self, start: Remembered, size: int) -> None:
        super().__init__(start, size)
        self._kept = {name: getattr(start, name)[None] for name in ("features", "seen", "confidence")}

    @property
    def count(self) -> int:
        """See `MemoryBank`."""
        return len(self._kept["features"])

    def stacked(self, name: str) -> Tensor:
        """See `MemoryBank`."""
        return self._kept[name]

    def add(self, new: Remembered) -> None:
        """See `MemoryBank`."""
        if new.pointer is not None:
            self.pointers.append((new.frame, new.pointer))
        full = self.count == self.size
        everyone = {name: torch.cat([kept, getattr(new, name)[None]]) for name, kept in self._kept.items()}
        if full:
            staying = self._staying(everyone)
            everyone = {name: values[staying] for name, values in everyone.items()}
        self._kept = everyone

    def leaving(self, new: Remembered) -> None:
        """See `MemoryBank`; `add` has its own way."""

    @torch.no_grad()
    def _staying(self, everyone: Mapping[str, Tensor]) -> Tensor:
        """Which ``(size,)`` of the bank's frames and the new one, which comes last, are kept."""
        directions = F.normalize(everyone["features"].flatten(1).float(), dim=1)
        likeness = directions @ directions.T
        unlike = likeness[-1, :-1].argmin(dim=0, keepdim=True)
        neighbours = likeness[:-1, :-1].fill_diagonal_(-math.inf).index_select(0, unlike)[0]
        twin = neighbours.argmax(dim=0, keepdim=True)
        enters = likeness[-1].index_select(0, unlike) < neighbours.index_select(0, twin)
        enters &= everyone["confidence"][-1] > everyone["confidence"].index_select(0, twin) - _TOLERATED_LOSS
        places = torch.arange(self.size, device=directions.device)
        return torch.where(enters & (places >= twin), places + 1, places)


BANKS: dict[str, type[MemoryBank]] = {
    "medsam2": DiverseFrames,
    "confidence": ConfidentFrames,
    "fifo": LatestFrames,
}


class Memory(nn.Module):
    """What joins the frames of a clip.

    Args:
        grid: side of the top features' grid.
        tokens: what is read of a frame in memory: "features", or "sam2", see `E3SAM2Settings.memory_tokens`.
        drawn: whether frames are drawn from the memory by chance.
    """

    def __init__(self, grid: int, *, tokens: str = "sam2", drawn: bool = False) -> None:
        super().__init__()
        self.drawn = drawn
        self.attention = build_memory_attention(grid)
        self.encoder = build_memory_encoder()
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
        banks: Sequence[MemoryBank],
        frames: Sequence[int],
        length: int,
        chances: Sequence[torch.Generator | None],
    ) -> Tensor:
        """Top features with what the banks hold.

        Args:
            top: ``(N, 256, h, w)`` of one frame of each of N clips.
            positions: ``(1, 256, h, w)``, the grid's position encoding.
            banks: the clips' memories, all of one `shape`.
            frames: the frames' indices in their clips.
            length: frames in a clip.
            chances: of each clip, for what is drawn; None takes PyTorch's own on the CPU.

        Returns:
            ``(N, 256, h, w)``.
        """
        parts = []
        for own, bank, frame, chance in zip(top, banks, frames, chances, strict=True):
            chosen = self._chosen(own, bank, len(top), chance) if self.drawn else slice(None)
            parts.append(self._tokens(bank, chosen, frame, length))
        memories, marks = zip(*parts, strict=True)
        tokens = self.attention(
            curr=_sequence(top),
            curr_pos=_sequence(positions).expand(-1, len(top), -1),
            memory=torch.stack(memories, dim=1),
            memory_pos=torch.stack(marks, dim=1),
            num_obj_ptr_tokens=banks[0].shape[1] * (WIDTH // MEMORY_WIDTH) if self.has_marks else 0,
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

    @torch.no_grad()
    def _chosen(self, top: Tensor, bank: MemoryBank, count: int, chance: torch.Generator | None) -> Tensor:
        """Which ``(count,)`` of the bank's frames are read: drawn by a softmax of their likeness to `top`.

        Features are compared as the authors do, those in memory channel by channel and the frame's pixel by pixel,
        which leaves little but chance.
        """
        seen, own = bank.stacked("seen").flatten(1).float(), top.permute(1, 2, 0).reshape(1, -1).float()
        weights = (F.normalize(seen, dim=1) @ F.normalize(own, dim=1).T).flatten().softmax(dim=0)
        if weights.is_meta:
            return torch.zeros(count, dtype=torch.long, device="meta")
        return torch.multinomial(weights.cpu(), count, replacement=True, generator=chance).to(top.device)

    def _tokens(self, bank: MemoryBank, chosen: slice | Tensor, frame: int, length: int) -> tuple[Tensor, Tensor]:
        """The tokens of one bank and their positions, each ``(L, 64)``, the pointers' last."""
        spatial = bank.stacked("features")[chosen]  # (n, 64, h, w)
        if spatial.is_inference() and not torch.is_inference_mode_enabled():
            spatial = spatial.clone()  # left by a clip of the validation, and now read in training
        grid = self.encoder.position_encoding(spatial[:1]).flatten(2).transpose(1, 2)  # (1, h * w, 64)
        tokens = spatial.flatten(2).transpose(1, 2).flatten(0, 1)
        if not self.has_marks:
            return tokens, grid.expand(len(spatial), -1, -1).flatten(0, 1)
        back = torch.arange(bank.count - 2, -1, -1, device=spatial.device)
        age = torch.cat([self.age[-1:], self.age[back]]).flatten(1, 2)[chosen]  # (n, 1, 64)
        pointers = torch.stack([_pointer(bank.start), *(pointer for _, pointer in bank.pointers)])
        marks = [(grid + age).flatten(0, 1), self._pointer_marks(bank, frame, length)]
        return torch.cat([tokens, pointers.reshape(-1, MEMORY_WIDTH)]), torch.cat(marks)

    def _pointer_marks(self, bank: MemoryBank, frame: int, length: int) -> Tensor:
        """How long ago each pointer was made, ``(4 * pointers, 64)``: a pointer takes four tokens."""
        ages = [abs(frame - seen) for seen in (bank.start.frame, *(seen for seen, _ in bank.pointers))]
        relative = torch.tensor(ages, device=self.age.device) / (min(length, _MOST_POINTERS) - 1)
        waves = sam2_module("modeling.sam2_utils").get_1d_sine_pe(relative, dim=WIDTH)
        return self.pointer_age(waves).repeat_interleave(WIDTH // MEMORY_WIDTH, dim=0)


def _pointer(remembered: Remembered) -> Tensor:
    assert remembered.pointer is not None
    return remembered.pointer


def _sequence(maps: Tensor) -> Tensor:
    """``(N, C, h, w)`` -> ``(h * w, N, C)``."""
    return maps.flatten(2).permute(2, 0, 1)
