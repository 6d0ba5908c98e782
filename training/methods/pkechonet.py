"""PKEcho-Net (Wu et al., AAAI 2023) with its three backbones."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from echoplan.networks import ClipOutput
from echoplan.networks.pkechonet.settings import PKEchoNetSettings

from ..data import Batch
from ..losses import boundary_loss, signed_distance_maps, soft_dice_loss
from ..recipe import Recipe, TrainerNeeds
from .base import EchoTrainer


@dataclass(frozen=True)
class PKEchoNetRecipe(Recipe):
    """The paper's: 50 epochs, Adam 1e-3, poly 0.9 by iteration; flips, rotation, brightness and contrast.

    Attributes:
        pretrained: start from ImageNet weights.
        boundary_weight: of the boundary loss beside Dice (equation 6: 1).
        network: see `PKEchoNetSettings`.
    """

    epochs: int = 50
    augmentation: str = "light"
    pretrained: bool = True
    boundary_weight: float = 1.0
    network: PKEchoNetSettings = field(default_factory=lambda: PKEchoNetSettings(backbone="resnet50"))


@dataclass(frozen=True)
class PKEchoNetR34Recipe(PKEchoNetRecipe):
    """The same on ResNet-34."""

    network: PKEchoNetSettings = field(default_factory=lambda: PKEchoNetSettings(backbone="resnet34"))


@dataclass(frozen=True)
class PKEchoNetR18Recipe(PKEchoNetRecipe):
    """The same on ResNet-18."""

    network: PKEchoNetSettings = field(default_factory=lambda: PKEchoNetSettings(backbone="resnet18"))


class PKEchoNetTrainer(EchoTrainer):
    """PKEcho-Net with ResNet-50."""

    configuration: ClassVar[str] = "clip"
    needs: ClassVar[TrainerNeeds] = TrainerNeeds(
        batch_size=8, learning_rate=1e-3, frames=10, paper_size=320, square=True
    )
    recipe_class: ClassVar[type[Recipe]] = PKEchoNetRecipe
    network_name: ClassVar[str] = "pkechonet"

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

    recipe_class: ClassVar[type[Recipe]] = PKEchoNetR34Recipe


class PKEchoNetR18Trainer(PKEchoNetTrainer):
    """PKEcho-Net with ResNet-18."""

    recipe_class: ClassVar[type[Recipe]] = PKEchoNetR18Recipe


def _distance_targets(labels: np.ndarray, *, classes: int) -> dict[str, np.ndarray]:
    return {"distance": signed_distance_maps(labels, classes=classes)}
