"""The mask decoder, and clips segmented by it: from the start frame to the end, then back to the beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.networks.e3sam2.encoder import FrameFeatures
from echoplan.networks.e3sam2.memory import Memory, MemoryBank, Remembered
from echoplan.networks.e3sam2.prompts import Prompting, StartPrompt
from echoplan.networks.e3sam2.sam2_parts import build_mask_decoder, build_pointer_head

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
        pointer: ``(N, 256)``, the object pointer.
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

    Of the three masks for an ambiguous prompt the one with the best predicted IoU is taken, on every frame, as SAM2
    does for one point and while it tracks. SAM2 besides sets masks to -1024, and replaces pointers and memories, where
    its object score is below zero. Not so here: every frame of an apical clip shows the left ventricle, so the score is
    no more than a sign of quality, and what is remembered is always an object's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.masks = build_mask_decoder()
        self.pointer = build_pointer_head()

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
            single: take SAM2's mask for a prompt that leaves no doubt, which then stands for all three.
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
            pointer=self.pointer(tokens[rows, best]),
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
        bank: what is remembered; None before the start frame.
    """

    prompt: StartPrompt
    length: int
    bank: MemoryBank | None = None

    def group(self) -> tuple[int, ...]:
        """Tracks of one group have equally long sequences to attend to, and may go through the network together."""
        return self.prompt.group() if self.bank is None else (0, *self.bank.shape)

    def is_read(self, frame: int) -> bool:
        """Whether another frame comes after this one that could read the memory of it."""
        return self.length > 1 if frame == self.prompt.frame else 0 < frame < self.length - 1


@dataclass(frozen=True)
class Visit:
    """A frame of one clip, about to be segmented."""

    track: Track
    frame: int
    features: FrameFeatures


class Tracker:
    """Prompting, memory and decoder at work on any number of clips.

    Args:
        prompting, memory, decoder: the network's parts.
        bank: the kind of memory bank.
        positions: the position encoding ``(1, 256, h, w)`` of the top features.
        sure_boxes: whether a box leaves no doubt, so that SAM2's single mask is taken for it.
    """

    def __init__(
        self,
        *,
        prompting: Prompting,
        memory: Memory,
        decoder: Decoder,
        bank: type[MemoryBank],
        positions: Tensor,
        sure_boxes: bool = False,
    ) -> None:
        self.prompting, self.memory, self.decoder = prompting, memory, decoder
        self.bank, self.sure_boxes = bank, sure_boxes
        self.positions = positions
        self._decoder_positions = prompting.positions()

    def visit(self, visits: Sequence[Visit]) -> list[Decoded]:
        """Segment one frame of each clip, and remember it where it is worth it."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, visit in enumerate(visits):
            if visit.track.bank is not None and visit.frame == visit.track.prompt.frame - 1:
                visit.track.bank = visit.track.bank.turned()
            groups.setdefault(visit.track.group(), []).append(index)
        answers: dict[int, Decoded] = {}
        for members in groups.values():
            answers.update(zip(members, self._visit_alike([visits[i] for i in members]), strict=True))
        return [answers[index] for index in range(len(visits))]

    def _visit_alike(self, visits: Sequence[Visit]) -> list[Decoded]:
        features = FrameFeatures.stack([visit.features for visit in visits])
        banks = [visit.track.bank for visit in visits if visit.track.bank is not None]
        if not banks:
            return self._begin([visit.track.prompt for visit in visits], visits, features)
        top = self.memory.read(
            features.top,
            self.positions,
            banks=banks,
            frames=[visit.frame for visit in visits],
            length=visits[0].track.length,
        )
        prompt = self.prompting.embed(len(visits))
        decoded = self.decoder(top, features, prompt=prompt, positions=self._decoder_positions)
        self._remember(visits, features.top, decoded)
        return decoded.frames()

    def _begin(self, starts: Sequence[StartPrompt], visits: Sequence[Visit], features: FrameFeatures) -> list[Decoded]:
        """The start frames of clips with prompts of one group."""
        prompt, answers = self.prompting.embed(starts), [start.answer for start in starts if start.answer is not None]
        believed = bool(answers)
        decoded = self.decoder(
            # What SAM2 believes it reads with no mark of a frame without memories.
            features.top if believed else self.memory.without(features.top),
            features,
            prompt=prompt,
            positions=self._decoder_positions,
            single=believed or (self.sure_boxes and starts[0].has_box),
        )
        if believed:
            decoded = decoded.believing(torch.stack(answers))
        self._remember(visits, features.top, decoded)
        return decoded.frames()

    def _remember(self, visits: Sequence[Visit], top: Tensor, decoded: Decoded) -> None:
        confidences = _numbers(decoded.confidence)
        wanted = [
            index
            for index, visit in enumerate(visits)
            if visit.track.is_read(visit.frame)
            and (visit.track.bank is None or visit.track.bank.admits(confidences[index]))
        ]
        if not wanted:
            return
        masks = enlarge(decoded.mask[wanted], size=_STRIDE * self.positions.shape[-1])
        for index, features in zip(wanted, self.memory.write(top[wanted], masks), strict=True):
            track = visits[index].track
            new = Remembered(visits[index].frame, features, decoded.pointer[index], confidences[index])
            if track.bank is None:
                track.bank = self.bank(new)
            else:
                track.bank.add(new)


def enlarge(masks: Tensor, size: int) -> Tensor:
    """Logits ``(N, K, h, w)`` on the frames' grid, ``(N, K, size, size)``, in float32."""
    return F.interpolate(masks.float(), size=(size, size), mode="bilinear")


def _numbers(values: Tensor) -> list[float]:
    """The values; on the meta device, where there are none, ones: all that may be remembered is."""
    return [1.0] * len(values) if values.is_meta else values.detach().tolist()
