"""PKEcho-Net (Wu et al., AAAI 2023) with its three backbones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
from torch import Tensor

from echoplan.networks import ClipOutput
from echoplan.networks.pkechonet.settings import PKEchoNetSettings

from ..data import Batch
from ..losses import boundary_loss, signed_distance_maps, soft_dice_loss
from ..recipe import MethodRequirements, PublishedProtocol, Recipe
from .method import Method, Record, Targets


@dataclass(frozen=True)
class PKEchoNetRecipe(Recipe):
    """The paper's: 50 epochs, Adam 1e-3, poly 0.9 by iteration; flips, rotation, brightness and contrast.

    Attributes:
        pretrained: start from ImageNet weights.
        boundary_weight: of the boundary loss beside Dice (equation 6: 1).
        squared_dice: Dice with V-Net's squares below the line, which the paper cites; else the plain one.
        network: see `PKEchoNetSettings`.
    """

    epochs: int = 50
    augmentation: str = "light"
    pretrained: bool = True
    boundary_weight: float = 1.0
    squared_dice: bool = field(default=True, metadata={"before": False})
    network: PKEchoNetSettings = field(default_factory=lambda: PKEchoNetSettings(backbone="resnet50"))


class PKEchoNetMethod(Method[PKEchoNetRecipe]):
    """PKEcho-Net."""

    configuration: ClassVar[str] = "clip"
    requirements: ClassVar[MethodRequirements] = MethodRequirements(
        batch_size=8, learning_rate=1e-3, frames=10, paper_size=320, square=True
    )
    protocols: ClassVar[Mapping[str, PublishedProtocol]] = {
        "CAMUS": PublishedProtocol(320, "number", {"supervision": "ed_es"}),
        "EchoNet-Dynamic": PublishedProtocol(128, "number"),
    }
    recipe_class = PKEchoNetRecipe
    network_name: ClassVar[str] = "pkechonet"

    def extra_targets(self, classes: int) -> Targets:
        """The signed distance maps of the boundary loss, made by the loader's workers after augmentation."""
        return partial(_distance_targets, classes=classes)

    def loss(self, output: ClipOutput, batch: Batch, *, epoch: int, record: Record) -> Tensor:
        """Equation 6: Dice and boundary loss, summed over the masks of all refinement stages."""
        total = output.logits.new_zeros(())
        for logits in (*output.auxiliary.get("stages", []), output.logits):
            dice = soft_dice_loss(logits, batch["labels"], squared=self.recipe.squared_dice)
            boundary = boundary_loss(logits, batch["distance"], batch["labels"])
            total = total + dice + self.recipe.boundary_weight * boundary
        return total


def _distance_targets(labels: np.ndarray, *, classes: int) -> dict[str, np.ndarray]:
    return {"distance": signed_distance_maps(labels, classes=classes)}
