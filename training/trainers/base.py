"""The trainer: one class a method, with the recipe as settings and the training loop as pseudocode with hooks."""

from __future__ import annotations

import logging
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from echoplan import __version__
from echoplan.errors import EchoPlanError
from echoplan.files import write_json
from echoplan.networks import ClipOutput
from echoplan.networks.layout import channels_last
from echoplan.work import progress

from ..checkpoint import load_checkpoint, plain_settings, random_state, restore_random_state, save_checkpoint
from ..data import (
    Augmentation,
    Batch,
    BatchLoader,
    Sample,
    SampleReader,
    build_augmentation,
    clip_samples,
    frame_samples,
    visible_frames,
)
from ..fold import FoldSetup
from ..log import EpochMeans, TrainingLog
from ..online_dice import OnlineDice
from ..optimisation import Optimisation
from ..recipe import Recipe, TrainerNeeds

logger = logging.getLogger(__name__)
_SMOOTHING = 0.9  # of the validation Dice that picks the best checkpoint; single epochs are noisy


class EchoTrainer(ABC):
    """Trains one fold. A method states its needs, recipe, network and loss, and changes hooks where it must.

    Args:
        setup: the fold's plan, store, cases and folders.
        recipe: the method's settings; None takes the paper's.
        device: where to train.
        seed: of the weights, the order and the augmentation.
        processes: data-loading workers.
        weights: a file with pretrained weights; None looks in the usual places where the recipe wants them.
        source: how `-tr` named the class, for finding it again.

    Raises:
        EchoPlanError: the method cannot train on this dataset.
    """

    configuration: ClassVar[str] = "frame"
    needs: ClassVar[TrainerNeeds]
    recipe_class: ClassVar[type[Recipe]] = Recipe

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
        self.first_epoch = 0
        self.epoch = 0
        self.recorded = EpochMeans()
        self.best_dice = -1.0
        self.smooth_dice: float | None = None

    # What a method states -------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def make_network(
        cls, recipe: Any, *, size: tuple[int, int], classes: int, pretrained: bool | Path = False
    ) -> nn.Module:
        """The method's network.

        Args:
            recipe: the method's settings, of its `recipe_class`.
            size: (H, W) of the input.
            classes: K output channels.
            pretrained: whether to load pretrained weights; a path names their file.
        """

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
            for epoch in range(self.first_epoch, self.recipe.epochs):
                started = time.perf_counter()
                losses, seconds = self.train_epoch(epoch)
                dice = self.validate_epoch()
                self.on_epoch_end(epoch, losses, dice, seconds | {"seconds": time.perf_counter() - started})
            self.on_train_end()
        finally:
            self.log.close()

    def on_train_start(self, *, resume: bool) -> None:
        """Make network, optimiser and loaders; put back the last epoch's state when resuming."""
        torch.manual_seed(self.seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        plan, recipe = self.setup.plan, self.recipe
        pretrained = not resume and (self.weights or bool(getattr(recipe, "pretrained", False)))
        self.network = self.build_network(
            size=plan.size, classes=self.classes, settings=recipe.to_dict(), pretrained=pretrained
        ).to(self.device)
        if recipe.channels_last and self.device.type == "cuda":
            channels_last(self.network)
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
            self._restore(load_checkpoint(self.setup.folder / "checkpoint_latest.pth", device=self.device))
        self.log = TrainingLog(self.setup.folder, first_epoch=self.first_epoch)
        self._write_model_files()
        self.log.say(
            f"{type(self).__name__}, fold {self.setup.fold}: {len(self.setup.train)} cases to train on "
            f"({len(self.training_batches.samples)} samples), {len(self.setup.val)} to validate, input {plan.size}, "
            f"batch {self.training_batches.batch_size}, {len(self.training_batches)} iterations an epoch, epochs "
            f"{self.first_epoch} to {recipe.epochs - 1}, {self.optimisation.dtype} on {self.device}"
        )

    def train_epoch(self, epoch: int) -> tuple[list[float], dict[str, float]]:
        """One round over the training batches: the losses, and the seconds spent waiting for data and computing."""
        self.epoch = epoch
        self.network.train()
        losses: list[float] = []
        data_seconds = step_seconds = 0.0
        waited_since = time.perf_counter()
        bar = progress(
            self.training_batches.epoch(epoch),
            description=f"epoch {epoch}",
            total=len(self.training_batches),
            unit="batch",
        )
        for batch in bar:
            batch = self.to_device(batch)
            arrived = time.perf_counter()
            data_seconds += arrived - waited_since
            losses.append(self.optimisation.step(lambda batch=batch: self.loss(self.forward(batch), batch)))
            waited_since = time.perf_counter()
            step_seconds += waited_since - arrived
        return losses, {"data_seconds": data_seconds, "step_seconds": step_seconds}

    def forward(self, batch: Batch) -> ClipOutput:
        """The network's output for a training batch, with an empty auxiliary part where the network gives none.

        A method changes it where its network takes more than frames in training. In validation and at test time a
        network sees nothing but frames.
        """
        output = self.network(batch["clip"])
        return output if isinstance(output, ClipOutput) else ClipOutput(output, {})

    @torch.inference_mode()
    def validate_epoch(self) -> float | None:
        """Mean Dice over the structures and the labelled frames of the validation samples, on the network's grid.

        None where no validation sample has a label.
        """
        self.network.eval()
        score = OnlineDice(self.classes)
        for batch in self.validation_batches.epoch(0):
            batch = self.to_device(batch)
            with self.optimisation.autocast():
                logits = self.network(batch["clip"])
            score.add(logits, batch["labels"])
        return score.mean()

    def on_epoch_end(self, epoch: int, losses: list[float], dice: float | None, seconds: Mapping[str, float]) -> None:
        """Write the metrics and the checkpoints of the epoch."""
        if dice is not None:
            before = dice if self.smooth_dice is None else self.smooth_dice
            self.smooth_dice = _SMOOTHING * before + (1 - _SMOOTHING) * dice
        is_best = self.smooth_dice is not None and self.smooth_dice > self.best_dice
        if is_best:
            self.best_dice = float(self.smooth_dice or 0.0)
        self.log.epoch(
            epoch=epoch,
            train_loss=float(np.mean(losses)),
            val_dice=dice,
            val_dice_smooth=self.smooth_dice,
            learning_rate=self.optimisation.rate,
            **self.recorded.take(),
            **seconds,
        )
        shown = "no validation labels" if dice is None else f"validation Dice {dice:.4f}"
        self.log.say(f"epoch {epoch}: loss {np.mean(losses):.4f}, {shown}, {seconds['seconds']:.1f} s")
        save_checkpoint(self.setup.folder / "checkpoint_latest.pth", self.state(epoch + 1))
        if is_best:
            save_checkpoint(self.setup.folder / "checkpoint_best.pth", self.model_state(epoch + 1))

    def on_train_end(self) -> None:
        """Write the final checkpoint."""
        save_checkpoint(self.setup.folder / "checkpoint_final.pth", self.model_state(self.recipe.epochs))
        self.log.say(f"trained {self.recipe.epochs} epochs; best smoothed validation Dice {self.best_dice:.4f}")

    # Parts a method may change --------------------------------------------------------------------------------------

    @property
    def classes(self) -> int:
        """K, the network's output channels."""
        return self.setup.description.classes

    def samples(self, cases: tuple[str, ...]) -> list[Sample]:
        """The samples to train on: single labelled frames, or clips of the plan's T."""
        return self._samples(self.training_properties(cases))

    def validation_samples(self, cases: tuple[str, ...]) -> list[Sample]:
        """The samples to watch during training: every labelled frame once, alone or in its clip."""
        return self._samples(self.setup.properties(cases))

    def training_properties(self, cases: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """What the store knows of training cases, without the labelled frames that `supervision` hides."""
        return {
            case: {**about, "labelled_frames": visible_frames(about, self.recipe.supervision)}
            for case, about in self.setup.properties(cases).items()
        }

    def _samples(self, properties: Mapping[str, Mapping[str, Any]]) -> list[Sample]:
        if self.setup.plan.frames == 1:
            return frame_samples(properties)
        return clip_samples(properties, self.setup.plan.frames)

    def augmentation(self) -> Augmentation:
        """What changes training samples at random."""
        plan = self.setup.plan
        return build_augmentation(
            self.recipe.augmentation,
            rotation_degrees=plan.rotation_degrees,
            mirror="horizontal" in plan.mirror_axes,
        )

    def build_loader(self, cases: tuple[str, ...], *, training: bool) -> BatchLoader:
        """The batches of the fold's training or validation cases."""
        samples = self.samples(cases) if training else self.validation_samples(cases)
        if training and not samples:
            raise EchoPlanError("no training case has a labelled frame", file=self.setup.store.folder)
        reader = SampleReader(
            self.setup.store,
            self.setup.plan,
            self.classes,
            augmentation=self.augmentation() if training else None,
            finish=self.finish_sample() if training else None,
            supervision=self.recipe.supervision if training else "all",
        )
        return BatchLoader(
            samples,
            reader,
            batch_size=self.recipe.batch_size or self.setup.plan.batch_size,
            batches_per_epoch=self.recipe.iterations_per_epoch if training else None,
            shuffle=training,
            seed=self.seed,
            processes=self.processes,
            pin_memory=self.device.type == "cuda",
        )

    def to_device(self, batch: Batch) -> Batch:
        """The batch's tensors on the device."""
        return {
            name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }

    # State ----------------------------------------------------------------------------------------------------------

    def model_state(self, epochs: int) -> dict[str, Any]:
        """What inference needs of a trained fold."""
        return {
            "version": __version__,
            "trainer": type(self).__name__,
            "trainer_source": self.source,
            "settings": plain_settings(self.recipe.to_dict()),
            "size": list(self.setup.plan.size),
            "classes": self.classes,
            "epochs": epochs,
            "seed": self.seed,
            "network": self.network.state_dict(),
        }

    def state(self, epochs: int) -> dict[str, Any]:
        """All that a resumed training needs to go on as if it had never stopped."""
        return {
            **self.model_state(epochs),
            **self.optimisation.state(),
            "best_dice": self.best_dice,
            "smooth_dice": self.smooth_dice,
            "random": random_state(),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        mine = plain_settings(self.recipe.to_dict())
        changed = [name for name, value in mine.items() if state["settings"].get(name) != value]
        if changed or state["seed"] != self.seed:
            names = ", ".join([*changed, *(["seed"] if state["seed"] != self.seed else [])])
            raise EchoPlanError(
                f"the training to resume was started with other settings: {names}",
                file=self.setup.folder,
                remedy="resume with the same --set, --epochs and --seed, or start again with --overwrite",
            )
        self.network.load_state_dict(state["network"])
        self.optimisation.restore(dict(state))
        self.first_epoch = int(state["epochs"])
        self.best_dice = float(state["best_dice"])
        self.smooth_dice = state["smooth_dice"]
        restore_random_state(state["random"])

    def _write_model_files(self) -> None:
        """Keep beside the weights what they were trained from."""
        folder, source = self.setup.model_folder, self.setup.preprocessed
        folder.mkdir(parents=True, exist_ok=True)
        names = {f"{self.setup.plan.plans_name}.json": "plans.json", "dataset.json": "dataset.json"}
        for name, copy in (names | {"dataset_fingerprint.json": "dataset_fingerprint.json"}).items():
            if (source / name).exists():
                shutil.copyfile(source / name, folder / copy)
        write_json(
            self.setup.folder / "debug.json",
            {
                "echoplan": __version__,
                "torch": torch.__version__,
                "device": str(self.device),
                "precision": str(self.optimisation.dtype),
                "threads": torch.get_num_threads(),
                "trainer": self.source,
                "seed": self.seed,
                "settings": self.recipe.to_dict(),
                "plan": self.setup.plan.to_dict(),
                "train": self.setup.train,
                "val": self.setup.val,
                "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            },
        )
