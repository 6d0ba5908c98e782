"""SAM2 fine-tuned on echocardiography, and E3SAM2 (Zheng et al.), which adapts it by entropy and edges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from echoplan.errors import EchoPlanError
from echoplan.networks import ClipOutput
from echoplan.networks.e3sam2.settings import E3SAM2Settings, SAM2Settings

from ..data import Batch
from ..losses import dice_ce_loss, edge_loss, entropy_loss, mask_quality_loss, presence_loss, reduce_labels
from ..prompts import LABEL_KINDS, draw_prompts
from ..recipe import MethodRequirements, PublishedProtocol, Recipe
from .method import Method, Record


@dataclass(frozen=True)
class SAM2Recipe(Recipe):
    """E3SAM2's recipe, for plain SAM2 too: AdamW 1e-4, 200 epochs, ten frames, from SAM 2.1's weights.

    The paper names neither weight decay nor schedule: AdamW's usual 0.01, and poly 0.9 as the other clip methods.

    Attributes:
        pretrained: start from the published weights of SAM 2.1.
        point_share, jittered_share, box_share, jittered_box_share, mask_share: shares of the training clips that begin
            with a prompt from the labels: the deepest point inside or one near it, the box or one with its sides moved,
            the mask of one frame. The others begin by themselves, as at test time.
        segmentation_weight: of Dice and cross-entropy (equation 8's alpha).
        coarse_weight, quality_weight, presence_weight: of the coarse head's mask, of SAM2's IoU head (L1 to the true
            IoU) and of its object score; the paper does not name them.
        network: see `SAM2Settings`.
    """

    epochs: int = 200
    optimiser: str = "adamw"
    weight_decay: float = 0.01
    pretrained: bool = True
    point_share: float = 0.25
    jittered_share: float = 0.25
    box_share: float = 0.0
    jittered_box_share: float = 0.0
    mask_share: float = 0.0
    segmentation_weight: float = 0.8
    coarse_weight: float = 0.2
    quality_weight: float = 0.1
    presence_weight: float = 0.05
    network: SAM2Settings = field(default_factory=SAM2Settings)

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = self.label_shares
        if min(shares.values()) < 0 or sum(shares.values()) > 1:
            names = ", ".join(f"{kind}_share" for kind in shares)
            raise EchoPlanError(f"the settings {names} must be shares that add up to 1 at most")

    @property
    def label_shares(self) -> dict[str, float]:
        """Kind of prompt from labels -> share of the training clips."""
        return {kind: getattr(self, f"{kind}_share") for kind in LABEL_KINDS}

    def network_settings(self) -> SAM2Settings:
        """See `Recipe.network_settings`: from random weights everything learns, unless told otherwise."""
        from_scratch = self.network.trainable == "auto" and not self.pretrained
        return replace(self.network, trainable="all") if from_scratch else self.network


@dataclass(frozen=True)
class E3SAM2Recipe(SAM2Recipe):
    """The paper's: equation 8 with 0.8, 0.1 and 0.2.

    Attributes:
        entropy_regularisation: whether equation 5 counts (table 3).
        entropy_weight, edge_weight: equation 8's beta and delta.
        network: see `E3SAM2Settings`.
    """

    entropy_regularisation: bool = True
    entropy_weight: float = 0.1
    edge_weight: float = 0.2
    network: E3SAM2Settings = field(default_factory=E3SAM2Settings)


SAM2RecipeT = TypeVar("SAM2RecipeT", bound=SAM2Recipe)


class SAM2Family(Method[SAM2RecipeT]):
    """SAM 2.1, fine-tuned with the data and prompts of E3SAM2."""

    configuration: ClassVar[str] = "clip"
    requirements: ClassVar[MethodRequirements] = MethodRequirements(
        batch_size=4, learning_rate=1e-4, frames=10, paper_size=256, square=True, multi_structure=False
    )
    protocols: ClassVar[Mapping[str, PublishedProtocol]] = {
        "CAMUS": PublishedProtocol(256, "number", {"supervision": "ed_es"}),
        "EchoNet-Dynamic": PublishedProtocol(256, "official", {"epochs": 100}),
    }

    def forward(self, network: Callable[..., Any], batch: Batch) -> ClipOutput:
        """Some clips begin with a prompt from their labels, so that all ways to begin are learned."""
        prompts = draw_prompts(batch["labels"], automatic=self.recipe.network.prompt, shares=self.recipe.label_shares)
        return network(batch["clip"], prompts)

    def loss(self, output: ClipOutput, batch: Batch, *, epoch: int, record: Record) -> Tensor:
        """Equation 8, and what keeps SAM2's own heads and the coarse head in training; means over frames throughout."""
        total = torch.zeros((), device=output.logits.device)
        for name, (weight, value) in self.terms(output, batch["labels"]).items():
            record(**{f"loss_{name}": value})
            total = total + weight * value
        return total

    def terms(self, output: ClipOutput, labels: Tensor) -> dict[str, tuple[float, Tensor]]:
        """The loss's terms by name, each with its weight."""
        recipe, heads = self.recipe, output.auxiliary
        coarse = heads["coarse"]
        return {
            "segmentation": (recipe.segmentation_weight, dice_ce_loss(output.logits, labels)),
            "coarse": (recipe.coarse_weight, dice_ce_loss(coarse, reduce_labels(labels, coarse.shape[-2:]))),
            "quality": (recipe.quality_weight, mask_quality_loss(heads["iou"], heads["masks"], labels)),
            "presence": (recipe.presence_weight, presence_loss(heads["object_score"], labels)),
        }


class SAM2Method(SAM2Family[SAM2Recipe]):
    """Plain SAM 2.1: the baseline of E3SAM2's table 3."""

    recipe_class = SAM2Recipe
    network_name: ClassVar[str] = "sam2"


class E3SAM2Method(SAM2Family[E3SAM2Recipe]):
    """E3SAM2 on SAM 2.1."""

    recipe_class = E3SAM2Recipe
    network_name: ClassVar[str] = "e3sam2"

    def terms(self, output: ClipOutput, labels: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Equation 8's three terms, as far as they are on, and those of SAM2's own heads."""
        recipe, terms = self.recipe, super().terms(output, labels)
        if recipe.entropy_regularisation:
            terms["entropy"] = recipe.entropy_weight, entropy_loss(output.auxiliary["entropies"], labels)
        if recipe.network.edge_supervision:
            terms["edges"] = recipe.edge_weight, edge_loss(output.auxiliary["edges"], labels)
        return terms
