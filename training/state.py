"""The state of a training: what a checkpoint holds, how it is put back, and what lies beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from echoplan import __version__, layout
from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path, write_json

from .basis import basis_changes, plan_basis, training_basis
from .checkpoint import plain_settings, random_state, restore_random_state

if TYPE_CHECKING:
    from .methods.base import EchoTrainer


@dataclass
class EpochProgress:
    """How far an epoch has come.

    Attributes:
        batches: training batches done.
        losses: one a batch.
        seconds: spent so far: "data_seconds" waiting for batches, "step_seconds" computing, "seconds" in all.
    """

    batches: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def spend(self, **seconds: float) -> None:
        """Add to `seconds`."""
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value


def model_state(trainer: EchoTrainer, epochs: int) -> dict[str, Any]:
    """What inference needs of a fold trained for `epochs` epochs."""
    return {
        "version": __version__,
        "trainer": type(trainer).__name__,
        "trainer_source": trainer.source,
        "settings": plain_settings(trainer.recipe.to_dict()),
        "size": list(trainer.setup.plan.size),
        "classes": trainer.classes,
        "plan": plan_basis(trainer.setup.plan),
        "epochs": epochs,
        "seed": trainer.seed,
        "dataset": trainer.setup.description.name,
        "started_from": dict(trainer.started_from),
        "network": trainer.network.state_dict(),
    }


def training_state(trainer: EchoTrainer, epochs: int) -> dict[str, Any]:
    """All that a resumed training needs to go on as if it had never stopped, between two epochs or within one."""
    return {
        **model_state(trainer, epochs),
        **trainer.optimisation.state(),
        "basis": training_basis(trainer),
        "best_dice": trainer.best_dice,
        "smooth_dice": trainer.smooth_dice,
        "progress": asdict(trainer.progress),
        "recorded": trainer.recorded.state(),
        "accumulation": trainer.accumulation,
        "random": trainer.world.gather(random_state()),
    }


def restore_training(trainer: EchoTrainer, state: Mapping[str, Any]) -> None:
    """Put back what `training_state` took.

    Raises:
        EchoPlanError: the training was started with other settings, or from another plan or other cases.
    """
    mine = plain_settings(trainer.recipe.to_dict())
    before = plain_settings(type(trainer.recipe)().to_dict()) | state["settings"]  # an older EchoPlan's lack the newest
    changed = [name for name, value in mine.items() if before[name] != value]
    changed += ["seed"] if state["seed"] != trainer.seed else []
    changed += ["number of processes (torchrun)"] if len(state["random"]) != trainer.world.size else []
    if changed:
        raise EchoPlanError(
            f"the training to resume was started with other settings: {', '.join(changed)}",
            file=trainer.setup.folder,
            remedy="resume with the same --set, --epochs, --seed and processes, or start again with --overwrite",
        )
    if changed := basis_changes(trainer, state):
        raise EchoPlanError(
            f"the training to resume rests on another plan or other data: {', '.join(changed)}",
            file=trainer.setup.folder,
            remedy="plan and preprocess as before and resume, or start this fold again with --overwrite",
        )
    trainer.network.load_state_dict(state["network"])
    trainer.started_from = dict(state.get("started_from", trainer.started_from))
    trainer.optimisation.restore(dict(state))
    trainer.first_epoch = int(state["epochs"])
    trainer.best_dice = float(state["best_dice"])
    trainer.smooth_dice = state["smooth_dice"]
    trainer.progress = EpochProgress(**state.get("progress", {}))
    trainer.recorded.restore(state.get("recorded", {}))
    trainer.accumulation = int(state.get("accumulation", 1))
    restore_random_state(state["random"][trainer.world.rank])


def write_model_files(trainer: EchoTrainer) -> None:
    """Keep beside the weights what they were trained from."""
    setup = trainer.setup
    folder, source = setup.model_folder, setup.preprocessed
    folder.mkdir(parents=True, exist_ok=True)
    names = {layout.plan_file(setup.plan.plans_name): layout.MODEL_PLAN_FILE, layout.DATASET_FILE: layout.DATASET_FILE}
    for name, copy in (names | {layout.FINGERPRINT_FILE: layout.FINGERPRINT_FILE}).items():
        if (source / name).exists():
            _keep_copy(source / name, folder / copy)
    write_json(
        setup.folder / layout.DEBUG_FILE,
        {
            "echoplan": __version__,
            "torch": torch.__version__,
            "device": str(trainer.device),
            "precision": str(trainer.optimisation.dtype),
            "threads": torch.get_num_threads(),
            "trainer": trainer.source,
            "started_from": trainer.started_from,
            "seed": trainer.seed,
            "settings": trainer.recipe.to_dict(),
            "plan": setup.plan.to_dict(),
            "train": setup.train,
            "val": setup.val,
            "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
        },
    )


def _keep_copy(source: Path, copy: Path) -> None:
    """Make `copy` as `source` is; other folds, which train or predict at the same time, find it whole throughout."""
    content = source.read_bytes()
    if not copy.is_file() or copy.read_bytes() != content:
        with atomic_path(copy) as temporary:
            temporary.write_bytes(content)
