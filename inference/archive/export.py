"""A model as one file: what another machine needs to predict with it, and nothing that tells of a patient."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from echoplan import layout
from echoplan.dataset import DatasetDescription
from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path, plain, read_json
from echoplan.parallel_map import progress
from echoplan.plans import Plan

from ...training.checkpoint import ModelState, load_checkpoint, pack_checkpoint
from ...training.methods.registry import offering_package
from ...training.model_folder import ModelFolder
from ..conformal import Calibration
from ..model_selection import BY_EXPORT, ModelChoice
from ..postprocessing import read_postprocessing
from ..predictor import EchoPredictor
from .install import is_model_archive
from .manifest import CALIBRATION, ArchivedFile, ArchivedModel, Manifest
from .trainer_code import modules_beside

# What a checkpoint keeps: what inference reads, and what a training that starts from it asks (-pretrained_weights).
_KEPT = ("version", "trainer", "settings", "size", "classes", "plan", "epochs", "seed", "dataset", "network")
_KEPT_OF_START = ("kind", "trainer", "dataset", "epochs", "size", "classes", "left_new")  # not the weights' path
_DATE = (1980, 1, 1, 0, 0, 0)  # the same model gives the same bytes
_FEWEST_LETTERS = 4  # shorter names of patients are words of every text

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


def export_model(choice: ModelChoice, out: Path, *, dataset: str, checkpoint: str = "final") -> ExportedModel:
    """Write what `choice` predicts with to one file. The same model gives the same bytes.

    Args:
        choice: of `choose_models`.
        out: the archive; an archive that is there is replaced once the new one is whole.
        dataset: the folder's name that the models were trained under, Dataset001_CAMUS, or CAMUS+EchoNet.
        checkpoint: "final" or "best". The best ones go as checkpoint_final.pth, without calibration, which is that of
            the final ones.

    Raises:
        EchoPlanError: these models cannot predict (as `EchoPredictor` says), a trainer's file needs others beside it,
            a name could not be a file's name elsewhere, or the disk is full.
    """
    if out.is_dir():
        raise EchoPlanError("this is a folder", file=out, remedy="name a file, such as model.zip")
    if out.exists() and not is_model_archive(out):
        raise EchoPlanError(
            "there is a file of that name that is no archive of a model", file=out, remedy="choose another name"
        )
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
    export = _Export(checkpoint)
    for model, folds in members:
        export.add_model(model, folds)
    if trust.calibration is None:
        export.note(f"without intervals of EF and volumes: {trust.why_none}")
    export.add_choice(choice, dataset, steps, trust.calibration)
    manifest = export.write(out, dataset, description)
    return ExportedModel(out, manifest, choice.reason, tuple(export.notes))


@dataclass
class _Export:
    """What goes into the archive.

    Attributes:
        checkpoint: "final" or "best".
        models: those added.
        contents: by name: a small file's bytes, or how to make a large one's.
        texts: by name, what of a file is searched for names of cases and patients.
        notes: for the user, each once.
        names: of the cases and patients that the models know.
    """

    checkpoint: str
    models: list[ArchivedModel] = field(default_factory=list)
    contents: dict[str, bytes | Callable[[], Content]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def note(self, note: str) -> None:
        """Keep a note."""
        self.notes[note] = None

    def add(self, name: str, content: bytes) -> None:
        """A small file."""
        self.contents[name], self.texts[name] = content, content.decode(errors="replace")

    def add_json(self, name: str, content: Any) -> None:
        """A JSON file."""
        self.add(name, _json(content))

    def add_model(self, model: ModelFolder, folds: tuple[int, ...]) -> None:
        """A model folder: of each file what is known to be needed, whatever else a hand may have added."""
        home, folder = model.path, model.path.resolve().name
        if folder.casefold() in {other.folder.casefold() for other in self.models}:
            raise EchoPlanError(
                f"two models are called {folder}", file=home, remedy="export them one by one, into two archives"
            )
        self.names |= _names_of_cases(home)
        sources = [self._add_checkpoint(model, folder, fold) for fold in folds]
        code = self._add_code(folder, sorted({file for _, file in sources if file is not None}))
        packages = sorted(filter(None, (offering_package(source) for source, file in sources if file is None)))
        plan = Plan.read(home / layout.MODEL_PLAN_FILE)
        trainers = {name: trainer for name, trainer in plan.trainers.items() if name == model.trainer}
        self.add_json(f"{folder}/{layout.MODEL_PLAN_FILE}", replace(plan, trainers=trainers, hardware={}).to_dict())
        self.add_json(f"{folder}/{layout.DATASET_FILE}", model.description.to_dict())
        if (home / layout.FINGERPRINT_FILE).is_file():
            fingerprint = read_json(home / layout.FINGERPRINT_FILE)
            if "summary" in fingerprint:
                told = {"dataset": plan.dataset, "cases": {}, "summary": fingerprint["summary"], "failed_cases": {}}
                self.add_json(f"{folder}/{layout.FINGERPRINT_FILE}", told)
        if (home / layout.POSTPROCESSING_FILE).is_file():
            steps = read_postprocessing(home / layout.POSTPROCESSING_FILE)
            self.add_json(f"{folder}/{layout.POSTPROCESSING_FILE}", {"steps": list(steps)})
        if self.checkpoint == "final" and (home / CALIBRATION).is_file():
            self.add_json(f"{folder}/{CALIBRATION}", Calibration.read(home / CALIBRATION).to_dict())
        try:
            self.models.append(ArchivedModel(folder, model.trainer, folds, packages[0] if packages else None, code))
        except ValueError as error:
            raise _cannot_be_installed(error, home) from error

    def _add_checkpoint(self, model: ModelFolder, folder: str, fold: int) -> tuple[str, Path | None]:
        """A fold's weights; how the archive names its trainer, and the user's file that holds it."""
        file = model.path / layout.fold_folder(fold) / layout.checkpoint_file(self.checkpoint)
        state = load_checkpoint(file, mapped=True)
        source = model.trainer_source(ModelState.from_dict(state))
        path, _, class_name = source.rpartition(":")
        code = Path(path).expanduser() if path.endswith(".py") else None
        if code is not None:
            source = f"{code.name}:{class_name}"
        left = sorted(set(state) - {*_KEPT, "format", "trainer_source", "started_from"})
        if left:
            self.note(f"left out of the checkpoints, as inference does not need it: {', '.join(left)}")
        settings = state["settings"].items()
        paths = [f"{key}={value}" for key, value in settings if isinstance(value, str) and re.search(r"[/\\]", value)]
        if paths:
            self.note(f"settings of {model.trainer} look like paths of this machine: {', '.join(paths)}")
        name = f"{folder}/{layout.fold_folder(fold)}/{layout.checkpoint_file('final')}"
        words = {key: value for key, value in _shared_state(state, source).items() if key != "network"}
        self.texts[name] = json.dumps(plain(words), ensure_ascii=False)
        self.contents[name] = lambda: pack_checkpoint(_shared_state(load_checkpoint(file, mapped=True), source))
        return source, code

    def _add_code(self, folder: str, files: list[Path]) -> tuple[str, ...]:
        """The files of a user's own trainer; their names."""
        code: dict[str, bytes] = {}
        for file in files:
            beside = modules_beside(file)
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
                    f"the folds were trained by different files of that name: {', '.join(map(str, files))}",
                    file=file,
                    remedy="choose folds of one of them with -f",
                )
        for name, content in code.items():
            self.add(f"{folder}/{name}", content)
            self.note(f"{folder}/{name} goes as it is: see that no name, path or password stands in it")
        return tuple(sorted(code))

    def add_choice(
        self,
        choice: ModelChoice,
        dataset: str,
        steps: tuple[dict[str, Any], ...],
        calibration: Calibration | None,
    ) -> None:
        """What holds for all models together: the best configuration, or what makes them an ensemble; calibration."""
        name = "___".join(model.folder for model in self.models)
        file = f"{name}/{CALIBRATION}" if len(self.models) == 1 else f"ensembles/{name}/{CALIBRATION}"
        if calibration is not None:
            self.add_json(file, calibration.to_dict())
        else:  # a model's own does not hold for what was chosen
            self.contents.pop(file, None)
            self.texts.pop(file, None)
        if choice.best is None and len(self.models) == 1:
            return
        by_export: dict[str, Any] = {"chosen_by": BY_EXPORT}
        best = by_export if choice.best is None else read_json(choice.best)
        scores = [row for row in best.get("scores", ()) if row.get("name") == name]
        content = {
            "dataset": dataset,
            "name": name,
            "members": [{"model": model.folder, "folds": list(model.folds)} for model in self.models],
            "postprocessing": {"steps": list(steps)},
            "calibration": None if calibration is None else file,
            **{key: best[key] for key in ("score", "chosen_by") if key in best},
            **({"scores": scores} if scores else {}),
        }
        self.add_json(layout.BEST_CONFIGURATION_FILE, content)

    def write(self, out: Path, dataset: str, data: DatasetDescription) -> Manifest:
        """Write the archive: its files by name, the manifest, which has their hashes, last."""
        for name, text in self.texts.items():
            words = (word for word in self.names if word in text)
            found = sorted(word for word in words if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text))
            if found:
                more = f" and {len(found) - 3} more" if len(found) > 3 else ""
                self.note(f"{name} names cases or patients ({', '.join(found[:3])}{more}): see whether it may leave")
        files = {}
        with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name in progress(sorted(self.contents), description="exporting", unit="file"):
                made = self.contents[name]
                content = made() if callable(made) else made
                files[name] = ArchivedFile(len(content), hashlib.sha256(content).hexdigest())
                _add_entry(archive, name, content)
            try:
                manifest = Manifest(dataset, data.licence, data.reference, self.checkpoint, tuple(self.models), files)
            except ValueError as error:
                raise _cannot_be_installed(error) from error
            _add_entry(archive, layout.MANIFEST_FILE, _json(manifest.to_dict()))
        return manifest


def _shared_state(state: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What of a checkpoint is passed on."""
    start = state.get("started_from") or {}
    return {
        **{key: state[key] for key in _KEPT if key in state},
        "trainer_source": source,
        "started_from": {"file": None, **{key: start[key] for key in _KEPT_OF_START if key in start}} if start else {},
    }


def _names_of_cases(model: Path) -> set[str]:
    """The cases and patients that a model folder knows: those of its fingerprint, and of its folds."""
    names: set[str] = set()
    if (model / layout.FINGERPRINT_FILE).is_file():
        content = read_json(model / layout.FINGERPRINT_FILE)
        cases = content.get("cases", {})
        names |= {*cases, *content.get("failed_cases", {})}
        names |= {str(case.get("patient", "")) for case in cases.values()}
    for _, file in layout.folds_with(model, layout.DEBUG_FILE):
        content = read_json(file)
        names |= {*content.get("train", ()), *content.get("val", ())}
    names |= {name.partition("__")[2] for name in names}  # of several datasets they bear their dataset's in front
    return {name for name in names if len(name) >= _FEWEST_LETTERS}


def _cannot_be_installed(error: ValueError, file: Path | None = None) -> EchoPlanError:
    return EchoPlanError(f"this cannot be installed elsewhere: {error}", file=file, remedy="rename it")


def _add_entry(archive: zipfile.ZipFile, name: str, content: Content) -> None:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.create_system = 3  # Unix, wherever it is written
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    archive.writestr(entry, content)  # not packed: weights hardly shrink


def _json(content: Any) -> bytes:
    return (json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
