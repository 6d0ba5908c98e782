"""A trained model on disk: results/<Dataset>/<Trainer>__<Plans>__<configuration>."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from echoplan import __version__, layout
from echoplan.dataset import DatasetDescription
from echoplan.device import channels_last
from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path, read_json, write_json
from echoplan.networks.weights import weights_digest
from echoplan.paths import dataset_name
from echoplan.plans import Plan, ResolvedPlan

from .checkpoint import ModelState
from .fold import FoldSetup
from .initialization import with_trained_settings
from .methods import find_method, offering_package
from .methods.registry import trainer_file
from .resume_check import plan_changes


@dataclass(frozen=True)
class ModelFolder:
    """What is needed to predict with a trained model.

    Attributes:
        path: the folder.
        trainer: the trainer class's name.
        plan: the decisions it was trained with.
        description: the labels it was trained on.
    """

    path: Path
    trainer: str
    plan: ResolvedPlan
    description: DatasetDescription

    @classmethod
    def read(cls, path: str | Path) -> ModelFolder:
        """Read a model folder's plan and labels.

        Raises:
            EchoPlanError: this is no model folder.
        """
        path = Path(path)
        parts = path.resolve().name.split("__")
        if len(parts) != 3 or not (path / layout.MODEL_PLAN_FILE).is_file():
            raise EchoPlanError(
                "this is no trained model",
                file=path,
                remedy="give a folder named <Trainer>__<Plans>__<configuration> that holds plans.json and fold_0, ...",
            )
        trainer, _, configuration = parts
        plan = Plan.read(path / layout.MODEL_PLAN_FILE).resolve(trainer, configuration=configuration)
        description = DatasetDescription.from_dict(
            read_json(path / layout.DATASET_FILE), source=path / layout.DATASET_FILE
        )
        return cls(path, trainer, plan, description)

    @property
    def window(self) -> int:
        """Frames the network sees at once in training; 1 for frame networks."""
        return self.plan.frames

    @property
    def stride(self) -> int | dict[str, int]:
        """Frames from one of a window's frames to the next, so that a window spans what it spanned in training.

        Of several source datasets, for each.
        """
        strides = {name: plan.window_stride for name, plan in self.plan.each().items()}
        return strides if self.plan.multi_dataset else next(iter(strides.values()))

    def folds(self) -> tuple[int, ...]:
        """The folds whose training is finished."""
        return tuple(layout.finished_folds(self.path))

    def checkpoint(self, fold: int, kind: str = "final") -> Path:
        """A fold's checkpoint: "final", "best" or "latest"."""
        return self.path / layout.fold_folder(fold) / layout.checkpoint_file(kind)

    def training_command(self, fold: int, option: str = "") -> str:
        """The command line that trains a fold, with --c where it was begun, or with another option instead."""
        words = ["echoplan_train", dataset_name(Path(self.plan.dataset)), str(fold), "-tr", self.trainer]
        if self.plan.plans_name != layout.DEFAULT_PLANS:
            words += ["-p", self.plan.plans_name]
        begun = self.checkpoint(fold, "latest").is_file()
        return " ".join([*words, *filter(None, [option or ("--c" if begun else "")])])

    def weights_digest(self, fold: int, kind: str = "final") -> str:
        """The digest of a fold's weights, which is that of the network that they make; no code runs.

        Raises:
            EchoPlanError: the checkpoint is missing or damaged.
        """
        return weights_digest(ModelState.read(self.checkpoint(fold, kind), mapped=True).network)

    def trainer_source(self, state: ModelState) -> str:
        """How `find_method` finds the method that a checkpoint was trained by.

        Args:
            state: the checkpoint; where it names a file without a folder, one of that name in the model folder counts
                before one in the working directory: an installed model brings its trainer along.
        """
        source = state.trainer_source
        file, _, class_name = source.rpartition(":")
        beside = self.path / file
        if file.endswith(".py") and Path(file).name == file and beside.is_file():
            return f"{beside}:{class_name}"
        return source

    def load_network(
        self, fold: int, *, device: torch.device | str = "cpu", checkpoint: str = "final", trust_code: bool = False
    ) -> nn.Module:
        """One fold's network in evaluation mode.

        Args:
            fold: its number.
            device: where to put it.
            checkpoint: "final", "best" or "latest".
            trust_code: whether a user's own trainer, a file that the checkpoint names, may run.

        Raises:
            EchoPlanError: the checkpoint is missing, damaged, of another network, was trained on another plan, or names
                code that was not trusted.
        """
        file = self.checkpoint(fold, checkpoint)
        state = ModelState.read(file)
        state.check(self.description, file)
        if changes := plan_changes(state, self.plan):
            raise EchoPlanError(
                f"fold {fold} was trained on another plan than the plans.json that lies beside it: "
                f"{', '.join(changes)} there",
                file=file,
                remedy=f"train it again ({self.training_command(fold, '--overwrite')}), or predict without it (-f)",
            )
        source = self.trainer_source(state)
        code = trainer_file(source)
        if code is not None and not trust_code:
            raise EchoPlanError(
                f"the model's trainer is the file {code}, whose code would run with all that you may do",
                file=file,
                remedy="read it, and give --trust_code (in Python trust_code=True) if you trust it",
            )
        method = find_method(source)
        if offering_package(source) == "echoplan":
            method = with_trained_settings(method, state, file)
        else:  # whose code is trusted, and need not know how to be built without values
            method = method.with_settings(method.recipe.complete(state.settings))
        network = method.build_network(size=state.size, classes=state.classes)
        try:
            network.load_state_dict(state.network)
        except RuntimeError as error:
            raise EchoPlanError(
                f"the weights do not fit the network of {self.trainer}: {str(error).splitlines()[1].strip()}",
                file=file,
                remedy="use the EchoPlan that trained it, or train again",
            ) from error
        network.input_normalisation = method.recipe.input_normalisation  # what `normalisation_for` reads
        network = network.to(device).eval()
        fast = method.recipe.channels_last and torch.device(device).type == "cuda"
        return channels_last(network) if fast else network


def normalisation_for(network: nn.Module, plan: ResolvedPlan) -> str:
    """How a network of `ModelFolder.load_network` wants intensities: as its recipe says, else as the plan does."""
    return getattr(network, "input_normalisation", None) or plan.normalisation


def write_model_files(setup: FoldSetup, debug: Mapping[str, Any]) -> None:
    """Keep beside a fold's weights the plan, labels and fingerprint that they were trained from, and `debug`."""
    folder, source = setup.model_folder, setup.preprocessed
    folder.mkdir(parents=True, exist_ok=True)
    for name, copy in (
        (layout.plan_file(setup.plan.plans_name), layout.MODEL_PLAN_FILE),
        (layout.DATASET_FILE, layout.DATASET_FILE),
        (layout.FINGERPRINT_FILE, layout.FINGERPRINT_FILE),
    ):
        if (source / name).exists():
            _keep_copy(source / name, folder / copy)
    write_json(setup.folder / layout.DEBUG_FILE, {"echoplan": __version__, "torch": torch.__version__, **debug})


def _keep_copy(source: Path, copy: Path) -> None:
    """Make `copy` as `source` is; other folds, which train or predict at the same time, find it whole throughout."""
    content = source.read_bytes()
    if not copy.is_file() or copy.read_bytes() != content:
        with atomic_path(copy) as temporary:
            temporary.write_bytes(content)
