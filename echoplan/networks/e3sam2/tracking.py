"""The mask decoder, and clips segmented by it: from the start frame to the end, then back to the beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.networks.e3sam2.encoder import FrameFeatures
from echoplan.networks.e3sam2.memory import BANKS, Memory, MemoryBank, Remembered
from echoplan.networks.e3sam2.prompts import Prompting, StartPrompt
from echoplan.networks.e3sam2.sam2_parts import build_mask_decoder, build_pointer_head
from echoplan.networks.e3sam2.settings import E3SAM2Settings

_MASKS = 3  # for an ambiguous prompt
_BELIEVED_SCALE, _BELIEVED_BIAS = 20.0, -10.0
_STRIDE = 16  # of the top features


@dataclass(frozen=True)
class Decoded:
    """The decoder's answer for N frames (or for one, without the first axis).

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

    def frames(self) -> list[Decoded]:
        """The answers of each frame alone."""
        parts = (self.mask, self.masks, self.iou, self.confidence, self.score, self.pointer)
        return [Decoded(*each) for each in zip(*(part.unbind() for part in parts), strict=True)]

    def believing(self, masks: Tensor) -> Decoded:
        """The same with masks ``(N, 1, H, W)`` bool that are known to be right, as SAM2 makes logits of them."""
        logits = masks * _BELIEVED_SCALE + _BELIEVED_BIAS
        mask = F.interpolate(logits, size=self.mask.shape[-2:], mode="bilinear", antialias=True)
        return replace(self, mask=mask, confidence=torch.ones_like(self.confidence))

    @staticmethod
    def stack(frames: Sequence[Decoded], name: str) -> Tensor:
        """One attribute of many frames, along a new first axis."""
        return torch.stack([getattr(each, name) for each in frames])


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


def visiting_order(start: int, length: int) -> list[int]:
    """Frame indices in the order in which they are segmented."""
    return [*range(start, length), *range(start - 1, -1, -1)]


@dataclass
class Track:
    """One clip on its way.

    Attributes:
        prompt: what it is begun with.
        length: frames in the clip.
        bank: what is remembered; None before the start frame, unless an earlier clip left something.
        chance: for what is drawn from the memory; None takes PyTorch's own.
    """

    prompt: StartPrompt
    length: int
    bank: MemoryBank | None = None
    chance: torch.Generator | None = None

    def group(self, frame: int) -> tuple[int, ...]:
        """Tracks of one group have equally long sequences to attend to, and may go through the network together."""
        begun = self.prompt.group() if frame == self.prompt.frame else ()
        return (*begun, *(() if self.bank is None else self.bank.shape))

    def is_read(self, frame: int) -> bool:
        """Whether another frame comes after this one that could read the memory of it."""
        return self.length > 1 if frame == self.prompt.frame else 0 < frame < self.length - 1


@dataclass
class CarriedMemory:
    """What the clips so far left in memory (`E3SAM2Settings.memory_across_clips`); None before the first."""

    bank: MemoryBank | None = None


@dataclass(frozen=True)
class Visit:
    """A frame of one clip, about to be segmented."""

    track: Track
    frame: int
    features: FrameFeatures


