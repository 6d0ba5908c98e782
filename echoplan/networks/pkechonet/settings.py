"""The settings of PKEcho-Net."""

from __future__ import annotations

from dataclasses import dataclass

from echoplan.errors import EchoPlanError
from echoplan.networks.settings import NetworkSettings, check_choice


@dataclass(frozen=True)
class PKEchoNetSettings(NetworkSettings):
    """Of `PKEchoNet`.

    Attributes:
        backbone: "resnet18", "resnet34" or "resnet50".
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
        input_range: "standardised" or "unit", see `grey_first_convolution`.
        bottleneck_stride: "3x3" for torchvision's ImageNet weights, "1x1" for weights of the original ResNet.
    """

    backbone: str = "resnet18"
    stages: int = 3
    channels: int = 32
    head_channels: int = 32
    ffn_ratio: int = 4
    dropout: float = 0.1
    cross_video: str = "off"
    kernel_update: str = "hybrid"
    temporal_attention: bool = True
    region_proxy: bool = True
    input_range: str = "standardised"
    bottleneck_stride: str = "3x3"

    def __post_init__(self) -> None:
        check_choice("cross_video", self.cross_video, ("off", "train"))
        check_choice("kernel_update", self.kernel_update, ("hybrid", "gating"))
        if self.channels % self.head_channels:
            raise EchoPlanError(f"head_channels ({self.head_channels}) must divide channels ({self.channels})")
