"""Backbone and light feature pyramid: frames -> features X for anchors and attention, and finer ones for the masks."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.networks.echoforge.settings import EchoForgeSettings
from echoplan.networks.resnet import ResNetBackbone

_GROUPS = 8  # of GroupNorm: frames are normalised one by one, so that none depends on its batch mates


class Pyramid(nn.Module):
    """A ResNet whose maps at strides 8, 16 and 32 meet top-down: L3 + up(L4 + up(L5)), then 3 x 3 and a norm.

    Args:
        settings: see `EchoForgeSettings`.
        pretrained: see `ResNetBackbone`.
    """

    def __init__(self, settings: EchoForgeSettings, *, pretrained: bool | str | Path) -> None:
        super().__init__()
        channels = settings.channels
        self.backbone = ResNetBackbone(
            settings.backbone,
            pretrained=pretrained,
            input_range=settings.input_range,
        )
        self.laterals = nn.ModuleList(conv_norm(width, channels, kernel=1) for width in self.backbone.channels)
        self.smooth = conv_norm(channels, channels, kernel=3)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames ``(N, C, H, W)`` -> X ``(N, d, H / 8, W / 8)`` and the fine features ``(N, d, H / 4, W / 4)``."""
        fine, *coarse = (
            lateral(features) for lateral, features in zip(self.laterals, self.backbone(frames), strict=True)
        )
        top = coarse.pop()
        while coarse:
            lateral = coarse.pop()
            top = lateral + enlarge(top, lateral.shape[-2:])
        return self.smooth(top), fine


class PixelDecoder(nn.Module):
    """Features at stride 8 brought to stride 4: 3 x 3 over up(F) + fine."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.merge = conv_norm(channels, channels, kernel=3)

    def forward(self, features: Tensor, fine: Tensor) -> Tensor:
        """``(N, d, h, w)`` and ``(N, d, 2 h, 2 w)`` -> pixel features ``(N, d, 2 h, 2 w)``."""
        return self.merge(enlarge(features, fine.shape[-2:]) + fine)


def conv_norm(in_channels: int, channels: int, *, kernel: int) -> nn.Sequential:
    """A convolution that keeps the grid, and GroupNorm."""
    convolution = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(_GROUPS, channels))


def enlarge(features: Tensor, size: tuple[int, int]) -> Tensor:
    """``(N, C, h, w)`` on a finer grid, bilinearly."""
    return F.interpolate(features, size=tuple(size), mode="bilinear")
