"""PKEcho-Net put together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.networks.interface import ClipOutput, check_multiple
from echoplan.networks.pkechonet.parts import AffinityEstimator, KernelSegmentation, upsample_by_affinity
from echoplan.networks.pkechonet.settings import PKEchoNetSettings
from echoplan.networks.resnet import ResNetBackbone

_STRIDE = 32
_STRIDES = (4, 8, 16, 32)  # of the four layers' grids


class PKEchoNet(nn.Module):
    """`pkechonet`: a ResNet, affinities in place of a decoder, and kernels refined over the clip.

    Where it parts from the paper unless asked to follow it: the grouped features are a mean instead of a sum, and
    attention across the videos of a batch is off. The temporal position embedding, of which the paper says nothing, is
    interpolated over the relative phase so that any number of frames will do.

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
        # The layers, from the first on, that have an estimator, and the strides of the grids that these lead to.
        self.proxies = range(3, -1, -settings.proxy_interval)[::-1] if settings.region_proxy else range(0)
        goals = (_STRIDES[0] if len(self.proxies) == 1 else 1, *(_STRIDES[layer] for layer in self.proxies))
        self.affinities = nn.ModuleList(
            AffinityEstimator(self.backbone.channels[layer], factor=_STRIDES[layer] // goal)
            for layer, goal in zip(self.proxies, goals, strict=False)
        )
        self.segmentation = KernelSegmentation(settings, self.backbone.channels[-1], classes=classes)
        for part in (self.affinities, self.segmentation):
            part.apply(_initialise)

    def forward(self, clip: Tensor) -> Tensor | ClipOutput:
        """``(B, T, C, H, W)`` -> logits ``(B, T, K, H, W)``; in training mode a `ClipOutput` with "stages"."""
        features = self.encode_frames(clip)
        if not self.training:
            return self.decode_window(features)
        reduced, *affinities = features
        # All stages share the affinities, so they are enlarged together as channels.
        masks = torch.cat(self.segmentation(reduced), dim=2)
        *earlier, logits = _enlarge(masks, affinities).chunk(len(self.segmentation.refinements) + 1, dim=2)
        return ClipOutput(logits, {"stages": earlier})

    def encode_frames(self, clip: Tensor) -> tuple[Tensor, ...]:
        """See `FrameEncodingNetwork`: the reduced features of the last layer, and the affinities, coarsest first."""
        check_multiple("PKEcho-Net", clip.shape[-2:], _STRIDE)
        maps = self.backbone(clip.flatten(0, 1))
        estimators = zip(reversed(self.affinities), reversed(self.proxies), strict=True)
        features = (self.segmentation.reduce(maps[-1]), *(estimator(maps[layer]) for estimator, layer in estimators))
        # Not `unflatten`, of whose result ONNX's exporter takes the shape for fixed.
        return tuple(values.reshape(*clip.shape[:2], *values.shape[1:]) for values in features)

    def decode_window(self, features: Sequence[Tensor]) -> Tensor:
        """See `FrameEncodingNetwork`: kernels refined over the window, and their last masks enlarged."""
        reduced, *affinities = features
        return _enlarge(self.segmentation(reduced)[-1], affinities)


def _enlarge(coarse: Tensor, affinities: Sequence[Tensor]) -> Tensor:
    """Masks ``(B, T, K, h, w)`` of the last layer's grid on the image's, by affinities ``(B, T, 9, r * r, ...)``."""
    whole = [_STRIDE * side for side in coarse.shape[-2:]]
    fine = coarse.flatten(0, 1)
    for affinity in affinities:
        fine = upsample_by_affinity(fine, affinity.flatten(0, 1))
    if list(fine.shape[-2:]) != whole:
        fine = F.interpolate(fine, size=whole, mode="bilinear")
    return fine.unflatten(0, coarse.shape[:2])


def _initialise(module: nn.Module) -> None:
    """The paper's "Kaiming" strategy."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
