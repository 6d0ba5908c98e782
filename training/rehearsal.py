"""A training step without a dataset: the very network, loss and optimiser on made-up clips, for planning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from echoplan.dataset import DatasetDescription
from echoplan.device import channels_last
from echoplan.plans import Decision, ResolvedPlan

from ..preprocessing.store import ClipStore
from .data import Batch
from .fold import FoldSetup
from .log import TrainingLog
from .methods import EchoTrainer
from .optimisation import Optimisation


@dataclass(frozen=True)
class Rehearsal:
    """A trainer and a batch for it.

    Attributes:
        trainer: with network and optimiser, on its device.
        batch: "clip" and "labels" as a loader gives them, and what `finish_sample` adds; labels show a square.
    """

    trainer: EchoTrainer
    batch: Batch

    def make_optimiser_state(self) -> None:
        """What an optimiser makes in its first step, without the rest of that step."""
        optimisation = self.trainer.optimisation
        for parameter in optimisation.parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimisation.optimiser.step()
        optimisation.optimiser.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Forward pass, loss, backward pass, and a step of the optimiser, exactly as in training."""
        self.trainer.train_step(self.batch)

    def tensors(self) -> list[Any]:
        """All that is there between two steps."""
        optimiser = self.trainer.optimisation.optimiser
        return [*self.trainer.network.state_dict().values(), *optimiser.state.values(), self.batch]


def rehearse(
    kind: type[EchoTrainer],
    *,
    size: tuple[int, int],
    frames: int,
    batch_size: int,
    classes: int = 1,
    settings: Mapping[str, Any] | None = None,
    device: torch.device | str = "meta",
    autocast: Callable[[], AbstractContextManager[Any]] | None = None,
) -> Rehearsal:
    """Prepare a training step.

    Args:
        kind: the trainer class.
        size: (H, W).
        frames: T.
        batch_size: B.
        classes: K.
        settings: changed settings of the recipe.
        device: "meta" computes nothing and allocates nothing; on a real one the step is taken for real.
        autocast: makes the context of forward passes; None takes the optimiser's own.
    """
    device = torch.device(device)
    recipe = kind.recipe_class().with_settings({"batch_size": batch_size, **(settings or {})})
    plan = _made_up_plan(kind, size, frames, batch_size)
    labels = {"background": 0, **{f"structure {value}": value for value in range(1, max(classes, 2))}}
    nowhere = Path()
    setup = FoldSetup(
        fold=0,
        plan=plan,
        description=DatasetDescription("rehearsal", labels=labels, target="structure 1"),
        store=ClipStore(nowhere),
        train=(),
        val=(),
        model_folder=nowhere,
        preprocessed=nowhere,
    )
    trainer = kind(setup, recipe, device=device)
    trainer.log = TrainingLog(nowhere, writes=False)  # a step in parts says so; here nobody listens
    with device if device.type == "meta" else nullcontext():  # a real network is made on the CPU and moved, as trained
        network = trainer.build_network(size=size, classes=classes, settings=recipe.to_dict()).to(device)
    if recipe.channels_last and device.type == "cuda":
        channels_last(network)
    trainer.network = trainer.model = network.train()
    trainer.optimisation = Optimisation(
        network, recipe, learning_rate=kind.needs.learning_rate, iterations=1000, device=device
    )
    if autocast is not None:
        trainer.optimisation.autocast = autocast
    return Rehearsal(trainer, _batch(trainer, size, frames, batch_size))


def _made_up_plan(kind: type[EchoTrainer], size: tuple[int, int], frames: int, batch_size: int) -> ResolvedPlan:
    decisions = {
        "size": list(size), "frames": frames, "frame_stride": 1, "batch_size": batch_size, "protocol": "aspect",
        "crop": False, "normalisation": "zscore_sector", "mirror_axes": [], "rotation_degrees": 0.0,
        "sampling": "labelled_frames", "learning_rate": kind.needs.learning_rate,
    }  # fmt: skip
    return ResolvedPlan(
        "rehearsal",
        "rehearsal",
        kind.configuration,
        {name: Decision(value, "made up for a rehearsal", kind="fixed") for name, value in decisions.items()},
    )


def _batch(trainer: EchoTrainer, size: tuple[int, int], frames: int, batch_size: int) -> Batch:
    labels = np.zeros((frames, *size), np.uint8)
    labels[:, size[0] // 4 : -size[0] // 4, size[1] // 4 : -size[1] // 4] = 1
    finish = trainer.finish_sample()
    sample = {"clip": np.zeros((frames, 1, *size), np.float32), "labels": labels}
    sample |= {} if finish is None else dict(finish(labels))
    return {
        "case": ["rehearsal"] * batch_size,
        **{name: torch.from_numpy(np.stack([value] * batch_size)).to(trainer.device) for name, value in sample.items()},
    }
