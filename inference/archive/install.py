"""Installing an archive of a model: nothing of it runs or leaves its folder, and it is there whole or not at all."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from echoplan import __version__, layout
from echoplan.errors import EchoPlanError
from echoplan.files import naming_full_disk
from echoplan.paths import Folders, dataset_folders, dataset_name

from ...training.methods.registry import offering_package
from ..model_selection import choose_models, command_for
from .archive import ModelArchive
from .atomic_install import Placing
from .check import check_unpacked
from .manifest import Manifest
from .trainer_code import packages_missing


@dataclass(frozen=True)
class InstalledModel:
    """What was installed.

    Attributes:
        home: the results folder that it is in, Dataset001_CAMUS.
        manifest: what the archive said of itself.
        replaced: what was there before and is gone.
        notes: what the user should know, in words.
        command: the command line that predicts with it.
    """

    home: Path
    manifest: Manifest
    replaced: tuple[str, ...]
    notes: tuple[str, ...]
    command: str


def install_model(
    file: Path, folders: Folders, *, name: str | None = None, overwrite: bool = False, trust_code: bool = False
) -> InstalledModel:
    """Install an archive that `export_model` wrote.

    Args:
        file: the archive.
        folders: where results lie.
        name: what the dataset, or its folder, is to be called here; None: as where it was exported.
        overwrite: whether a model that is there may be replaced; it is lost only once the new one is in place.
        trust_code: whether an archive with a user's own trainer may be installed. Its code does not run now, but
            whenever the model is used.

    Raises:
        EchoPlanError: the archive is damaged or not as it should be, holds code that was not trusted, or a model is
            there already. Then nothing has changed.
    """
    with ModelArchive.open(file) as archive:
        manifest = archive.manifest
        _check_trust(manifest, file, trust_code)
        home = folders.home_of_installed(manifest.dataset, name=name)
        beside = home.is_dir()
        if home.exists() and not beside:
            raise EchoPlanError("here the model's folder should be", file=home, remedy="move this file away")
        pieces = list(manifest.pieces())
        there = [piece for piece in pieces if (home / piece).exists()]
        if there and not overwrite:
            raise _is_there(home, there, manifest)
        root = home if beside else folders.results
        with Placing(root) as placing, naming_full_disk(root):
            _check_space(root, manifest)
            unpacked = placing.new if beside else placing.new / home.name
            archive.extract(unpacked)
            check_unpacked(unpacked, manifest, file)
            notes = [*_notes(manifest, unpacked, home, beside, folders), *_stale_choice(home, manifest, there)]
            replaced = placing.commit(pieces if beside else [home.name], overwrite=beside and overwrite)
    return InstalledModel(home, manifest, tuple(replaced), tuple(notes), _command(folders, home, manifest))


def _check_trust(manifest: Manifest, file: Path, trust_code: bool) -> None:
    if manifest.code_files and not trust_code:
        raise EchoPlanError(
            f"the archive holds code, {', '.join(manifest.code_files)}, which runs whenever the model is used, "
            "with all that you may do",
            file=file,
            remedy=f"read it ({shlex.join(['unzip', '-p', str(file), manifest.code_files[0]])}), and install with "
            "--trust_code if you trust it",
        )


def _is_there(home: Path, there: Sequence[str], manifest: Manifest) -> EchoPlanError:
    trained = [piece for piece in there if any((home / piece).glob("fold_*/checkpoint_latest.pth"))]
    told = f", and {', '.join(trained)} was trained here" if trained else ""
    return EchoPlanError(
        f"{', '.join(there)} {'is' if len(there) == 1 else 'are'} there already{told}",
        file=home,
        remedy=f"install it beside, under another name (-d {dataset_name(home)}_2), or replace what is there with "
        "--overwrite",
    )


def _check_space(root: Path, manifest: Manifest) -> None:
    free = shutil.disk_usage(root).free
    if manifest.total_bytes > free:
        raise EchoPlanError(
            f"the model needs {manifest.total_bytes / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free",
            file=root,
            remedy="free some space, or set echoplan_results to a folder on another disk",
        )


def _notes(manifest: Manifest, unpacked: Path, home: Path, beside: bool, folders: Folders) -> list[str]:
    """What is worth knowing about a model that is fit to be installed."""
    notes = []
    if manifest.echoplan != __version__:
        notes.append(f"it was exported by EchoPlan {manifest.echoplan}; this is {__version__}")
    others = {path.name for root in (folders.raw, folders.preprocessed) for path in dataset_folders(root)}
    if beside or home.name in others:
        notes.append(
            f"a dataset {dataset_name(home)} is here already, and the model lies among its results; if that is other "
            "data of the same name, remove the model and install it with -d OTHER_NAME"
        )
    elif home.name != manifest.dataset:
        notes.append(f"it is called {home.name} here, and was {manifest.dataset} where it was trained")
    for model in manifest.models:
        if not (model.code or _offers(model.package, model.trainer)):
            remedy = "update EchoPlan" if model.package == "echoplan" else f"install the package {model.package}"
            notes.append(f"the trainer {model.trainer} is not here: before you predict, {remedy}")
        for name, path in zip(model.code, model.code_files, strict=True):
            notes.append(f"{path} is code: it runs whenever the model is used")
            missing = packages_missing((unpacked / path).read_bytes())
            if missing:
                notes.append(f"{name} imports what is not installed here: {', '.join(missing)}")
    return notes


def _offers(package: str | None, trainer: str) -> bool:
    """Whether the package that offers a trainer is here."""
    if package == "echoplan":
        return offering_package(trainer) is not None
    try:
        return package is not None and bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def _stale_choice(home: Path, manifest: Manifest, there: Sequence[str]) -> list[str]:
    """A note where an earlier choice of this dataset names a model that is another one now."""
    file = home / layout.BEST_CONFIGURATION_FILE
    if layout.BEST_CONFIGURATION_FILE in manifest.files or not file.is_file():
        return []
    named = {piece for piece in there if piece in file.read_text(encoding="utf-8")}
    if not named:
        return []
    return [
        f"{file} was found with the {', '.join(sorted(named))} that was there before: remove it, or run "
        f"echoplan_find_best_configuration {dataset_name(home)} again"
    ]


def _command(folders: Folders, home: Path, manifest: Manifest) -> str:
    """The shortest command line that predicts with what was installed."""
    name = dataset_name(home)
    try:
        if folders.find_results(name) != home:
            name = home.name
    except EchoPlanError:  # several folders are called so
        name = home.name
    if len(manifest.models) == 1:
        model = home / manifest.models[0].folder
        try:
            chosen = [path for path, _ in choose_models(folders, dataset=name).members]
        except EchoPlanError:
            chosen = []
        if chosen != [model]:
            return command_for(name, model)
    return f"echoplan_predict -i IN -o OUT -d {name}"
