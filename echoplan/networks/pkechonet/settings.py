"""The settings of PKEcho-Net."""

from __future__ import annotations

from dataclasses import dataclass

from echoplan.errors import EchoPlanError
from echoplan.networks.settings import NetworkSettings, check_choice, check_range


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
        proxy_interval: layers from one affinity estimator to the next (table 3): 1 after each of the four, 2 after the
            fourth and the second, 3 after the fourth and the first; 4 after the fourth alone, up to a quarter of the
            image's grid and from there bilinearly, as in the single region proxy of Zhang, Pang and Lu (2022).
        grouping: "mean" under the mask, or "sum" (equation 1), whose scale changes with the resolution.
        position: where each frame's phase comes in: "attention" adds it to queries and keys of every temporal
            attention; "kernels" adds it once, in the first refinement, to the kernels themselves, and starts it as
            N(0, 1), as the authors' code does.
        kernel_bias: whether the kernels of each stage have a bias, as in the authors' code.
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
    proxy_interval: int = 1
    grouping: str = "mean"
    position: str = "attention"
    kernel_bias: bool = False
    input_range: str = "standardised"
    bottleneck_stride: str = "3x3"

    def __post_init__(self) -> None:
        check_choice("cross_video", self.cross_video, ("off", "train"))
        check_choice("kernel_update", self.kernel_update, ("hybrid", "gating"))
        check_choice("grouping", self.grouping, ("mean", "sum"))
        check_choice("position", self.position, ("attention", "kernels"))
        for name, least, most in (
            ("stages", 0, 32),
            ("channels", 1, 4096),
            ("head_channels", 1, 4096),
            ("ffn_ratio", 1, 64),
            ("dropout", 0, 1),
            ("proxy_interval", 1, 4),
        ):
            check_range(name, getattr(self, name), least, most)
        if self.channels % self.head_channels:
            raise EchoPlanError(f"head_channels ({self.head_channels}) must divide channels ({self.channels})")
