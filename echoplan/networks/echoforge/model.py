"""EchoForge (Fang et al.): the network as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from pathlib import Path

import torch
from torch import Tensor, nn

from echoplan.errors import EchoPlanError
from echoplan.labels import IGNORE
from echoplan.networks.echoforge import steps
from echoplan.networks.echoforge.anchors import AnchorMaps, FeatureFusion, Recalibration
from echoplan.networks.echoforge.fusion import Memory, TemporalFusion, semantic_tokens
from echoplan.networks.echoforge.parts import Attention, FeedForward, PixelDecoder, Pyramid, enlarge
from echoplan.networks.echoforge.reforging import LabelledEnds, Reforging
from echoplan.networks.echoforge.settings import EchoForgeSettings
from echoplan.networks.interface import ClipOutput, StreamedFrames, check_multiple, frames_at
from echoplan.networks.steps import Graph, Run

_STRIDE = 32
_CHUNK = 8  # frames that are encoded at once in evaluation


@dataclass(frozen=True)
class _Features:
    """What is known of frames before they meet the memory.

    Attributes:
        coarse: F, recalibrated, ``(..., C, H / 8, W / 8)``.
        fine: ``(..., C, H / 4, W / 4)``.
        foreground: the anchors' logits of the structure ``(..., 1, H / 8, W / 8)``.
    """

    coarse: Tensor
    fine: Tensor
    foreground: Tensor


class EchoForge(nn.Module):
    """`echoforge`: anchors, a memory of semantic tokens, and reforged pseudo-labels for frames without labels.

    In evaluation mode it goes through the clips of a batch abreast, frame by frame from the first one, each with a
    memory of fixed size; labels never enter, and clips do not meet. In training mode it may be given the labels: the
    reference of a frame then is at random another, labelled frame with its mask, or earlier frames with their own
    predictions, as at inference.

    Args:
        settings: see `EchoForgeSettings`.
        size: (H, W), multiples of 32.
        classes: 1; the method segments one structure.
        pretrained: ImageNet weights for the backbone: True finds them, a path names their file.

    Raises:
        EchoPlanError: a size it cannot take, or weights that cannot be had.
    """

    def __init__(
        self,
        settings: EchoForgeSettings,
        *,
        size: tuple[int, int],
        classes: int = 1,
        pretrained: bool | str | Path = False,
    ) -> None:
        super().__init__()
        check_multiple("EchoForge", size, _STRIDE)
        if classes != 1:
            raise EchoPlanError(
                f"EchoForge segments one structure, not {classes} classes",
                remedy="convert the dataset with one structure",
            )
        self.memory, self.label_reference = settings.memory, settings.label_reference
        channels = settings.channels
        self.pyramid = Pyramid(settings, pretrained=pretrained)
        self.anchor_maps = AnchorMaps(channels, anchors=settings.anchors)
        self.recalibration = Recalibration(settings) if settings.anchor_recalibration else None
        self.fusion = TemporalFusion(settings) if settings.temporal_fusion else None
        self.decoder = None if settings.temporal_fusion else _FrameDecoder(channels)
        self.reforging = Reforging(channels) if settings.reforging else None
        self._initialise()

    def forward(self, clip: Tensor, labels: Tensor | None = None, *, with_pseudo: bool = True) -> Tensor | ClipOutput:
        """``(B, T, C, H, W)`` -> logits ``(B, T, 1, H, W)``; in training mode a `ClipOutput`.

        Its auxiliary part: "deep_supervision", logits ``(B, T, 1, H / 4, W / 4)`` of the query layers but the last,
        the latest first; "anchors", the anchors' logits ``(B, T, 1, H / 8, W / 8)``; and with reforging "reforged",
        logits ``(B, 2, 1, H / 4, W / 4)`` of the two labelled frames "reforged_frames" ``(B, 2)``, each reforged from
        the other, and `with_pseudo` "pseudo", detached probabilities ``(B, T, 1, H, W)`` of all frames, reforged from
        those two.

        Args:
            clip: the frames; H and W are multiples of 32.
            labels: ``(B, T, H, W)``, 255 where there are none; without effect in evaluation mode.
            with_pseudo: whether pseudo-labels are wanted; of the two labelled frames, masks are reforged anyway.
        """
        check_multiple("EchoForge", clip.shape[-2:], _STRIDE)
        if not self.training:
            found = dict(self.streams(clip.flatten(0, 1), [clip.shape[1]] * len(clip)))
            return torch.stack([found[place] for place in range(len(found))]).unflatten(0, clip.shape[:2])
        if labels is None:
            labels = torch.full((*clip.shape[:2], *clip.shape[3:]), IGNORE, dtype=torch.uint8, device=clip.device)
        features = self._encode(clip)
        ends = LabelledEnds.of(labels)
        masks, pixels = self._decode_clip(features, self._label_tokens(features, labels, ends), ends)
        *earlier, last = masks
        auxiliary = {"deep_supervision": earlier[::-1], "anchors": features.foreground}
        if self.reforging is not None:
            auxiliary |= _reforge_labelled(self.reforging, pixels, ends)
            if with_pseudo:
                auxiliary["pseudo"] = _pseudo_labels(self.reforging, pixels, ends, clip.shape[-2:])
        return ClipOutput(_enlarge_clip(last, clip.shape[-2:]), auxiliary)

    def stream(self, frames: StreamedFrames) -> Iterator[tuple[int, Tensor]]:
        """See `StreamingNetwork.stream`; in order, in evaluation mode."""
        return self.streams(frames, [len(frames)])

    def streams(self, frames: StreamedFrames, clips: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """See `AbreastNetwork.streams`: frame after frame of all clips together, those that end first leave.

        Logits are those of each clip alone to within 1e-4 in float32.
        """
        check_multiple("EchoForge", frames.shape[-2:], _STRIDE)
        device = next(self.parameters()).device
        longest_first = sorted(zip(clips, accumulate(clips), strict=True), key=itemgetter(0), reverse=True)
        memory, frame = Memory(self.memory), 0
        while running := [(length, end - length) for length, end in longest_first if length > frame]:
            memory.keep(len(running))
            count = min(max(1, _CHUNK // len(running)), running[-1][0] - frame)
            places = [first + frame + ahead for _, first in running for ahead in range(count)]
            features = self._encode(frames_at(places, frames, device).unflatten(0, (len(running), count)))
            for ahead in range(count):
                masks, _ = self._decode(_frame(features, ahead), memory)
                yield from zip(places[ahead::count], enlarge(masks[-1], frames.shape[-2:]), strict=True)
            frame += count

    def graphs(self, size: tuple[int, int]) -> dict[str, Graph]:
        """See `SteppingNetwork`."""
        if self.fusion is None:
            raise EchoPlanError(
                "EchoForge without temporal fusion has no memory to hand on, and is not exported",
                remedy="predict with PyTorch (--backend torch)",
            )
        encoder = steps.EncoderStep(self.pyramid, self.anchor_maps, self.recalibration)
        return steps.graphs_of(encoder, steps.FrameStep(self.fusion, size))

    def walk(self, frames: StreamedFrames, run: Run) -> Iterator[tuple[int, Tensor]]:
        """See `SteppingNetwork`."""
        return steps.walk(frames, run, remembered=self.memory)

    def program(self) -> list[str]:
        """See `SteppingNetwork`."""
        return steps.program(self.memory)

    def _encode(self, clip: Tensor) -> _Features:
        coarse, fine = self.pyramid(clip.flatten(0, 1))
        maps, foreground = self.anchor_maps(coarse)
        if self.recalibration is not None:
            coarse = self.recalibration(coarse, maps, foreground=self.anchor_maps.foreground)
        return _Features(*(values.unflatten(0, clip.shape[:2]) for values in (coarse, fine, foreground)))

    def _decode(
        self, frame: _Features, memory: Memory, label_reference: tuple[Tensor, Tensor] | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """The masks ``(B, 1, h, w)`` and pixel features of one frame of each clip, which then enters the memory.

        Args:
            frame: its features.
            memory: of the frames before.
            label_reference: tokens ``(B, 2, C)`` of a labelled frame, and ``(B,)``, True where they stand in for the
                memory's.
        """
        if self.fusion is None:
            assert self.decoder is not None
            return self.decoder(frame.coarse, frame.fine)
        # The first frame has no earlier one: the anchors' own map tells the structure from the background.
        known = memory.frames or [semantic_tokens(frame.coarse, frame.foreground.detach().sigmoid())]
        reference = torch.stack(known, dim=1)
        if label_reference is not None:
            tokens, used = label_reference
            reference = torch.where(used.view(-1, 1, 1, 1), tokens.unsqueeze(1), reference)
        masks, pixels = self.fusion(reference, frame.coarse, frame.fine)
        # The mask is cut from the graph, so that a frame's gradient does not run through all frames before it.
        memory.add(semantic_tokens(frame.coarse, masks[-1].detach().sigmoid()))
        return masks, pixels

    def _decode_clip(
        self, features: _Features, label_tokens: Tensor | None, ends: LabelledEnds
    ) -> tuple[list[Tensor], Tensor]:
        """Training: masks, each ``(B, T, 1, h, w)``, and pixel features ``(B, T, C, h, w)`` of every frame."""
        batch, length = features.coarse.shape[:2]
        draws = torch.rand(length, 2, batch, device=features.coarse.device)
        rows, memory, decoded = torch.arange(batch, device=draws.device), Memory(self.memory), []
        for place in range(length):
            reference = None
            if label_tokens is not None:
                which, used = ends.reference_for(place, draws[place], share=self.label_reference)
                reference = label_tokens[rows, which], used
            decoded.append(self._decode(_frame(features, place), memory, reference))
        masks = [torch.stack(levels, dim=1) for levels in zip(*(masks for masks, _ in decoded), strict=True)]
        return masks, torch.stack([pixels for _, pixels in decoded], dim=1)

    def _label_tokens(self, features: _Features, labels: Tensor, ends: LabelledEnds) -> Tensor | None:
        """The semantic tokens of the two labelled frames under their true masks, ``(B, 2, 2, C)``."""
        if self.fusion is None:
            return None
        truth = (ends.of_clip(labels) == 1).flatten(0, 1).unsqueeze(1).float()
        return semantic_tokens(ends.of_clip(features.coarse).flatten(0, 1), truth).unflatten(0, (-1, 2))

    def _initialise(self) -> None:
        """The paper's "Kaiming" strategy for everything but the backbone; residual branches start at zero."""
        for part in (self.pyramid.laterals, self.pyramid.smooth, self.anchor_maps, self.recalibration, self.fusion,
                     self.decoder, self.reforging):  # fmt: skip
            if part is not None:
                part.apply(_initialise)
        if self.fusion is not None:
            for head in self.fusion.kernels:  # the first masks shall be undecided rather than wrong
                *_, last = head.parameters()
                with torch.no_grad():
                    last.mul_(0.1)


