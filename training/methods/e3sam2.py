"""SAM2 fine-tuned on echocardiography, and E3SAM2 (Zheng et al.), which adapts it by entropy and edges.

E3SAM2 comes in two designs, values of settings each of which can be set alone: the paper's, and what its authors
released (github.com/ZhengLong777/E3SAM2, commit 1b90d3d). docs/trainers.md names every difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from echoplan.errors import EchoPlanError
from echoplan.networks import ClipOutput
from echoplan.networks.e3sam2.prompts import Prompts
from echoplan.networks.e3sam2.settings import E3SAM2Settings, SAM2Settings
from echoplan.networks.settings import check_choice

from ..data import Batch
from ..fold import FoldSetup
from ..losses import dice_ce_loss, edge_loss, entropy_loss, mask_quality_loss, presence_loss, reduce_labels
from ..prompts import LABEL_KINDS, MIDDLE, CasePrompts, draw_prompts
from ..recipe import MethodRequirements, PublishedNetwork, PublishedProtocol, Recipe
from .method import Method, Record

_SMOOTH = 1e-5  # pixels, in the Dice of a batch


@dataclass(frozen=True)
class SAM2Recipe(Recipe):
    """E3SAM2's recipe, for plain SAM2 too: AdamW 1e-4, 200 epochs, ten frames, from SAM 2.1's weights.

    The paper names neither weight decay nor schedule: AdamW's usual 0.01, and poly 0.9 as the other clip methods.

    Attributes:
        pretrained: start from the published weights of SAM 2.1.
        point_share, jittered_share, pixel_share, box_share, jittered_box_share, mask_share: shares of the training
            clips that begin with a prompt from the labels: the deepest point inside, one near it or any, the box or one
            with its sides moved, the mask of one frame. The others begin by themselves, as at test time.
        true_point_at_test: whether clips of the validation begin with a point from their own labels, as the published
            figures of E3SAM2 were made. What is measured so is better than what `echoplan_predict` can do.
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
    pixel_share: float = 0.0
    box_share: float = 0.0
    jittered_box_share: float = 0.0
    mask_share: float = 0.0
    true_point_at_test: bool = False
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

    @property
    def input_normalisation(self) -> str | None:
        """See `Recipe.input_normalisation`."""
        return "unit" if self.network.standardise == "imagenet" else self.normalisation

    def network_settings(self) -> SAM2Settings:
        """See `Recipe.network_settings`: from random weights everything learns, unless told otherwise."""
        from_scratch = self.network.trainable == "auto" and not self.pretrained
        return replace(self.network, trainable="all") if from_scratch else self.network


DESIGNS = ("paper", "released")
# What the authors released, where it differs from the paper, or where the paper leaves it to us.
RELEASED: dict[str, Any] = {
    "attention": "ega_query",
    "certainty_power": 4.0,
    "edge_from": "decoder",
    "memory_draw": True,
    "prompt": "point",
    "start_frame": "first",
    "coarse_detached": True,
    "threshold": 0.6,
    "point_share": 0.0,
    "jittered_share": 0.0,
    "pixel_share": 1.0,
    "dice_weight": 0.8,
    "ce_weight": 0.2,
    "positive_weight": 2.0,
    "entropy_bounded": True,
    "entropy_weight": 0.01,
    "entropy_from_epoch": 30,
    "keep_epoch": "best_dice",
    "normalisation": "grey",
    "augmentation": "e3sam2",
}


