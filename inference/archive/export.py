"""A model as one file: what another machine needs to predict with it, and nothing that tells of a patient."""

from __future__ import annotations

import hashlib
import json
import stat
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from echoplan import layout
from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path, plain, read_json
from echoplan.parallel_map import progress
from echoplan.plans import Plan

from ...training.checkpoint import load_checkpoint, pack_checkpoint
from ...training.model_folder import ModelFolder
from ..calibration import Calibration
from ..model_selection import BY_EXPORT, ModelChoice
from ..postprocessing import read_postprocessing
from ..predictor import EchoPredictor
from .archive import is_model_archive
from .manifest import CALIBRATION, ArchivedFile, ArchivedModel, Manifest
from .names import find_names, find_paths, names_of_cases
from .trainer_code import TrainerOrigin, files_beside

# What a checkpoint keeps: what inference reads, and what a training that starts from it asks (-pretrained_weights).
_KEPT = ("version", "trainer", "settings", "size", "classes", "plan", "epochs", "seed", "dataset", "network")
_KEPT_OF_START = ("kind", "trainer", "dataset", "epochs", "size", "classes", "left_new")  # not the weights' path
_DATE = (1980, 1, 1, 0, 0, 0)  # the same model gives the same bytes

Content = bytes | memoryview


@dataclass(frozen=True)
class ExportedModel:
    """What was exported.

    Attributes:
        file: the archive.
        manifest: what is in it.
        reason: why these models, in words.
        notes: what the user should know before passing it on.
    """

    file: Path
    manifest: Manifest
    reason: str
    notes: tuple[str, ...]


@dataclass
class _Parts:
    """What goes into the archive: by name, how to make it; and the models and notes collected on the way."""

    contents: dict[str, Callable[[], Content]] = field(default_factory=dict)
    models: list[ArchivedModel] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def add(self, name: str, content: bytes) -> None:
        """A small file, which is searched for names of cases and patients."""
        self.contents[name] = lambda: content
        self.look_for_names(name, content.decode(errors="replace"))

    def add_json(self, name: str, content: Any) -> None:
        """A JSON file."""
        self.add(name, _json(content))

    def look_for_names(self, where: str, text: str) -> None:
        """Note the names of cases and patients in a text."""
        found = find_names(text, self.names)
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            self.note(f"{where} names cases or patients ({', '.join(found[:3])}{more}): see whether it may leave")

    def note(self, note: str) -> None:
        """Keep a note once."""
        if note not in self.notes:
            self.notes.append(note)


def export_model(choice: ModelChoice, out: Path, *, dataset: str, checkpoint: str = "final") -> ExportedModel:
    """Write what `choice` predicts with to one file. The same model gives the same bytes.

    Args:
        choice: of `choose_models`.
        out: the archive; an archive that is there is replaced once the new one is whole.
        dataset: the folder's name that the models were trained under, Dataset001_CAMUS, or a joint's.
        checkpoint: "final" or "best". The best ones go as checkpoint_final.pth, without calibration, which is that of
            the final ones.

    Raises:
        EchoPlanError: these models cannot predict (as `EchoPredictor` says), a trainer's file needs others beside it,
            a name could not be a file's name elsewhere, or the disk is full.
    """
    _check_output(out)
    # The way of echoplan_predict: what cannot predict here is not exported.
    predictor = EchoPredictor.from_model_folders(
        choice.members,
        device="cpu",
        postprocessing=choice.postprocessing,
        checkpoint=checkpoint,
        calibration=choice.calibration,
    )
    members = [(member.model, member.folds) for member in predictor.members]
    steps, trust, description = predictor.postprocessing, predictor.trust, predictor.description
    del predictor  # its networks
    parts = _Parts()
    for model, folds in members:
        _add_model(parts, model, folds, checkpoint)
    if trust.calibration is None:
        parts.note(f"without intervals of EF and volumes: {trust.why_none}")
    _add_whole(parts, choice, dataset, steps, trust.calibration)
    manifest = _write(out, parts, dataset, description.licence, description.reference, checkpoint)
    return ExportedModel(out, manifest, choice.reason, tuple(parts.notes))


