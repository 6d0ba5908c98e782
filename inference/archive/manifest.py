"""manifest.json: what an archive of a model says of itself. It names every file, and only files that a model has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from echoplan import __version__, layout
from echoplan.errors import EchoPlanError, printable
from echoplan.names import on_any_disk
from echoplan.paths import dataset_name, names_several

FORMAT = 1
CALIBRATION = f"{layout.CROSS_VALIDATION}/{layout.CALIBRATION_FILE}"
ASK_AGAIN = "ask whoever made the archive to export the model again, or copy it again if it was damaged on its way"
# One plain file or folder on every system; Windows knows no con, whatever its ending.
_NAME = r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))\w(?:[\w.+-]{0,198}[\w+-])?"
_PLAIN = "|".join(
    map(
        re.escape,
        (layout.MODEL_PLAN_FILE, layout.DATASET_FILE, layout.FINGERPRINT_FILE, layout.POSTPROCESSING_FILE, CALIBRATION),
    )
)
_FOLD, _CHECKPOINT = layout.fold_folder(0).removesuffix("0"), re.escape(layout.checkpoint_file("final"))
_OF_MODEL = re.compile(
    rf"(?P<folder>{_NAME})/(?:{_PLAIN}|{_FOLD}(?P<fold>0|[1-9]\d{{0,8}})/{_CHECKPOINT}|(?P<code>{_NAME}\.py))"
)


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds. It is checked when it is made: its names cannot lead out of a folder.

    Attributes:
        dataset: the results folder's name, Dataset001_CAMUS, or CAMUS+EchoNet.
        licence, reference: of the data, as dataset.json says.
        checkpoint: "final" or "best": which checkpoint of each fold is in the archive (as checkpoint_final.pth).
        packages: model folder, <Trainer>__<Plans>__<configuration>, -> the installed package that offers the trainer;
            "echoplan", or None where a file of the folder does. Several are an ensemble.
        files: name in the archive -> {"bytes": size, "sha256": hexadecimal digits}, of all files but the manifest.
        echoplan: the version that wrote it.

    Raises:
        ValueError: a name is not as it should be, or a file does not belong to a model.
    """

    dataset: str
    licence: str
    reference: str
    checkpoint: str
    packages: Mapping[str, str | None]
    files: Mapping[str, Mapping[str, int | str]]
    echoplan: str = __version__

    def __post_init__(self) -> None:
        if not names_several(self.dataset) and dataset_name(Path(self.dataset)) == self.dataset:
            raise ValueError(f"{self.dataset!r} is no dataset's folder")
        for name in filter(None, (self.dataset, *self.packages, *self.packages.values())):
            if not re.fullmatch(_NAME, name):
                raise ValueError(f"{name!r} cannot be a file's name on every system")
        if not self.packages or any(folder.count("__") != 2 or not self.folds(folder) for folder in self.packages):
            raise ValueError("it names no model, or one without a fold")
        for name in self.files:
            match = _OF_MODEL.fullmatch(name)
            if (match is None or match["folder"] not in self.packages) and name not in self.of_all:
                raise ValueError(f"{name!r} is no file of a model")
        if len({on_any_disk(name) for name in self.files}) < len(self.files):
            raise ValueError("it names a file twice")
        if len(self.packages) > 1 and layout.BEST_CONFIGURATION_FILE not in self.files:
            raise ValueError(f"{layout.BEST_CONFIGURATION_FILE} is missing")

    @property
    def of_all(self) -> tuple[str, str]:
        """The names of the files that concern all models: their calibration, and the best configuration."""
        return f"{layout.home_of([*self.packages])}/{CALIBRATION}", layout.BEST_CONFIGURATION_FILE

    @cached_property
    def _of_models(self) -> dict[str, list[re.Match[str]]]:
        """Model folder -> its files, taken apart; in one pass, for a hostile archive may name many."""
        matches: dict[str, list[re.Match[str]]] = {folder: [] for folder in self.packages}
        for match in filter(None, map(_OF_MODEL.fullmatch, self.files)):
            matches.setdefault(match["folder"], []).append(match)
        return matches

    def folds(self, folder: str) -> list[int]:
        """The folds of a model."""
        return sorted(int(match["fold"]) for match in self._of_models[folder] if match["fold"])

    @property
    def code(self) -> list[str]:
        """The files that hold code."""
        return sorted(name for name in self.files if name.endswith(".py"))

    def pieces(self) -> list[str]:
        """What goes to a place of its own in a results folder; the best configuration, which names the rest, last."""
        places = {self.of_all[0]: layout.home_of([*self.packages]), self.of_all[1]: self.of_all[1]}
        return list(dict.fromkeys([*self.packages, *(place for name, place in places.items() if name in self.files)]))

    def to_dict(self) -> dict[str, Any]:
        """As manifest.json holds it."""
        data = {"folder": self.dataset, "name": dataset_name(Path(self.dataset))}
        return {
            "format": FORMAT,
            "echoplan": self.echoplan,
            "dataset": {**data, "licence": self.licence, "reference": self.reference},
            "checkpoint": self.checkpoint,
            "models": [
                {
                    "folder": folder,
                    "trainer": folder.split("__")[0],
                    "folds": self.folds(folder),
                    "package": package,
                    "code": sorted(match["code"] for match in self._of_models[folder] if match["code"]),
                }
                for folder, package in self.packages.items()
            ],
            "files": dict(sorted(self.files.items())),
        }

    @classmethod
    def from_dict(cls, content: Any, *, source: Path) -> Manifest:
        """From what manifest.json holds.

        Raises:
            EchoPlanError: it is of another format, or not as it should be.
        """
        try:
            if content["format"] != FORMAT:
                raise EchoPlanError(
                    f"the archive is of format {content['format']}, written by EchoPlan {content['echoplan']}; this "
                    f"EchoPlan, {__version__}, reads format {FORMAT}",
                    file=source,
                    remedy="install a newer EchoPlan, or the one that wrote it",
                )
            data, packages = content["dataset"], {model["folder"]: model["package"] for model in content["models"]}
            words = (data["licence"], data["reference"], content["checkpoint"], content["echoplan"])
            licence, reference, checkpoint, version = (printable(str(word)) for word in words)
            made = cls(data["folder"], licence, reference, checkpoint, packages, content["files"], version)
            if made.to_dict()["models"] != content["models"]:
                raise ValueError("its models are not those that its files make")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise EchoPlanError(
                f"the manifest is not as it should be: {reason}", file=source, remedy=ASK_AGAIN
            ) from error
        return made
