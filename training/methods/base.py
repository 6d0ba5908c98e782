"""The trainer: one class a method, with the recipe as settings and the training loop as pseudocode with hooks."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from echoplan import layout
from echoplan.device import channels_last
from echoplan.errors import EchoPlanError, Terminated
from echoplan.networks import ClipOutput, build_network
from echoplan.networks.learning import describe_learning
from echoplan.parallel_map import progress
from echoplan.plans import ResolvedPlan

from ...preprocessing.store import StoredCase
from ..basis import folds_of_other_plans
from ..checkpoint import load_checkpoint, save_checkpoint
from ..compilation import CompiledModel
from ..crowding import gradient_that_fits
from ..data import (
    Augmentation,
    Batch,
    BatchLoader,
    Sample,
    SampleReader,
    build_augmentation,
    planned_samples,
    visible_frames,
)
from ..distributed import World
from ..fold import FoldSetup
from ..initialization import build_started, describe_start
from ..log import EpochMeans, TrainingLog
from ..online_dice import OnlineDice, mean_over_datasets
from ..optimisation import Optimisation
from ..recipe import Recipe, TrainerNeeds
from ..state import EpochProgress, model_state, restore_training, training_state, write_model_files
from ..termination import Termination

_SMOOTHING = 0.9  # of the validation Dice that picks the best checkpoint; single epochs are noisy


class EchoTrainer(ABC):
    """Trains one fold. A method states its needs, recipe, network and loss, and changes hooks where it must.

    Args:
        setup: the fold's plan, store, cases and folders.
        recipe: the method's settings; None takes the paper's.
        device: where to train.
        seed: of the weights, the order and the augmentation.
        processes: data-loading workers.
        weights: a file with pretrained weights or a checkpoint of the same trainer; None looks in the usual places.
        source: how `-tr` named the class, for finding it again.
        world: the processes that train together.

    Raises:
        EchoPlanError: the method cannot train on this dataset.
    """

    configuration: ClassVar[str] = "frame"
    needs: ClassVar[TrainerNeeds]
    recipe_class: ClassVar[type[Recipe]] = Recipe
    network_name: ClassVar[str] = ""

    def __init__(
        self,
        setup: FoldSetup,
        recipe: Recipe | None = None,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        processes: int = 0,
        weights: Path | None = None,
        source: str | None = None,
        world: World | None = None,
    ) -> None:
        if setup.description.classes > 1 and not self.needs.multi_structure:
            raise EchoPlanError(
                f"{type(self).__name__} segments one structure; this dataset has "
                f"{', '.join(setup.description.structures)}",
                remedy="convert the dataset with one structure (--structures lv), or choose another trainer",
            )
        self.setup = setup
        self.recipe = recipe or self.recipe_class()
        self.device = torch.device(device)
        self.seed = seed
        self.processes = processes
        self.weights = weights
        self.source = source or type(self).__name__
        self.world = world or World()
        self.started_from: dict[str, Any] = {}
        self.first_epoch = self.epoch = 0
        self.recorded = EpochMeans()
        self.progress = EpochProgress()
        self.termination = Termination()
        self.parallel: nn.Module | None = None
        self.accumulation = 1
        self.rehearsed = 0
        self.best_dice = -1.0
        self.smooth_dice: float | None = None

    # What a method states -------------------------------------------------------------------------------------------

    @classmethod
    def make_network(
        cls, recipe: Any, *, size: tuple[int, int], classes: int, pretrained: bool | Path = False
    ) -> nn.Module:
        """The method's network: `network_name` with the settings of the recipe, unless a method builds its own.

        Args:
            recipe: the method's settings, of its `recipe_class`.
            size: (H, W) of the input.
            classes: K output channels.
            pretrained: whether to load pretrained weights; a path names their file.
        """
        settings = asdict(recipe.network_settings())
        return build_network(cls.network_name, size=size, classes=classes, pretrained=pretrained, **settings)

    @abstractmethod
    def loss(self, output: ClipOutput, batch: Batch) -> Tensor:
        """The training loss of a batch; unlabelled pixels (255) must not count.

        `self.epoch` is the current epoch, for schedules; what `self.recorded.add(name=value)` gets is averaged over the
        epoch into metrics.jsonl.

        Args:
            output: the network's output in training mode.
            batch: "clip" (B, T, 1, H, W), "labels" (B, T, H, W), and what `finish_sample` added; "hidden" (B, T, H, W),
                where labels are hidden (`supervision`), is for watching and must not teach.
        """

    @classmethod
    def build_network(
        cls,
        *,
        size: tuple[int, int],
        classes: int,
        settings: Mapping[str, Any] | None = None,
        pretrained: bool | Path = False,
    ) -> nn.Module:
        """`make_network` with the recipe's settings changed: the one way to it for training, planning and inference."""
        recipe = cls.recipe_class().with_settings(settings or {})
        return cls.make_network(recipe, size=size, classes=classes, pretrained=pretrained)

    def finish_sample(self) -> Any:
        """A picklable function labels (T, H, W) -> more targets by name, for the loader's workers; or None."""
        return None

    # The training ---------------------------------------------------------------------------------------------------

    def run_training(self, *, resume: bool = False) -> None:
        """Train the fold from its start, or from its last whole epoch."""
        self.on_train_start(resume=resume)
        try:
            with Termination() as self.termination:
                for epoch in range(self.first_epoch, self.recipe.epochs):
                    self.train_epoch(epoch)
                    self.on_epoch_end(epoch, self.validate_epoch())
                self.on_train_end()
        except RuntimeError as error:  # a worker's death is raised wherever this thread happens to be
            raise self.training_batches.explain(error, self.validation_batches) from error
        finally:
            for batches in (self.training_batches, self.validation_batches):
                batches.close()
            self.log.close()

    def on_train_start(self, *, resume: bool) -> None:
        """Make network, optimiser and loaders; put back the last epoch's state when resuming."""
        torch.manual_seed(self.seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        plan, recipe = self.setup.plan, self.recipe
        network, self.started_from = build_started(self, resume=resume)
        self.network = self.world.synchronise_norms(network.to(self.device), self.device)
        if recipe.channels_last and self.device.type == "cuda":
            channels_last(self.network)
        self.model = self.parallel = self.world.wrap(self.network, self.device)
        torch.manual_seed(self.seed + self.world.rank)  # the same weights everywhere, but not the same dropout
        self.training_batches = self.build_loader(self.setup.train, training=True)
        self.validation_batches = self.build_loader(self.setup.val, training=False)
        self.optimisation = Optimisation(
            self.network,
            recipe,
            learning_rate=recipe.learning_rate or float(plan.value("learning_rate")),
            iterations=len(self.training_batches) * recipe.epochs,
            device=self.device,
        )
        if resume:
            restore_training(
                self, load_checkpoint(self.setup.folder / layout.checkpoint_file("latest"), device=self.device)
            )
        self.log = TrainingLog(self.setup.folder, first_epoch=self.first_epoch, writes=self.world.leads)
        if recipe.compile:
            self.model = CompiledModel(self.parallel, self.log.say)
        if self.world.leads:
            write_model_files(self)
            for fold, difference in folds_of_other_plans(self.setup.model_folder, plan).items():
                self.log.say(
                    f"warning: fold {fold} was trained on another plan ({difference}) and cannot be used together with "
                    "this one; train it again with --overwrite"
                )
        self.log.say(f"{describe_start(self.started_from)}; {describe_learning(self.network)}")
        self.log.say(
            f"{type(self).__name__}, fold {self.setup.fold}: {len(self.setup.train)} cases to train on "
            f"({len(self.training_batches.samples)} samples), {len(self.setup.val)} to validate, input {plan.size}, "
            f"batch {self.training_batches.batch_size}, {len(self.training_batches)} iterations an epoch, epochs "
            f"{self.first_epoch} to {recipe.epochs - 1}, {self.optimisation.dtype} on {self.device}"
        )

    def train_epoch(self, epoch: int) -> None:
        """One round over the training batches, or the rest of a terminated one; `self.progress` says how it went.

        Raises:
            Terminated: SIGTERM came; the training is saved at the step it was at.
        """
        self.epoch = epoch
        self.network.train()
        bar = progress(
            self.training_batches.epoch(epoch, start=self.progress.batches),
            description=f"epoch {epoch}",
            total=len(self.training_batches) - self.progress.batches,
            unit="batch",
        )
        waited_since = time.perf_counter()
        for batch in bar:
            batch = self.to_device(batch)
            arrived = time.perf_counter()
            loss = self.train_step(batch, self.training_batches.share(self.progress.batches))
            loss, terminate = self.world.total(loss, float(self.termination.requested), device=self.device)
            self.progress.losses.append(loss)
            self.progress.batches += 1
            finished = time.perf_counter()
            self.progress.spend(
                data_seconds=arrived - waited_since, step_seconds=finished - arrived, seconds=finished - waited_since
            )
            waited_since = finished
            if terminate:
                self._save_terminated(epoch)

    def train_step(self, batch: Batch, share: float = 1.0) -> float:
        """Move the weights by one batch, of which this process has a share; its part of the mean loss.

        A batch too large for the GPU is halved, from then on.
        """
        loss = gradient_that_fits(self, batch, share)
        self.world.mean_statistics(self.network)
        self.optimisation.move()
        return loss

    def part_loss(self, part: Batch) -> Tensor:
        """The training loss of a batch or a part of one."""
        return self.loss(self.forward(part), part)

    def _save_terminated(self, epoch: int) -> None:
        self._save("latest", training_state(self, epoch))
        done = f"{self.progress.batches} of {len(self.training_batches)} batches of epoch {epoch}"
        self.log.say(f"terminated after {done}; saved, --c goes on from there")
        raise Terminated

    def forward(self, batch: Batch) -> ClipOutput:
        """The network's output for a training batch, with an empty auxiliary part where the network gives none.

        A method changes it where its network takes more than frames in training. In validation and at test time a
        network sees nothing but frames. `self.model` is the network, parallel and compiled where it is to be.
        """
        output = self.model(batch["clip"])
        return output if isinstance(output, ClipOutput) else ClipOutput(output, {})

    @torch.inference_mode()
    def validate_epoch(self) -> float | None:
        """Mean Dice over the structures and the labelled frames of the validation samples, on the network's grid.

        None where no validation sample has a label. In a joint, the mean of its datasets' means, which are recorded.
        """
        started = time.perf_counter()
        self.network.eval()
        score = OnlineDice(self.classes)
        for batch in self.validation_batches.epoch(0) if self.world.leads else ():
            if self.termination.requested and self.world.size == 1:  # several must stop at the same step
                self._save_terminated(self.epoch)
            batch = self.to_device(batch)
            with self.optimisation.autocast():
                logits = self.network(batch["clip"])
            score.add(logits, batch["labels"], batch["dataset"])
        found = self.world.from_leader(score.by_dataset())
        if self.setup.plan.multi_dataset:
            self.recorded.add(**{f"val_dice_{name}": found.get(name, np.nan) for name in self.setup.plan.datasets})
        self.progress.spend(seconds=time.perf_counter() - started)
        return mean_over_datasets(found)

    def on_epoch_end(self, epoch: int, dice: float | None) -> None:
        """Write the metrics and the checkpoints of the epoch."""
        loss, seconds = float(np.mean(self.progress.losses)), self.progress.seconds
        if dice is not None:
            before = dice if self.smooth_dice is None else self.smooth_dice
            self.smooth_dice = _SMOOTHING * before + (1 - _SMOOTHING) * dice
        is_best = self.smooth_dice is not None and self.smooth_dice > self.best_dice
        if is_best:
            self.best_dice = float(self.smooth_dice or 0.0)
        self.log.epoch(
            epoch=epoch,
            train_loss=loss,
            val_dice=dice,
            val_dice_smooth=self.smooth_dice,
            learning_rate=self.optimisation.rate,
            **self.recorded.take(),
            **seconds,
        )
        shown = "no validation labels" if dice is None else f"validation Dice {dice:.4f}"
        self.log.say(f"epoch {epoch}: loss {loss:.4f}, {shown}, {seconds['seconds']:.1f} s")
        self.progress = EpochProgress()
        if is_best:  # before "latest", which says that it is there
            self._save("best", model_state(self, epoch + 1))
        self._save("latest", training_state(self, epoch + 1))

    def on_train_end(self) -> None:
        """Write the final checkpoint."""
        self._save("final", model_state(self, self.recipe.epochs))
        self.log.say(f"trained {self.recipe.epochs} epochs; best smoothed validation Dice {self.best_dice:.4f}")

    def _save(self, name: str, state: Mapping[str, Any]) -> None:
        if self.world.leads:
            save_checkpoint(self.setup.folder / layout.checkpoint_file(name), state)

    # Parts a method may change --------------------------------------------------------------------------------------

    @property
    def classes(self) -> int:
        """K, the network's output channels."""
        return self.setup.description.classes

    def samples(self, cases: tuple[str, ...]) -> list[Sample]:
        """The samples to train on, as the plan's `sampling` says: labelled frames, clips, or windows of T frames."""
        return planned_samples(self.training_cases(cases), self.setup.plan)

    def validation_samples(self, cases: tuple[str, ...]) -> list[Sample]:
        """The samples to watch during training: every labelled frame once, alone or in its clip."""
        return planned_samples(self.setup.stored_cases(cases), self.setup.plan, every_place=False)

    def training_cases(self, cases: tuple[str, ...]) -> list[StoredCase]:
        """What the store knows of training cases, without the labelled frames that `supervision` hides."""
        return [
            replace(case, labelled_frames=visible_frames(case, self.recipe.supervision))
            for case in self.setup.stored_cases(cases)
        ]

    def augmentation(self, plan: ResolvedPlan) -> Augmentation:
        """What changes training samples at random; in a joint, those of the dataset whose plan it is."""
        return build_augmentation(
            self.recipe.augmentation,
            rotation_degrees=plan.rotation_degrees,
            mirror="horizontal" in plan.mirror_axes,
        )

    def build_loader(self, cases: tuple[str, ...], *, training: bool) -> BatchLoader:
        """The batches of the fold's training or validation cases."""
        plan, samples = self.setup.plan, self.samples(cases) if training else self.validation_samples(cases)
        if training and not samples:
            raise EchoPlanError("no training case has a labelled frame", file=self.setup.store.folder)
        reader = SampleReader(
            self.setup.store,
            plan,
            self.classes,
            augmentation={name: self.augmentation(own) for name, own in plan.each().items()} if training else None,
            finish=self.finish_sample() if training else None,
            supervision=self.recipe.supervision if training else "all",
        )
        return BatchLoader(
            samples,
            reader,
            batch_size=self.recipe.batch_size or plan.batch_size,
            batches_per_epoch=self.recipe.iterations_per_epoch if training else None,
            epochs=self.recipe.epochs if training else 0,
            shuffle=training,
            groups=self.setup.datasets_of(samples) if self.recipe.balance == "datasets" else None,
            seed=self.seed,
            processes=self.processes,
            pin_memory=self.device.type == "cuda",
            rank=self.world.rank if training else 0,
            ranks=self.world.size if training else 1,
        )

    def to_device(self, batch: Batch) -> Batch:
        """The batch's tensors on the device."""
        return {
            name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }
