"""What a published method is: what it asks of the data, its recipe, network, samples and loss. It knows no loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

import numpy as np
from torch import Tensor, nn

from echoplan.dataset import DatasetDescription
from echoplan.errors import EchoPlanError
from echoplan.networks import ClipOutput, build_network
from echoplan.plans import ResolvedPlan

from ...preprocessing.store import StoredCase
from ..data import Batch, Sample, planned_samples
from ..features import FrozenEncoder
from ..fold import FoldSetup
from ..losses import dice_ce_loss
from ..recipe import MethodRequirements, PublishedNetwork, PublishedProtocol, Recipe

if TYPE_CHECKING:
    from ..fold import FoldSetup

RecipeT = TypeVar("RecipeT", bound=Recipe)
MethodT = TypeVar("MethodT", bound="Method[Any]")
Record = Callable[..., None]
Targets = Callable[[np.ndarray], Mapping[str, np.ndarray]]


class Method(ABC, Generic[RecipeT]):
    """One method with its settings. Planning, training and inference ask it; `Trainer` is the loop around it.

    A class says `class MyMethod(Method[MyRecipe])`, its `requirements` and `recipe_class`, its `network_name` or a
    `build_network` of its own, and has a `loss`.

    Args:
        recipe: its settings; None takes the paper's.
        name: as `-tr` has it, and folders, plans and checkpoints keep it; None is the class's.
        defaults: the settings of that name when nothing is changed; None: `recipe` is.

    Attributes:
        configuration: of the plan, which it builds on: "frame" or "clip".
        requirements: what it asks of the plan.
        protocols: public dataset (`DatasetDescription.published`) -> how the paper did there.
        published: how the authors' own network saw its frames, where they published one that predicts by itself.
        recipe_class: of its settings.
        network_name: what `echoplan.networks.build_network` calls its network.
        validation_batches: how many training batches' samples go through the network together where nothing is learnt.
        epoch: that is being trained, from 0, for `forward`; the trainer sets it.
    """

    configuration: ClassVar[str] = "frame"
    requirements: ClassVar[MethodRequirements]
    protocols: ClassVar[Mapping[str, PublishedProtocol]] = {}
    published: ClassVar[PublishedNetwork | None] = None
    recipe_class: type[RecipeT] = cast("type[RecipeT]", Recipe)
    network_name: ClassVar[str] = ""
    validation_batches: ClassVar[int] = 1
    epoch: int = 0

    def __init__(
        self, recipe: RecipeT | None = None, *, name: str | None = None, defaults: RecipeT | None = None
    ) -> None:
        self.recipe = recipe or self.recipe_class()
        self.name = name or type(self).__name__
        self.defaults = defaults or self.recipe

    def with_settings(self: MethodT, settings: Mapping[str, Any]) -> MethodT:
        """The method with some settings of its recipe changed.

        Raises:
            EchoPlanError: a setting does not exist, or has another type.
        """
        return type(self)(self.recipe.with_settings(settings), name=self.name, defaults=self.defaults)

    def check_dataset(self, description: DatasetDescription) -> None:
        """Raise an EchoPlanError where the method cannot train on a dataset."""
        if description.classes > 1 and not self.requirements.multi_structure:
            raise EchoPlanError(
                f"{self.name} segments one structure; this dataset has {', '.join(description.structures)}",
                remedy="convert the dataset with one structure (--structures lv), or choose another trainer",
            )

    def build_network(self, *, size: tuple[int, int], classes: int, pretrained: bool | Path = False) -> nn.Module:
        """The method's network: the one way to it for planning, training and inference.

        It is `network_name` with the settings of the recipe, unless a method builds its own.

        Args:
            size: (H, W) of the input.
            classes: K output channels.
            pretrained: whether to load pretrained weights; a path names their file.
        """
        settings = asdict(self.recipe.network_settings())
        return build_network(self.network_name, size=size, classes=classes, pretrained=pretrained, **settings)

    def prepare_network(self, network: nn.Module, setup: FoldSetup) -> None:
        """What a network is to know of the fold's training cases before the first step; nothing, unless changed.

        Args:
            network: as it begins, with the weights it starts from; changed in place.
            setup: the fold.
        """

    @abstractmethod
    def loss(self, output: ClipOutput, batch: Batch, *, epoch: int, record: Record) -> Tensor:
        """The training loss of a batch, or of a part of one; unlabelled pixels (255) must not count.

        Args:
            output: of `forward`.
            batch: "clip" (B, T, 1, H, W), "labels" (B, T, H, W), and what `extra_targets` added; "hidden" (B, T, H, W),
                where labels are hidden (`supervision`), is for watching and must not teach.
            epoch: from 0, for schedules.
            record: `record(name=value)` has a value averaged over the epoch, into metrics.jsonl.
        """

    def forward(self, network: Callable[..., Any], batch: Batch) -> ClipOutput:
        """The network's output for a training batch, with an empty auxiliary part where the network gives none.

        A method changes it where its network takes more than frames and `prompts` in training. In validation and at
        test time a network sees nothing but frames.

        Args:
            network: the method's, in training mode, to be called; parallel and compiled where it is to be.
            batch: see `loss`.
        """
        output = self.answer(network, batch)
        return output if isinstance(output, ClipOutput) else ClipOutput(output, {})

    def frozen_encoder(self, network: nn.Module) -> FrozenEncoder | None:
        """The part of the network that sees frames by themselves first and never learns; None where there is none.

        What it makes of frames that come again unchanged is kept, and stands in batches as "features" (B, T, ...).
        """
        return None

    def answer(self, network: Callable[..., Any], batch: Batch) -> Tensor:
        """The network's logits for a validation batch; see `forward`."""
        return network(batch["clip"], batch["prompts"]) if "prompts" in batch else network(batch["clip"])

    def prompts(self, batch: Batch, *, training: bool) -> Any:
        """What a promptable network is told of a batch, made of its labels; None tells it nothing.

        It is asked for while the batch is in ordinary memory, for reading labels on a GPU would have to wait for all
        that the GPU is at. What it gives is the batch's "prompts" from then on, stays there, and can be taken in parts
        by slices.

        Args:
            batch: as the loader gives it.
            training: to learn from; else to be watched.
        """
        return None

    def prompt_of_cases(self, network: nn.Module, setup: FoldSetup) -> Callable[[str], Any] | None:
        """What the final validation tells the network of each case; None, as it should be, tells it nothing."""
        return None

    def validation_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The mean loss of a validation batch, by which `keep_epoch=lowest_loss` chooses the epoch.

        Dice and cross-entropy of the answer, whatever else the method learns by.

        Args:
            logits: the network's in evaluation mode, (B, T, K, H, W).
            batch: see `loss`; without what `extra_targets` adds.
        """
        return dice_ce_loss(logits, batch["labels"])

    def samples(self, cases: Sequence[StoredCase], plan: ResolvedPlan, *, training: bool) -> list[Sample]:
        """The samples of some cases, as the plan's `sampling` says: labelled frames, clips, or windows of T frames.

        Args:
            cases: as the store knows them, but for the labelled frames that `supervision` hides.
            plan: T, and the stride in each dataset.
            training: to learn from; else to be watched.
        """
        return planned_samples(cases, plan, every_place=training)

    def remarks(self, samples: Sequence[Sample], labelled: Mapping[str, Collection[int]]) -> list[str]:
        """What a user should know of the method on this data, for the log.

        Args:
            samples: of the training.
            labelled: of each training case, the frames whose labels the training sees.
        """
        return []

    def begin_epoch(self, network: nn.Module) -> None:
        """Look at the network between two epochs; before the first one it is as it starts."""

    def state(self) -> dict[str, Any]:
        """What the method keeps from one step of an epoch to the next, in tensors and plain types, for a checkpoint."""
        return {}

    def restore(self, state: Mapping[str, Any], network: nn.Module) -> None:
        """Put back what `state` gave within an epoch, beside the network as it was then."""

    def extra_targets(self, classes: int) -> Targets | None:
        """A picklable function labels (T, H, W) -> more targets by name, for the loader's workers; or None."""
        return None
