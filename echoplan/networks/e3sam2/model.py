"""E3SAM2 put together; without its own parts it is SAM2."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from echoplan.device import upload
from echoplan.errors import EchoPlanError
from echoplan.networks.e3sam2 import graphs
from echoplan.networks.e3sam2.edges import EdgeHead, GatedEdgeHead
from echoplan.networks.e3sam2.encoder import Encoder, FrameFeatures
from echoplan.networks.e3sam2.memory import Memory
from echoplan.networks.e3sam2.prompts import GIVEN, Prompting, Prompts, StartPrompt
from echoplan.networks.e3sam2.sam2_parts import VARIANTS
from echoplan.networks.e3sam2.settings import LEARNING_PARTS, SAM2Settings, with_sam2s_parts
from echoplan.networks.e3sam2.tracking import (
    CarriedMemory,
    Decoded,
    Decoder,
    Place,
    Segmenter,
    Tracker,
    enlarge,
    start_candidates,
)
from echoplan.networks.e3sam2.weights import load_published_weights
from echoplan.networks.interface import ClipOutput, StreamedFrames, frames_at
from echoplan.networks.steps import Graph, Run

_STRIDE = 32
_CANDIDATES = 32  # frames among which the start frame is chosen, where it is not the first
_CHUNK = 8  # frames that are encoded together at inference
_CHANCE = 0  # seed of what is drawn at inference: the same clip gets the same answer

Encode: TypeAlias = Callable[[Sequence[Place]], dict[Place, FrameFeatures]]


class E3SAM2(nn.Module):
    """`e3sam2`: SAM2 with Global-Local Adapters, entropy-guided attention and edge-aware supervision.

    A clip is begun in the frame that a coarse head is surest of, with a point and a box that it finds there (or as the
    settings `prompt` and `start_frame` say), or in a frame with a point, a box or a mask from outside (`Prompts`). From
    there SAM2 follows the left ventricle both ways, to the end of the clip and to its beginning. SAM2 segments one
    object, so `classes` must be 1.

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

    def forward(
        self, clip: Tensor, prompts: Prompts | None = None, *, with_entropies: bool = True
    ) -> Tensor | ClipOutput:
        """``(B, T, C, H, W)`` with C = 1 or 3 -> logits ``(B, T, 1, H, W)``, in training mode a `ClipOutput`.

        Clips of a batch go through the network abreast, and none depends on the others. In training mode the auxiliary
        part holds, for S stages of N_s tokens:

        - "masks" ``(B, T, 3, H/4, W/4)``: logits of all masks, "iou" ``(B, T, 3)``: the IoU predicted of each,
          "object_score" ``(B, T)``: logit that there is an object;
        - "coarse" ``(B, T, 1, H/16, W/16)``: the coarse head's logits, "start" ``(B,)``: the frames begun with;
        - "entropies": a list of S ``(B, T, N_s)`` in [0, 1], with adapters and `with_entropies`;
        - "edges" ``(B, T, 1, H/4, W/4)``: logits, with edge supervision.

        Only in evaluation mode `threshold` shifts the logits.

        Args:
            clip: standardised frames.
            prompts: None finds a prompt for every clip (`prompt`).
            with_entropies: whether entropies are wanted, in training mode.
        """
        _check_size(clip.shape[-2:], self.size)
        if prompts is not None:
            prompts.check([clip.shape[1]] * len(clip), self.size)
        if self.training:
            return self._training_output(clip, prompts, with_entropies)
        found = dict(self.streams(clip.flatten(0, 1), [clip.shape[1]] * len(clip), prompts))
        return torch.stack([found[place] for place in range(len(found))]).unflatten(0, clip.shape[:2])

    def stream(self, frames: StreamedFrames, prompts: Prompts | None = None) -> Iterator[tuple[int, Tensor]]:
        """Logits ``(1, H, W)`` of every frame of one clip, from the start frame on; see `StreamingNetwork`.

        Args:
            frames: ``(T, C, H, W)``, on any device.
            prompts: of this one clip; None finds a prompt.
        """
        return self.streams(frames, [len(frames)], prompts)

    def streams(
        self, frames: StreamedFrames, clips: Sequence[int], prompts: Prompts | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """The same of several clips abreast; see `AbreastNetwork`.

        The start frame of a clip is chosen among at most 32 evenly spaced frames. Their features are kept until they
        are used; those of the others are made a few at a time. So what is held does not depend on the clips' length.

        Logits are those of each clip alone to within 1e-4 in float32. Where a choice (of the start frame, the best of
        three masks, what stays in memory) hangs on such a difference, it may be another one. With `memory_across_clips`
        clips are walked one after another.

        Args:
            frames: ``(T, C, H, W)``, of all clips one behind the other, on any device.
            clips: their lengths.
            prompts: of all of them; None finds prompts.
        """
        _check_size(frames.shape[-2:], self.size)
        if prompts is not None:
            prompts.check(clips, self.size)
            prompts = prompts.to(self._device)
        firsts = [0, *accumulate(clips)][:-1]
        if self.carried is None:
            yield from self._walk(frames, firsts, clips, prompts)
            return
        for index, (first, length) in enumerate(zip(firsts, clips, strict=True)):
            yield from self._walk(frames, [first], [length], None if prompts is None else prompts.of_clip(index))

    def _walk(
        self, frames: StreamedFrames, firsts: Sequence[int], lengths: Sequence[int], prompts: Prompts | None
    ) -> Iterator[tuple[int, Tensor]]:
        """What `streams` gives, of clips that begin at `firsts`."""
        encode = partial(self._encode, frames, firsts)
        starts, kept = self._begin(encode, lengths, prompts)
        seeds = [torch.Generator().manual_seed(_CHANCE) for _ in lengths] if self.settings.memory_draw else []
        tracker = self._tracker(starts, lengths, seeds)
        walk = tracker.walk(self._ahead(encode, tracker.steps, kept))
        for step, answers in zip(tracker.steps, walk, strict=True):
            places = [firsts[clip] + frame for clip, frame in step]
            yield from zip(places, enlarge(answers.mask, self.size) - self._shift, strict=True)

    def _begin(
        self, encode: Encode, lengths: Sequence[int], prompts: Prompts | None
    ) -> tuple[list[StartPrompt], dict[Place, FrameFeatures]]:
        """The start prompts of clips, and the features made to find them."""
        kept: dict[Place, FrameFeatures] = {}
        coarse: dict[Place, Tensor] = {}
        candidates: list[list[int]] = []
        for index, length in enumerate(lengths):
            given = prompts is not None and prompts.kinds[index] in GIVEN
            candidates.append([] if given else start_candidates(length, most=self._candidates))
        wanted = [(index, frame) for index, frames in enumerate(candidates) for frame in frames]
        together = max(_CHUNK, 2 * len(lengths))  # as many as are walked together later
        for first in range(0, len(wanted), together):
            made = encode(wanted[first : first + together])
            kept.update(made)
            coarse.update(
                zip(made, self.prompting.locate(torch.stack([each.top for each in made.values()])), strict=True)
            )
        found = [
            torch.stack([coarse[index, frame] for frame in frames]) if frames else None
            for index, frames in enumerate(candidates)
        ]
        return self.prompting.begin(found, candidates, prompts), kept

    def _ahead(
        self, encode: Encode, steps: Sequence[Sequence[Place]], kept: dict[Place, FrameFeatures]
    ) -> Iterator[FrameFeatures]:
        """The features of the places of each step, made a few steps ahead."""
        order, done = [place for step in steps for place in step], 0
        for step in steps:
            if any(place not in kept for place in step):
                coming = order[done : done + max(_CHUNK, len(step))]
                kept.update(encode([place for place in coming if place not in kept]))
            yield FrameFeatures.stack([kept.pop(place) for place in step])
            done += len(step)

    def _encode(
        self, frames: StreamedFrames, firsts: Sequence[int], places: Sequence[Place]
    ) -> dict[Place, FrameFeatures]:
        seen = frames_at([firsts[clip] + frame for clip, frame in places], frames, self._device)
        maps, _ = self.encoder.stages(seen)
        return dict(zip(places, self.encoder.pyramid(maps, *self.decoder.projections).frames(), strict=True))

    def _tracker(
        self, starts: Sequence[StartPrompt], lengths: Sequence[int], seeds: Sequence[torch.Generator] | None = None
    ) -> Tracker:
        return Tracker(self._segmenter(), starts=starts, lengths=lengths, chances=seeds, carried=self.carried)

    def _segmenter(self) -> Segmenter:
        return Segmenter(
            self.settings,
            prompting=self.prompting,
            memory=self.memory,
            decoder=self.decoder,
            positions=self.encoder.positions,
        )

    @property
    def why_no_graph(self) -> str | None:
        """Says what asks for a graph of the network, see `inference.deployment`."""
        if self.settings.memory_draw:
            return "it draws what it reads of its memory by PyTorch's own chance"
        if self.settings.memory_across_clips:
            return "what a clip leaves in its memory is read by the clip that comes next"
        return None

    @torch.no_grad()
    def graphs(self, size: tuple[int, int]) -> dict[str, Graph]:
        """See `SteppingNetwork`."""
        _check_size(size, self.size)
        segmenter = graphs.for_graphs(self._segmenter())
        start = graphs.StartStep(segmenter, shift=self._shift)
        frame = graphs.FrameStep(segmenter, shift=self._shift)
        return graphs.graphs_of(graphs.EncoderStep(self.encoder, segmenter), start, frame)

    def walk(self, frames: StreamedFrames, run: Run) -> Iterator[tuple[int, Tensor]]:
        """See `SteppingNetwork`."""
        return graphs.walk(frames, run, candidates=self._candidates, marked=self.memory.has_marks)

    def program(self) -> list[str]:
        """See `SteppingNetwork`."""
        return graphs.program(self._candidates, marked=self.memory.has_marks)

    @property
    def _shift(self) -> float:
        """By which logits are lowered, so that zero is the threshold's."""
        return math.log(self.settings.threshold / (1 - self.settings.threshold))

    @property
    def _candidates(self) -> int:
        """Frames among which the start frame is chosen."""
        return 1 if self.prompting.first else _CANDIDATES

    @property
    def _device(self) -> torch.device:
        return self.prompting.encoder.no_mask_embed.weight.device

    def _training_output(self, clip: Tensor, prompts: Prompts | None, with_entropies: bool) -> ClipOutput:
        clips, length = clip.shape[:2]
        maps, entropies = self.encoder.stages(clip.flatten(0, 1), with_entropies=with_entropies)
        features = self.encoder.pyramid(maps, *self.decoder.projections)
        seen = features.top.detach() if self.settings.coarse_detached else features.top
        coarse = self.prompting.locate(seen).unflatten(0, (clips, length))
        told = None if prompts is None else prompts.to(clip.device)
        tracker = self._tracker(self.prompting.begin(list(coarse), [range(length)] * clips, told), [length] * clips)
        order = [index * length + frame for step in tracker.steps for index, frame in step]
        back = sorted(range(len(order)), key=order.__getitem__)
        there, back = upload(torch.tensor([order, back]), clip.device)
        walked = features.each(lambda level: level.index_select(0, there))
        answers = Decoded.joined(list(tracker.walk(walked.split([len(step) for step in tracker.steps]))))
        logits, masks, iou, score = (
            each.index_select(0, back).unflatten(0, (clips, length))
            for each in (answers.mask, answers.masks, answers.iou, answers.score)
        )
        auxiliary = {
            "masks": masks,
            "iou": iou,
            "object_score": score,
            "coarse": coarse,
            "start": upload(torch.tensor([start.frame for start in tracker.starts]), clip.device),
        }
        if entropies:
            auxiliary["entropies"] = [each.unflatten(0, (clips, length)) for each in entropies]
        if self.edges is not None:
            read = (features.fine, features.top) if self.settings.edge_from == "decoder" else (maps[0], maps[2])
            auxiliary["edges"] = self.edges(*read).unflatten(0, (clips, length))
        return ClipOutput(enlarge(logits.flatten(0, 1), self.size).unflatten(0, (clips, length)), auxiliary)


def _check_size(size: Sequence[int], built_for: int | None = None) -> None:
    height, width = size
    if height != width or height % _STRIDE:
        raise EchoPlanError(
            f"SAM2 takes square frames whose edges are multiples of {_STRIDE} pixels, not {height} x {width}",
            remedy="resize or pad the frames",
        )
    if built_for is not None and height != built_for:
        raise EchoPlanError(f"this network was built for frames of {built_for} x {built_for}, not {height} x {width}")
