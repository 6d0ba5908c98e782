"""Checkpoints: what they hold; tensors and plain types only, written whole, read without running code."""

from __future__ import annotations

import io
import logging
import math
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from echoplan import __version__
from echoplan.dataset import DatasetDescription
from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path, plain
from echoplan.networks.weights import not_finite, why_unreadable

logger = logging.getLogger(__name__)

FORMAT = 1
# What files call some of the attributes.
_FILE_KEYS = {"optimizer": "optimiser", "metrics": "recorded", "best_score": "best_dice"}
_KINDS = {"trainer_source": str, "settings": dict, "size": tuple, "classes": int, "network": dict}
State = TypeVar("State", bound="ModelState")


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


@dataclass(kw_only=True)
class ModelState:
    """What inference needs of a fold: checkpoint_best.pth and checkpoint_final.pth.

    Attributes:
        trainer: the method's name, as `-tr` has it.
        trainer_source: how `find_method` finds it: that name, or path/to/file.py:Class.
        settings: of its recipe, in plain types.
        size: (H, W) of the network's input.
        classes: K of its output.
        network: its weights.
        epochs: trained to their end.
        plan: `plan_basis` of the plan it was trained on.
        seed: of weights, order and augmentation.
        dataset: its name.
        started_from: see `training.initialization`.
        version: of the EchoPlan that wrote it.
    """

    trainer: str
    trainer_source: str
    settings: dict[str, Any]
    size: tuple[int, int]
    classes: int
    network: dict[str, Tensor]
    epochs: int = 0
    plan: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    dataset: str | None = None
    started_from: dict[str, Any] = field(default_factory=dict)
    version: str = __version__

    def to_dict(self) -> dict[str, Any]:
        """As the file holds it."""
        content = {_FILE_KEYS.get(item.name, item.name): getattr(self, item.name) for item in fields(self)}
        return {**content, "size": list(self.size)}

    @classmethod
    def from_dict(cls: type[State], content: Mapping[str, Any]) -> State:
        """From what `load_checkpoint` gave; what an earlier EchoPlan did not write has its default.

        Weights that are kept in 16 bits come in 32, in which networks compute.

        Raises:
            KeyError: it lacks something that cannot be done without.
        """
        keys = {item.name: _FILE_KEYS.get(item.name, item.name) for item in fields(cls)}
        needed = {item.name for item in fields(cls) if item.default is item.default_factory is MISSING}
        values = {name: content[key] for name, key in keys.items() if key in content or name in needed}
        return cls(**{**values, "size": tuple(content["size"]), "network": widened(content["network"])})

    @classmethod
    def read(cls: type[State], path: Path, *, device: torch.device | str = "cpu", mapped: bool = False) -> State:
        """Read a checkpoint; arguments and errors are those of `load_checkpoint`."""
        try:
            return cls.from_dict(load_checkpoint(path, device=device, mapped=mapped))
        except (KeyError, TypeError) as error:
            lacks = "lacks " if isinstance(error, KeyError) else "is not what a training writes: "
            raise EchoPlanError(
                f"this checkpoint {lacks}{error}", file=path, remedy="restore the file, or train again"
            ) from error

    def in_half_precision(self: State) -> State:
        """The same with weights in 16 bits, rounded.

        Raises:
            ValueError: they are too large for that.
        """
        network = {key: value.half() if value.is_floating_point() else value for key, value in self.network.items()}
        if large := not_finite(network):
            raise ValueError(f"the weights of {large[0]} are too large for 16 bits")
        return replace(self, network=network)

    def check(self, description: DatasetDescription, path: Path) -> None:
        """Whether a network can be built and filled by it; nothing is built.

        Args:
            description: the labels of the model.
            path: the checkpoint, for errors.

        Raises:
            EchoPlanError: something is of another kind than it should be, the number of classes is not that of the
                labels, or weights are NaN or infinite.
        """
        self.check_content(path)
        if self.classes != description.classes:
            raise unusable(
                path, f"its network has {self.classes} classes, and the labels beside it make {description.classes}"
            )

    def check_content(self, path: Path) -> None:
        """Whether it holds what a training writes, whatever labels it is of; errors are those of `check`.

        An infinite variance of batch normalisation, as weights that were published in half precision have, has silenced
        its channel ever since; that is told, and the network left as it was trained.
        """
        wrong = [name for name, kind in _KINDS.items() if not isinstance(getattr(self, name), kind)]
        if not wrong and not all(isinstance(value, Tensor) for value in self.network.values()):
            wrong = ["network"]
        if not wrong and not (len(self.size) == 2 and all(type(side) is int and side > 0 for side in self.size)):
            wrong = ["size"]
        if wrong:
            raise unusable(path, f"{wrong[0]!r} is not what a training writes")
        bad = not_finite(self.network)
        silent = [name for name in bad if name.endswith("running_var") and self.network[name].amin().isfinite()]
        if lost := [name for name in bad if name not in silent]:
            raise unusable(
                path, f"{len(lost)} of its {len(self.network)} tensors hold NaN or infinite weights, {lost[0]} first"
            )
        if silent:
            logger.warning("%s: infinite variances in %s silence their channels", path, ", ".join(silent))

    def write(self, path: Path) -> None:
        """Write it as `save_checkpoint` does."""
        save_checkpoint(path, self.to_dict())


