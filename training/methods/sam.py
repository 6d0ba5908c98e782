"""SAMTrainer, MedSAMTrainer and LiteMedSAMTrainer of `-tr`: box-prompted models, fine-tuned.

The first two as by Chao et al. (npj Digital Medicine 2025), the third by its authors' own recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.errors import EchoPlanError
from echoplan.networks import ClipOutput
from echoplan.networks.sam.settings import LITE_SIZE, SAMSettings, enlarged_size
from echoplan.networks.settings import check_choice

from ..data import Batch
from ..features import FrozenEncoder
from ..losses import dice_ce_loss, reduce_labels
from ..prompts import BOX_REACH, boxes_of_labels, jitter_boxes, widen_boxes
from ..recipe import MethodRequirements, PublishedProtocol, Recipe
from .method import Method, Record

if TYPE_CHECKING:
    from echoplan.networks.sam.model import SAM

_RATE = 2e-5
_BOXES = ("jittered", "widened", "truth", "automatic")
# MedSAM's own recipe (github.com/bowang-lab/MedSAM, train_one_gpu.py), for the 70 epochs of Chao et al.
MEDSAM_RECIPE = {
    "epochs": 70,
    "optimiser": "adamw",
    "learning_rate": 1e-4,
    "poly_power": 0.0,
    "weight_decay": 0.01,
    "batch_size": 2,
    "trainable": "all_but_prompt_encoder",
    "training_boxes": "widened",
    "loss_size": "encoder",
}
# The optimiser of LiteMedSAM's authors (github.com/bowang-lab/MedSAM, branch LiteMedSAM), and the U-Net's augmentation.
LITE_MEDSAM_RECIPE = {
    "model": "lite_medsam",
    "encoder": "tiny_vit",
    "encoder_size": LITE_SIZE,
    "epochs": 50,
    "optimiser": "adamw",
    "learning_rate": 5e-5,
    "weight_decay": 0.01,
    "augmentation": "strong",
    "trainable": "all_but_prompt_encoder",
}


@dataclass(frozen=True)
class SAMRecipe(Recipe):
    """The paper's: 27 epochs of Adam, 2e-5 falling to 3e-6, no weight decay, no augmentation, batch 8.

    The paper names no shape of the fall (a straight line here), and cites Ma et al.'s procedure for what learns. In
    the version it cites (arXiv 2304.12306, whose first code has the same optimiser) that is the mask decoder alone.

    Attributes:
        pretrained: start from the published weights.
        training_boxes: "jittered" (from labels, each side moved by chance), "widened" (outwards only, MedSAM's),
            "truth" (from labels, the paper's) or "automatic" (the locator's, as at test time).
        box_reach: of the jitter, see `training.prompts.jittered_box`.
        locator_learning_rate: of the locator, which starts from random weights; it falls in the same proportion.
        loss_size: where the mask is compared with the label: on the "frames" as they are, or at the "encoder"'s size,
            to which labels are enlarged by the nearest pixel, as MedSAM does.
        keep_embeddings: whether what the frozen image encoder makes of a frame is kept on disk, for later epochs and
            trainings.
        network: see `SAMSettings`.
    """

    epochs: int = 27
    optimiser: str = "adam"
    final_learning_rate: float = 3e-6
    poly_power: float = 1.0
    augmentation: str = "none"
    pretrained: bool = True
    training_boxes: str = "jittered"
    box_reach: float = BOX_REACH
    locator_learning_rate: float = 1e-3
    loss_size: str = field(default="frames", metadata={"before": "frames"})
    keep_embeddings: bool = True
    network: SAMSettings = field(default_factory=SAMSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training_boxes not in _BOXES:
            raise EchoPlanError(
                f"training_boxes cannot be {self.training_boxes!r}", remedy=f"choose one of {', '.join(_BOXES)}"
            )
        check_choice("loss_size", self.loss_size, ("frames", "encoder"))
        if not 0 <= self.box_reach < 0.5:
            raise EchoPlanError(f"box_reach must be at least 0 and less than 0.5, not {self.box_reach}")
        if self.locator_learning_rate <= 0:
            raise EchoPlanError(f"locator_learning_rate must be more than 0, not {self.locator_learning_rate}")

    def network_settings(self) -> SAMSettings:
        """See `Recipe.network_settings`: from random weights everything learns, unless told otherwise."""
        from_scratch = self.network.trainable == "auto" and not self.pretrained
        return replace(self.network, trainable="all") if from_scratch else self.network

    def rate_factors(self) -> dict[str, float]:
        """See `Recipe.rate_factors`."""
        return {"locator.": self.locator_learning_rate / (self.learning_rate or _RATE)}


class SAMMethod(Method[SAMRecipe]):
    """SAM with a box a frame; the boxes of validation and prediction come from its own locator."""

    configuration: ClassVar[str] = "frame"
    requirements: ClassVar[MethodRequirements] = MethodRequirements(
        batch_size=8, learning_rate=_RATE, paper_size=112, size_multiple=16, multi_structure=False
    )
    protocols: ClassVar[Mapping[str, PublishedProtocol]] = {"EchoNet-Dynamic": PublishedProtocol(112, "official")}
    recipe_class = SAMRecipe
    network_name: ClassVar[str] = "sam"

    def prompts(self, batch: Batch, *, training: bool) -> Tensor | None:
        """See `Method.prompts`: boxes as `training_boxes` says; a frame without structure gets the locator's."""
        if not training or self.recipe.training_boxes == "automatic":
            return None
        boxes = boxes_of_labels(batch["labels"])
        if self.recipe.training_boxes == "jittered":
            boxes = jitter_boxes(boxes, size=batch["labels"].shape[-2:], reach=self.recipe.box_reach)
        elif self.recipe.training_boxes == "widened":
            boxes = widen_boxes(boxes, size=batch["labels"].shape[-2:])
        return boxes

    def answer(self, network: Callable[..., Any], batch: Batch) -> Any:
        """See `Method.answer`; what the frozen encoder makes of the frames may be known."""
        return network(batch["clip"], batch.get("prompts"), batch.get("features"))

    def frozen_encoder(self, network: nn.Module) -> FrozenEncoder | None:
        """See `Method.frozen_encoder`."""
        sam = cast("SAM", network)
        if sam.encoder_learns or not self.recipe.keep_embeddings:
            return None
        settings = self.recipe.network
        return FrozenEncoder(sam.embed, sam.image_encoder, f"{settings.model} {settings.encoder_size}")

    def loss(self, output: ClipOutput, batch: Batch, *, epoch: int, record: Record) -> Tensor:
        """Dice + cross-entropy of the mask, and the same of the locator, which shares no weight with SAM.

        Dice has squares below the line, as in the cited procedure. A labelled frame without the structure has an empty
        mask to learn; an unlabelled one does not count.
        """
        labels, coarse = batch["labels"], output.auxiliary["locator"]
        if self.recipe.loss_size == "encoder":
            mask = dice_ce_loss(*self._at_encoder_size(output.auxiliary["masks"], labels), squared=True)
        else:
            mask = dice_ce_loss(output.logits, labels, squared=True)
        located = dice_ce_loss(coarse, reduce_labels(labels, coarse.shape[-2:]), squared=True)
        record(loss_mask=mask, loss_locator=located)
        return mask + located

    def _at_encoder_size(self, masks: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(B, T, 1, h, w)`` and labels ``(B, T, h, w)`` of frames whose longest side is the encoder's."""
        side = self.recipe.network.encoder_size
        size = enlarged_size(labels.shape[-2:], side)
        whole = F.interpolate(masks.flatten(0, 1), (side, side), mode="bilinear", align_corners=False)
        return whole[..., : size[0], : size[1]].unflatten(0, masks.shape[:2]), reduce_labels(labels, size)


class LiteMedSAMMethod(SAMMethod):
    """LiteMedSAM, which nobody has published on echoes: frames as large as its encoder takes them, nothing to obey."""

    requirements: ClassVar[MethodRequirements] = replace(SAMMethod.requirements, batch_size=4, paper_size=LITE_SIZE)
    protocols: ClassVar[Mapping[str, PublishedProtocol]] = {}
