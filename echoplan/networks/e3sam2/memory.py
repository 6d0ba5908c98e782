"""Reading from and writing to memory, with SAM2's memory attention and memory encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from echoplan.networks.e3sam2.bank import MemoryBank
from echoplan.networks.e3sam2.sam2_parts import (
    MEMORIES,
    MEMORY_WIDTH,
    WIDTH,
    build_memory_attention,
    build_memory_encoder,
    sam2_module,
)

_MOST_POINTERS = 16
_MASK_SCALE, _MASK_BIAS = 20.0, -10.0  # of mask probabilities, for the memory encoder


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
