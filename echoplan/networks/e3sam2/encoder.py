"""The image encoder, SAM2's trunk with an adapter after each stage; and the edge supervision of its features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.networks.e3sam2.attention import GlobalLocalAdapter
from echoplan.networks.e3sam2.sam2_parts import Variant, build_neck, build_trunk

_RGB = 3
_GROUPS = 8


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


class Encoder(nn.Module):
    """Frames to features.

    Grey frames are repeated to three channels: the trunk's first convolution was trained on RGB images standardised by
    ImageNet's mean and deviation, and EchoPlan's clips are standardised too.

    Args:
        variant: size of the trunk.
        windows: "sam2" or "light", see `build_trunk`.
        attention: of the Global-Local Adapters; None leaves these out.
    """

    def __init__(self, variant: Variant, *, windows: str, attention: str | None) -> None:
        super().__init__()
        self.trunk = build_trunk(variant, windows)
        self.neck = build_neck(self.trunk.channel_list)
        self.channels = tuple(self.trunk.channel_list[::-1])  # of the four stages, the finest first
        self.adapters = (
            None
            if attention is None
            else nn.ModuleList(GlobalLocalAdapter(width, attention=attention) for width in self.channels)
        )

    def stages(self, frames: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """``(N, C, H, W)`` with C = 1 or 3 -> the features F_S of the four stages, and the adapters' entropies.

        Returns:
            ``(N, C_s, H/s, W/s)`` for s = 4, 8, 16, 32; and ``(N, H/s * W/s)`` for each, or nothing without adapters.
        """
        tokens = self.trunk.patch_embed(frames.expand(-1, _RGB, -1, -1))
        tokens = tokens + self.trunk._get_pos_embed(tokens.shape[1:3])  # (N, h, w, C)
        maps: list[Tensor] = []
        entropies: list[Tensor] = []
        for index, block in enumerate(self.trunk.blocks):
            tokens = block(tokens)
            if index not in self.trunk.stage_ends:
                continue
            features = tokens.permute(0, 3, 1, 2)
            if self.adapters is not None:
                features, entropy = self.adapters[len(maps)](features)
                entropies.append(entropy)
                tokens = features.permute(0, 2, 3, 1)
            maps.append(features)
        return maps, entropies

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

    def positions(self, grid: int, device: torch.device) -> Tensor:
        """The sine position encoding ``(1, 256, grid, grid)`` of the top features."""
        return self.neck.position_encoding(torch.empty(1, 1, grid, grid, device=device))


def _both_projections(features: Tensor, first: nn.Conv2d, second: nn.Conv2d) -> Tensor:
    """second(first(features)) for two 1 x 1 convolutions."""
    weight = second.weight.flatten(1) @ first.weight.flatten(1)
    assert first.bias is not None and second.bias is not None
    bias = second.weight.flatten(1) @ first.bias + second.bias
    return F.conv2d(features, weight[..., None, None], bias)


def sobel(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Equations 6 and 7: every channel's gradient along x (to the right) and along y (downwards), a pixel.

    The rim is repeated outwards, so that the image's own border is no edge.

    Args:
        maps: ``(B, C, H, W)``.

    Returns:
        Two tensors of that shape. A ramp that rises by one a pixel has the gradient one.
    """
    padded = F.pad(maps, (1, 1, 1, 1), mode="replicate") / 8
    across = padded[..., 2:] - padded[..., :-2]
    down = padded[..., 2:, :] - padded[..., :-2, :]
    along_x = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    along_y = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    return along_x, along_y


class SobelProjection(nn.Module):
    """A feature map's Sobel gradients, concatenated and projected: F_e of one scale.

    Args:
        channels: C of the feature map.
        width: channels after the projection; a multiple of 8.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Conv2d(2 * channels, width, 1), nn.GroupNorm(_GROUPS, width), nn.GELU())

    def forward(self, features: Tensor) -> Tensor:
        """``(B, C, h, w)`` -> ``(B, width, h, w)``."""
        return self.project(torch.cat(sobel(features), dim=1))


class EdgeHead(nn.Module):
    """The Edge-Aware Supervision module (EAS). Only its loss needs it: prediction does without.

    Args:
        channels: of F_S^1 (stride 4) and F_S^3 (stride 16).
        width: common width of the two projections; a multiple of 8. 64 gives 0.14 M parameters for SAM2's tiny
            and small encoders.
    """

    def __init__(self, channels: tuple[int, int] = (96, 384), *, width: int = 64) -> None:
        super().__init__()
        self.fine, self.coarse = (SobelProjection(each, width) for each in channels)
        self.refine = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.GroupNorm(_GROUPS, width),
            nn.GELU(),
            nn.Conv2d(width, 1, 3, padding=1),
        )

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Edge logits ``(B, 1, H/4, W/4)``.

        Args:
            fine: F_S^1, ``(B, C1, H/4, W/4)``.
            coarse: F_S^3, ``(B, C3, H/16, W/16)``.
        """
        enlarged = F.interpolate(self.coarse(coarse), size=fine.shape[-2:], mode="bilinear")
        return self.refine(torch.cat([self.fine(fine), enlarged], dim=1))
