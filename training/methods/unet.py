"""UNetTrainer and UNet2DtTrainer: nnU-Net's recipe (Isensee et al. 2021) on frames, and on clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from echoplan.networks import ClipOutput, build_network

from ..data import Batch, Sample, window_samples
from ..losses import deep_supervision_loss, dice_ce_loss
from ..recipe import Recipe, TrainerNeeds
from .base import EchoTrainer


@dataclass(frozen=True)
class UNetRecipe(Recipe):
    """nnU-Net's: 1000 rounds of 250 batches, SGD with Nesterov momentum, poly schedule, strong augmentation.

    Attributes:
        base_features: channels of the first stage.
        deep_supervision: losses at lower resolutions too.
    """

    epochs: int = 1000
    iterations_per_epoch: int | None = 250
    optimiser: str = "sgd"
    momentum: float = 0.99
    weight_decay: float = 3e-5
    gradient_clip: float | None = 12.0
    augmentation: str = "strong"
    base_features: int = 32
    deep_supervision: bool = True


class UNetTrainer(EchoTrainer):
    """A U-Net on single frames: Dice and cross-entropy, deep supervision."""

    configuration: ClassVar[str] = "frame"
    needs: ClassVar[TrainerNeeds] = TrainerNeeds(batch_size=32, learning_rate=1e-2)
    recipe_class: ClassVar[type[Recipe]] = UNetRecipe
    network_name: ClassVar[str] = "unet"

    @classmethod
    def make_network(
        cls, recipe: UNetRecipe, *, size: tuple[int, int], classes: int, pretrained: bool | Path = False
    ) -> nn.Module:
        """See `EchoTrainer.make_network`."""
        return build_network(
            cls.network_name,
            size=size,
            classes=classes,
            pretrained=pretrained,
            base_features=recipe.base_features,
            deep_supervision=recipe.deep_supervision,
        )

    def loss(self, output: ClipOutput, batch: Batch) -> Tensor:
        """Dice and cross-entropy in an unweighted sum, at every supervised resolution."""
        logits = [output.logits, *output.auxiliary.get("deep_supervision", [])]
        return deep_supervision_loss(logits, batch["labels"], loss=dice_ce_loss)


class UNet2DtTrainer(UNetTrainer):
    """The same in space-time: time is never pooled and never mirrored; labels are met at every place of a window."""

    configuration: ClassVar[str] = "clip"
    needs: ClassVar[TrainerNeeds] = TrainerNeeds(batch_size=4, learning_rate=1e-2, frames=10)
    network_name: ClassVar[str] = "unet_2dt"

    def samples(self, cases: tuple[str, ...]) -> list[Sample]:
        """Windows that show each labelled frame at each of their places."""
        setup = self.setup
        return [
            sample
            for case in self.training_cases(cases)
            for sample in window_samples(case, setup.plan.frames, stride=setup.plan_of(case).frame_stride)
        ]
