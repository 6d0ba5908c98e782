"""The training loop of one fold, as pseudocode with hooks around a `Method` (what learns) and a `TrainStep` (how)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echoplan import layout
from echoplan.device import channels_last, prepare_device, reproducible
from echoplan.errors import Terminated
from echoplan.networks.complexity import describe_learning
from echoplan.parallel_map import progress
from echoplan.termination import Termination

from .checkpoint import EpochProgress, ModelState, TrainingState, plain_settings, random_state, restore_random_state
from .compilation import CompiledModel
from .data import Batch, to_device, visible_frames
from .distributed import World
from .features import FeatureStore, with_features
from .fold import FoldSetup
from .fold_batches import fold_batches
from .initialization import describe_start, initial_network
from .methods import Method
from .metrics import (
    BestEpoch,
    MetricAverager,
    OnlineDice,
    TrainingLog,
    as_numbers,
    epochs_since_best,
    mean_over_datasets,
)
from .model_folder import write_model_files
from .pace import Pace
from .resume_check import check_resume, plan_basis, training_basis, warnings_of_other_plans
from .room_check import RoomCheck
from .step import TrainStep


class Trainer:
    """Trains one fold.

    Args:
        method: what is trained, with its settings.
        setup: the fold's plan, store, cases and folders.
        device: where to train.
        seed: of the weights, the order and the augmentation.
        processes: data-loading workers.
        weights: a file with pretrained weights or a checkpoint of the same method; None looks in the usual places.
        source: how `-tr` named the method, for finding it again.
        world: the processes that train together.
        resume: go on from the last checkpoint, instead of from the fold's start.
        stop_at: when to stop, as `time.time` counts; None: at the end.

    Raises:
        EchoPlanError: the method cannot train on this dataset, or the weights to start from cannot be had.
    """

    def __init__(
        self,
        method: Method[Any],
        setup: FoldSetup,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        processes: int = 0,
        weights: Path | None = None,
        source: str | None = None,
        world: World | None = None,
        resume: bool = False,
        stop_at: float | None = None,
    ) -> None:
        method.check_dataset(setup.description)
        self.method, self.recipe, self.setup = method, method.recipe, setup
        self.device = torch.device(device)
        self.seed, self.processes, self.resume = seed, processes, resume
        self.source, self.world = source or method.name, world or World()
        self.classes = setup.description.classes
        self.first_epoch = self.epoch = self.epochs_done = 0
        self.best, self.progress = BestEpoch(self.recipe.keep_epoch), EpochProgress()
        self.metrics, self.termination = MetricAverager(), Termination()
        self.log = TrainingLog(setup.folder, writes=self.world.is_main)

        prepare_device(self.device)
        torch.manual_seed(seed)
        network, self.started_from = initial_network(
            method, size=setup.plan.size, classes=self.classes, weights=weights, resume=resume
        )
        if not resume:
            method.prepare_network(network, setup)
        self.network = self.world.synchronise_norms(network.to(self.device), self.device)
        if self.recipe.channels_last and self.device.type == "cuda":
            channels_last(self.network)
        parallel = self.world.wrap(self.network, self.device)
        self.model: Callable[..., Any] = CompiledModel(parallel, self.log.say) if self.recipe.compile else parallel
        self.training_batches, self.validation_batches = (
            fold_batches(method, setup, seed=seed, processes=processes, world=self.world, training=training)
            for training in (True, False)
        )
        self.step = TrainStep(
            self.network,
            self.recipe,
            self.loss,
            learning_rate=self.recipe.learning_rate or float(setup.plan.value("learning_rate")),
            iterations=len(self.training_batches) * self.recipe.epochs,
            device=self.device,
            world=self.world,
            model=parallel,
            say=self.log.say,
        )
        iterations, stop_file = len(self.training_batches), setup.folder / layout.STOP_FILE
        self.pace = Pace(
            self.recipe.epochs, iterations, device=self.device, stop_file=stop_file, stop_at=stop_at, say=self.log.say
        )
        self.check_room = RoomCheck(self.step, self.metrics)
        self.features = FeatureStore.of_training(method, self.step, setup.preprocessed)

    def run_training(self) -> None:
        """Train the fold from its start, or from where its last checkpoint was written."""
        try:
            self.on_train_start()
            with self.termination, reproducible(self.device, exact=self.recipe.deterministic):
                for epoch in range(self.first_epoch, self.recipe.epochs):
                    if self.on_plateau():
                        break
                    self.on_epoch_start(epoch)
                    self.train_epoch()
                    self.on_epoch_end(self.validate_epoch())
                self.on_train_end()
        finally:
            self.close()

    def on_train_start(self) -> None:
        """Put back the checkpoint's state when resuming, and write down what is trained from what."""
        setup, plan = self.setup, self.setup.plan
        torch.manual_seed(self.seed + self.world.rank)  # the same weights everywhere, but not the same dropout
        if self.resume:
            file = setup.folder / layout.checkpoint_file("latest")
            self.restore(TrainingState.read(file, device=self.device))
        self.log.open(first_epoch=self.first_epoch)
        if self.world.is_main:
            write_model_files(setup, self.describe())
            for warning in warnings_of_other_plans(setup.model_folder, plan):
                self.log.say(warning)
        self.log.say(f"{describe_start(self.started_from)}; {describe_learning(self.network)}")
        self.log.say(
            f"{self.method.name}, fold {setup.fold}: {len(setup.train)} cases to train on "
            f"({len(self.training_batches.samples)} samples), {len(setup.val)} to validate, input {plan.size}, "
            f"batch {self.training_batches.batch_size}, {len(self.training_batches)} iterations an epoch, epochs "
            f"{self.first_epoch} to {self.recipe.epochs - 1}, {self.step.dtype} on {self.device}"
        )
        training = setup.stored_cases(setup.train)
        labelled = {case.case: visible_frames(case, self.recipe.supervision) for case in training}
        for remark in self.method.remarks(self.training_batches.samples, labelled):
            self.log.say(remark)

    def on_epoch_start(self, epoch: int) -> None:
        """Set the network to learn."""
        self.epoch = epoch
        if not self.progress.batches:
            self.method.begin_epoch(self.network)
        self.network.train()

    def train_epoch(self) -> None:
        """One round over the training batches, or the rest of a terminated one; `self.progress` says how it went.

        Raises:
            Terminated: SIGTERM came; the training is saved at the step it was at.
        """
        batches, done = self.training_batches, self.progress.batches
        left = len(batches) - done
        bar = progress(
            batches.epoch(self.epoch, start=done), description=f"epoch {self.epoch}", total=left, unit="batch"
        )
        waited_since = time.perf_counter()
        for batch in bar:
            batch = self.on_device(batch, training=True)
            arrived = time.perf_counter()
            loss = self.train_step(batch)
            stop = self.stop_reason()
            loss, terminate = self.world.all_reduce(loss, float(bool(stop)), device=self.device)
            self.progress.losses.append(loss)
            self.progress.batches += 1
            finished = time.perf_counter()
            self.progress.spend(
                data_seconds=arrived - waited_since, step_seconds=finished - arrived, seconds=finished - waited_since
            )
            self.pace.batch(self.epoch, self.progress.batches, finished - waited_since)
            waited_since = finished
            if terminate:
                self.save_terminated(stop)

    def stop_reason(self) -> str:
        """Why to stop before the end; empty where nothing asks for it. Of several processes one asks for all."""
        if self.termination.requested:
            return "terminated"
        return self.pace.stop_reason if self.world.is_main else ""

    def on_plateau(self) -> bool:
        """Whether the validation has got no better for as many epochs as the recipe has patience."""
        patience = self.recipe.patience
        waited = self.world.broadcast(epochs_since_best(self.log.history, self.recipe.keep_epoch))
        if not 0 < patience <= waited:
            return False
        self.log.say(f"no better validation for {waited} epochs (patience {patience}): the training ends here")
        return True

    def train_step(self, batch: Batch) -> float:
        """Move the weights by the epoch's next batch; this process's part of its mean loss."""
        index = self.progress.batches
        share = self.training_batches.share(index)
        try:
            self.check_room(batch, share, self.training_batches.count(index))
            return self.step(batch, share)
        except Exception as error:
            if not (isinstance(self.model, CompiledModel) and self.model.give_up(error)):
                raise
        return self.train_step(batch)

    def loss(self, batch: Batch) -> Tensor:
        """The training loss of a batch or a part of one."""
        self.method.epoch = self.recipe.epochs - 1 if self.step.trying else self.epoch  # room for all terms is tried
        output = self.method.forward(self.model, batch)
        return self.method.loss(output, batch, epoch=self.method.epoch, record=self.metrics.add)

    @torch.inference_mode()
    def validate_epoch(self) -> float | None:
        """Mean Dice over the structures and the labelled frames of the validation samples, on the network's grid.

        None where no validation sample has a label. Of several datasets, the mean of their means, which are recorded.
        So is the loss, where it chooses the epoch.
        """
        started = time.perf_counter()
        self.network.eval()
        score, losses = OnlineDice(self.classes), []
        for batch in self.validation_batches.epoch(self.epoch) if self.world.is_main else ():
            if self.world.size == 1 and (stop := self.stop_reason()):  # several must stop at the same step
                self.save_terminated(stop)
            batch = self.on_device(batch, training=False)
            with self.step.autocast():
                logits = self.method.answer(self.network, batch)
                if self.recipe.keep_epoch == "lowest_loss":
                    losses += [self.method.validation_loss(logits, batch)] * len(logits)
            score.add(logits, batch["labels"], batch["dataset"])
        dice, losses = self.world.broadcast((score.by_dataset(), as_numbers(losses)))
        if losses:
            self.metrics.add(val_loss=fmean(losses))
        if self.setup.plan.multi_dataset:
            self.metrics.add(**{f"val_dice_{name}": dice.get(name, np.nan) for name in self.setup.plan.datasets})
        self.progress.spend(seconds=time.perf_counter() - started)
        return mean_over_datasets(dice)

    def on_epoch_end(self, dice: float | None) -> None:
        """Write the metrics and the checkpoints of the epoch."""
        loss, seconds = float(np.mean(self.progress.losses)), self.progress.seconds
        recorded = self.metrics.take()
        is_best = self.best.update(dice, recorded.get("val_loss"))
        self.log.epoch(
            epoch=self.epoch,
            train_loss=loss,
            val_dice=dice,
            val_dice_smooth=self.best.smooth_dice,
            learning_rate=self.step.rate,
            **recorded,
            **seconds,
            gpu_memory_gb=self.pace.memory_gb(),
        )
        shown = "no validation labels" if dice is None else f"validation Dice {dice:.4f}"
        told = self.pace.epoch(self.epoch, seconds["seconds"])
        self.log.say(f"epoch {self.epoch}: loss {loss:.4f}, {shown}, {seconds['seconds']:.1f} s{told}")
        self.progress, self.epochs_done = EpochProgress(), self.epoch + 1
        if is_best:  # before "latest", which says that it is there
            self.save("best", self.model_state(self.epochs_done))
        self.save("latest", self.training_state(self.epochs_done))

    def on_train_end(self) -> None:
        """Write the final checkpoint: the last epoch's, or that of the epoch that `keep_epoch` asks for."""
        state = self.model_state(self.epochs_done)
        if self.recipe.keep_epoch != "last" and self.best.found and self.world.is_main:
            state = ModelState.read(self.setup.folder / layout.checkpoint_file("best"))
        self.save("final", state)
        self.log.draw()
        self.log.say(
            f"trained {self.epochs_done} epochs; {self.best}; the final weights are epoch {state.epochs - 1}'s"
        )

    def close(self) -> None:
        """End the loaders' workers and close the log."""
        for batches in (self.training_batches, self.validation_batches):
            batches.close()
        self.log.close()

    # Checkpoints ----------------------------------------------------------------------------------------------------

    def save(self, kind: str, state: ModelState) -> None:
        """Write a checkpoint: "latest", "best" or "final"."""
        if self.world.is_main:
            state.write(self.setup.folder / layout.checkpoint_file(kind))

    def save_terminated(self, reason: str) -> None:
        """Save what is done of an epoch, and end."""
        self.save("latest", self.training_state(self.epoch))
        done = f"{self.progress.batches} of {len(self.training_batches)} batches of epoch {self.epoch}"
        self.log.say(f"{reason or 'terminated'} after {done}; saved, --c goes on from there")
        raise Terminated

    def model_state(self, epochs: int) -> ModelState:
        """What inference needs of the fold, trained for `epochs` epochs."""
        return ModelState(
            trainer=self.method.name,
            trainer_source=self.source,
            settings=plain_settings(self.recipe.to_dict()),
            size=self.setup.plan.size,
            classes=self.classes,
            network=self.network.state_dict(),
            epochs=epochs,
            plan=plan_basis(self.setup.plan),
            seed=self.seed,
            dataset=self.setup.description.name,
            started_from=dict(self.started_from),
        )

    def training_state(self, epochs: int) -> TrainingState:
        """All that goes on from here, between two epochs or within one."""
        return TrainingState(
            **vars(self.model_state(epochs)),
            **self.step.state(),
            random=self.world.gather(random_state()),
            best_score=self.best.score,
            smooth_dice=self.best.smooth_dice,
            progress=self.progress,
            metrics=self.metrics.state(),
            accumulation=self.step.accumulation,
            basis=training_basis(self.setup, self.recipe),
            method=self.method.state() if self.progress.batches else {},
        )

    def restore(self, state: TrainingState) -> None:
        """Put back what `training_state` took.

        Raises:
            EchoPlanError: the training was started with other settings, or from another plan or other cases.
        """
        check_resume(
            state,
            self.setup,
            self.recipe,
            defaults=self.method.defaults,
            seed=self.seed,
            processes=self.world.size,
        )
        self.network.load_state_dict(state.network)
        self.step.restore(
            optimizer=state.optimizer, scaler=state.scaler, iteration=state.iteration, precision=state.precision
        )
        self.step.accumulation = state.accumulation
        self.started_from = state.started_from or self.started_from
        self.first_epoch = self.epochs_done = state.epochs
        self.best.score, self.best.smooth_dice = state.best_score, state.smooth_dice
        self.progress = state.progress
        self.metrics.restore(state.metrics)
        self.method.restore(state.method, self.network)
        restore_random_state(state.random[self.world.rank])

    def describe(self) -> dict[str, Any]:
        """What debug.json keeps."""
        return {
            "device": str(self.device),
            "precision": str(self.step.dtype),
            "threads": torch.get_num_threads(),
            "trainer": self.source,
            "started_from": self.started_from,
            "seed": self.seed,
            "settings": self.recipe.to_dict(),
            "plan": self.setup.plan.to_dict(),
            "train": self.setup.train,
            "val": self.setup.val,
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
        }

    def on_device(self, batch: Batch, *, training: bool) -> Batch:
        """A loader's batch on the device, with "prompts" where the method tells its network any."""
        told = self.method.prompts(batch, training=training)
        batch = to_device(with_features(batch, self.features, training=training), self.device)
        return batch if told is None else {**batch, "prompts": told}