@dataclass(kw_only=True)
class TrainingState(ModelState):
    """All that a resumed training needs to go on as if it had never stopped: checkpoint_latest.pth.

    Attributes:
        optimizer, scaler, iteration, precision: of the `TrainStep`; None: an earlier EchoPlan kept no precision.
        random: of every process its `random_state`.
        best_score: of checkpoint_best.pth, see `BestEpoch`.
        smooth_dice: of the last whole epoch; None before the first one.
        progress: within the epoch that is not over.
        metrics: what the loss recorded in it.
        accumulation: in how many parts batches are taken.
        basis: `training_basis` of what it trains on; a resumed training must find it unchanged.
        method: `Method.state` within an epoch.
    """

    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    iteration: int
    random: list[dict[str, Any]]
    best_score: float = -math.inf
    smooth_dice: float | None = None
    progress: EpochProgress = field(default_factory=EpochProgress)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    accumulation: int = 1
    precision: str | None = None
    basis: dict[str, Any] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As the file holds it."""
        return {**super().to_dict(), "progress": asdict(self.progress)}

    @classmethod
    def from_dict(cls: type[State], content: Mapping[str, Any]) -> State:
        """See `ModelState.from_dict`."""
        return super().from_dict({**content, "progress": EpochProgress(**content.get("progress", {}))})


def widened(weights: Any) -> Any:
    """Weights of 16 bits in 32, the others as they are; what is no dictionary of tensors as it is."""
    if not isinstance(weights, dict):
        return weights
    return {
        key: value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value
        for key, value in weights.items()
    }


def unusable(path: Path, problem: str) -> EchoPlanError:
    """The error of a checkpoint of which no network can be made."""
    return EchoPlanError(
        f"no network can be made of this checkpoint: {problem}",
        file=path,
        remedy="restore the file, leave this fold out (-f), or train it again",
    )


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint beside its name and move it into place.

    Raises:
        EchoPlanError: the disk is full; the checkpoint that was there stays.
    """
    packed = pack_checkpoint(content)
    with atomic_path(path) as temporary:
        # Written by Python: on a full disk torch's own writer fails with one of several RuntimeErrors.
        temporary.write_bytes(packed)


def pack_checkpoint(content: Mapping[str, Any]) -> memoryview:
    """A checkpoint as its file holds it."""
    packed = io.BytesIO()
    torch.save({"format": FORMAT, **content}, packed)
    return packed.getbuffer()


def load_checkpoint(path: Path, *, device: torch.device | str = "cpu", mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint.

    Args:
        path: the file.
        device: where its tensors go.
        mapped: whether the tensors stay in the file, on the CPU, until they are looked at.

    Raises:
        EchoPlanError: the file is missing, damaged, holds more than tensors and plain types, or is of a newer format.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except FileNotFoundError as error:
        raise EchoPlanError("the checkpoint is missing", file=path, remedy="train first, or resume with --c") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise EchoPlanError(
            f"this is no readable checkpoint: {why_unreadable(path, error)}",
            file=path,
            remedy="restore the file, or train again",
        ) from error
    # True equals 1
    if not isinstance(content, dict) or content.get("format") != FORMAT or content["format"] is True:
        raise EchoPlanError("this checkpoint is of another format", file=path, remedy="use the EchoPlan that wrote it")
    return content


def random_state() -> dict[str, Any]:
    """The state of torch's generators (data order and augmentation are functions of seed and epoch and need none)."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        # This process's GPU alone: asking the others would take memory on each of them, for each process.
        state["cuda"] = [torch.cuda.get_rng_state()]
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` took."""
    torch.set_rng_state(state["cpu"].cpu())
    if torch.backends.mps.is_available() and "mps" in state:
        torch.mps.set_rng_state(state["mps"].cpu())
    if torch.cuda.is_available() and "cuda" in state:
        generators = [item.cpu() for item in state["cuda"]]
        if len(generators) == 1:
            torch.cuda.set_rng_state(generators[0])
        else:  # an earlier EchoPlan's checkpoint, of a machine with several GPUs
            torch.cuda.set_rng_state_all(generators)


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they compare after a way through JSON or a checkpoint (tuples become lists)."""
    return dict(plain(settings))
