"""The mask decoder, and clips segmented by it: from the start frame both ways, to the end and to the beginning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.device import upload
from echoplan.networks.e3sam2.banks import BANKS, MemoryBank, Remembered, rows_of
from echoplan.networks.e3sam2.encoder import FrameFeatures
from echoplan.networks.e3sam2.memory import Memory
from echoplan.networks.e3sam2.prompts import Prompting, StartPrompt
from echoplan.networks.e3sam2.sam2_parts import build_mask_decoder, build_pointer_head
from echoplan.networks.e3sam2.settings import E3SAM2Settings

_MASKS = 3  # for an ambiguous prompt
_BELIEVED_SCALE, _BELIEVED_BIAS = 20.0, -10.0
_STRIDE = 16  # of the top features

Place = tuple[int, int]  # a clip and a frame of it


@dataclass(frozen=True)
class Decoded:
    """The decoder's answer for N frames.

    Attributes:
        mask: ``(N, 1, H/4, W/4)`` logits, the best of `masks`, in float32.
        masks: ``(N, 3, H/4, W/4)`` logits.
        iou: ``(N, 3)``, the IoU predicted of each, in [0, 1].
        confidence: ``(N,)``, the best one's.
        score: ``(N,)``, logit that there is an object in the frame.
        pointer: ``(N, 256)``, the object pointer; empty, ``(N, 0)``, where the decoder makes none.
    """

    mask: Tensor
    masks: Tensor
    iou: Tensor
    confidence: Tensor
    score: Tensor
    pointer: Tensor

    def believing(self, masks: Tensor) -> Decoded:
        """The same with masks ``(N, 1, H, W)`` bool that are known to be right, as SAM2 makes logits of them."""
        logits = masks * _BELIEVED_SCALE + _BELIEVED_BIAS
        mask = F.interpolate(logits, size=self.mask.shape[-2:], mode="bilinear", antialias=True)
        return replace(self, mask=mask, confidence=torch.ones_like(self.confidence))

    def each(self, change: Callable[[Tensor], Tensor]) -> Decoded:
        """The same with every attribute changed alike."""
        return Decoded(*(change(getattr(self, field.name)) for field in fields(self)))

    @staticmethod
    def joined(parts: Sequence[Decoded]) -> Decoded:
        """The answers for several lots of frames as those for one."""
        return Decoded(*(torch.cat([getattr(each, field.name) for each in parts]) for field in fields(Decoded)))


class Decoder(nn.Module):
    """SAM2's mask decoder with the head that makes object pointers.

    Of the three masks for an ambiguous prompt the one with the best predicted IoU is taken, as SAM2 does for one point
    and while it tracks; or the single mask, which SAM2 has for a prompt that leaves no doubt. SAM2 besides sets masks
    to -1024, and replaces pointers and memories, where its object score is below zero. Not so here: every frame of an
    apical clip shows the left ventricle, so the score is no more than a sign of quality, and what is remembered is
    always an object's.

    Args:
        object_score: whether there is such a score; without, it is SAM2's constant, 10.
        pointers: whether object pointers are made.
    """

    def __init__(self, *, object_score: bool = True, pointers: bool = True) -> None:
        super().__init__()
        self.masks = build_mask_decoder(object_score=object_score)
        self.pointer = build_pointer_head() if pointers else None

    @property
    def projections(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        """The projections of the stride-8 and the stride-4 features."""
        return self.masks.conv_s1, self.masks.conv_s0

    def forward(
        self,
        top: Tensor,
        features: FrameFeatures,
        *,
        prompt: tuple[Tensor, Tensor],
        positions: Tensor,
        single: bool = False,
    ) -> Decoded:
        """Decode N frames.

        Args:
            top: ``(N, 256, H/16, W/16)``, after memories were read.
            features: the frames' finer features.
            prompt: from `Prompting.embed`.
            positions: from `Prompting.positions`.
            single: take the single mask, which then stands for all three.
        """
        masks, iou, tokens, score = self.masks(
            image_embeddings=top,
            image_pe=positions,
            sparse_prompt_embeddings=prompt[0],
            dense_prompt_embeddings=prompt[1],
            multimask_output=not single,
            repeat_image=False,
            high_res_features=[features.fine, features.middle],
        )
        masks, iou = masks.float(), iou.float()
        if single:
            masks, iou, tokens = (each.expand(-1, _MASKS, *each.shape[2:]) for each in (masks, iou, tokens))
        best = iou.argmax(dim=1)
        rows = torch.arange(len(best), device=best.device)
        return Decoded(
            mask=masks[rows, best].unsqueeze(1),
            masks=masks,
            iou=iou,
            confidence=iou[rows, best],
            score=score.float().squeeze(1),
            pointer=tokens[rows, best, :0] if self.pointer is None else self.pointer(tokens[rows, best]),
        )


def start_candidates(length: int, *, most: int) -> list[int]:
    """At most so many evenly spaced frames of a clip, its first and its last among them; one is the first."""
    count = min(length, most)
    return [round(place * (length - 1) / max(1, count - 1)) for place in range(count)]


def walking_steps(starts: Sequence[int], lengths: Sequence[int], *, both_ways: bool) -> list[list[Place]]:
    """Which frames of some clips are segmented together, step by step.

    First come all start frames, in the clips' order. The walks of a later step are the first of those of the step
    before: those that go on longest come first.

    Args:
        starts: the clips' start frames.
        lengths: their frames.
        both_ways: the way to the end and the way back are walked together; else one after the other.
    """
    walks: list[list[Place]] = []
    for clip, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        onwards, back = range(start + 1, length), range(start - 1, -1, -1)
        ways = (onwards, back) if both_ways else ([*onwards, *back],)
        walks += [[(clip, frame) for frame in way] for way in ways]
    walks.sort(key=len, reverse=True)
    later = [[walk[step] for walk in walks if step < len(walk)] for step in range(len(walks[0]))]
    return [[*enumerate(starts)], *later]


@dataclass
class CarriedMemory:
    """What the clips so far left in memory (`E3SAM2Settings.memory_across_clips`); None before the first."""

    bank: MemoryBank | None = None


class Segmenter:
    """Prompting, memory and decoder at work on one frame of each of some walks.

    Args:
        settings: of the network.
        prompting, memory, decoder: the network's parts.
        positions: the position encoding ``(1, 256, h, w)`` of the top features.
    """

    def __init__(
        self, settings: E3SAM2Settings, *, prompting: Prompting, memory: Memory, decoder: Decoder, positions: Tensor
    ) -> None:
        self.settings, self.prompting, self.memory, self.decoder = settings, prompting, memory, decoder
        self.positions = positions
        self._decode = partial(decoder, positions=prompting.positions())
        self._follow = prompting.follower()

    @property
    def size(self) -> int:
        """H and W of the frames."""
        return _STRIDE * self.positions.shape[-1]

    def begin(self, starts: Sequence[StartPrompt], seen: FrameFeatures, top: Tensor) -> Decoded:
        """The start frames; those whose prompts are alike go through the decoder together.

        Args:
            starts: what they are begun with.
            seen: their features.
            top: their top features after memories were read.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, start in enumerate(starts):
            groups.setdefault(start.group(), []).append(index)
        parts = []
        for members in groups.values():
            alike = [starts[index] for index in members]
            answers = [start.answer for start in alike if start.answer is not None]
            of_members = partial(rows_of, members)
            own, read = (seen, top) if len(groups) == 1 else (seen.each(of_members), of_members(top))
            decoded = self._decode(
                # What SAM2 believes it reads with no mark of a frame without memories.
                own.top if answers else read,
                own,
                prompt=self.prompting.embed(alike),
                single=bool(answers) or self._is_single(alike[0]),
            )
            parts.append(decoded.believing(torch.stack(answers)) if answers else decoded)
        if len(parts) == 1:
            return parts[0]
        order = [index for members in groups.values() for index in members]
        return Decoded.joined(parts).each(partial(rows_of, [order.index(index) for index in range(len(order))]))

    def follow(self, seen: FrameFeatures, top: Tensor) -> Decoded:
        """Frames after the first; `top` has read the memory."""
        return self._decode(top, seen, prompt=self._follow(top), single=self.settings.multimask == "never")

    def remembered(self, frames: Tensor, unread: Tensor, top: Tensor, decoded: Decoded) -> Remembered:
        """What there is to remember of frames ``(n,)``, whose features are `unread` before and `top` after reading."""
        masks = enlarge(decoded.mask, self.size)
        written = self.memory.write(unread if self.settings.memory_written == "before" else top, masks)
        detached = self.settings.memory_detached or self.settings.memory_across_clips
        return Remembered(
            frames,
            written.detach() if detached else written,
            top.detach() if self.settings.memory_draw else None,
            decoded.pointer if self.decoder.pointer is not None else None,
            decoded.confidence.detach(),
        )

    def new_bank(self, start: Remembered) -> MemoryBank:
        """A memory that begins with the start frames."""
        return BANKS[self.settings.memory](start, self.settings.memory_frames)

    def _is_single(self, start: StartPrompt) -> bool:
        return start.has_box if self.settings.multimask == "sam2" else self.settings.multimask == "never"


