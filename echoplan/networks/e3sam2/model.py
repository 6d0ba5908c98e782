"""E3SAM2 put together; without its own parts it is SAM2."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from echoplan.errors import EchoPlanError
from echoplan.networks.e3sam2.edges import EdgeHead, GatedEdgeHead
from echoplan.networks.e3sam2.encoder import Encoder, FrameFeatures
from echoplan.networks.e3sam2.memory import Memory
from echoplan.networks.e3sam2.prompts import Prompting, Prompts, StartPrompt
from echoplan.networks.e3sam2.sam2_parts import VARIANTS
from echoplan.networks.e3sam2.settings import LEARNING_PARTS, SAM2Settings, with_sam2s_parts
from echoplan.networks.e3sam2.tracking import (
    CarriedMemory,
    Decoded,
    Decoder,
    Track,
    Tracker,
    Visit,
    enlarge,
    visiting_order,
)
from echoplan.networks.e3sam2.weights import load_published_weights
from echoplan.networks.interface import ClipOutput, StreamedFrames

_STRIDE = 32
_CANDIDATES = 32  # frames among which the start frame is chosen
_CHUNK = 8  # frames that are encoded together at inference
_CHANCE = 0  # seed of what is drawn at inference: the same clip gets the same answer


class E3SAM2(nn.Module):
    """`e3sam2`: SAM2 with Global-Local Adapters, entropy-guided attention and edge-aware supervision.

    A clip is begun in the frame that a coarse head is surest of, with a point and a box that it finds there (or as the
    settings `prompt` and `start_frame` say), or in a frame with a point, a box or a mask from outside (`Prompts`). From
    there SAM2 follows the left ventricle to the end of the clip, then from the same frame back to its beginning. SAM2
    segments one object, so `classes` must be 1.

    Args:
        settings: see `E3SAM2Settings`; with `SAM2Settings` it is SAM2 as it is (`with_sam2s_parts`). The coarse head
            that makes the prompts is then all it has beside SAM2.
        size: the frames' height and width: equal, and multiples of 32.
        classes: 1.
        pretrained: SAM2's weights: True finds them, a path names their file, or that of a whole network of E3SAM2's
            authors.

    Raises:
        EchoPlanError: a size or a number of classes it cannot take, or weights that cannot be had.
    """

    def __init__(
        self,
        settings: SAM2Settings,
        *,
        size: tuple[int, int],
        classes: int = 1,
        pretrained: bool | str | Path = False,
    ) -> None:
        super().__init__()
        _check_size(size)
        if classes != 1:
            raise EchoPlanError(
                f"SAM2 segments one object, not {classes} classes", remedy="convert the dataset with one structure"
            )
        self.settings = own = with_sam2s_parts(settings)
        self.size = size[0]
        self.encoder = Encoder(
            VARIANTS[own.variant],
            size=self.size,
            windows=own.windows,
            adapters=own.adapter_place if own.adapters else None,
            imagenet=own.standardise == "imagenet",
            attention=own.attention,
            certainty_power=own.certainty_power,
        )
        self.edges = self._edge_head() if own.edge_supervision else None
        self.prompting = Prompting(
            self.size,
            automatic=own.prompt,
            first=own.start_frame == "first",
            follows=own.later_prompt == "memory",
        )
        self.memory = Memory(self.size // 16, tokens=own.memory_tokens, drawn=own.memory_draw)
        self.decoder = Decoder(object_score=own.object_score, pointers=own.memory_tokens == "sam2")
        self.carried = CarriedMemory() if own.memory_across_clips else None
        self._let_learn(own.learning_part)
        if pretrained:
            load_published_weights(self, own.variant, own.sam2_version, pretrained)

    def _edge_head(self) -> EdgeHead | GatedEdgeHead:
        if self.settings.edge_from == "decoder":
            return GatedEdgeHead()
        return EdgeHead((self.encoder.channels[0], self.encoder.channels[2]))

    def _let_learn(self, part: str) -> None:
        """Let one of `trainable`'s parts learn, and nothing else."""
        trunk = self.encoder.trunk
        fed = [trunk.blocks[index] for index in self.encoder.adapted_blocks]
        steps: dict[str, list[nn.Module | None]] = {
            "adapters": [self.encoder.adapters, self.edges, self.prompting.locator, self.prompting.later],
            "decoder": [self.decoder],
            "memory": [self.memory],
            "all_but_trunk": [self.encoder.neck, self.prompting],
            "last_stage": [block.attn for block in trunk.blocks[trunk.stage_ends[-2] + 1 :]],
            "all": [trunk],
        }
        parts = LEARNING_PARTS[: LEARNING_PARTS.index(part) + 1] if part in LEARNING_PARTS else ("adapters", "memory")
        if part == "adapted":
            steps["memory"] += [self.encoder.neck, trunk.patch_embed, *fed]
        self.requires_grad_(False)
        for positions in (trunk.pos_embed, trunk.pos_embed_window):
            positions.requires_grad_(part == "adapted")
        for name in parts:
            for module in steps[name]:
                if module is not None:
                    module.requires_grad_(True)
        # Masks that are given are believed, and need no more than SAM2 learned of them.
        self.prompting.shrink.requires_grad_(False)
        if self.prompting.automatic != "mask":
            self.prompting.encoder.mask_downscaling.requires_grad_(False)

    def forward(self, clip: Tensor, prompts: Prompts | None = None) -> Tensor | ClipOutput:
        """``(B, T, C, H, W)`` with C = 1 or 3 -> logits ``(B, T, 1, H, W)``, in training mode a `ClipOutput`.

        In evaluation mode clips go through the network one by one, so that none depends on the others. In training mode
        the auxiliary part holds, for S stages of N_s tokens:

        - "masks" ``(B, T, 3, H/4, W/4)``: logits of all masks, "iou" ``(B, T, 3)``: the IoU predicted of each,
          "object_score" ``(B, T)``: logit that there is an object;
        - "coarse" ``(B, T, 1, H/16, W/16)``: the coarse head's logits, "start" ``(B,)``: the frames begun with;
        - "entropies": a list of S ``(B, T, N_s)`` in [0, 1], with adapters;
        - "edges" ``(B, T, 1, H/4, W/4)``: logits, with edge supervision.

        Only in evaluation mode `threshold` shifts the logits.

        Args:
            clip: standardised frames.
            prompts: None finds a prompt for every clip (`prompt`).
        """
        _check_size(clip.shape[-2:], self.size)
        if prompts is not None:
            prompts.check(len(clip), clip.shape[1], self.size)
        if self.training:
            return self._training_output(clip, prompts)
        of_clip = [None if prompts is None else prompts.of_clip(index) for index in range(len(clip))]
        return torch.stack([self._whole(frames, own) for frames, own in zip(clip, of_clip, strict=True)])

    def _whole(self, frames: Tensor, prompts: Prompts | None) -> Tensor:
        """Logits ``(T, 1, H, W)`` of one clip, in order."""
        logits = dict(self.stream(frames, prompts))
        return torch.stack([logits[frame] for frame in range(len(frames))])

    def stream(self, frames: StreamedFrames, prompts: Prompts | None = None) -> Iterator[tuple[int, Tensor]]:
        """Logits ``(1, H, W)`` of every frame of one clip, from the start frame on; see `StreamingNetwork`.

        The start frame is chosen among at most 32 evenly spaced frames. Their features are kept until they are used;
        those of the others are made a few at a time. So what is held does not depend on the clip's length.

        Args:
            frames: ``(T, C, H, W)``, on any device.
            prompts: of this one clip; None finds a prompt.
        """
        _check_size(frames.shape[-2:], self.size)
        length = len(frames)
        if prompts is not None:
            prompts.check(1, length, self.size)
        prompt, kept = self._begin(frames, prompts)
        chance = torch.Generator().manual_seed(_CHANCE) if self.settings.memory_draw else None
        track, tracker = Track(prompt, length, chance=chance), self._tracker()
        shift = math.log(self.settings.threshold / (1 - self.settings.threshold))
        order = visiting_order(prompt.frame, length)
        for step, frame in enumerate(order):
            if frame not in kept:
                missing = [index for index in order[step : step + _CHUNK] if index not in kept]
                kept.update(self._encode(frames, missing))
            (answer,) = tracker.visit([Visit(track, frame, kept.pop(frame))])
            yield frame, enlarge(answer.mask[None], self.size)[0] - shift

    def _begin(self, frames: StreamedFrames, prompts: Prompts | None) -> tuple[StartPrompt, dict[int, FrameFeatures]]:
        """The start prompt of a clip, and the features made to find it."""
        kept: dict[int, FrameFeatures] = {}
        if given := self.prompting.given(prompts):
            return given, kept
        count = min(len(frames), 1 if self.prompting.first else _CANDIDATES)
        candidates = [round(index * (len(frames) - 1) / max(1, count - 1)) for index in range(count)]
        for first in range(0, count, _CHUNK):
            kept.update(self._encode(frames, candidates[first : first + _CHUNK]))
        coarse = torch.cat([self.prompting.locate(kept[index].top[None]) for index in candidates])
        return self.prompting.found(coarse, candidates, prompts), kept

    def _encode(self, frames: StreamedFrames, indices: list[int]) -> dict[int, FrameFeatures]:
        device = self._device
        maps, _ = self.encoder.stages(frames[indices].to(device))
        return dict(zip(indices, self.encoder.pyramid(maps, *self.decoder.projections).frames(), strict=True))

    def _tracker(self) -> Tracker:
        return Tracker(
            self.settings,
            prompting=self.prompting,
            memory=self.memory,
            decoder=self.decoder,
            positions=self.encoder.positions(self.size // 16, self._device),
            carried=self.carried,
        )

    @property
    def _device(self) -> torch.device:
        return self.prompting.encoder.no_mask_embed.weight.device

    def _training_output(self, clip: Tensor, prompts: Prompts | None) -> ClipOutput:
        clips, length = clip.shape[:2]
        maps, entropies = self.encoder.stages(clip.flatten(0, 1))
        features = self.encoder.pyramid(maps, *self.decoder.projections)
        seen = features.top.detach() if self.settings.coarse_detached else features.top
        coarse = self.prompting.locate(seen).unflatten(0, (clips, length))
        tracks = []
        for index in range(clips):
            own = None if prompts is None else prompts.of_clip(index)
            start = self.prompting.given(own) or self.prompting.found(coarse[index], range(length), own)
            tracks.append(Track(start, length))
        answers = self._follow(tracks, features)
        logits, masks, iou, score = (
            torch.stack([Decoded.stack(answer, name) for answer in answers])
            for name in ("mask", "masks", "iou", "score")
        )
        auxiliary = {
            "masks": masks,
            "iou": iou,
            "object_score": score,
            "coarse": coarse,
            "start": torch.tensor([track.prompt.frame for track in tracks], device=clip.device),
        }
        if entropies:
            auxiliary["entropies"] = [each.unflatten(0, (clips, length)) for each in entropies]
        if self.edges is not None:
            read = (features.fine, features.top) if self.settings.edge_from == "decoder" else (maps[0], maps[2])
            auxiliary["edges"] = self.edges(*read).unflatten(0, (clips, length))
        return ClipOutput(enlarge(logits.flatten(0, 1), self.size).unflatten(0, (clips, length)), auxiliary)

    def _follow(self, tracks: list[Track], features: FrameFeatures) -> list[list[Decoded]]:
        """The decoder's answers for all frames of all clips, by clip and frame."""
        tracker, length = self._tracker(), tracks[0].length
        each = features.frames()
        orders = [visiting_order(track.prompt.frame, length) for track in tracks]
        answers: list[dict[int, Decoded]] = [{} for _ in tracks]
        for step in range(length):
            visits = [
                Visit(track, order[step], each[index * length + order[step]])
                for index, (track, order) in enumerate(zip(tracks, orders, strict=True))
            ]
            for index, answer in enumerate(tracker.visit(visits)):
                answers[index][orders[index][step]] = answer
        return [[answer[frame] for frame in range(length)] for answer in answers]


def _check_size(size: Sequence[int], built_for: int | None = None) -> None:
    height, width = size
    if height != width or height % _STRIDE:
        raise EchoPlanError(
            f"SAM2 takes square frames whose edges are multiples of {_STRIDE} pixels, not {height} x {width}",
            remedy="resize or pad the frames",
        )
    if built_for is not None and height != built_for:
        raise EchoPlanError(f"this network was built for frames of {built_for} x {built_for}, not {height} x {width}")
