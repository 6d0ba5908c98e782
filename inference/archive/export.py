"""A model as one file: what another machine needs to predict with it, and nothing that tells of a patient."""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import re
import stat
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from echoplan import layout
from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path, plain, read_json, sweep_partial_files
from echoplan.networks.weights import weights_digest
from echoplan.plans import Plan

from ...training.checkpoint import ModelState, pack_checkpoint, widened
from ...training.methods.registry import offering_package, trainer_file
from ...training.model_folder import ModelFolder
from ..conformal import Calibration
from ..model_selection import BY_EXPORT, ModelChoice
from ..postprocessing import read_postprocessing
from ..predictor import EchoPredictor
from ..trained_weights import Weights
from .install import is_model_archive
from .manifest import CALIBRATION, Manifest

logger = logging.getLogger(__name__)

_KEPT_OF_START = ("kind", "trainer", "dataset", "epochs", "size", "classes", "left_new")  # not the weights' path
_DATE = (1980, 1, 1, 0, 0, 0)  # the same model gives the same bytes
_FEWEST_LETTERS = 4  # shorter names of patients are words of every text


def export_model(
    choice: ModelChoice, out: Path, *, dataset: str, checkpoint: str = "final", half_precision: bool = False
) -> Manifest:
    """Write what `choice` predicts with to one file, and return its manifest. The same model gives the same bytes.

    What the user should know before passing it on is logged as warnings.

    Args:
        choice: of `choose_models`.
        out: the archive; an archive that is there is replaced once the new one is whole.
        dataset: the folder's name that the models were trained under, Dataset001_CAMUS, or CAMUS+EchoNet.
        checkpoint: "final" or "best". The best ones go as checkpoint_final.pth, without calibration, which is that of
            the final ones.
        half_precision: whether weights are kept in 16 bits, half the size. They are rounded, and computed with in 32
            bits as others are.

    Raises:
        EchoPlanError: these models cannot predict (as `EchoPredictor` says), a trainer's file needs others beside it,
            a name could not be a file's name elsewhere, weights are too large for 16 bits, or the disk is full.
    """
    if out.is_dir():
        raise EchoPlanError("this is a folder", file=out, remedy="name a file, such as model.zip")
    if out.exists() and not is_model_archive(out):
        raise EchoPlanError(
            "there is a file of that name that is no archive of a model", file=out, remedy="choose another name"
        )
    sweep_partial_files(out.parent, below=False)
    # The way of echoplan_predict: what cannot predict here is not exported.
    predictor = EchoPredictor.from_model_folders(
        choice.members,
        device="cpu",
        postprocessing=choice.postprocessing,
        checkpoint=checkpoint,
        calibration=choice.calibration,
        trust_code=choice.trust_code,
    )
    members = [(member.model, member.folds) for member in predictor.members]
    weights = {member.model.path.resolve().name: member.weights for member in predictor.members}
    steps, trust, data = predictor.postprocessing, predictor.trust, predictor.description
    del predictor  # its networks
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        export = _Export(archive, checkpoint, ensemble=len(members) > 1, half_precision=half_precision)
        try:
            packages = {model.path.resolve().name: export.add_model(model, folds) for model, folds in members}
            chosen = dict(zip(packages, (folds for _, folds in members), strict=True))
            export.add_choice(choice, dataset, chosen, weights, steps, trust.calibration)
            manifest = Manifest(dataset, data.licence, data.reference, checkpoint, packages, dict(export.files))
        except ValueError as error:
            raise EchoPlanError(f"this cannot be installed elsewhere: {error}", remedy="rename it") from error
        export.add_json(layout.MANIFEST_FILE, manifest.to_dict())
    if trust.calibration is None:
        export.note(f"without intervals of EF and volumes: {trust.why_none}")
    for note in export.notes:
        logger.warning("%s", note)
    return manifest


