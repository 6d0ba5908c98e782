"""The image encoder: SAM2's trunk with Global-Local Adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.networks.e3sam2.adapters import BlockAdapter, GlobalLocalAdapter
from echoplan.networks.e3sam2.sam2_parts import WIDTH, Variant, build_neck, build_trunk, run_block, sine_positions

_RGB = 3


@dataclass(frozen=True)
class FrameFeatures:
    """What the mask decoder and the memory see of N frames (or of one, without the first axis).

    Attributes:
        top: ``(N, 256, H/16, W/16)``, before any memory is read.
        middle: ``(N, 64, H/8, W/8)``, projected for the decoder.
        fine: ``(N, 32, H/4, W/4)``, likewise.
    """

    top: Tensor
    middle: Tensor
    fine: Tensor

    def frames(self) -> list[FrameFeatures]:
        """The features of each frame alone."""
        return [
            FrameFeatures(*levels)
            for levels in zip(self.top.unbind(), self.middle.unbind(), self.fine.unbind(), strict=True)
        ]

    @staticmethod
    def stack(frames: Sequence[FrameFeatures]) -> FrameFeatures:
        """The opposite of `frames`."""
        return FrameFeatures(
            torch.stack([each.top for each in frames]),
            torch.stack([each.middle for each in frames]),
            torch.stack([each.fine for each in frames]),
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> FrameFeatures:
        """The same with all three levels changed alike."""
        return FrameFeatures(change(self.top), change(self.middle), change(self.fine))

    def split(self, counts: list[int]) -> list[FrameFeatures]:
        """Lots of so many frames, one after the other."""
        levels = (level.split(counts) for level in (self.top, self.middle, self.fine))
        return [FrameFeatures(*lot) for lot in zip(*levels, strict=True)]


class Colours(nn.Module):
    """Standardises images ``(N, 3, H, W)`` of 0 to 1 by ImageNet's mean and deviation of each colour."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("deviation", (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(values).view(_RGB, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Of the same shape."""
        return (images - self.mean) / self.deviation


class Encoder(nn.Module):
    """Frames to features.

    Grey frames are repeated to three channels: the trunk's first convolution was trained on RGB images standardised by
    ImageNet's mean and deviation. EchoPlan's clips are standardised each by its own, unless `imagenet` says otherwise.

    Args:
        variant: size of the trunk.
        size: side of the frames in pixels.
        windows: "sam2" or "light", see `build_trunk`.
        imagenet: whether frames are 0 to 1 and standardised here, as the trunk's training images were.
        adapters: where the Global-Local Adapters are: "before" the first block of stages 2, 3 and 4, whose input they
            replace (`BlockAdapter`), or "after" each of the four stages (`GlobalLocalAdapter`). None: nowhere.
        adapter_settings: of each, see there.
    """

    positions: Tensor

    def __init__(
        self,
        variant: Variant,
        *,
        size: int,
        windows: str,
        adapters: str | None,
        imagenet: bool = False,
        **adapter_settings: Any,
    ) -> None:
        super().__init__()
        self.colours = Colours() if imagenet else nn.Identity()
        self.trunk = build_trunk(variant, windows, size)
        self.neck = build_neck(self.trunk.channel_list)
        # Of the top features, (1, 256, H/16, W/16).
        self.register_buffer("positions", sine_positions(WIDTH, size // 16), persistent=False)
        self.channels = tuple(self.trunk.channel_list[::-1])  # of the four stages, the finest first
        ends = self.trunk.stage_ends
        self.adapted_blocks = [end + 1 for end in ends[:-1]] if adapters == "before" else []
        self.adapters: nn.ModuleList | None = None
        if adapters == "before":
            self.adapters = nn.ModuleList(BlockAdapter(width, **adapter_settings) for width in self.channels[:-1])
        elif adapters == "after":
            self.adapters = nn.ModuleList(GlobalLocalAdapter(width, **adapter_settings) for width in self.channels)

    def places(self, height: int, width: int) -> Tensor:
        """The position embedding ``(1, h, w, C)`` of the first stage's tokens."""
        embedding: Tensor = self.trunk._get_pos_embed((height, width))
        return embedding

    def stages(
        self, frames: Tensor, *, with_entropies: bool = False, places: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """``(N, C, H, W)`` with C = 1 or 3 -> the features F_S of the four stages, and the adapters' entropies.

        Args:
            frames: what goes in.
            with_entropies: whether entropies are wanted.
            places: the tokens' `places`, where they are known.

        Returns:
            ``(N, C_s, H/s, W/s)`` for s = 4, 8, 16, 32; and `with_entropies` ``(N, h * w)`` of each adapter.
        """
        tokens = self.trunk.patch_embed(self.colours(frames.expand(-1, _RGB, -1, -1)))
        tokens = tokens + (self.places(*tokens.shape[1:3]) if places is None else places)  # (N, h, w, C)
        maps: list[Tensor] = []
        entropies: list[Tensor] | None = [] if with_entropies else None
        for index, block in enumerate(self.trunk.blocks):
            if index in self.adapted_blocks:
                tokens = self._adapted(len(maps) - 1, tokens, entropies)
            tokens = run_block(block, tokens)
            if index not in self.trunk.stage_ends:
                continue
            if self.adapters is not None and not self.adapted_blocks:
                tokens = self._adapted(len(maps), tokens, entropies)
            maps.append(tokens.permute(0, 3, 1, 2))
        return maps, entropies or []

    def _adapted(self, index: int, tokens: Tensor, entropies: list[Tensor] | None) -> Tensor:
        """What an adapter makes of tokens ``(N, h, w, C)``; its entropy is added to the others, where there are any."""
        assert self.adapters is not None
        features, entropy = self.adapters[index](tokens.permute(0, 3, 1, 2), with_entropy=entropies is not None)
        if entropies is not None:
            entropies.append(entropy)
        return features.permute(0, 2, 3, 1)

    def pyramid(self, maps: Sequence[Tensor], middle: nn.Conv2d, fine: nn.Conv2d) -> FrameFeatures:
        """The stages' features, brought to the decoder's widths.

        SAM2 enlarges the coarsest stage onto the next one, and takes the two finest as they are. These go through two
        1 x 1 convolutions in a row, the neck's and the decoder's, which are one matrix; so the 256 channels between
        them are never made.

        Args:
            maps: from `stages`.
            middle: the decoder's projection of the stride-8 features.
            fine: the decoder's projection of the stride-4 features.
        """
        coarsest, coarse, medium, finest = (level.conv for level in self.neck.convs)
        enlarged = F.interpolate(coarsest(maps[3]), scale_factor=2.0, mode="nearest")
        return FrameFeatures(
            top=coarse(maps[2]) + enlarged,
            middle=_both_projections(maps[1], medium, middle),
            fine=_both_projections(maps[0], finest, fine),
        )


def _both_projections(features: Tensor, first: nn.Conv2d, second: nn.Conv2d) -> Tensor:
    """second(first(features)) for two 1 x 1 convolutions."""
    weight = second.weight.flatten(1) @ first.weight.flatten(1)
    assert first.bias is not None and second.bias is not None
    bias = second.weight.flatten(1) @ first.bias + second.bias
    return F.conv2d(features, weight[..., None, None], bias)
