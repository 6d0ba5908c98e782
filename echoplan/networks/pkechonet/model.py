"""PKEcho-Net put together."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.networks.interface import ClipOutput, check_multiple
from echoplan.networks.pkechonet.parts import AffinityEstimator, KernelSegmentation, upsample_by_affinity
from echoplan.networks.pkechonet.settings import PKEchoNetSettings
from echoplan.networks.resnet import ResNetBackbone

_STRIDE = 32
_FACTORS = (4, 2, 2, 2)  # from each layer's grid to the next finer one; the first layer's is a quarter of the image's


class PKEchoNet(nn.Module):
    """`pkechonet`: a ResNet, affinities in place of a decoder, and kernels refined over the clip.

    Where it parts from the paper: the grouped features are a mean instead of a sum, the temporal position embedding is
    interpolated over the relative phase so that any number of frames will do, and attention across the videos of a
    batch is off unless asked for.

    Args:
        settings: see `PKEchoNetSettings`.
        size: the frames' height and width, multiples of 32.
        classes: output channels K (the paper's c).
        pretrained: ImageNet weights for the backbone: True finds them, a path names their file.

    Raises:
        EchoPlanError: a size it cannot take, or weights that cannot be had.
    """

    def __init__(
        self,
        settings: PKEchoNetSettings,
        *,
        size: tuple[int, int],
        classes: int = 1,
        pretrained: bool | str | Path = False,
    ) -> None:
        super().__init__()
        check_multiple("PKEcho-Net", size, _STRIDE)
        self.backbone = ResNetBackbone(
            settings.backbone,
            pretrained=pretrained,
            input_range=settings.input_range,
            bottleneck_stride=settings.bottleneck_stride,
        )
        self.affinities = (
            nn.ModuleList(
                AffinityEstimator(width, factor=factor)
                for width, factor in zip(self.backbone.channels, _FACTORS, strict=True)
            )
            if settings.region_proxy
            else None
        )
        self.segmentation = KernelSegmentation(settings, self.backbone.channels[-1], classes=classes)
        for part in (self.affinities, self.segmentation):
            if part is not None:
                part.apply(_initialise)

    def forward(self, clip: Tensor) -> Tensor | ClipOutput:
        """``(B, T, C, H, W)`` -> logits ``(B, T, K, H, W)``; in training mode a `ClipOutput` with "stages"."""
        check_multiple("PKEcho-Net", clip.shape[-2:], _STRIDE)
        maps = self.backbone(clip.flatten(0, 1))
        masks = self.segmentation(maps[-1].unflatten(0, clip.shape[:2]))
        if not self.training:
            masks = masks[-1:]
        # All stages share the affinities, so they are enlarged together as channels.
        fine = self._enlarge(torch.cat(masks, dim=2).flatten(0, 1), maps).unflatten(0, clip.shape[:2])
        *earlier, logits = fine.chunk(len(masks), dim=2)
        return ClipOutput(logits, {"stages": earlier}) if self.training else logits

    def _enlarge(self, coarse: Tensor, maps: list[Tensor]) -> Tensor:
        if self.affinities is None:
            return F.interpolate(coarse, scale_factor=_STRIDE, mode="bilinear")
        for estimator, features in zip(reversed(self.affinities), reversed(maps), strict=True):
            coarse = upsample_by_affinity(coarse, estimator(features))
        return coarse


def _initialise(module: nn.Module) -> None:
    """The paper's "Kaiming" strategy."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
