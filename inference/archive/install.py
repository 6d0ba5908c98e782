"""Installing an archive that anybody may have made: nothing of it runs, and it is there whole or not at all.

An archive holds the files that its manifest names, and a manifest names only files that a model has: so no other name,
and no path that leads out of a folder, is ever written to.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from echoplan import __version__, layout
from echoplan.errors import EchoPlanError
from echoplan.files import naming_full_disk, read_json
from echoplan.parallel_map import progress
from echoplan.paths import Folders, dataset_folders, dataset_name

from ...training.checkpoint import load_checkpoint
from ...training.methods.registry import offering_package
from ...training.model_folder import ModelFolder
from ..conformal import Calibration
from ..model_selection import choose_models, command_for
from ..postprocessing import check_steps, read_postprocessing
from .atomic_install import placing
from .manifest import ASK_AGAIN, CALIBRATION, ArchivedFile, ArchivedModel, Manifest, printable
from .trainer_code import missing_packages

_LARGEST_MANIFEST = 2**20  # bytes; one of a hundred checkpoints has 20 kB
_LARGEST_RATIO = 100  # of a file to its packed size: weights hardly shrink, and plans not so much
_CHUNK = 2**20
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError)
_KINDS = {"trainer_source": str, "settings": dict, "size": list, "classes": int, "network": dict}


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
    with _opened(file) as (archive, manifest):
        if manifest.code_files and not trust_code:
            raise EchoPlanError(
                f"the archive holds code, {', '.join(manifest.code_files)}, which runs whenever the model is used, "
                "with all that you may do",
                file=file,
                remedy=f"read it ({shlex.join(['unzip', '-p', str(file), manifest.code_files[0]])}), and install with "
                "--trust_code if you trust it",
            )
        home = folders.home_of_installed(manifest.dataset, name=name)
        beside = home.is_dir()
        if home.exists() and not beside:
            raise EchoPlanError("here the model's folder should be", file=home, remedy="move this file away")
        pieces = list(manifest.pieces())
        there = [piece for piece in pieces if (home / piece).exists()]
        if there and not overwrite:
            raise _is_there(home, there)
        root = home if beside else folders.results
        with placing(root) as prepared, naming_full_disk(root):
            unpacked = prepared.new if beside else prepared.new / home.name
            _unpack(archive, manifest, file, unpacked)
            check_unpacked(unpacked, manifest, file)
            notes = [*_notes(manifest, unpacked, home, folders), *_stale_choice(home, manifest, there)]
            replaced = prepared.commit(pieces if beside else [home.name], overwrite=beside and overwrite)
    return InstalledModel(home, manifest, tuple(replaced), tuple(notes), _command(folders, home, manifest))


def _is_there(home: Path, there: Sequence[str]) -> EchoPlanError:
    trained = [piece for piece in there if any(layout.folds_with(home / piece, layout.checkpoint_file("latest")))]
    told = f", and {', '.join(trained)} was trained here" if trained else ""
    return EchoPlanError(
        f"{', '.join(there)} {'is' if len(there) == 1 else 'are'} there already{told}",
        file=home,
        remedy=f"install it beside, under another name (-d {dataset_name(home)}_2), or replace what is there with "
        "--overwrite",
    )


# The zip file --------------------------------------------------------------------------------------------------------


def is_model_archive(file: Path) -> bool:
    """Whether a file looks like an archive of a model."""
    try:
        with zipfile.ZipFile(file) as archive:
            return layout.MANIFEST_FILE in archive.namelist()
    except (OSError, *_BROKEN):
        return False


@contextmanager
def _opened(file: Path) -> Iterator[tuple[zipfile.ZipFile, Manifest]]:
    """An archive whose names and sizes are checked, and its manifest; hashes are checked when it is unpacked."""
    with _naming(file):
        archive = zipfile.ZipFile(file)
    with archive:
        with _naming(file):
            manifest = _read_manifest(archive, file)
            _check_entries(archive, manifest, file)
        yield archive, manifest


def _read_manifest(archive: zipfile.ZipFile, file: Path) -> Manifest:
    if layout.MANIFEST_FILE not in archive.namelist():
        raise EchoPlanError(
            f"this zip file is no archive of a model: it has no {layout.MANIFEST_FILE}",
            file=file,
            remedy="give an archive that echoplan_export_model wrote",
        )
    with archive.open(layout.MANIFEST_FILE) as stream:
        text = stream.read(_LARGEST_MANIFEST + 1)
    if len(text) > _LARGEST_MANIFEST:
        raise _refused(file, f"{layout.MANIFEST_FILE} is larger than any manifest")
    try:
        content = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise _refused(file, f"{layout.MANIFEST_FILE} is not valid JSON") from error
    return Manifest.from_dict(content, source=file)


def _check_entries(archive: zipfile.ZipFile, manifest: Manifest, file: Path) -> None:
    """The archive holds each file of the manifest once, plain and of its size, and nothing else."""
    missing = {**manifest.files, layout.MANIFEST_FILE: None}
    for entry in archive.infolist():
        name = entry.filename
        if name not in missing:
            known = name in manifest.files or name == layout.MANIFEST_FILE
            raise _refused(file, f"{name!r} is in the archive {'twice' if known else ', but not in its manifest'}")
        problem = _problem(entry, missing.pop(name))
        if problem:
            raise _refused(file, f"{name} {problem}")
    for name in missing:
        raise _refused(file, f"{name} is in the manifest, but not in the archive")
    if manifest.total_bytes > _LARGEST_RATIO * file.stat().st_size + _CHUNK:  # entries may lie over one another
        raise _refused(file, f"{file.stat().st_size} bytes would unpack to {manifest.total_bytes}")


def _problem(entry: zipfile.ZipInfo, expected: ArchivedFile | None) -> str:
    """Why an entry is not the plain file that the manifest names; empty if it is."""
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
        return "is a link, a folder or a device, no plain file"
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is encrypted, or packed in an unusual way"
    if expected is not None and entry.file_size != expected.bytes:
        return f"has {entry.file_size} bytes, and {expected.bytes} by the manifest"
    if entry.file_size > _LARGEST_RATIO * entry.compress_size + _CHUNK:
        return f"would unpack from {entry.compress_size} bytes to {entry.file_size}"
    return ""


def _unpack(archive: zipfile.ZipFile, manifest: Manifest, file: Path, folder: Path) -> None:
    """Write all files but the manifest to a folder; an EchoPlanError if one is not what the manifest says."""
    free = shutil.disk_usage(folder.parent).free
    if manifest.total_bytes > free:
        raise EchoPlanError(
            f"the model needs {manifest.total_bytes / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free",
            file=folder.parent,
            remedy="free some space, or set echoplan_results to a folder on another disk",
        )
    with _naming(file):
        for name in progress(sorted(manifest.files), description="unpacking", unit="file"):
            path = folder.joinpath(*name.split("/"))
            path.parent.mkdir(parents=True, exist_ok=True)
            if _extract(archive, name, path, manifest.files[name].bytes) != manifest.files[name]:
                raise _refused(file, f"{name} is not the file that was exported (its SHA-256 differs)")


def _extract(archive: zipfile.ZipFile, name: str, path: Path, at_most: int) -> ArchivedFile:
    """Write one file; its size and hash. More than `at_most` bytes are not unpacked."""
    digest, size = hashlib.sha256(), 0
    with archive.open(name) as source, open(path, "xb") as target:
        while size <= at_most and (chunk := source.read(_CHUNK)):
            size += len(chunk)
            digest.update(chunk)
            target.write(chunk)
        target.flush()
        os.fsync(target.fileno())  # before it is moved into place: a power cut must not leave an empty file there
    return ArchivedFile(size, digest.hexdigest())


def _refused(file: Path, problem: str) -> EchoPlanError:
    return EchoPlanError(f"the archive is not installed: {printable(problem)}", file=file, remedy=ASK_AGAIN)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Turn what broken zip files raise into an error for people."""
    try:
        yield
    except _BROKEN as error:
        raise EchoPlanError(f"this is no whole zip file: {printable(error)}", file=file, remedy=ASK_AGAIN) from error


