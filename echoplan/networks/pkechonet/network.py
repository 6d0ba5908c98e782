"""PKEcho-Net put together."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.errors import EchoPlanError
from echoplan.networks.output import ClipOutput
from echoplan.networks.pkechonet.kernels import KernelSegmentation
from echoplan.networks.pkechonet.region_proxy import AffinityEstimator, upsample_by_affinity
from echoplan.networks.resnet import ResNetBackbone

_STRIDE = 32
_FACTORS = (4, 2, 2, 2)  # from each layer's grid to the next finer one; the first layer's is a quarter of the image's


class PKEchoNet(nn.Module):
    """`pkechonet`: a ResNet, affinities in place of a decoder, and kernels refined over the clip.

    Where it parts from the paper: the grouped features are a mean instead of a sum, the temporal position embedding is
    interpolated over the relative phase so that any number of frames will do, and attention across the videos of a
    batch is off unless asked for.

    Args:
        size: the frames' height and width, multiples of 32.
        classes: output channels K (the paper's c).
        pretrained: ImageNet weights for the backbone: True finds them, a path names their file.
        backbone: "resnet18", "resnet34" or "resnet50".
        in_channels: input channels C.
        stages: kernel refinements S; 3 is the paper's best (table 5).
        channels: channels d of the reduced features and of the kernels.
        head_channels: channels of an attention head; it divides `channels`.
        ffn_ratio: inner width of the feed-forward network over its outer width.
        dropout: after each attention and in the feed-forward network.
        cross_video: "off", or "train": kernels attend across the batch's videos in training (the paper's) and to
            their own video alone at inference.
        kernel_update: "hybrid" (equation 2), or "gating" as in the paper's ablation (table 4).
        temporal_attention: whether kernels attend over time (table 4).
        region_proxy: whether affinities upsample the masks (table 3); otherwise bilinear interpolation does.
        input_range, bottleneck_stride: see `ResNetBackbone`.

    Raises:
        EchoPlanError: a setting or size it cannot take, or weights that cannot be had.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int],
        classes: int = 1,
        pretrained: bool | str | Path = False,
        backbone: str = "resnet18",
        in_channels: int = 1,
        stages: int = 3,
        channels: int = 32,
        head_channels: int = 32,
        ffn_ratio: int = 4,
        dropout: float = 0.1,
        cross_video: str = "off",
        kernel_update: str = "hybrid",
        temporal_attention: bool = True,
        region_proxy: bool = True,
        input_range: str = "standardised",
        bottleneck_stride: str = "3x3",
    ) -> None:
        super().__init__()
        _check_multiple(size)
        for setting, value, choices in (
            ("cross_video", cross_video, ("off", "train")),
            ("kernel_update", kernel_update, ("hybrid", "gating")),
        ):
            if value not in choices:
                raise EchoPlanError(f"{setting} cannot be {value!r}", remedy=f"choose one of {', '.join(choices)}")
        if channels % head_channels:
            raise EchoPlanError(f"head_channels ({head_channels}) must divide channels ({channels})")
        self.backbone = ResNetBackbone(
            backbone,
            in_channels=in_channels,
            pretrained=pretrained,
            input_range=input_range,
            bottleneck_stride=bottleneck_stride,
        )
        self.affinities = (
            nn.ModuleList(
                AffinityEstimator(width, factor=factor)
                for width, factor in zip(self.backbone.channels, _FACTORS, strict=True)
            )
            if region_proxy
            else None
        )
        self.segmentation = KernelSegmentation(
            self.backbone.channels[-1],
            classes=classes,
            channels=channels,
            stages=stages,
            head_channels=head_channels,
            ffn_ratio=ffn_ratio,
            dropout=dropout,
            kernel_update=kernel_update,
            temporal_attention=temporal_attention,
            cross_video=cross_video,
        )
        for part in (self.affinities, self.segmentation):
            if part is not None:
                part.apply(_initialise)

    def forward(self, clip: Tensor) -> Tensor | ClipOutput:
        """``(B, T, C, H, W)`` -> logits ``(B, T, K, H, W)``; in training mode a `ClipOutput` with "stages"."""
        _check_multiple(clip.shape[-2:])
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


def _check_multiple(size: tuple[int, int]) -> None:
    if size[0] % _STRIDE or size[1] % _STRIDE:
        raise EchoPlanError(
            f"PKEcho-Net takes frames whose edges are multiples of {_STRIDE} pixels, not {size[0]} x {size[1]}",
            remedy="resize or pad the frames",
        )


def _initialise(module: nn.Module) -> None:
    """The paper's "Kaiming" strategy."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
