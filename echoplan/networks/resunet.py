"""A U-Net whose encoder is a ResNet: the U-Net of Chao et al. (npj Digital Medicine 2025), who give no more of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.networks.settings import NetworkSettings

_STEM = 64  # channels at stride 2
_DECODER = (256, 128, 64, 32, 16)


@dataclass(frozen=True)
class ResUNetSettings(NetworkSettings):
    """Of `ResUNet`.

    Attributes:
        backbone: "resnet18" (the paper's), "resnet34" or "resnet50".
    """

    backbone: str = "resnet18"


class ResUNet(nn.Module):
    """`resunet`: every frame by itself.

    The encoder's maps at strides 2 to 32; up from the coarsest, each step enlarges to the next finer map's size
    (nearest neighbour), joins it, and convolves twice with batch normalisation; the last step is the frame's size.

    Args:
        settings: see `ResUNetSettings`.
        size: the frames' height and width; any.
        classes: output channels K.
        pretrained: ImageNet weights for the backbone: True finds them, a path names their file.

    Raises:
        EchoPlanError: an unknown backbone, or weights that cannot be had.
    """

    def __init__(
        self,
        settings: ResUNetSettings,
        *,
        size: tuple[int, int],
        classes: int = 1,
        pretrained: bool | str | Path = False,
    ) -> None:
        super().__init__()
        from echoplan.networks.resnet import ResNetBackbone  # who trains another method need not wait for torchvision

        self.backbone = ResNetBackbone(settings.backbone, pretrained=pretrained)
        *skips, channels = (_STEM, *self.backbone.channels)
        self.decoder = nn.ModuleList()
        for width, joined in zip(_DECODER, (*reversed(skips), 0), strict=True):
            self.decoder.append(nn.Sequential(*_convolution(channels + joined, width), *_convolution(width, width)))
            channels = width
        self.head = nn.Conv2d(channels, classes, 3, padding=1)

    def forward(self, clip: Tensor) -> Tensor:
        """Standardised frames ``(B, T, 1, H, W)`` -> logits ``(B, T, K, H, W)``."""
        frames = clip.flatten(0, 1)
        stem = self.backbone.stem(frames)
        *skips, features = stem, *self.backbone.maps(stem)
        for convolve, finer in zip(self.decoder, (*reversed(skips), None), strict=True):
            size = frames.shape[-2:] if finer is None else finer.shape[-2:]
            features = F.interpolate(features, size, mode="nearest")
            features = convolve(features if finer is None else torch.cat([features, finer], dim=1))
        return self.head(features).unflatten(0, clip.shape[:2])


def _convolution(inward: int, outward: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inward, outward, 3, padding=1, bias=False), nn.BatchNorm2d(outward), nn.ReLU(inplace=True)
