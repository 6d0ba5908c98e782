"""EchoNetTrainer of `-tr`: the segmentation of EchoNet-Dynamic (Ouyang et al., Nature 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from echoplan.networks import ClipOutput
from echoplan.networks.deeplabv3 import DeepLabV3Settings

from ..data import Batch
from ..losses import cross_entropy_loss
from ..recipe import MethodRequirements, PublishedProtocol, Recipe
from .method import Method, Record

_BATCH, _SIDE = 20, 112


@dataclass(frozen=True)
class EchoNetRecipe(Recipe):
    """That of the authors' code (github.com/echonet/dynamic, echonet/utils/segmentation.py).

    SGD 1e-5 with plain momentum 0.9 at a constant rate, no weight decay, 50 epochs, batches of 20, random weights, no
    auxiliary head, no augmentation, and the binary cross-entropy summed over the pixels of a batch.

    Attributes:
        pretrained: start from ImageNet weights.
        loss_scale: times the mean cross-entropy of a pixel. 20 x 112 x 112 makes it the authors' sum over a batch, to
            which their learning rate belongs, whatever the size and the batch here.
        network: see `DeepLabV3Settings`.
    """

    epochs: int = 50
    optimiser: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    poly_power: float = 0.0
    augmentation: str = "none"
    pretrained: bool = False
    loss_scale: float = float(_BATCH * _SIDE * _SIDE)
    network: DeepLabV3Settings = field(default_factory=DeepLabV3Settings)


class EchoNetMethod(Method[EchoNetRecipe]):
    """DeepLabV3 with ResNet-50 on single frames.

    The authors' step takes 20 videos: their 20 end-diastolic frames, then their 20 end-systolic ones, and half the sum
    of both losses. Here a step takes 20 frames of any phase, so its gradient is as large, normalisation too sees 20
    frames, and an epoch has twice the steps.
    """

    configuration: ClassVar[str] = "frame"
    requirements: ClassVar[MethodRequirements] = MethodRequirements(
        batch_size=_BATCH, learning_rate=1e-5, paper_size=_SIDE, size_multiple=16
    )
    protocols: ClassVar[Mapping[str, PublishedProtocol]] = {"EchoNet-Dynamic": PublishedProtocol(_SIDE, "official")}
    recipe_class = EchoNetRecipe
    network_name: ClassVar[str] = "deeplabv3"

    def loss(self, output: ClipOutput, batch: Batch, *, epoch: int, record: Record) -> Tensor:
        """The cross-entropy, summed as the authors do (`loss_scale`); "cross_entropy" in the log is a pixel's mean."""
        mean = cross_entropy_loss(output.logits, batch["labels"])
        record(cross_entropy=mean)
        return self.recipe.loss_scale * mean

    def validation_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The cross-entropy alone, by which the authors keep the epoch of their lowest validation loss."""
        return cross_entropy_loss(logits, batch["labels"])
