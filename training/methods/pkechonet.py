"""PKEcho-Net (Wu et al., AAAI 2023) with its three backbones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from echoplan.networks import ClipOutput, build_network

from ..data import Batch
from ..losses import boundary_loss, signed_distance_maps, soft_dice_loss
from ..recipe import Recipe, TrainerNeeds
from .base import EchoTrainer


@dataclass(frozen=True)
class PKEchoNetRecipe(Recipe):
    """The paper's: 50 epochs, Adam 1e-3, poly 0.9 by iteration; flips, rotation, brightness and contrast.

    Attributes:
        pretrained: start from ImageNet weights.
        stages: kernel refinements S (the paper's table 5: 3 is best).
        cross_video: "off", or "train": the paper's attention over the clips of a batch, in training only.
        boundary_weight: of the boundary loss beside Dice (equation 6: 1).
        bottleneck_stride: "3x3" for torchvision's ImageNet weights, "1x1" for weights of the original ResNet.
    """

    epochs: int = 50
    augmentation: str = "light"
    pretrained: bool = True
    stages: int = 3
    cross_video: str = "off"
    boundary_weight: float = 1.0
    bottleneck_stride: str = "3x3"


class PKEchoNetTrainer(EchoTrainer):
    """PKEcho-Net with ResNet-50."""

    configuration: ClassVar[str] = "clip"
    needs: ClassVar[TrainerNeeds] = TrainerNeeds(
        batch_size=8, learning_rate=1e-3, frames=10, paper_size=320, square=True
    )
    recipe_class: ClassVar[type[Recipe]] = PKEchoNetRecipe
    backbone: ClassVar[str] = "resnet50"

    @classmethod
    def make_network(
        cls, recipe: PKEchoNetRecipe, *, size: tuple[int, int], classes: int, pretrained: bool | Path = False
    ) -> nn.Module:
        """See `EchoTrainer.make_network`."""
        return build_network(
            "pkechonet",
            size=size,
            classes=classes,
            pretrained=pretrained,
            backbone=cls.backbone,
            stages=recipe.stages,
            cross_video=recipe.cross_video,
            bottleneck_stride=recipe.bottleneck_stride,
        )

    def finish_sample(self) -> Any:
        """The signed distance maps of the boundary loss, made by the loader's workers after augmentation."""
        return partial(_distance_targets, classes=self.classes)

    def loss(self, output: ClipOutput, batch: Batch) -> Tensor:
        """Equation 6: Dice and boundary loss, summed over the masks of all refinement stages."""
        total = output.logits.new_zeros(())
        for logits in (*output.auxiliary.get("stages", []), output.logits):
            dice = soft_dice_loss(logits, batch["labels"])
            boundary = boundary_loss(logits, batch["distance"], batch["labels"])
            total = total + dice + self.recipe.boundary_weight * boundary
        return total


class PKEchoNetR34Trainer(PKEchoNetTrainer):
    """PKEcho-Net with ResNet-34."""

    backbone: ClassVar[str] = "resnet34"


class PKEchoNetR18Trainer(PKEchoNetTrainer):
    """PKEcho-Net with ResNet-18."""

    backbone: ClassVar[str] = "resnet18"


def _distance_targets(labels: np.ndarray, *, classes: int) -> dict[str, np.ndarray]:
    return {"distance": signed_distance_maps(labels, classes=classes)}
