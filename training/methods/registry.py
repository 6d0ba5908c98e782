"""Trainers by name: the project's own, those of other packages (entry points), and a class in a user's file."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
from importlib.metadata import entry_points
from pathlib import Path

from echoplan.errors import EchoPlanError

from .base import EchoTrainer
from .e3sam2 import E3SAM2SmallTrainer, E3SAM2Trainer, SAM2Trainer
from .echoforge import EchoForgeTrainer
from .echonet import EchoNetTrainer
from .pkechonet import PKEchoNetR18Trainer, PKEchoNetR34Trainer, PKEchoNetTrainer
from .sam import MedSAMTrainer, SAMTrainer
from .unet import UNet2DtTrainer, UNetTrainer

ENTRY_POINTS = "echoplan.trainers"
_OWN = (
    UNetTrainer,
    UNet2DtTrainer,
    PKEchoNetR18Trainer,
    PKEchoNetR34Trainer,
    PKEchoNetTrainer,
    SAM2Trainer,
    E3SAM2Trainer,
    E3SAM2SmallTrainer,
    EchoForgeTrainer,
    EchoNetTrainer,
    SAMTrainer,
    MedSAMTrainer,
)


def trainer_registry() -> dict[str, type[EchoTrainer]]:
    """Every trainer that `-tr NAME` finds, by name: the project's own and those of installed packages.

    A package offers its trainers as entry points of the group "echoplan.trainers".
    """
    found = {trainer.__name__: trainer for trainer in _OWN}
    for point in entry_points(group=ENTRY_POINTS):
        found.setdefault(point.name, _checked(point.load(), point.value))
    return found


def offering_package(name: str) -> str | None:
    """The package that offers the trainer of that name: "echoplan", or an installed one, which is not imported.

    None where there is no such trainer.
    """
    if name in {trainer.__name__ for trainer in _OWN}:
        return "echoplan"
    points = [point for point in entry_points(group=ENTRY_POINTS) if point.name == name]
    return (points[0].dist.name if points[0].dist else points[0].module.split(".")[0]) if points else None


def find_trainer(name: str) -> type[EchoTrainer]:
    """The trainer class for what `-tr` was given: a name, or `path/to/file.py:Class`.

    Raises:
        EchoPlanError: there is none of that name (the nearest are offered), or the file holds no such trainer.
    """
    file, separator, class_name = name.rpartition(":")
    if separator and file.endswith(".py"):
        return _from_file(Path(file).expanduser(), class_name)
    trainers = trainer_registry()
    if name in trainers:
        return trainers[name]
    near = difflib.get_close_matches(name, trainers, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(trainers)}"
    own = "a class of your own goes by -tr path/to/file.py:Class"
    raise EchoPlanError(f"there is no trainer {name!r}", remedy=f"{hint} ({own})")


def _from_file(path: Path, class_name: str) -> type[EchoTrainer]:
    if not path.is_file():
        raise EchoPlanError("the trainer's file is missing", file=path, remedy="give its path, or restore the file")
    module_name = f"echoplan_user_trainer_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise EchoPlanError("this file cannot be imported", file=path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # worker processes and dataclasses look classes up by module name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise EchoPlanError(f"the trainer's file fails on import: {reason}", file=path) from error
    if not hasattr(module, class_name):
        raise EchoPlanError(f"there is no class {class_name!r} in the file", file=path)
    return _checked(getattr(module, class_name), str(path))


def _checked(candidate: object, where: str) -> type[EchoTrainer]:
    if inspect.isclass(candidate) and issubclass(candidate, EchoTrainer) and not inspect.isabstract(candidate):
        return candidate
    raise EchoPlanError(
        f"{candidate!r} is no trainer",
        file=where,
        remedy="derive it from echoplan.training.methods.EchoTrainer and give it make_network and loss",
    )