@dataclass(frozen=True)
class E3SAM2Recipe(SAM2Recipe):
    """The paper's: equation 8 with 0.8, 0.1 and 0.2; weight decay and warm-up, of which it is silent, are the authors'.

    Attributes:
        design: "paper", or "released" for the values in `RELEASED`; settings that are named beside it count before it.
        dice_weight, ce_weight: within the segmentation term. Its Dice has squares below the line (V-Net's, which the
            paper cites) and is one over the batch.
        positive_weight: what a pixel of the structure, or of an edge, counts in both cross-entropies.
        entropy_regularisation: whether equation 5 counts (table 3).
        entropy_bounded: see `entropy_loss`.
        entropy_from_epoch: the first epoch, from 0, in which equation 5 counts.
        entropy_weight, edge_weight: equation 8's beta and delta.
        dilated_edges: whether edges are learnt on the input's grid, dilated by a pixel, as the authors do; else as thin
            lines on the grid of stride 4.
        network: see `E3SAM2Settings`.
    """

    design: str = "paper"
    weight_decay: float = 0.1
    warmup_iterations: int = 250
    quality_weight: float = 0.0
    presence_weight: float = 0.0
    dice_weight: float = 1.0
    ce_weight: float = 1.0
    positive_weight: float = 1.0
    entropy_regularisation: bool = True
    entropy_bounded: bool = False
    entropy_from_epoch: int = 0
    entropy_weight: float = 0.1
    edge_weight: float = 0.2
    dilated_edges: bool = True
    network: E3SAM2Settings = field(default_factory=E3SAM2Settings)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("design", self.design, DESIGNS)

    def with_settings(self, settings: Mapping[str, Any]) -> E3SAM2Recipe:
        """See `Recipe.with_settings`; a named design sets all that belongs to it, but for what is named besides."""
        if settings.get("design") in DESIGNS:
            of_paper = E3SAM2Recipe().to_dict()
            of_design = {"released": RELEASED, "paper": {name: of_paper[name] for name in RELEASED}}
            settings = {**of_design[settings["design"]], **settings}
        return super().with_settings(settings)


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
    validation_batches: ClassVar[int] = 4  # frame by frame, a few clips are little work

    def prompts(self, batch: Batch, *, training: bool) -> Prompts | None:
        """See `Method.prompts`: some clips begin with one from their labels, so that all ways to begin are learned."""
        of_network = self.recipe.network
        draw = partial(draw_prompts, automatic=of_network.prompt, first=of_network.start_frame == "first")
        if training:
            return draw(batch["labels"], shares=self.recipe.label_shares)
        return draw(batch["labels"], shares={"pixel": 1.0}, draw=MIDDLE) if self.recipe.true_point_at_test else None

    def prompt_of_cases(self, network: nn.Module, setup: FoldSetup) -> CasePrompts | None:
        """See `Method.prompt_of_cases`."""
        return CasePrompts(network, setup, "pixel") if self.recipe.true_point_at_test else None

    def loss(self, output: ClipOutput, batch: Batch, *, epoch: int, record: Record) -> Tensor:
        """Equation 8, and what keeps SAM2's own heads and the coarse head in training; means over frames throughout."""
        total = torch.zeros((), device=output.logits.device)
        for name, (weight, value) in self.terms(output, batch["labels"], epoch).items():
            record(**{f"loss_{name}": value})
            total = total + weight * value
        return total

    def terms(self, output: ClipOutput, labels: Tensor, epoch: int) -> dict[str, tuple[float, Tensor]]:
        """The loss's terms by name, each with its weight."""
        recipe, heads = self.recipe, output.auxiliary
        coarse = heads["coarse"]
        terms = {  # those of no weight, too: processes that train together wait for each output's gradient
            "segmentation": (recipe.segmentation_weight, self.segmentation_loss(output.logits, labels)),
            "coarse": (recipe.coarse_weight, dice_ce_loss(coarse, reduce_labels(labels, coarse.shape[-2:]))),
            "quality": (recipe.quality_weight, mask_quality_loss(heads["iou"], heads["masks"], labels)),
        }
        if getattr(recipe.network, "object_score", True):
            terms["presence"] = recipe.presence_weight, presence_loss(heads["object_score"], labels)
        return terms

    def segmentation_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of the answer itself."""
        return dice_ce_loss(logits, labels)


class SAM2Method(SAM2Family[SAM2Recipe]):
    """Plain SAM 2.1: the baseline of E3SAM2's table 3."""

    recipe_class = SAM2Recipe
    network_name: ClassVar[str] = "sam2"


class E3SAM2Method(SAM2Family[E3SAM2Recipe]):
    """E3SAM2 on SAM2."""

    recipe_class = E3SAM2Recipe
    network_name: ClassVar[str] = "e3sam2"
    protocols: ClassVar[Mapping[str, PublishedProtocol]] = {
        **SAM2Family.protocols,
        "CAMUS": replace(SAM2Family.protocols["CAMUS"], fit="nearest"),
    }
    # Theirs has no coarse head: without a prompt a clip begins with a point in the middle of its first frame.
    published: ClassVar[PublishedNetwork] = PublishedNetwork(
        "CAMUS",
        {"size": [256, 256], "normalisation": "grey", "frames": 10},
        {"design": "released", "variant": "small", "prompt": "centre"},
    )

    def forward(self, network: Callable[..., Any], batch: Batch) -> ClipOutput:
        """See `Method.forward`; entropies are made in epochs in which equation 5 counts."""
        told = (batch["prompts"],) if "prompts" in batch else ()
        output: ClipOutput = network(batch["clip"], *told, with_entropies=self.entropy_weight_in(self.epoch) > 0)
        return output

    def entropy_weight_in(self, epoch: int) -> float:
        """Equation 8's beta, zero where equation 5 does not count."""
        recipe = self.recipe
        counts = recipe.entropy_regularisation and recipe.network.adapters and epoch >= recipe.entropy_from_epoch
        return recipe.entropy_weight if counts else 0.0

    def terms(self, output: ClipOutput, labels: Tensor, epoch: int) -> dict[str, tuple[float, Tensor]]:
        """Equation 8's three terms, as far as they are on, and those of SAM2's own heads."""
        recipe, terms = self.recipe, super().terms(output, labels, epoch)
        if (weight := self.entropy_weight_in(epoch)) > 0:
            value = entropy_loss(output.auxiliary["entropies"], labels, bounded=recipe.entropy_bounded)
            terms["entropy"] = weight, value
        if recipe.network.edge_supervision:
            value = edge_loss(
                output.auxiliary["edges"],
                labels,
                dilated=recipe.dilated_edges,
                positive_weight=recipe.positive_weight,
            )
            terms["edges"] = recipe.edge_weight, value
        return terms

    def segmentation_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `E3SAM2Recipe.dice_weight`."""
        recipe = self.recipe
        return dice_ce_loss(
            logits,
            labels,
            dice_weight=recipe.dice_weight,
            ce_weight=recipe.ce_weight,
            positive_weight=recipe.positive_weight,
            squared=True,
            per_frame=False,
            smooth=_SMOOTH,
        )
