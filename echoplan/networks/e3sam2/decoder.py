"""The mask decoder: from image features and prompts to masks, their predicted quality, and an object pointer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.networks.e3sam2.encoder import FrameFeatures
from echoplan.networks.e3sam2.sam2_parts import build_mask_decoder, build_pointer_head

_MASKS = 3  # for an ambiguous prompt
_BELIEVED_SCALE, _BELIEVED_BIAS = 20.0, -10.0


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
