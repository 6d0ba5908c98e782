"""The settings of EchoForge."""

from __future__ import annotations

from dataclasses import dataclass

from echoplan.errors import EchoPlanError
from echoplan.networks.settings import NetworkSettings, check_range


@dataclass(frozen=True)
class EchoForgeSettings(NetworkSettings):
    """Of `EchoForge`.

    Attributes:
        backbone: "resnet50", or "resnet34" or "resnet18" for small machines.
        input_range: "standardised" or "unit", see `grey_first_convolution`.
        temporal_fusion: TSF; without it each frame is decoded alone by a 1 x 1 convolution (the paper's table 3).
        anchor_recalibration: ARC; without it features stay as they are (table 3).
        reforging: CPR, which only works in training (table 3).
        anchors: 1 to 4, the foreground's first (see `AnchorMaps`; table 4, figure 7).
        neighbours: K, pixel features that each anchor looks at (table 4, figure 7).
        channels: d, a multiple of 8.
        fusion_layers: Transformer blocks of the in-context fusion.
        query_layers: layers of the learned queries; the mask of each is supervised.
        heads, feed_forward: of attention and FFN.
        memory: frames whose tokens are kept: the first one and the latest ones.
        label_reference: share of the training frames whose reference is a labelled frame.
    """

    backbone: str = "resnet50"
    input_range: str = "standardised"
    temporal_fusion: bool = True
    anchor_recalibration: bool = True
    reforging: bool = True
    anchors: int = 2
    neighbours: int = 16
    channels: int = 256
    fusion_layers: int = 2
    query_layers: int = 9
    heads: int = 8
    feed_forward: int = 2048
    memory: int = 3
    label_reference: float = 0.5

    def __post_init__(self) -> None:
        for name, least, most in (("anchors", 1, 4), ("neighbours", 1, None), ("memory", 1, None)):
            check_range(name, getattr(self, name), least, most)
        if self.channels % 8 or self.channels % self.heads:
            raise EchoPlanError(f"channels must be a multiple of 8 and of heads ({self.heads}), not {self.channels}")
