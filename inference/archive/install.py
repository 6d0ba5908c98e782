"""Installing an archive that anybody may have made: nothing of it runs, and it is there whole or not at all.

An archive holds the files that its manifest names, and a manifest names only files that a model has: so no other name,
and no path that leads out of a folder, is ever written to.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import shutil
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from echoplan import layout
from echoplan.errors import EchoPlanError
from echoplan.files import naming_full_disk, read_json
from echoplan.parallel_map import progress
from echoplan.paths import Folders, dataset_name

from ...training.checkpoint import ModelState
from ...training.initialization import with_trained_settings
from ...training.methods import find_method, offering_package
from ...training.model_folder import ModelFolder
from ..conformal import Calibration
from ..model_selection import command_for, read_best
from ..postprocessing import read_postprocessing
from .atomic_install import move_into_place, sweep_workplaces, workplace
from .manifest import ASK_AGAIN, CALIBRATION, Manifest

logger = logging.getLogger(__name__)

_LARGEST_MANIFEST = 2**20  # bytes; one of a hundred checkpoints has 20 kB
_LARGEST_RATIO = 100  # of a file to its packed size: weights hardly shrink, and plans not so much
_CHUNK = 2**20


@dataclass(frozen=True)
class InstalledModel:
    """What was installed.

    Attributes:
        home: the results folder that it is in, Dataset001_CAMUS.
        manifest: what the archive said of itself.
        replaced: what was there before and is gone.
        command: the command line that predicts with it.
    """

    home: Path
    manifest: Manifest
    replaced: Sequence[str]
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
    with _blaming("it is no whole zip file", file):
        archive = zipfile.ZipFile(file)
    with archive:
        manifest = _read_manifest(archive, file)
        _check_entries(archive.infolist(), manifest, file)
        if manifest.code and not trust_code:
            raise EchoPlanError(
                f"the archive holds code, {', '.join(manifest.code)}, which runs whenever the model is used, with all "
                "that you may do",
                file=file,
                remedy=f"read it ({shlex.join(['unzip', '-p', str(file), manifest.code[0]])}), and install with "
                "--trust_code if you trust it",
            )
        sweep_workplaces(folders.results)
        home = folders.home_of_installed(manifest.dataset, name=name)
        if home.exists() and not home.is_dir():
            raise EchoPlanError("here the model's folder should be", file=home, remedy="move this file away")
        with workplace(home) as work:
            there = [piece for piece in manifest.pieces() if (home / piece).exists()]
            if there and not overwrite:
                raise EchoPlanError(
                    f"{' and '.join(there)} {'is' if len(there) == 1 else 'are'} there already",
                    file=home,
                    remedy=f"install it beside, under another name (-d {dataset_name(home)}_2), or replace what is "
                    "there with --overwrite",
                )
            _unpack(archive, manifest, file, work / "new")
            _check_unpacked(work / "new", manifest, file)
            replaced = move_into_place(work, manifest.pieces(), overwrite=overwrite)
    _warn_of_stale_choice(home, manifest, replaced)
    if len(manifest.packages) == 1 and layout.BEST_CONFIGURATION_FILE not in manifest.files:
        return InstalledModel(home, manifest, replaced, command_for(home.name, home / manifest.pieces()[0]))
    return InstalledModel(home, manifest, replaced, f"echoplan_predict -i IN -o OUT -d {home.name}")


# The zip file --------------------------------------------------------------------------------------------------------


def is_model_archive(file: Path) -> bool:
    """Whether a file looks like an archive of a model."""
    try:
        with zipfile.ZipFile(file) as archive:
            return layout.MANIFEST_FILE in archive.namelist()
    except Exception:  # as zip files that are none raise
        return False


def _read_manifest(archive: zipfile.ZipFile, file: Path) -> Manifest:
    if layout.MANIFEST_FILE not in archive.namelist():
        raise EchoPlanError(
            f"this zip file is no archive of a model: it has no {layout.MANIFEST_FILE}",
            file=file,
            remedy="give an archive that echoplan_export_model wrote",
        )
    with _blaming(layout.MANIFEST_FILE, file), archive.open(layout.MANIFEST_FILE) as stream:
        text = stream.read(_LARGEST_MANIFEST + 1)
        content = json.loads(text.decode()) if len(text) <= _LARGEST_MANIFEST else None
    return Manifest.from_dict(content, source=file)


def _check_entries(entries: Sequence[zipfile.ZipInfo], manifest: Manifest, file: Path) -> None:
    """The archive holds each file of the manifest once and plain, and nothing else, and no bomb."""
    names, known = Counter(entry.filename for entry in entries), {*manifest.files, layout.MANIFEST_FILE}
    for name, count in names.items():
        if name not in known or count > 1:
            raise _refused(
                file, f"{name!r} is in the archive {'twice' if name in known else 'but not in its manifest'}"
            )
    for name in known - {*names}:
        raise _refused(file, f"{name} is in the manifest, but not in the archive")
    for entry in entries:
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            raise _refused(file, f"{entry.filename} is a link, a folder or a device, no plain file")
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refused(file, f"{entry.filename} is encrypted, or packed in an unusual way")
        if entry.file_size > _LARGEST_RATIO * entry.compress_size + _CHUNK:
            raise _refused(file, f"{entry.filename} would unpack from {entry.compress_size} bytes to {entry.file_size}")
    total, size = _total(entries), file.stat().st_size
    if total > _LARGEST_RATIO * size + _CHUNK:  # entries may lie over one another
        raise _refused(file, f"{size} bytes would unpack to {total}")


def _total(entries: Sequence[zipfile.ZipInfo]) -> int:
    return sum(entry.file_size for entry in entries)


def _unpack(archive: zipfile.ZipFile, manifest: Manifest, file: Path, folder: Path) -> None:
    """Write all files but the manifest to a folder; an EchoPlanError if one is not what the manifest says."""
    total, free = _total(archive.infolist()), shutil.disk_usage(folder).free
    if total > free:
        raise EchoPlanError(
            f"the model needs {total / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free",
            file=folder,
            remedy="free some space, or set echoplan_results to a folder on another disk",
        )
    with _blaming("it is damaged", file), naming_full_disk(folder):
        for name in progress(sorted(manifest.files), description="unpacking", unit="file"):
            path = folder.joinpath(*name.split("/"))
            path.parent.mkdir(parents=True, exist_ok=True)
            digest, size = hashlib.sha256(), 0
            with archive.open(name) as source, open(path, "xb") as target:
                while chunk := source.read(_CHUNK):  # never more than the size that was checked
                    size += target.write(chunk)
                    digest.update(chunk)
                target.flush()
                os.fsync(target.fileno())  # a power cut after the move must not leave an empty file
            if manifest.files[name] != {"bytes": size, "sha256": digest.hexdigest()}:
                raise _refused(file, f"{name} is not the file that was exported (its size or SHA-256 differs)")


def _refused(file: Path, problem: str) -> EchoPlanError:
    return EchoPlanError(f"the archive is not installed: {problem}", file=file, remedy=ASK_AGAIN)


@contextmanager
def _blaming(name: str, archive: Path) -> Iterator[None]:
    """Whatever a file's content makes its readers raise becomes an error that names the archive."""
    try:
        yield
    except Exception as error:  # content made to harm can make readers stumble in any way
        if isinstance(error, EchoPlanError) and (error.fatal or error.file == str(archive)):
            raise
        reason = error.problem if isinstance(error, EchoPlanError) else f"{type(error).__name__}: {error}"
        raise _refused(archive, f"{name}: {reason}") from error


