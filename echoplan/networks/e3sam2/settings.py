"""The settings of SAM2 and E3SAM2."""

from __future__ import annotations

from dataclasses import dataclass

from echoplan.networks.e3sam2.attention import ATTENTIONS
from echoplan.networks.e3sam2.prompts import AUTOMATIC
from echoplan.networks.e3sam2.sam2_parts import VARIANTS, WINDOWS
from echoplan.networks.settings import NetworkSettings, check_choice

LEARNING_PARTS = ("adapters", "decoder", "memory", "all_but_trunk", "last_stage", "all")  # each with those before it


@dataclass(frozen=True)
class SAM2Settings(NetworkSettings):
    """Of SAM2 as it is, and of what E3SAM2 has in common with it.

    Attributes:
        variant: size of the trunk: "tiny", "small" (the paper's), "base_plus" or "large".
        prompt: how a clip begins when nobody prompts: "auto" (a point and a box of the coarse head), "point", "box",
            "mask" (the coarse head's mask) or "none".
        trainable: what learns: "adapters" (adapters, edges and coarse head), "decoder" (and the mask decoder), "memory"
            (and memory attention and encoder), "all_but_trunk", "last_stage" (and the attention of the trunk's last
            stage) or "all"; "auto" is everything but the trunk (and everything in a training from random weights).
        windows: of the trunk's attention: "sam2", or "light", which pads less at 256 x 256 and so saves a quarter of
            the encoder's work; both take the same weights.
        multimask: "always" takes the best of three masks in every frame; "sam2" has the single mask that SAM2 makes for
            a prompt that leaves no doubt, a box: what weights that were never fine-tuned expect.
    """

    variant: str = "tiny"
    prompt: str = "auto"
    trainable: str = "auto"
    windows: str = "sam2"
    multimask: str = "always"

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, VARIANTS)
        check_choice("prompt", self.prompt, AUTOMATIC)
        check_choice("trainable", self.trainable, (*LEARNING_PARTS, "auto"))
        check_choice("windows", self.windows, WINDOWS)
        check_choice("multimask", self.multimask, ("always", "sam2"))

    @property
    def learning_part(self) -> str:
        """`trainable` with "auto" resolved."""
        return "all_but_trunk" if self.trainable == "auto" else self.trainable


@dataclass(frozen=True)
class E3SAM2Settings(SAM2Settings):
    """Of E3SAM2, beside SAM2's.

    Attributes:
        adapters: whether there are Global-Local Adapters.
        attention: of the adapters' global branch: "ega" (equation 3, certainty of the key), "ega_query", "ega_column"
            (its other readings), "self", "topk", "mask" (table 4); see `EntropyGuidedAttention`.
        edge_supervision: whether edges are predicted and learned in training (table 3).
        memory: "confidence" (kept frames are sure and differ, see `ConfidentFrames`) or "fifo" (SAM2's: the latest
            six).
    """

    adapters: bool = True
    attention: str = "ega"
    edge_supervision: bool = True
    memory: str = "confidence"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("attention", self.attention, ATTENTIONS)
        check_choice("memory", self.memory, ("confidence", "fifo"))
