"""EchoForgeTrainer of `-tr`: EchoForge (Fang et al.), which learns from unlabelled frames as well."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from echoplan.networks import ClipOutput
from echoplan.networks.echoforge.settings import EchoForgeSettings
from echoplan.networks.settings import check_choice

from ..data import Batch, Sample
from ..losses import dice_ce_loss, reduce_labels
from ..recipe import MethodRequirements, PublishedProtocol, Recipe
from ..semi_supervision import FlameRise, confident_share, hidden_dice, pseudo_labels
from .method import Method, Record

if TYPE_CHECKING:
    from echoplan.networks.echoforge.model import EchoForge


@dataclass(frozen=True)
class EchoForgeRecipe(Recipe):
    """The paper's: 50 epochs, Adam 1e-4, poly 0.9, batch 4, ten frames of 256 x 256, an ImageNet backbone.

    Attributes:
        pretrained: start from ImageNet weights.
        pseudo_labels: whose features they are reforged from: "current" (the network's as it learns) or "previous_epoch"
            (its own as the last epoch left it, as the paper's figure has it; a second network in memory).
        flame_rise: whether pseudo-labels come in gradually; if not, with `pseudo_weight` and `last_threshold` at once.
        rise_start, rise_end: E0 and E1 as shares of the epochs.
        pseudo_weight: lambda_max.
        first_threshold, last_threshold: tau_0 and tau_1.
        network: see `EchoForgeSettings`.
    """

    epochs: int = 50
    augmentation: str = "moderate"
    pretrained: bool = True
    pseudo_labels: str = "current"
    flame_rise: bool = True
    rise_start: float = 0.1
    rise_end: float = 0.6
    pseudo_weight: float = 1.0
    first_threshold: float = 0.95
    last_threshold: float = 0.80
    network: EchoForgeSettings = field(default_factory=EchoForgeSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("pseudo_labels", self.pseudo_labels, ("current", "previous_epoch"))
        self.schedule()

    def schedule(self) -> FlameRise:
        """The pseudo-labels' weight and threshold over the epochs.

        Raises:
            EchoPlanError: a value is out of its range.
        """
        return FlameRise(
            self.epochs,
            start=self.rise_start if self.flame_rise else 0.0,
            end=self.rise_end if self.flame_rise else 0.0,
            weight=self.pseudo_weight,
            first_threshold=self.first_threshold,
            last_threshold=self.last_threshold,
        )


class EchoForgeMethod(Method[EchoForgeRecipe]):
    """EchoForge with ResNet-50: labels where they are, reforged pseudo-labels where they are not."""

    configuration: ClassVar[str] = "clip"
    requirements: ClassVar[MethodRequirements] = MethodRequirements(
        batch_size=4, learning_rate=1e-4, frames=10, paper_size=256, multi_structure=False
    )
    protocols: ClassVar[Mapping[str, PublishedProtocol]] = {
        "CAMUS": PublishedProtocol(256, "number", {"supervision": "ed_es"}),
        "EchoNet-Dynamic": PublishedProtocol(128, "number"),
    }
    recipe_class = EchoForgeRecipe
    network_name: ClassVar[str] = "echoforge"
    validation_batches: ClassVar[int] = 4  # frame by frame, a few clips are little work
    previous: nn.Module | None = None  # the network as the last epoch left it, where pseudo-labels come from that

    @cached_property
    def schedule(self) -> FlameRise:
        """The pseudo-labels' weight and threshold over the epochs."""
        return self.recipe.schedule()

    def forward(self, network: Callable[..., Any], batch: Batch) -> ClipOutput:
        """In training, labelled frames with their masks may serve as reference, so the network gets them too.

        Pseudo-labels are made where they teach: not before the rise, and by one of the two networks.
        """
        wanted, clip, labels = self.schedule.weight_at(self.epoch + 1) > 0, batch["clip"], batch["labels"]
        output: ClipOutput = network(clip, labels, with_pseudo=wanted and self.previous is None)
        if wanted and self.previous is not None:
            with torch.no_grad():
                output.auxiliary["pseudo"] = self.previous(clip, labels).auxiliary["pseudo"]
        return output

    def begin_epoch(self, network: nn.Module) -> None:
        """Keep a copy of the network, where `pseudo_labels` asks for it."""
        if self.recipe.pseudo_labels == "previous_epoch" and self.recipe.network.reforging:
            self.previous = _frozen_copy(network)

    def state(self) -> dict[str, Any]:
        """The weights of the last epoch's network."""
        return {} if self.previous is None else {"previous": self.previous.state_dict()}

    def restore(self, state: Mapping[str, Any], network: nn.Module) -> None:
        """See `Method.restore`."""
        if "previous" in state:
            self.previous = _frozen_copy(network)
            self.previous.load_state_dict(state["previous"])

    def remarks(self, samples: Sequence[Sample], labelled: Mapping[str, Collection[int]]) -> list[str]:
        """Says so where there is no unlabelled frame, and what to type instead."""
        if not self.recipe.network.reforging or any(set(one.frames) - set(labelled[one.case]) for one in samples):
            return []
        hide = "--set supervision=ed_es hides the labels between end-diastole and end-systole, as the paper does"
        longer = self.recipe.supervision == "all" and any(len(frames) > 2 for frames in labelled.values())
        return [
            "every frame of the training samples has a label, so reforging has nothing to do: "
            f"{f'{hide}; ' if longer else ''}--set reforging=false leaves it out"
        ]

    def loss(self, output: ClipOutput, batch: Batch, *, epoch: int, record: Record) -> Tensor:
        """Equation 9: BCE and Dice on labelled frames, and lambda times the same on confident pseudo-labels.

        Supervised are the answer, the mean over the query layers before it, the anchors' map, and the labelled frames'
        masks as reforged from one another.
        """
        labels, auxiliary = batch["labels"], output.auxiliary
        total = _supervised(output.logits, labels) + _supervised(auxiliary["anchors"], labels)
        earlier = auxiliary["deep_supervision"]
        if earlier:
            total = total + sum(_supervised(logits, labels) for logits in earlier) / len(earlier)
        if "reforged" not in auxiliary:
            return total
        frames = auxiliary["reforged_frames"][..., None, None].expand(-1, -1, *labels.shape[2:])
        total = total + _supervised(auxiliary["reforged"], labels.gather(1, frames))
        return total + self._unsupervised(output, batch, epoch=epoch, record=record)

    def _unsupervised(self, output: ClipOutput, batch: Batch, *, epoch: int, record: Record) -> Tensor | float:
        """lambda(e) L_U: the answer against the confident pixels of the reforged masks."""
        weight, threshold = self.schedule.weight_at(epoch + 1), self.schedule.threshold_at(epoch + 1)
        record(**{"lambda": weight, "tau": threshold})
        if "hidden" in batch:
            record(hidden_dice=hidden_dice(output.logits.detach().sigmoid(), batch["hidden"]))
        if not weight:
            return 0.0
        probabilities = output.auxiliary["pseudo"]
        pseudo = pseudo_labels(probabilities, batch["labels"], threshold=threshold)
        record(confident_share=confident_share(pseudo, batch["labels"]))
        if "hidden" in batch:
            record(pseudo_label_dice=hidden_dice(probabilities, batch["hidden"]))
        return weight * dice_ce_loss(output.logits, pseudo)


def _frozen_copy(network: nn.Module) -> nn.Module:
    """A copy that gives what the network gives in training mode, with the statistics that its backbone has gathered."""
    copied = copy.deepcopy(network).requires_grad_(False).train()
    cast("EchoForge", copied).pyramid.backbone.eval()
    return copied


def _supervised(logits: Tensor, labels: Tensor) -> Tensor:
    """BCE and Dice on the labelled frames, on the logits' own grid."""
    return dice_ce_loss(logits, reduce_labels(labels, logits.shape[-2:]))
