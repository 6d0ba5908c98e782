"""EchoForge in two graphs: what is known of frames by themselves, and a frame with the memory of those before it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from echoplan.networks.echoforge.anchors import AnchorMaps, Recalibration
from echoplan.networks.echoforge.fusion import Memory, TemporalFusion, semantic_tokens
from echoplan.networks.echoforge.parts import Pyramid, enlarge
from echoplan.networks.interface import StreamedFrames
from echoplan.networks.steps import Graph, Run


class EncoderStep(nn.Module):
    """A frame ``(1, 1, H, W)`` -> F, the fine features, and the tokens that serve a first frame as its memory.

    The shapes are ``(1, C, H / 8, W / 8)``, ``(1, C, H / 4, W / 4)`` and ``(1, 2, C)``.
    """

    def __init__(self, pyramid: Pyramid, anchor_maps: AnchorMaps, recalibration: Recalibration | None) -> None:
        super().__init__()
        self.pyramid, self.anchor_maps, self.recalibration = pyramid, anchor_maps, recalibration

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        coarse, fine = self.pyramid(frames)
        maps, foreground = self.anchor_maps(coarse)
        if self.recalibration is not None:
            coarse = self.recalibration(coarse, maps, foreground=self.anchor_maps.foreground)
        return coarse, fine, semantic_tokens(coarse, foreground.sigmoid())


class FrameStep(nn.Module):
    """A frame's features and the memory's tokens ``(M, 2, C)`` -> its logits ``(1, 1, H, W)`` and its own tokens."""

    def __init__(self, fusion: TemporalFusion, size: tuple[int, int]) -> None:
        super().__init__()
        self.fusion, self.size = fusion, size

    def forward(self, coarse: Tensor, fine: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See the class; the tokens are ``(1, 2, C)``."""
        masks, _ = self.fusion(memory[None], coarse, fine)
        return enlarge(masks[-1], self.size), semantic_tokens(coarse, masks[-1].sigmoid())


@torch.no_grad()
def graphs_of(encoder: EncoderStep, frame: FrameStep) -> dict[str, Graph]:
    """The two graphs, "encoder" and "frame"."""
    frames = torch.zeros(1, 1, *frame.size)
    coarse, fine, tokens = encoder(frames)
    told = {"coarse": coarse, "fine": fine, "memory": torch.cat([tokens, tokens])}
    return {
        "encoder": Graph(encoder, {"frames": frames}, ["coarse", "fine", "tokens"], {}),
        "frame": Graph(frame, told, ["logits", "tokens"], {"memory": {0: "remembered"}}),
    }


def walk(frames: StreamedFrames, run: Run, *, remembered: int) -> Iterator[tuple[int, Tensor]]:
    """Frame after frame from the first one; `remembered` is how many have their tokens in memory."""
    memory = Memory(remembered)
    for index in range(len(frames)):
        coarse, fine, tokens = run("encoder", {"frames": frames[index : index + 1]})
        known = torch.cat(memory.frames or [tokens])
        logits, new = run("frame", {"coarse": coarse, "fine": fine, "memory": known})
        memory.add(new)
        yield index, logits[0]


def program(remembered: int) -> list[str]:
    """`walk` in NumPy, see `SteppingNetwork`."""
    return [
        "memory, masks = [], []",
        "for frame in frames:",
        '    coarse, fine, tokens = run("encoder", frames=frame[None])',
        "    known = np.concatenate(memory or [tokens])  # a first frame's memory are its own tokens",
        '    mask, probability, new = run("frame", coarse=coarse, fine=fine, memory=known)',
        f"    if len(memory) == {remembered}:",
        f"        memory.pop({min(1, remembered - 1)})  # the first frame stays, then the oldest goes",
        "    memory.append(new)",
        "    masks.append(mask[0])",
        "masks = np.stack(masks)",
    ]
