"""A trained model on disk: results/<Dataset>/<Trainer>__<Plans>__<configuration>."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from echoplan import layout
from echoplan.dataset import DatasetDescription
from echoplan.device import channels_last
from echoplan.errors import EchoPlanError
from echoplan.files import read_json
from echoplan.plans import Plan, ResolvedPlan

from .basis import plan_changes
from .checkpoint import load_checkpoint
from .methods import find_trainer


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

        Of a joint, for each of its datasets.
        """
        strides = {name: plan.window_stride for name, plan in self.plan.each().items()}
        return strides if self.plan.multi_dataset else next(iter(strides.values()))

    def folds(self) -> tuple[int, ...]:
        """The folds whose training is finished."""
        finished = self.path.glob("fold_*/checkpoint_final.pth")
        return tuple(sorted(int(file.parent.name.removeprefix("fold_")) for file in finished))

    def trainer_source(self, state: Mapping[str, Any]) -> str:
        """How `find_trainer` finds the class that a checkpoint was trained by.

        Args:
            state: the checkpoint; where it names a file without a folder, one of that name in the model folder counts
                before one in the working directory: an installed model brings its trainer along.
        """
        source: str = state["trainer_source"]
        file, _, class_name = source.rpartition(":")
        beside = self.path / file
        if file.endswith(".py") and Path(file).name == file and beside.is_file():
            return f"{beside}:{class_name}"
        return source

    def load_network(self, fold: int, *, device: torch.device | str = "cpu", checkpoint: str = "final") -> nn.Module:
        """One fold's network in evaluation mode.

        Args:
            fold: its number.
            device: where to put it.
            checkpoint: "final", "best" or "latest".

        Raises:
            EchoPlanError: the checkpoint is missing, damaged, of another network, or was trained on another plan.
        """
        file = self.path / layout.fold_folder(fold) / layout.checkpoint_file(checkpoint)
        state = load_checkpoint(file)
        if changes := plan_changes(state, self.plan):
            raise EchoPlanError(
                f"fold {fold} was trained on another plan than the plans.json that lies beside it: "
                f"{', '.join(changes)} there",
                file=file,
                remedy=f"train it again (echoplan_train {self.plan.dataset} {fold} -tr {self.trainer} --overwrite), or "
                "predict without it (-f)",
            )
        trainer = find_trainer(self.trainer_source(state))
        network = trainer.build_network(size=tuple(state["size"]), classes=state["classes"], settings=state["settings"])
        try:
            network.load_state_dict(state["network"])
        except RuntimeError as error:
            raise EchoPlanError(
                f"the weights do not fit the network of {self.trainer}: {str(error).splitlines()[1].strip()}",
                file=file,
                remedy="use the EchoPlan that trained it, or train again",
            ) from error
        network = network.to(device).eval()
        fast = state["settings"]["channels_last"] and torch.device(device).type == "cuda"
        return channels_last(network) if fast else network
