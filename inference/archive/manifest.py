"""manifest.json: what an archive of a model says of itself. It names every file, and only files that a model has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from echoplan import __version__, layout
from echoplan.errors import EchoPlanError
from echoplan.paths import dataset_name, names_several

FORMAT = 1
CALIBRATION = f"{layout.CROSS_VALIDATION}/{layout.CALIBRATION_FILE}"
ASK_AGAIN = "ask whoever made the archive to export the model again, or copy it again if it was damaged on its way"
_NO_FILE_NAME = re.compile(r'[<>:"/\\|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows, with any ending
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ArchivedFile:
    """One file: its size in bytes and its SHA-256, in hexadecimal digits."""

    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if type(self.bytes) is not int or self.bytes < 0 or not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"a file of {self.bytes!r} bytes with the hash {self.sha256!r}")


@dataclass(frozen=True)
class ArchivedModel:
    """One model folder.

    Attributes:
        folder: <Trainer>__<Plans>__<configuration>.
        trainer: the trainer class's name.
        folds: those that are in the archive.
        package: the installed package that offers the trainer; "echoplan", or None where `code` does.
        code: names of the user's files in the folder that hold the trainer.
    """

    folder: str
    trainer: str
    folds: tuple[int, ...]
    package: str | None = None
    code: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = check_name(self.folder).split("__")
        if len(parts) != 3 or parts[0] != self.trainer:
            raise ValueError(f"{self.folder!r} is no model folder of {self.trainer!r}")
        if not self.folds or any(type(fold) is not int or fold < 0 for fold in self.folds):
            raise ValueError(f"the folds of {self.folder} are {list(self.folds)}")
        wrong = [name for name in self.code if not check_name(name).endswith(".py")]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no Python file")

    def checkpoint(self, fold: int) -> str:
        """The name of a fold's checkpoint in the archive."""
        return f"{self.folder}/{layout.fold_folder(fold)}/{layout.checkpoint_file('final')}"

    @property
    def code_files(self) -> tuple[str, ...]:
        """The names of `code` in the archive."""
        return tuple(f"{self.folder}/{name}" for name in self.code)

    @property
    def needed(self) -> set[str]:
        """The files that must be in the archive."""
        checkpoints = (self.checkpoint(fold) for fold in self.folds)
        return {
            f"{self.folder}/{layout.MODEL_PLAN_FILE}",
            f"{self.folder}/{layout.DATASET_FILE}",
            *self.code_files,
            *checkpoints,
        }

    @property
    def optional(self) -> set[str]:
        """The files that may be in the archive besides."""
        return {f"{self.folder}/{name}" for name in (layout.FINGERPRINT_FILE, layout.POSTPROCESSING_FILE, CALIBRATION)}


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds. It is checked when it is made: its names cannot lead out of a folder.

    Attributes:
        dataset: the results folder's name, Dataset001_CAMUS, or CAMUS+EchoNet.
        licence, reference: of the data, as dataset.json says.
        checkpoint: "final" or "best": which checkpoint of each fold is in the archive (as checkpoint_final.pth).
        models: the models; several are an ensemble.
        files: name in the archive -> size and hash, of all files but the manifest.
        echoplan: the version that wrote it.

    Raises:
        ValueError: a name, number or hash is not as it should be, or a file is missing or does not belong to a model.
    """

    dataset: str
    licence: str
    reference: str
    checkpoint: str
    models: tuple[ArchivedModel, ...]
    files: Mapping[str, ArchivedFile]
    echoplan: str = __version__

    def __post_init__(self) -> None:
        check_name(self.dataset)
        if not names_several(self.dataset) and dataset_name(Path(self.dataset)) == self.dataset:
            raise ValueError(f"{self.dataset!r} is no dataset's folder")
        if self.checkpoint not in ("final", "best"):
            raise ValueError(f"the checkpoint is {self.checkpoint!r}")
        if not self.models or len({model.folder.casefold() for model in self.models}) < len(self.models):
            raise ValueError("it names no model, or a model twice")
        needed = set.union(*(model.needed for model in self.models))
        optional = set.union(*(model.optional for model in self.models), {layout.BEST_CONFIGURATION_FILE})
        if len(self.models) > 1:
            needed.add(layout.BEST_CONFIGURATION_FILE)
            optional.add(self.ensemble_calibration)
        for name in sorted(needed - set(self.files)):
            raise ValueError(f"{name} is missing")
        for name in sorted(set(self.files) - needed - optional):
            raise ValueError(f"{name!r} is no file of a model")

    @property
    def name(self) -> str:
        """The model's folder; those of an ensemble joined, as the best configuration calls it."""
        return "___".join(model.folder for model in self.models)

    @property
    def ensemble_calibration(self) -> str:
        """The name of an ensemble's calibration in the archive."""
        return f"ensembles/{self.name}/{CALIBRATION}"

    @property
    def code_files(self) -> tuple[str, ...]:
        """The names in the archive of all files that hold code."""
        return tuple(name for model in self.models for name in model.code_files)

    @property
    def total_bytes(self) -> int:
        """The size of all files."""
        return sum(file.bytes for file in self.files.values())

    def pieces(self) -> Iterator[str]:
        """What goes to a place of its own in a results folder; the best configuration, which names the rest, last."""
        yield from (model.folder for model in self.models)
        if self.ensemble_calibration in self.files:
            yield f"ensembles/{self.name}"
        if layout.BEST_CONFIGURATION_FILE in self.files:
            yield layout.BEST_CONFIGURATION_FILE

    def to_dict(self) -> dict[str, Any]:
        """As manifest.json holds it."""
        data = {"folder": self.dataset, "name": dataset_name(Path(self.dataset))}
        return {
            "format": FORMAT,
            "echoplan": self.echoplan,
            "dataset": {**data, "licence": self.licence, "reference": self.reference},
            "checkpoint": self.checkpoint,
            "models": [asdict(model) for model in self.models],
            "files": {name: asdict(file) for name, file in sorted(self.files.items())},
        }

    @classmethod
    def from_dict(cls, content: Any, *, source: Path) -> Manifest:
        """From what manifest.json holds.

        Raises:
            EchoPlanError: it is of another format, or not as it should be.
        """
        if not isinstance(content, dict) or "format" not in content:
            raise EchoPlanError("the manifest is none of a model", file=source, remedy=ASK_AGAIN)
        if content["format"] != FORMAT:
            raise EchoPlanError(
                f"the archive is of format {printable(content['format'])}, written by EchoPlan "
                f"{printable(content.get('echoplan'))}; this EchoPlan, {__version__}, reads format {FORMAT}",
                file=source,
                remedy="install a newer EchoPlan, or the one that wrote it",
            )
        try:
            return cls(
                dataset=content["dataset"]["folder"],
                licence=printable(content["dataset"]["licence"]),
                reference=printable(content["dataset"]["reference"]),
                checkpoint=content["checkpoint"],
                models=tuple(_model(item) for item in content["models"]),
                files={name: ArchivedFile(item["bytes"], item["sha256"]) for name, item in content["files"].items()},
                echoplan=printable(content["echoplan"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{printable(error.args[0])!r} is missing" if isinstance(error, KeyError) else printable(error)
            problem = f"the manifest is not as it should be: {reason}"
            raise EchoPlanError(problem, file=source, remedy=ASK_AGAIN) from error


def _model(item: Mapping[str, Any]) -> ArchivedModel:
    package = None if item["package"] is None else printable(item["package"])
    return ArchivedModel(item["folder"], item["trainer"], tuple(item["folds"]), package, tuple(item["code"]))


def check_name(name: str) -> str:
    """A name that is one plain file or folder on every system, and nothing else.

    Raises:
        ValueError: it is not.
    """
    plain = 0 < len(name.encode()) <= 255 and name.isprintable() and not _NO_FILE_NAME.search(name)
    if not plain or name.startswith(".") or name.endswith((" ", ".")) or _RESERVED.fullmatch(name):
        raise ValueError(f"{name!r} cannot be a file's name on every system")
    return name


def printable(text: object) -> str:
    """Text of an archive as it may be shown: no control characters, which a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))