@dataclass
class _Export:
    """An archive that is being written.

    Attributes:
        archive: the file.
        checkpoint: "final" or "best".
        ensemble: whether there are several models, each with its own calibration.
        half_precision: whether weights are kept in 16 bits.
        rounded: digest of weights -> that of what they are in the archive, where that is another.
        files: as the manifest holds them.
        notes: for the user, each once.
        names: of the cases and patients that the models know.
    """

    archive: zipfile.ZipFile
    checkpoint: str
    ensemble: bool
    half_precision: bool = False
    rounded: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, int | str]] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def note(self, note: str) -> None:
        """Keep a note."""
        self.notes[note] = None

    def add(self, name: str, content: bytes | memoryview, *, text: str | None = None) -> None:
        """A file; what of it is text, all of it if not given, is searched for names of cases and patients."""
        self.files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        entry = zipfile.ZipInfo(name, _DATE)
        entry.create_system = 3  # Unix, wherever it is written
        entry.external_attr = (stat.S_IFREG | 0o644) << 16
        self.archive.writestr(entry, content)  # not packed: weights hardly shrink
        text = bytes(content).decode(errors="replace") if text is None else text
        words = sorted(word for word in self.names if word in text)
        found = [word for word in words if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)]
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            self.note(f"{name} names cases or patients ({', '.join(found[:3])}{more}): see whether it may leave")

    def add_json(self, name: str, content: Any) -> None:
        """A JSON file."""
        self.add(name, (json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())

    def add_model(self, model: ModelFolder, folds: tuple[int, ...]) -> str | None:
        """A model folder: of each file what is known to be needed; the package that offers the trainer."""
        home, folder = model.path, model.path.resolve().name
        if any(name.casefold().startswith(f"{folder}/".casefold()) for name in self.files):
            raise EchoPlanError(
                f"two models are called {folder}", file=home, remedy="export them one by one, into two archives"
            )
        self.names |= _names_of_cases(home)
        plan = Plan.read(home / layout.MODEL_PLAN_FILE)
        trainers = {name: trainer for name, trainer in plan.trainers.items() if name == model.trainer}
        self.add_json(f"{folder}/{layout.MODEL_PLAN_FILE}", replace(plan, trainers=trainers, hardware={}).to_dict())
        self.add_json(f"{folder}/{layout.DATASET_FILE}", model.description.to_dict())
        if (home / layout.FINGERPRINT_FILE).is_file():
            fingerprint = read_json(home / layout.FINGERPRINT_FILE)
            told = {"dataset": plan.dataset, "cases": {}, "summary": fingerprint.get("summary", {}), "failed_cases": {}}
            self.add_json(f"{folder}/{layout.FINGERPRINT_FILE}", told)
        if (home / layout.POSTPROCESSING_FILE).is_file():
            steps = read_postprocessing(home / layout.POSTPROCESSING_FILE)
            self.add_json(f"{folder}/{layout.POSTPROCESSING_FILE}", {"steps": list(steps)})
        sources = [self._add_checkpoint(model, folder, fold) for fold in folds]
        if self.ensemble and self.checkpoint == "final" and (home / CALIBRATION).is_file():
            self.add_calibration(f"{folder}/{CALIBRATION}", Calibration.read(home / CALIBRATION))
        for file in sorted({file for _, file in sources if file is not None}):
            self._add_code(folder, file)
        return next((offering_package(source) for source, file in sources if file is None), None)

    def _add_checkpoint(self, model: ModelFolder, folder: str, fold: int) -> tuple[str, Path | None]:
        """A fold's weights; how the archive names its trainer, and the user's file that holds it."""
        file = f"{layout.fold_folder(fold)}/{layout.checkpoint_file(self.checkpoint)}"
        state = ModelState.read(model.path / file, mapped=True)
        source = model.trainer_source(state)
        code = trainer_file(source)
        start = {key: value for key, value in state.started_from.items() if key in _KEPT_OF_START}
        shared = replace(
            state,
            trainer_source=source if code is None else f"{code.name}:{source.rpartition(':')[2]}",
            started_from={"file": None, **start} if start else {},
        )
        paths = [f"{key}={value}" for key, value in state.settings.items() if re.search(r"[/\\]", str(value))]
        if paths:
            self.note(f"settings of {model.trainer} look like paths of this machine: {', '.join(paths)}")
        if self.half_precision:
            shared = self._rounded(shared, model.path / file)
        text = json.dumps(plain({**shared.to_dict(), "network": None}), ensure_ascii=False)
        name = f"{folder}/{layout.fold_folder(fold)}/{layout.checkpoint_file('final')}"
        self.add(name, pack_checkpoint(shared.to_dict()), text=text)
        return shared.trainer_source, code

    def _rounded(self, state: ModelState, file: Path) -> ModelState:
        """The state with its weights in 16 bits; what names them by their digest will name these."""
        try:
            rounded = state.in_half_precision()
        except ValueError as error:
            raise EchoPlanError(str(error), file=file, remedy="export without --half_precision") from error
        self.rounded[weights_digest(state.network)] = weights_digest(widened(rounded.network))
        return rounded

    def add_calibration(self, name: str, calibration: Calibration) -> None:
        """A calibration.json, of the weights as they are in the archive."""
        self.add_json(name, replace(calibration, weights=self._as_exported(calibration.weights)).to_dict())

    def _as_exported(self, weights: Weights) -> Weights:
        return {
            model: {fold: self.rounded.get(digest, digest) for fold, digest in own.items()}
            for model, own in weights.items()
        }

    def _add_code(self, folder: str, file: Path) -> None:
        """The file of a user's own trainer."""
        beside = _modules_beside(file)
        if beside:
            raise EchoPlanError(
                f"the trainer's file imports {beside[0]}, which lies beside it and would be missing elsewhere",
                file=file,
                remedy="put what the trainer needs into its own file, or make it a package with an entry point "
                "(docs/trainers.md)",
            )
        name = f"{folder}/{file.name}"
        if name in self.files:
            raise EchoPlanError(
                "the folds were trained by several files of that name", file=file, remedy="choose folds of one with -f"
            )
        self.add(name, file.read_bytes())
        self.note(f"{name} goes as it is: see that no name, path or password stands in it")

    def add_choice(
        self,
        choice: ModelChoice,
        dataset: str,
        members: Mapping[str, tuple[int, ...]],
        weights: Weights,
        steps: Sequence[Mapping[str, Any]],
        calibration: Calibration | None,
    ) -> None:
        """What holds for all models together: calibration, and the best configuration, or that they are an ensemble.

        The choice keeps the weights it was written for, so that folds trained again are seen there, too; one of other
        checkpoints gets those, the exported `weights`.
        """
        folders = [*members]
        name, file = layout.together(folders), f"{layout.home_of(folders)}/{CALIBRATION}"
        if calibration is not None:
            self.add_calibration(file, calibration)
        if choice.best is None and len(members) == 1:
            return
        by_export: dict[str, Any] = {"chosen_by": BY_EXPORT}
        best = by_export if choice.best is None else read_json(choice.best)
        scores = [row for row in best.get("scores", ()) if row.get("name") == name]
        written_for = weights if choice.best is None or self.checkpoint != "final" else choice.weights
        written_for = self._as_exported(written_for)
        content = {
            "dataset": dataset,
            "name": name,
            "members": [
                {"model": folder, "folds": list(folds)}
                | ({"weights": written_for[folder]} if folder in written_for else {})
                for folder, folds in members.items()
            ],
            "postprocessing": {"steps": list(steps)},
            "calibration": None if calibration is None else file,
            **{key: best[key] for key in ("score", "chosen_by") if key in best},
            **({"scores": scores} if scores else {}),
        }
        self.add_json(layout.BEST_CONFIGURATION_FILE, content)


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


def _modules_beside(file: Path) -> list[str]:
    """The files that a file imports from its own folder."""
    try:
        tree = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # it will say so itself when it runs
        return []
    names = {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in tree if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    tops = sorted({name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"echoplan"})
    places = [place for name in tops for place in (f"{name}.py", f"{name}/__init__.py")]
    return [place for place in places if (file.parent / place).is_file()]
