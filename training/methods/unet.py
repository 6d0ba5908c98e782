"""UNetTrainer and UNet2DtTrainer of `-tr`: nnU-Net's recipe (Isensee et al. 2021) on frames, and on clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from echoplan.networks import ClipOutput
from echoplan.networks.unet import SpaceTimeUNetSettings, UNetSettings
from echoplan.plans import ResolvedPlan

from ...preprocessing.store import StoredCase
from ..data import Batch, Sample, window_samples
from ..losses import deep_supervision_loss, dice_ce_loss
from ..recipe import MethodRequirements, Recipe
from .method import Method, Record


@dataclass(frozen=True)
class UNetRecipe(Recipe):
    """nnU-Net's: 1000 rounds of 250 batches, SGD with Nesterov momentum, poly schedule, strong augmentation.

    Attributes:
        network: see `UNetSettings`.
    """

    epochs: int = 1000
    iterations_per_epoch: int | None = 250
    optimiser: str = "sgd"
    momentum: float = 0.99
    weight_decay: float = 3e-5
    gradient_clip: float | None = 12.0
    augmentation: str = "strong"
    network: UNetSettings = field(default_factory=UNetSettings)


@dataclass(frozen=True)
class SpaceTimeUNetRecipe(UNetRecipe):
    """The same; its network has nnU-Net's channels for volumes, see `SpaceTimeUNetSettings`."""

    network: SpaceTimeUNetSettings = field(default_factory=SpaceTimeUNetSettings)


class UNetMethod(Method[UNetRecipe]):
    """A U-Net on single frames: Dice and cross-entropy, deep supervision."""

    configuration: ClassVar[str] = "frame"
    requirements: ClassVar[MethodRequirements] = MethodRequirements(batch_size=32, learning_rate=1e-2)
    recipe_class: type[UNetRecipe] = UNetRecipe
    network_name: ClassVar[str] = "unet"

    def loss(self, output: ClipOutput, batch: Batch, *, epoch: int, record: Record) -> Tensor:
        """Dice and cross-entropy in an unweighted sum, at every supervised resolution."""
        logits = [output.logits, *output.auxiliary.get("deep_supervision", [])]
        return deep_supervision_loss(logits, batch["labels"], loss=dice_ce_loss)


class SpaceTimeUNetMethod(UNetMethod):
    """The same in space-time: time is never pooled and never mirrored; labels are met at every place of a window."""

    configuration: ClassVar[str] = "clip"
    requirements: ClassVar[MethodRequirements] = MethodRequirements(batch_size=4, learning_rate=1e-2, frames=10)
    recipe_class = SpaceTimeUNetRecipe
    network_name: ClassVar[str] = "unet_2dt"

    def samples(self, cases: Sequence[StoredCase], plan: ResolvedPlan, *, training: bool) -> list[Sample]:
        """To learn from, windows that show each labelled frame at each of their places."""
        if not training:
            return super().samples(cases, plan, training=training)
        return [
            sample
            for case in cases
            for sample in window_samples(case, plan.frames, stride=plan.of(case.dataset).frame_stride)
        ]
