"""ResUNetTrainer of `-tr`: the U-Net that Chao et al. (npj Digital Medicine 2025) compare SAM with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from echoplan.networks import ClipOutput
from echoplan.networks.resunet import ResUNetSettings

from ..data import Batch
from ..losses import dice_ce_loss
from ..recipe import MethodRequirements, PublishedProtocol, Recipe
from .method import Method, Record


@dataclass(frozen=True)
class ResUNetRecipe(Recipe):
    """SAM's recipe there, without boxes: 23 epochs of Adam, 2e-5 falling to 3e-6, no augmentation, batch 8.

    Attributes:
        pretrained: start the encoder from ImageNet weights; the paper does not say.
        network: see `ResUNetSettings`.
    """

    epochs: int = 23
    optimiser: str = "adam"
    final_learning_rate: float = 3e-6
    poly_power: float = 1.0
    augmentation: str = "none"
    pretrained: bool = True
    network: ResUNetSettings = field(default_factory=ResUNetSettings)


class ResUNetMethod(Method[ResUNetRecipe]):
    """A U-Net with ResNet-18 as encoder, on single frames of 112 pixels."""

    configuration: ClassVar[str] = "frame"
    requirements: ClassVar[MethodRequirements] = MethodRequirements(
        batch_size=8, learning_rate=2e-5, paper_size=112, size_multiple=16
    )
    protocols: ClassVar[Mapping[str, PublishedProtocol]] = {"EchoNet-Dynamic": PublishedProtocol(112, "official")}
    recipe_class = ResUNetRecipe
    network_name: ClassVar[str] = "resunet"

    def loss(self, output: ClipOutput, batch: Batch, *, epoch: int, record: Record) -> Tensor:
        """Dice and cross-entropy in an unweighted sum; Dice with squares below the line, as for SAM."""
        return dice_ce_loss(output.logits, batch["labels"], squared=True)
