"""EchoNetTrainer of `-tr`: the segmentation of EchoNet-Dynamic (Ouyang et al., Nature 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from echoplan.networks import ClipOutput
from echoplan.networks.deeplabv3 import DeepLabV3Settings

from ...preprocessing.store import ClipStore
from ..data import Batch
from ..fold import FoldSetup
from ..losses import cross_entropy_loss
from ..recipe import MethodRequirements, PublishedNetwork, PublishedProtocol, Recipe
from .method import Method, Record

_BATCH, _SIDE = 20, 112
_MEASURED = 128  # cases whose grey levels are


@dataclass(frozen=True)
class EchoNetRecipe(Recipe):
    """That of the authors' code (github.com/echonet/dynamic, echonet/utils/segmentation.py).

    SGD 1e-5 with plain momentum 0.9 at a constant rate, no weight decay, 50 epochs of which that of the lowest
    validation loss is kept, batches of 20 of which the last is dropped, an ImageNet backbone, no auxiliary head, no
    augmentation, and the binary cross-entropy summed over the pixels of a batch.

    Attributes:
        pretrained: start the backbone from ImageNet weights. The authors' script says `pretrained=False` of the whole
            network, which under their torchvision (0.9) leaves the backbone its ImageNet weights.
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
    drop_last: bool = field(default=True, metadata={"before": False})
    keep_epoch: str = field(default="lowest_loss", metadata={"before": "last"})
    pretrained: bool = True
    loss_scale: float = float(_BATCH * _SIDE * _SIDE)
    network: DeepLabV3Settings = field(default_factory=DeepLabV3Settings)

    @property
    def input_normalisation(self) -> str | None:
        """See `Recipe.input_normalisation`."""
        return "grey" if self.network.standardise == "training_set" else self.normalisation


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
    # The authors drew the videos by chance whose mean and SD they took, and published neither; these are what others
    # who ran their function on the dataset keep beside the weights.
    published: ClassVar[PublishedNetwork] = PublishedNetwork(
        "EchoNet-Dynamic", {"size": [_SIDE, _SIDE], "normalisation": "grey"}, {"grey_mean": 32.7, "grey_sd": 50.0}
    )
    recipe_class = EchoNetRecipe
    network_name: ClassVar[str] = "deeplabv3"

    def prepare_network(self, network: nn.Module, setup: FoldSetup) -> None:
        """Have the network standardise by the training cases' mean and SD."""
        if self.recipe.network.standardise == "training_set":
            mean, sd = grey_statistics(setup.store, setup.train)
            network.get_buffer("grey_mean").fill_(mean)
            network.get_buffer("grey_sd").fill_(sd)

    def loss(self, output: ClipOutput, batch: Batch, *, epoch: int, record: Record) -> Tensor:
        """The cross-entropy, summed as the authors do (`loss_scale`); "cross_entropy" in the log is a pixel's mean."""
        mean = cross_entropy_loss(output.logits, batch["labels"])
        record(cross_entropy=mean)
        return self.recipe.loss_scale * mean

    def validation_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The cross-entropy alone, by which the authors keep the epoch of their lowest validation loss."""
        return cross_entropy_loss(logits, batch["labels"])


def grey_statistics(store: ClipStore, cases: Sequence[str]) -> tuple[float, float]:
    """Mean and SD of all pixels of some cases, in grey levels; the SD is at least 1.

    The authors measure 128 of their training videos, drawn by chance; here it is 128 spread evenly over the cases.
    """
    chosen = np.unique(np.linspace(0, len(cases) - 1, min(len(cases), _MEASURED)).round().astype(int))
    counts = sum(np.bincount(store.frames(cases[place]).ravel(), minlength=256) for place in chosen)
    levels = np.arange(256)
    mean = float(np.average(levels, weights=counts))
    return mean, max(1.0, float(np.sqrt(np.average((levels - mean) ** 2, weights=counts))))