# What was unpacked, read as data -------------------------------------------------------------------------------------


def check_unpacked(folder: Path, manifest: Manifest, archive: Path) -> None:
    """Check that unpacked files make a model. Nothing of them runs.

    Args:
        folder: the archive's root, unpacked.
        manifest: of the archive.
        archive: for errors.

    Raises:
        EchoPlanError: a file is not what its name says, or names something outside the archive.
    """
    for model in manifest.models:
        with _blaming(f"{model.folder}/{layout.MODEL_PLAN_FILE} or {layout.DATASET_FILE}", archive):
            for plan in ModelFolder.read(folder / model.folder).plan.each().values():
                # What prediction asks of a plan, for each source dataset.
                _ = plan.size, plan.frames, plan.window_stride, plan.crop, plan.protocol, plan.normalisation
                _ = plan.mirror_axes
        for fold in model.folds:
            with _blaming(model.checkpoint(fold), archive):
                _check_checkpoint(folder / model.checkpoint(fold), model)
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
    # The trainer goes by its name, or lies in the archive: no other file may come to run.
    source, separator, class_name = state["trainer_source"].rpartition(":")
    if separator and (source not in model.code or not class_name.isidentifier()):
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
        raise _refused(archive, f"{name}: {reason}") from error


# What to tell --------------------------------------------------------------------------------------------------------


