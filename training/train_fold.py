"""One fold's training as plain values, and carried out: what a command line, a study or a cluster's task asks for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from echoplan import layout
from echoplan.errors import EchoPlanError
from echoplan.files import partial_prefix, read_json, sweep_partial_files
from echoplan.paths import Folders

from .distributed import World
from .fold import FoldSetup, prepare_fold
from .methods import EchoTrainer, find_trainer, trainer_registry
from .model_folder import ModelFolder
from .validation import validate_fold


@dataclass(frozen=True)
class FoldJob:
    """What to train, in values that can be sent to another process.

    Attributes:
        dataset: name, id or folder name.
        fold: its number.
        trainer: as `-tr` names it.
        settings: changed settings of the recipe.
        plans_name: the plan's file name without its ending.
        seed: of the weights, the order and the augmentation.
        processes: data-loading workers.
        weights: a file with weights to start from.
    """

    dataset: str
    fold: int
    trainer: str = "UNetTrainer"
    settings: Mapping[str, Any] = field(default_factory=dict)
    plans_name: str = "EchoPlans"
    seed: int = 0
    processes: int = 0
    weights: Path | None = None

    def setup(self, where: Folders) -> FoldSetup:
        """The fold's plan, store and cases.

        Raises:
            EchoPlanError: see `prepare_fold`.
        """
        kind = find_trainer(self.trainer)
        return prepare_fold(
            where,
            self.dataset,
            trainer=kind.__name__,
            # One of the project's own is in the plan with what its paper asks for, or has to be planned first.
            configuration=None if self.trainer in trainer_registry() else kind.configuration,
            fold=self.fold,
            plans_name=self.plans_name,
        )

    def make_trainer(
        self, setup: FoldSetup, *, device: torch.device | str = "cpu", world: World | None = None
    ) -> EchoTrainer:
        """The trainer, ready for `train_fold`.

        Raises:
            EchoPlanError: there is no such trainer or setting, or it cannot train on this dataset.
        """
        kind = find_trainer(self.trainer)
        return kind(
            setup,
            kind.recipe_class().with_settings(self.settings),
            device=device,
            seed=self.seed,
            processes=self.processes,
            weights=self.weights,
            source=self.trainer,
            world=world,
        )


def train_fold(trainer: EchoTrainer, *, resume: bool = False, validate: bool = False, overwrite: bool = False) -> Path:
    """Train a fold to its end and validate it, doing only what is not done yet.

    Args:
        trainer: of `FoldJob.make_trainer`.
        resume: go on with a training that was started; a finished one is left as it is.
        validate: only validate a finished training again.
        overwrite: throw away what is there, and start again.

    Returns:
        validation/summary.json of the fold.

    Raises:
        EchoPlanError: something is there, and nothing was said of what to do with it.
        Terminated: SIGTERM came; what was done is saved.
    """
    setup, world = trainer.setup, trainer.world
    # Asked before anybody writes: what a process finds must not depend on how fast the others are.
    finished, started = world.from_leader(fold_progress(setup, overwrite=overwrite) if world.leads else None)
    check_progress(setup, finished, started, resume=resume, validate=validate)
    if not finished:
        trainer.run_training(resume=started)
    summary = setup.folder / layout.VALIDATION / layout.SUMMARY_FILE
    if world.leads and (validate or not summary.exists()):
        model = ModelFolder.read(setup.model_folder)
        network = model.load_network(setup.fold, device=trainer.device)
        validate_fold(network, setup)
    return summary


def validation_dice(summary: Path, target: str) -> float:
    """The mean Dice of a structure over all labelled frames of a fold's validation; in a joint, over datasets then."""
    return fmean(dice_by_dataset(summary, target).values())


def dice_by_dataset(summary: Path, target: str) -> dict[str | None, float]:
    """The mean Dice of a structure for each of a joint's datasets that the fold validates; else for all, under None."""
    content = read_json(summary)
    parts = content.get("datasets") or {None: content}
    return {name: part["mean"][target]["all"]["dice"]["mean"] for name, part in parts.items()}


def check_progress(setup: FoldSetup, finished: bool, started: bool, *, resume: bool, validate: bool) -> None:
    """Raise an EchoPlanError if something is there and nothing was said of what to do with it; see `train_fold`."""
    if (finished or started) and not (resume or validate):
        raise EchoPlanError(
            f"fold {setup.fold} is {'trained' if finished else 'partly trained'} already",
            file=setup.folder,
            remedy="--c goes on where it stopped, --val validates again, --overwrite starts again",
        )
    if validate and not finished:
        raise EchoPlanError(f"fold {setup.fold} is not trained to its end", file=setup.folder, remedy="resume with --c")


def fold_progress(setup: FoldSetup, *, overwrite: bool = False) -> tuple[bool, bool]:
    """Whether the fold is trained to its end, and whether its training was started; overwriting clears both.

    What a killed process left half-written or half-removed is removed.
    """
    sweep_partial_files(setup.folder)
    sweep_partial_files(setup.model_folder, below=False)  # its other folds may be at work
    if overwrite and setup.folder.exists():
        # Moved away in one step: killed while it removes file after file, it could leave a final checkpoint, or the
        # summary of a validation that the new training would then take for its own.
        discarded = setup.folder.with_name(partial_prefix() + setup.folder.name)
        setup.folder.rename(discarded)
        shutil.rmtree(discarded)
    return tuple((setup.folder / layout.checkpoint_file(name)).exists() for name in ("final", "latest"))
