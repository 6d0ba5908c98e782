"""The settings of EchoForge."""

from __future__ import annotations

from dataclasses import dataclass, field

from echoplan.errors import EchoPlanError
from echoplan.networks.settings import NetworkSettings, check_choice, check_range


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
        recalibration_weight: how far ARC moves a patch, where the paper says "dynamically determined": "continuous" (0
            for a patch that is undecided and at the interval's ends), or "falling" (the whole way for one that is
            undecided, so that it jumps from one anchor to the other there).
        channels: d, a multiple of 8.
        fusion_layers: Transformer blocks of the in-context fusion; the paper has one.
        queries: learned queries of each of the two roles, structure and background.
        query_layers: layers of the learned queries; the mask of each is supervised.
        shared_self_attention: whether queries and prototypes have one self-attention in each layer, as in the paper's
            figure.
        mask_head: what the kernels are made of: "sum" (query + prototype), or "product" (softmax of the query over its
            channels times sigmoid of the prototype, as in the paper's figure).
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
    recalibration_weight: str = field(default="continuous", metadata={"before": "falling"})
    channels: int = 256
    fusion_layers: int = 2
    queries: int = 1
    query_layers: int = 9
    shared_self_attention: bool = False
    mask_head: str = "sum"
    heads: int = 8
    feed_forward: int = 2048
    memory: int = 3
    label_reference: float = 0.5

    def __post_init__(self) -> None:
        check_choice("recalibration_weight", self.recalibration_weight, ("continuous", "falling"))
        check_choice("mask_head", self.mask_head, ("sum", "product"))
        for name, least, most in (
            ("anchors", 1, 4),
            ("neighbours", 1, 4096),
            ("channels", 8, 4096),
            ("fusion_layers", 0, 64),
            ("queries", 1, 1024),
            ("query_layers", 0, 64),
            ("heads", 1, 512),
            ("feed_forward", 1, 65536),
            ("memory", 1, 1024),
            ("label_reference", 0, 1),
        ):
            check_range(name, getattr(self, name), least, most)
        if self.channels % 8 or self.channels % self.heads:
            raise EchoPlanError(f"channels must be a multiple of 8 and of heads ({self.heads}), not {self.channels}")