# What was unpacked, read as data -------------------------------------------------------------------------------------


def _check_unpacked(folder: Path, manifest: Manifest, archive: Path) -> None:
    """Check that unpacked files make a model, and warn of a trainer that is not here. Nothing of them runs.

    Raises:
        EchoPlanError: a file is not what its name says, or names something outside the archive.
    """
    for model, package in manifest.packages.items():
        with _blaming(f"{model}/{layout.MODEL_PLAN_FILE} or {layout.DATASET_FILE}", archive):
            read = ModelFolder.read(folder / model)
            for plan in read.plan.each().values():
                # What prediction asks of a plan, for each source dataset.
                _ = plan.size, plan.frames, plan.window_stride, plan.crop, plan.protocol, plan.normalisation
                _ = plan.mirror_axes
        for fold in manifest.folds(model):
            file = f"{model}/{layout.fold_folder(fold)}/{layout.checkpoint_file('final')}"
            with _blaming(file, archive):
                source = _checked_trainer(folder / file, read)
                if ":" not in source and offering_package(source) is None:
                    remedy = "update EchoPlan" if package == "echoplan" else f"install the package {package}"
                    logger.warning("the trainer %s is not here: before you predict, %s", source, remedy)
    for name in sorted(manifest.files):
        with _blaming(name, archive):
            if name.endswith(CALIBRATION):
                Calibration.read(folder / name)
            elif name.endswith(f"/{layout.POSTPROCESSING_FILE}"):
                read_postprocessing(folder / name)
            elif name.endswith(f"/{layout.FINGERPRINT_FILE}"):
                read_json(folder / name)
            elif name == layout.BEST_CONFIGURATION_FILE:
                _check_best(folder, manifest)


def _checked_trainer(file: Path, model: ModelFolder) -> str:
    """The source of a checkpoint's trainer: a name, or a file in the model's folder; no other file may come to run."""
    with zipfile.ZipFile(file) as packed:
        entries = packed.infolist()
    if _total(entries) > file.stat().st_size or any(entry.compress_type for entry in entries):
        raise ValueError("it would unpack to more than it is")
    state = ModelState.read(file, mapped=True)
    state.check(model.description, file)
    source, separator, class_name = state.trainer_source.rpartition(":")
    if separator and not (
        class_name.isidentifier() and source == Path(source).name and (model.path / source).is_file()
    ):
        raise ValueError(f"it names the trainer {state.trainer_source!r}, which is not in the archive")
    if offering_package(state.trainer_source) == "echoplan":
        with_trained_settings(find_method(state.trainer_source), state, file)
    return state.trainer_source


def _check_best(folder: Path, manifest: Manifest) -> None:
    """The choice must name the archive's own models, folds and calibration."""
    best = read_best(folder / layout.BEST_CONFIGURATION_FILE)
    if {model for model, _ in best.members} != {folder / model for model in manifest.packages}:
        raise ValueError("it names other models than the archive's")
    if any(not chosen or not {*chosen} <= {*manifest.folds(model.name)} for model, chosen in best.members):
        raise ValueError("it names folds that the archive does not have")
    if best.calibration is not None and best.calibration not in {folder / name for name in manifest.files}:
        raise ValueError("it names a calibration that the archive does not have")


def _warn_of_stale_choice(home: Path, manifest: Manifest, replaced: Sequence[str]) -> None:
    """Warn where an earlier choice of this dataset names a model that is another one now."""
    file = home / layout.BEST_CONFIGURATION_FILE
    if layout.BEST_CONFIGURATION_FILE not in manifest.files and file.is_file():
        named = [piece for piece in replaced if piece in file.read_text(encoding="utf-8")]
        if named:
            logger.warning(
                "%s was found with the %s that was there before: remove it, or run echoplan_find_best_configuration %s "
                "again", file, ", ".join(named), dataset_name(home),
            )  # fmt: skip