def _check_output(out: Path) -> None:
    if out.is_dir():
        raise EchoPlanError("this is a folder", file=out, remedy="name a file, such as model.zip")
    if out.exists() and not is_model_archive(out):
        raise EchoPlanError(
            "there is a file of that name that is no archive of a model", file=out, remedy="choose another name"
        )


def _add_model(parts: _Parts, model: ModelFolder, folds: tuple[int, ...], checkpoint: str) -> None:
    """A model folder's checkpoints, plan, labels, and its own postprocessing and calibration."""
    folder = model.path.resolve().name
    if folder.casefold() in {other.folder.casefold() for other in parts.models}:
        raise EchoPlanError(
            f"two models are called {folder}", file=model.path, remedy="export them one by one, into two archives"
        )
    parts.names |= names_of_cases(model.path)
    origins = [_add_checkpoint(parts, model, folder, fold, checkpoint) for fold in folds]
    code = _add_code(parts, folder, {origin.file for origin in origins if origin.file is not None})
    plan = Plan.read(model.path / layout.MODEL_PLAN_FILE)
    own = {name: trainer for name, trainer in plan.trainers.items() if name == model.trainer}
    parts.add_json(f"{folder}/{layout.MODEL_PLAN_FILE}", replace(plan, trainers=own, hardware={}).to_dict())
    parts.add_json(f"{folder}/{layout.DATASET_FILE}", model.description.to_dict())
    fingerprint = (
        read_json(model.path / layout.FINGERPRINT_FILE) if (model.path / layout.FINGERPRINT_FILE).is_file() else {}
    )
    if "summary" in fingerprint:
        told = {"dataset": plan.dataset, "cases": {}, "summary": fingerprint["summary"], "failed_cases": {}}
        parts.add_json(f"{folder}/{layout.FINGERPRINT_FILE}", told)
    if (model.path / layout.POSTPROCESSING_FILE).is_file():
        steps = read_postprocessing(model.path / layout.POSTPROCESSING_FILE)
        parts.add_json(f"{folder}/{layout.POSTPROCESSING_FILE}", {"steps": list(steps)})
    if checkpoint == "final" and (model.path / CALIBRATION).is_file():
        parts.add_json(f"{folder}/{CALIBRATION}", Calibration.read(model.path / CALIBRATION).to_dict())
    packages = sorted({origin.package for origin in origins if origin.package is not None})
    package = packages[0] if packages else None
    try:
        parts.models.append(ArchivedModel(folder, model.trainer, folds, package, tuple(sorted(code))))
    except ValueError as error:
        raise EchoPlanError(
            f"this cannot be installed elsewhere: {error}", file=model.path, remedy="rename it"
        ) from error


def _add_checkpoint(parts: _Parts, model: ModelFolder, folder: str, fold: int, checkpoint: str) -> TrainerOrigin:
    file = model.path / layout.fold_folder(fold) / layout.checkpoint_file(checkpoint)
    state = load_checkpoint(file, mapped=True)
    origin = TrainerOrigin.of(model.trainer_source(state))
    left = sorted(set(state) - {*_KEPT, "format", "trainer_source", "started_from"})
    if left:
        parts.note(f"left out of the checkpoints, as inference does not need it: {', '.join(left)}")
    paths = find_paths(state["settings"])
    if paths:
        parts.note(f"settings of {model.trainer} look like paths of this machine: {', '.join(paths)}")
    name = f"{folder}/fold_{fold}/checkpoint_final.pth"
    about = {key: value for key, value in _shared_state(state, origin).items() if key != "network"}
    parts.look_for_names(name, json.dumps(plain(about), ensure_ascii=False))
    parts.contents[name] = lambda: pack_checkpoint(_shared_state(load_checkpoint(file, mapped=True), origin))
    return origin


