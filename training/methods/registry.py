"""Methods by the names that `-tr` takes: the project's own, those of other packages, and a class in a user's file."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from echoplan.errors import EchoPlanError

from .e3sam2 import E3SAM2Method, SAM2Method
from .echoforge import EchoForgeMethod
from .echonet import EchoNetMethod
from .method import Method
from .pkechonet import PKEchoNetMethod
from .resunet import ResUNetMethod
from .sam import LITE_MEDSAM_RECIPE, MEDSAM_RECIPE, LiteMedSAMMethod, SAMMethod
from .unet import SpaceTimeUNetMethod, UNetMethod

ENTRY_POINTS = "echoplan.trainers"
_HOW = "derive the class from echoplan.training.methods.Method, as docs/trainers.md shows"
# Name -> method, and the settings in which this name differs from the method's own.
_OWN: dict[str, tuple[type[Method[Any]], Mapping[str, Any]]] = {
    "UNetTrainer": (UNetMethod, {}),
    "UNet2DtTrainer": (SpaceTimeUNetMethod, {}),
    "PKEchoNetR18Trainer": (PKEchoNetMethod, {"backbone": "resnet18"}),
    "PKEchoNetR34Trainer": (PKEchoNetMethod, {"backbone": "resnet34"}),
    "PKEchoNetTrainer": (PKEchoNetMethod, {}),
    "SAM2Trainer": (SAM2Method, {}),
    "E3SAM2Trainer": (E3SAM2Method, {}),
    "E3SAM2SmallTrainer": (E3SAM2Method, {"variant": "small"}),
    "EchoForgeTrainer": (EchoForgeMethod, {}),
    "EchoNetTrainer": (EchoNetMethod, {}),
    "ResUNetTrainer": (ResUNetMethod, {}),
    "SAMTrainer": (SAMMethod, {}),
    "MedSAMTrainer": (SAMMethod, {"model": "medsam"}),
    "SAM1024Trainer": (SAMMethod, MEDSAM_RECIPE),
    "MedSAM1024Trainer": (SAMMethod, {**MEDSAM_RECIPE, "model": "medsam"}),
    "LiteMedSAMTrainer": (LiteMedSAMMethod, LITE_MEDSAM_RECIPE),
}


def method_registry() -> dict[str, Method[Any]]:
    """Every method that `-tr NAME` finds, with its own settings: the project's own and those of installed packages.

    A package offers its methods as entry points of the group "echoplan.trainers".
    """
    methods = {name: _built_in(name) for name in _OWN}
    for point in entry_points(group=ENTRY_POINTS):
        methods.setdefault(point.name, _checked(point.load(), point.value)())
    return methods


def offering_package(name: str) -> str | None:
    """The package that offers the method of that name: "echoplan", or an installed one, which is not imported.

    None where there is no such method.
    """
    if name in _OWN:
        return "echoplan"
    points = [point for point in entry_points(group=ENTRY_POINTS) if point.name == name]
    return (points[0].dist.name if points[0].dist else points[0].module.split(".")[0]) if points else None


def find_method(name: str) -> Method[Any]:
    """The method, with its own settings, for what `-tr` was given: a name, or `path/to/file.py:Class`.

    Raises:
        EchoPlanError: there is none of that name (the nearest are offered), or the file holds no such method.
    """
    file = trainer_file(name)
    if file is not None:
        return _from_file(file, name.rpartition(":")[2])()
    if name in _OWN:
        return _built_in(name)
    methods = method_registry()
    if name in methods:
        return methods[name]
    near = difflib.get_close_matches(name, methods, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(methods)}"
    raise EchoPlanError(
        f"there is no trainer {name!r}", remedy=f"{hint} (a class of your own goes by -tr path/to/file.py:Class)"
    )


def trainer_file(name: str) -> Path | None:
    """The file whose code `find_method` would run for that name; None where the name is a registered one."""
    file = name.rpartition(":")[0]
    return Path(file).expanduser() if file.endswith(".py") else None


def _built_in(name: str) -> Method[Any]:
    kind, settings = _OWN[name]
    return kind(kind().recipe.with_settings(settings), name=name)


def _from_file(path: Path, class_name: str) -> type[Method[Any]]:
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
        ours = isinstance(error, ImportError) and (error.name or "").startswith("echoplan.")
        raise EchoPlanError(
            f"the trainer's file fails on import: {reason}",
            file=path,
            remedy=f"it may be of an earlier EchoPlan: {_HOW}" if ours else None,
        ) from error
    if not hasattr(module, class_name):
        raise EchoPlanError(f"there is no class {class_name!r} in the file", file=path)
    return _checked(getattr(module, class_name), str(path))


def _checked(candidate: object, where: str) -> type[Method[Any]]:
    if inspect.isclass(candidate) and issubclass(candidate, Method) and not inspect.isabstract(candidate):
        return candidate
    raise EchoPlanError(f"{candidate!r} is no trainer", file=where, remedy=f"{_HOW}, and give it a network and a loss")
