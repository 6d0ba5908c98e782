"""What joins the frames of a clip: how memories are written and read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from echoplan.networks.e3sam2.banks import MOST_POINTERS, Entries, MemoryBank, taken
from echoplan.networks.e3sam2.sam2_parts import (
    MEMORIES,
    MEMORY_WIDTH,
    WIDTH,
    build_memory_attention,
    build_memory_encoder,
    sam2_module,
    sine_positions,
)

_POINTER_TOKENS = WIDTH // MEMORY_WIDTH
_MASK_SCALE, _MASK_BIAS = 20.0, -10.0  # of mask probabilities, for the memory encoder


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
        draw: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Top features with what the bank holds.

        Args:
            top: ``(n, 256, h, w)`` of one frame of each of n walks.
            positions: ``(1, 256, h, w)``, the grid's position encoding.
            bank: the walks' memories, or one that all of them read.
            frames: ``(n,)``, the frames' indices in their clips.
            lengths: ``(n,)``, how many frames these have.
            draw: draws entries ``(n, k)`` by their chances ``(n, m)``, where the memory is `drawn`.

        Returns:
            ``(n, 256, h, w)``.
        """
        entries, pointers = (
            {name: _for_training(value.expand(len(top), *value.shape[1:])) for name, value in each.items()}
            for each in (bank.frames, bank.pointers)
        )
        there, ages = entries.get("there"), self._ages(entries) if self.has_marks else None
        if self.drawn:
            assert draw is not None
            chosen = draw(_likeness(top, entries["seen"], there))
            entries["features"], there = taken(entries["features"], chosen), None
            ages = None if ages is None else taken(ages, chosen)
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
        counted = there.long()
        since = counted.flip(1).cumsum(dim=1).flip(1) - counted
        since = torch.cat([torch.full_like(since[:, :1], MEMORIES - 1), since[:, 1:]], dim=1)
        return F.embedding(since, self.age.flatten(0, 2)).unsqueeze(2)

    def _pointer_marks(self, distances: Tensor, lengths: Tensor) -> Tensor:
        """How far away pointers were made ``(n, p)``, as marks ``(n, 4 p, 64)``: a pointer takes four tokens."""
        relative = distances.abs() / (lengths.clamp(2, MOST_POINTERS) - 1).unsqueeze(1)
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