def _shared_state(state: Mapping[str, Any], origin: TrainerOrigin) -> dict[str, Any]:
    """What of a checkpoint is passed on."""
    start = state.get("started_from") or {}
    return {
        **{key: state[key] for key in _KEPT if key in state},
        "trainer_source": origin.source,
        "started_from": {"file": None, **{key: start[key] for key in _KEPT_OF_START if key in start}} if start else {},
    }


def _add_code(parts: _Parts, folder: str, files: set[Path]) -> set[str]:
    """The files of a user's own trainer; their names."""
    code: dict[str, bytes] = {}
    for file in sorted(files):
        beside = files_beside(file)
        if beside:
            raise EchoPlanError(
                f"the trainer's file imports {beside[0].name}, which lies beside it and would be missing elsewhere",
                file=file,
                remedy="put what the trainer needs into its own file, or make it a package with an entry point "
                "(docs/trainers.md)",
            )
        content = file.read_bytes()
        if code.setdefault(file.name, content) != content:
            raise EchoPlanError(
                f"the folds were trained by different files of that name: {', '.join(map(str, sorted(files)))}",
                file=file,
                remedy="choose folds of one of them with -f",
            )
    for name, content in code.items():
        parts.add(f"{folder}/{name}", content)
        parts.note(f"{folder}/{name} goes as it is: see that no name, path or password stands in it")
    return set(code)


def _add_whole(
    parts: _Parts, choice: ModelChoice, dataset: str, steps: tuple[dict[str, Any], ...], calibration: Calibration | None
) -> None:
    """What holds for all models together: the best configuration, or what makes an ensemble of them; calibration."""
    name = "___".join(model.folder for model in parts.models)
    file = f"{name}/{CALIBRATION}" if len(parts.models) == 1 else f"ensembles/{name}/{CALIBRATION}"
    if calibration is not None:
        parts.add_json(file, calibration.to_dict())
    else:
        parts.contents.pop(file, None)  # it does not hold for what was chosen
    if choice.best is None and len(parts.models) == 1:
        return
    found = {"chosen_by": BY_EXPORT} if choice.best is None else read_json(choice.best)
    scores = [row for row in found.get("scores", ()) if row.get("name") == name]
    content = {
        "dataset": dataset,
        "name": name,
        "members": [{"model": model.folder, "folds": list(model.folds)} for model in parts.models],
        "postprocessing": {"steps": list(steps)},
        "calibration": None if calibration is None else file,
        **{key: found[key] for key in ("score", "chosen_by") if key in found},
        **({"scores": scores} if scores else {}),
    }
    parts.add_json(layout.BEST_CONFIGURATION_FILE, content)


def _write(out: Path, parts: _Parts, dataset: str, licence: str, reference: str, checkpoint: str) -> Manifest:
    """Write the archive: its files by name, the manifest, which has their hashes, last."""
    files = {}
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in progress(sorted(parts.contents), description="exporting", unit="file"):
            content = parts.contents[name]()
            files[name] = ArchivedFile(len(content), hashlib.sha256(content).hexdigest())
            _add_entry(archive, name, content)
        try:
            manifest = Manifest(dataset, licence, reference, checkpoint, tuple(parts.models), files)
        except ValueError as error:
            raise EchoPlanError(f"this cannot be installed elsewhere: {error}", remedy="rename it") from error
        _add_entry(archive, layout.MANIFEST_FILE, _json(manifest.to_dict()))
    return manifest


def _add_entry(archive: zipfile.ZipFile, name: str, content: Content) -> None:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.create_system = 3  # Unix, wherever it is written
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    archive.writestr(entry, content)  # not packed: weights hardly shrink


def _json(content: Any) -> bytes:
    return (json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