def _notes(manifest: Manifest, unpacked: Path, home: Path, folders: Folders) -> Iterator[str]:
    """What is worth knowing about a model that is fit to be installed."""
    if manifest.echoplan != __version__:
        yield f"it was exported by EchoPlan {manifest.echoplan}; this is {__version__}"
    others = {path.name for root in (folders.raw, folders.preprocessed) for path in dataset_folders(root)}
    if home.is_dir() or home.name in others:
        yield (
            f"a dataset {dataset_name(home)} is here already, and the model lies among its results; if that is other "
            "data of the same name, remove the model and install it with -d OTHER_NAME"
        )
    elif home.name != manifest.dataset:
        yield f"it is called {home.name} here, and was {manifest.dataset} where it was trained"
    for model in manifest.models:
        if not (model.code or _offers(model.package, model.trainer)):
            remedy = "update EchoPlan" if model.package == "echoplan" else f"install the package {model.package}"
            yield f"the trainer {model.trainer} is not here: before you predict, {remedy}"
        for name in model.code_files:
            yield f"{name} is code: it runs whenever the model is used"
            missing = missing_packages(unpacked / name)
            if missing:
                yield f"{Path(name).name} imports what is not installed here: {', '.join(missing)}"


def _offers(package: str | None, trainer: str) -> bool:
    """Whether the package that offers a trainer is here."""
    if package == "echoplan":
        return offering_package(trainer) is not None
    try:
        return package is not None and bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def _stale_choice(home: Path, manifest: Manifest, there: Sequence[str]) -> Iterator[str]:
    """A note where an earlier choice of this dataset names a model that is another one now."""
    file = home / layout.BEST_CONFIGURATION_FILE
    if layout.BEST_CONFIGURATION_FILE not in manifest.files and file.is_file():
        named = {piece for piece in there if piece in file.read_text(encoding="utf-8")}
        if named:
            yield (
                f"{file} was found with the {', '.join(sorted(named))} that was there before: remove it, or run "
                f"echoplan_find_best_configuration {dataset_name(home)} again"
            )


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
