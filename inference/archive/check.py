"""Whether unpacked files make a model: read as data, never run."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from echoplan import layout
from echoplan.errors import EchoPlanError
from echoplan.files import read_json

from ...training.checkpoint import load_checkpoint
from ...training.model_folder import ModelFolder
from ..calibration import Calibration
from ..postprocessing import check_steps, read_postprocessing
from .manifest import ASK_AGAIN, CALIBRATION, ArchivedModel, Manifest, printable

_KINDS = {"trainer_source": str, "settings": dict, "size": list, "classes": int, "network": dict}


def check_unpacked(folder: Path, manifest: Manifest, archive: Path) -> None:
    """Check everything that was unpacked.

    Args:
        folder: the archive's root, unpacked.
        manifest: of the archive.
        archive: for errors.

    Raises:
        EchoPlanError: a file is not what its name says, or names something outside the archive.
    """
    for model in manifest.models:
        _check_model(folder / model.folder, model, archive)
    for name in sorted(manifest.files):
        with _blaming(name, archive):
            if name.endswith(CALIBRATION):
                Calibration.read(folder / name)
            elif name.endswith(f"/{layout.POSTPROCESSING_FILE}"):
                read_postprocessing(folder / name)
            elif name.endswith(f"/{layout.FINGERPRINT_FILE}"):
                read_json(folder / name)
            elif name == layout.BEST_CONFIGURATION_FILE:
                _check_best(read_json(folder / name), manifest)


def _check_model(path: Path, model: ArchivedModel, archive: Path) -> None:
    with _blaming(f"{model.folder}/{layout.MODEL_PLAN_FILE} or {layout.DATASET_FILE}", archive):
        read = ModelFolder.read(path)
        for plan in read.plan.each().values():  # what prediction asks of a plan; in a joint, of each dataset's
            _ = plan.size, plan.frames, plan.window_stride, plan.crop, plan.protocol, plan.normalisation
            _ = plan.mirror_axes
    for fold in model.folds:
        name = model.checkpoint(fold)
        with _blaming(name, archive):
            _check_checkpoint(path / layout.fold_folder(fold) / Path(name).name, model)


def _check_checkpoint(file: Path, model: ArchivedModel) -> None:
    with zipfile.ZipFile(file) as packed:
        entries = packed.infolist()
    size = sum(entry.file_size for entry in entries)
    if size > file.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it would unpack to more than it is")
    state = load_checkpoint(file, mapped=True)
    for key, kind in _KINDS.items():
        if not isinstance(state[key], kind):
            raise TypeError(f"{key!r} is no {kind.__name__}")
    _check_source(state, model)


def _check_source(state: Mapping[str, Any], model: ArchivedModel) -> None:
    """The trainer must be one that goes by its name, or lie in the archive: no other file may come to run."""
    file, separator, class_name = state["trainer_source"].rpartition(":")
    if separator and (file not in model.code or not class_name.isidentifier()):
        raise ValueError(f"it names the trainer {state['trainer_source']!r}, which is not in the archive")


def _check_best(content: Mapping[str, Any], manifest: Manifest) -> None:
    """The choice must name the archive's own models, folds and calibration."""
    folds = {model.folder: set(model.folds) for model in manifest.models}
    members = {item["model"]: set(item["folds"]) for item in content["members"]}
    if content["name"] != manifest.name or members.keys() != folds.keys():
        raise ValueError("it names other models than the archive's")
    if not all(members.values()) or any(not members[name] <= folds[name] for name in folds):
        raise ValueError("it names folds that the archive does not have")
    if content["calibration"] is not None and content["calibration"] not in manifest.files:
        raise ValueError("it names a calibration that the archive does not have")
    check_steps(content["postprocessing"]["steps"])


@contextmanager
def _blaming(name: str, archive: Path) -> Iterator[None]:
    """Whatever a file's content makes its readers raise becomes an error that names the archive."""
    try:
        yield
    except Exception as error:  # content made to harm can make readers stumble in any way
        reason = error.problem if isinstance(error, EchoPlanError) else f"{type(error).__name__}: {error}"
        raise EchoPlanError(
            f"the archive is not installed: {name}: {printable(reason)}", file=archive, remedy=ASK_AGAIN
        ) from error