class _FrameDecoder(nn.Module):
    """What decodes a frame where there is no TSF: the same pixel features, and a 1 x 1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pixels = PixelDecoder(channels)
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, features: Tensor, fine: Tensor) -> tuple[list[Tensor], Tensor]:
        """F ``(B, C, h, w)`` and fine features -> one mask's logits ``(B, 1, 2 h, 2 w)``, and the pixel features."""
        pixels = self.pixels(features, fine)
        return [self.head(pixels)], pixels


def _reforge_labelled(reforging: Reforging, pixels: Tensor, ends: LabelledEnds) -> dict[str, Tensor]:
    """The labelled frames' masks, which learn from truth: each from the other, a clip's only one from itself."""
    labelled = ends.of_clip(pixels)
    reforged = reforging(labelled.flip(1).flatten(0, 1), labelled.flatten(0, 1)).unflatten(0, (-1, 2))
    return {"reforged": reforged, "reforged_frames": ends.index}


@torch.no_grad()
def _pseudo_labels(reforging: Reforging, pixels: Tensor, ends: LabelledEnds, size: Sequence[int]) -> Tensor:
    """All frames' masks as targets: the mean of what the two labelled frames make of each, ``(B, T, 1, H, W)``."""
    queries = reforging.queries(ends.of_clip(pixels).flatten(0, 1)).unflatten(0, (-1, 2))
    pseudo = [reforging.masks(queries, frame).float().sigmoid().mean(dim=1) for frame in pixels.unbind(1)]
    return _enlarge_clip(torch.stack(pseudo, dim=1), size)


def _frame(features: _Features, place: int) -> _Features:
    return _Features(features.coarse[:, place], features.fine[:, place], features.foreground[:, place])


def _enlarge_clip(values: Tensor, size: Sequence[int]) -> Tensor:
    return enlarge(values.flatten(0, 1), size).unflatten(0, values.shape[:2])


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    # A stack of layers that starts as the identity is as quick to learn as its first one; and anchors that are pulled
    # out of the features' space would spoil the patches that they draw.
    elif isinstance(module, Attention | FeedForward | FeatureFusion):
        nn.init.zeros_(module.out.weight)
