"""The settings of SAM2 and E3SAM2."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from echoplan.errors import EchoPlanError
from echoplan.networks.e3sam2.attention import ATTENTIONS
from echoplan.networks.e3sam2.banks import BANKS
from echoplan.networks.e3sam2.prompts import AUTOMATIC
from echoplan.networks.e3sam2.sam2_parts import MEMORIES, VARIANTS, VERSIONS, WINDOWS
from echoplan.networks.settings import NetworkSettings, check_choice

LEARNING_PARTS = ("adapters", "decoder", "memory", "all_but_trunk", "last_stage", "all")  # each with those before it


def _new(value: Any, *, before: Any) -> Any:
    """A setting that earlier checkpoints do not name, and what it was for them."""
    return field(default=value, metadata={"before": before})


@dataclass(frozen=True)
class SAM2Settings(NetworkSettings):
    """Of SAM2 as it is, and of what E3SAM2 has in common with it.

    Attributes:
        variant: size of the trunk: "tiny", "small", "base_plus" or "large".
        sam2_version: of the published weights to start from: "2.0" or "2.1".
        standardise: "imagenet": frames are 0 to 1, which the network standardises by the mean and deviation of
            ImageNet's three colours, as SAM2 was trained; "clip": they are standardised when they come, or as they are.
        prompt: how a clip begins when nobody prompts: "auto" (a point and a box of the coarse head), "point", "box",
            "mask" (the coarse head's mask), "centre" (a point in the middle of the picture) or "none".
        start_frame: where it then begins: "surest" (the frame that the coarse head is surest of) or "first".
        trainable: what learns: "adapters" (adapters, edges, prompts of later frames and coarse head), "decoder" (and
            the mask decoder), "memory" (and memory attention and encoder), "all_but_trunk", "last_stage" (and the
            attention of the trunk's last stage) or "all"; or "adapted": all but the mask decoder, the prompt encoder
            and those blocks of the trunk that no adapter feeds, which is what E3SAM2's authors train. "auto" is all but
            the trunk (E3SAM2: "adapted"), and everything in a training from random weights.
        windows: of the trunk's attention: "sam2", or "light", which divide the grids of 256 x 256 without a rest; both
            take the same weights, and as long, since padding is not computed.
        multimask: "always" takes the best of three masks in every frame, "never" the single mask; "sam2" has the single
            mask for a prompt that leaves no doubt, a box: what weights that were never fine-tuned expect.
        coarse_detached: whether the coarse head only looks on, so that its loss does not teach the encoder.
        threshold: the probability from which on a pixel is the structure's. Logits in evaluation mode are shifted, so
            that it reads as 0.5 wherever it is used.
    """

    variant: str = "tiny"
    sam2_version: str = _new("2.1", before="2.1")
    standardise: str = _new("clip", before="clip")
    prompt: str = "auto"
    start_frame: str = _new("surest", before="surest")
    trainable: str = "auto"
    windows: str = "sam2"
    multimask: str = "always"
    coarse_detached: bool = _new(False, before=False)
    threshold: float = _new(0.5, before=0.5)

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, VARIANTS)
        check_choice("sam2_version", self.sam2_version, VERSIONS)
        check_choice("standardise", self.standardise, ("clip", "imagenet"))
        check_choice("prompt", self.prompt, AUTOMATIC)
        check_choice("start_frame", self.start_frame, ("surest", "first"))
        check_choice("trainable", self.trainable, (*LEARNING_PARTS, "adapted", "auto"))
        check_choice("windows", self.windows, WINDOWS)
        check_choice("multimask", self.multimask, ("always", "sam2", "never"))
        if not 0 < self.threshold < 1:
            raise EchoPlanError(f"threshold must lie between 0 and 1, not at {self.threshold}")

    @property
    def learning_part(self) -> str:
        """`trainable` with "auto" resolved."""
        return "all_but_trunk" if self.trainable == "auto" else self.trainable


@dataclass(frozen=True)
class E3SAM2Settings(SAM2Settings):
    """Of E3SAM2, beside SAM2's. The defaults are the paper's and, where it is silent, what its authors programmed.

    Attributes:
        adapters: whether there are Global-Local Adapters.
        adapter_place: "before" the first block of stages 2 to 4, whose input they replace, or "after" every stage,
            added through a gate that starts at zero.
        attention: of the adapters' global branch: "ega_column" (equation 3 as printed), "ega_query" (as programmed),
            "ega" (certainty of the key), "self", "topk", "mask" (table 4); see `EntropyGuidedAttention`.
        certainty_power: to which equation 2's certainty is raised.
        edge_supervision: whether edges are predicted and learned in training (table 3).
        edge_from: "trunk" (stages 1 and 3, gradients concatenated, as the paper has it), or "decoder" (what the mask
            decoder reads, gated by the gradients' magnitude).
        later_prompt: of frames after the first: "memory" (a dense prompt made of features that have read the memory)
            or "none" (SAM2's).
        object_score: whether SAM2's score of the object's presence is part of the mask decoder.
        memory: which frames stay in it: "medsam2" (see `DiverseFrames`), "confidence" (`ConfidentFrames`) or "fifo"
            (SAM2's: the latest).
        memory_frames: at most, the start frame's included.
        memory_tokens: what of them is read: "features" alone; "sam2" adds their ages, object pointers, and a mark to
            features that have no memory to read.
        memory_written: of a frame's features "after" or "before" (SAM2's) they have read the memory.
        memory_detached: whether no gradient runs through memories.
        memory_draw: whether frames in memory are drawn by chance, by their likeness to the frame at hand, instead of
            all being read: as many as clips go through the network together.
        memory_across_clips: whether what a clip leaves in memory is read by the clip that comes next, in training,
            validation and test alike, and by the other clips of a batch. A result then depends on what came before.
    """

    sam2_version: str = _new("2.0", before="2.1")
    multimask: str = "never"
    adapters: bool = True
    adapter_place: str = _new("before", before="after")
    attention: str = "ega_column"
    certainty_power: float = _new(1.0, before=1.0)
    edge_supervision: bool = True
    edge_from: str = _new("trunk", before="trunk")
    later_prompt: str = _new("memory", before="none")
    object_score: bool = _new(False, before=True)
    memory: str = "medsam2"
    memory_frames: int = _new(4, before=7)
    memory_tokens: str = _new("features", before="sam2")
    memory_written: str = _new("after", before="before")
    memory_detached: bool = _new(True, before=False)
    memory_draw: bool = _new(False, before=False)
    memory_across_clips: bool = _new(False, before=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("adapter_place", self.adapter_place, ("before", "after"))
        check_choice("attention", self.attention, ATTENTIONS)
        check_choice("edge_from", self.edge_from, ("trunk", "decoder"))
        check_choice("later_prompt", self.later_prompt, ("memory", "none"))
        check_choice("memory", self.memory, BANKS)
        check_choice("memory_tokens", self.memory_tokens, ("features", "sam2"))
        check_choice("memory_written", self.memory_written, ("before", "after"))
        if not 1 <= self.memory_frames <= MEMORIES:
            raise EchoPlanError(f"memory_frames must be 1 to {MEMORIES}, not {self.memory_frames}")

    @property
    def learning_part(self) -> str:
        """`trainable` with "auto" resolved."""
        return "adapted" if self.trainable == "auto" else self.trainable


def with_sam2s_parts(settings: SAM2Settings) -> E3SAM2Settings:
    """The settings as E3SAM2's: those of plain SAM2 with SAM2's own parts and none of E3SAM2's."""
    if isinstance(settings, E3SAM2Settings):
        return settings
    return E3SAM2Settings(
        **{each.name: getattr(settings, each.name) for each in fields(settings) if each.name != "trainable"},
        trainable=settings.learning_part,
        adapters=False,
        edge_supervision=False,
        later_prompt="none",
        object_score=True,
        memory="fifo",
        memory_frames=MEMORIES,
        memory_tokens="sam2",
        memory_written="before",
        memory_detached=False,
    )