class Tracker:
    """Prompting, memory and decoder at work on any number of clips.

    The way back from the start frame does not read what was remembered on the way to the end: it has the start frame
    alone, as the way to the end had. (SAM2's predictor reads there the frames that follow, which the way forward made.)

    Args:
        settings: of the network.
        prompting, memory, decoder: the network's parts.
        positions: the position encoding ``(1, 256, h, w)`` of the top features.
        carried: the one memory of all clips; None: each has its own.
    """

    def __init__(
        self,
        settings: E3SAM2Settings,
        *,
        prompting: Prompting,
        memory: Memory,
        decoder: Decoder,
        positions: Tensor,
        carried: CarriedMemory | None = None,
    ) -> None:
        self.settings, self.carried = settings, carried
        self.prompting, self.memory, self.decoder = prompting, memory, decoder
        self.positions = positions
        self._decoder_positions = prompting.positions()

    def visit(self, visits: Sequence[Visit]) -> list[Decoded]:
        """Segment one frame of each clip, and remember it where it is worth it."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, visit in enumerate(visits):
            track = visit.track
            if self.carried is not None:
                track.bank = self.carried.bank
            elif track.bank is not None and visit.frame == track.prompt.frame - 1:
                track.bank = track.bank.turned()
            groups.setdefault(track.group(visit.frame), []).append(index)
        answers: dict[int, Decoded] = {}
        for members in groups.values():
            answers.update(zip(members, self._visit_alike([visits[i] for i in members]), strict=True))
        return [answers[index] for index in range(len(visits))]

    def _visit_alike(self, visits: Sequence[Visit]) -> list[Decoded]:
        """Frames of one `Track.group`: all are their clips' first ones, or none is."""
        features = FrameFeatures.stack([visit.features for visit in visits])
        top = self._read(visits, features.top)
        starts = [visit.track.prompt for visit in visits if visit.frame == visit.track.prompt.frame]
        answers = [start.answer for start in starts if start.answer is not None]
        decoded = self.decoder(
            # What SAM2 believes it reads with no mark of a frame without memories.
            features.top if answers else top,
            features,
            prompt=self.prompting.embed(starts) if starts else self.prompting.follow(top),
            positions=self._decoder_positions,
            single=bool(answers) or self._is_single(starts),
        )
        if answers:
            decoded = decoded.believing(torch.stack(answers))
        self._remember(visits, features.top, top, decoded)
        return decoded.frames()

    def _is_single(self, starts: Sequence[StartPrompt]) -> bool:
        if self.settings.multimask == "sam2":
            return bool(starts) and starts[0].has_box
        return self.settings.multimask == "never"

    def _read(self, visits: Sequence[Visit], top: Tensor) -> Tensor:
        banks = [visit.track.bank for visit in visits if visit.track.bank is not None]
        if not banks:
            return self.memory.without(top)
        return self.memory.read(
            top,
            self.positions,
            banks=banks,
            frames=[visit.frame for visit in visits],
            length=visits[0].track.length,
            chances=[visit.track.chance for visit in visits],
        )

    def _remember(self, visits: Sequence[Visit], unread: Tensor, top: Tensor, decoded: Decoded) -> None:
        """Keep what is worth it of frames whose features are `unread` before and `top` after the memory was read."""
        wanted = [
            index
            for index, visit in enumerate(visits)
            if (self.carried is not None or visit.track.is_read(visit.frame))
            and (visit.track.bank is None or visit.track.bank.admits(decoded.confidence[index]))
        ]
        if not wanted:
            return
        masks = enlarge(decoded.mask[wanted], size=_STRIDE * self.positions.shape[-1])
        written = self.memory.write((unread if self.settings.memory_written == "before" else top)[wanted], masks)
        if self.settings.memory_detached or self.carried is not None:
            written = written.detach()
        for index, features in zip(wanted, written, strict=True):
            self._keep(visits[index], features, top[index].detach(), decoded.pointer[index], decoded.confidence[index])

    def _keep(self, visit: Visit, features: Tensor, seen: Tensor, pointer: Tensor, confidence: Tensor) -> None:
        own_pointer = pointer if self.decoder.pointer is not None else None
        new = Remembered(visit.frame, features, seen, own_pointer, confidence.detach())
        bank = visit.track.bank if self.carried is None else self.carried.bank
        if bank is None:
            bank = BANKS[self.settings.memory](new, self.settings.memory_frames)
        else:
            bank.add(new)
        visit.track.bank = bank
        if self.carried is not None:
            self.carried.bank = bank


def enlarge(masks: Tensor, size: int) -> Tensor:
    """Logits ``(N, K, h, w)`` on the frames' grid, ``(N, K, size, size)``, in float32."""
    return F.interpolate(masks.float(), size=(size, size), mode="bilinear")