class Tracker:
    """Some clips, walked from their start frames.

    The way back from the start frame does not read what was remembered on the way to the end: it has the start frame
    alone, as the way to the end had. (SAM2's predictor reads there the frames that follow, which the way forward made.)
    So both are walked together, unless a carried memory makes one wait for the other.

    Args:
        segmenter: of the network.
        starts: what the clips are begun with.
        lengths: frames of the clips.
        chances: of each clip, for what is drawn from the memory, an entry a frame; None draws by PyTorch's own chance
            as many entries as there are clips.
        carried: the one memory of all clips; None: each has its own.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        starts: Sequence[StartPrompt],
        lengths: Sequence[int],
        chances: Sequence[torch.Generator] | None = None,
        carried: CarriedMemory | None = None,
    ) -> None:
        self.segmenter, self.carried = segmenter, carried
        self.starts, self.lengths, self.chances = starts, lengths, chances
        self.steps = walking_steps([start.frame for start in starts], lengths, both_ways=carried is None)

    def walk(self, features: Iterable[FrameFeatures]) -> Iterator[Decoded]:
        """The decoder's answers for the places of each of `steps`.

        Args:
            features: of these places, step by step.
        """
        places = [(frame, self.lengths[clip]) for step in self.steps for clip, frame in step]
        indices = upload(torch.tensor(places), self.segmenter.positions.device)
        bank: MemoryBank | None = None
        walked = zip(self.steps, features, indices.split([len(step) for step in self.steps]), strict=True)
        for number, (step, seen, where) in enumerate(walked):
            if self.carried is not None:
                bank = self.carried.bank
            elif bank is not None and number == 1:
                bank = bank.of_rows([clip for clip, _ in step])  # both ways from a start frame begin with it
            top = self._read(step, seen.top, bank, where)
            decoded = self.segmenter.begin(self.starts, seen, top) if number == 0 else self.segmenter.follow(seen, top)
            following = len(self.steps[number + 1]) if number + 1 < len(self.steps) else 0
            if following or self.carried is not None:
                rows = slice(len(step) if number == 0 or self.carried is not None else following)
                if bank is not None and self.carried is None:
                    bank = bank.of_rows(rows)
                kept = decoded.each(itemgetter(rows))
                bank = self._remember(bank, self.segmenter.remembered(where[rows, 0], seen.top[rows], top[rows], kept))
            yield decoded

    def _read(self, step: Sequence[Place], top: Tensor, bank: MemoryBank | None, where: Tensor) -> Tensor:
        memory = self.segmenter.memory
        if bank is None:
            return memory.without(top)
        draw = partial(self._draw, [clip for clip, _ in step])
        positions = self.segmenter.positions
        return memory.read(top, positions, bank=bank, frames=where[:, 0], lengths=where[:, 1], draw=draw)

    def _draw(self, clips: Sequence[int], weights: Tensor) -> Tensor:
        """What `torch.multinomial` draws on the CPU by weights ``(n, m)``, which stay where they are."""
        count = 1 if self.chances is not None else len(self.starts)
        entries = weights.shape[1]
        if count > 1:
            drawn = torch.rand(len(clips), count, dtype=torch.float64, device="cpu").float()
            reached = weights.cumsum(dim=1)
            drawn = upload(drawn, weights.device)
            return torch.searchsorted(reached / reached[:, -1:], drawn).clamp_max(entries - 1)
        chances = [None if self.chances is None else self.chances[clip] for clip in clips]
        waits = [torch.empty(entries, device="cpu").exponential_(generator=chance) for chance in chances]
        return (weights / upload(torch.stack(waits), weights.device)).argmax(dim=1, keepdim=True)

    def _remember(self, bank: MemoryBank | None, new: Remembered) -> MemoryBank | None:
        if self.carried is None:
            if bank is None:
                return self.segmenter.new_bank(new)
            bank.add(new)
            return bank
        for row in range(len(new.frame)):
            one = new.of_row(row)
            if self.carried.bank is None:
                self.carried.bank = self.segmenter.new_bank(one)
            else:
                self.carried.bank.add(one)
        return self.carried.bank


def enlarge(masks: Tensor, size: int) -> Tensor:
    """Logits ``(N, K, h, w)`` on the frames' grid, ``(N, K, size, size)``, in float32."""
    return F.interpolate(masks.float(), size=(size, size), mode="bilinear")
