"""The three folders everything lives in, and datasets found in them by name, id or folder name."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from echoplan.errors import EchoPlanError

_DATASET_FOLDER = re.compile(r"Dataset(\d{3,})_(.+)")


@dataclass(frozen=True)
class Folders:
    """The raw datasets, what is preprocessed from them, and what is trained on that."""

    raw: Path
    preprocessed: Path
    results: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Folders:
        """From `echoplan_raw`, `echoplan_preprocessed`, `echoplan_results`; else in `$ECHOPLAN_ROOT` or ~/echoplan."""
        root = Path(environment.get("ECHOPLAN_ROOT") or "~/echoplan").expanduser()

        def folder(name: str) -> Path:
            return Path(environment.get(f"echoplan_{name}") or root / name).expanduser()

        return cls(raw=folder("raw"), preprocessed=folder("preprocessed"), results=folder("results"))

    def find_raw(self, name: str) -> Path:
        """The raw folder of the dataset called `name` (its name, id or folder name); EchoPlanError if there is none."""
        return _find(
            self.raw, name, remedy="convert the dataset first (echoplan_convert_dataset, echoplan_make_phantom)"
        )

    def find_preprocessed(self, name: str) -> Path:
        """Like `find_raw`, for what is planned and preprocessed."""
        remedy = f"run echoplan_plan_and_preprocess -d {name} first"
        return _find(self.preprocessed, name, remedy=remedy)

    def find_results(self, name: str) -> Path:
        """Like `find_raw`, for what is trained."""
        return _find(self.results, name, remedy=f"train first: echoplan_train {name} 0 -tr UNetTrainer")

    def new_dataset_folder(self, name: str, *, dataset_id: int | None = None) -> Path:
        """The raw folder a new dataset should get: Dataset<id>_<name>, the next free id where none is given.

        Raises:
            EchoPlanError: the name has odd characters, or the name or id is taken by another dataset.
        """
        if _DATASET_FOLDER.fullmatch(name):
            raise EchoPlanError(
                f"{name!r} is a folder's name, not a dataset's", remedy="give the name alone, and the number with --id"
            )
        if dataset_id is not None and dataset_id < 0:
            raise EchoPlanError(f"{dataset_id} cannot be a dataset's id", remedy="use 0, 1, 2, ...")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name.isdecimal():
            raise EchoPlanError(
                f"{name!r} cannot name a dataset", remedy="use letters, digits, '-', '_', not digits alone"
            )
        taken = {number: path for path, number, _ in _datasets(self.raw)}
        for path, number, known in _datasets(self.raw):
            if known == name and dataset_id in (None, number):
                return path
        dataset_id = max(taken, default=0) + 1 if dataset_id is None else dataset_id
        if dataset_id in taken:
            raise EchoPlanError(
                f"the dataset id {dataset_id} is taken", file=taken[dataset_id], remedy="choose another --id"
            )
        if any(known == name for _, _, known in _datasets(self.raw)):
            raise EchoPlanError(
                f"a dataset {name} exists under another id", file=self.raw, remedy="choose another name"
            )
        return self.raw / f"Dataset{dataset_id:03d}_{name}"


def dataset_name(folder: Path) -> str:
    """`CAMUS` of `.../Dataset001_CAMUS`; the folder's own name where it is no dataset folder."""
    match = _DATASET_FOLDER.fullmatch(folder.name)
    return match[2] if match else folder.name


def _datasets(root: Path) -> list[tuple[Path, int, str]]:
    found = []
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        match = _DATASET_FOLDER.fullmatch(path.name)
        if match and path.is_dir():
            found.append((path, int(match[1]), match[2]))
    return found


def _find(root: Path, name: str, *, remedy: str) -> Path:
    datasets = _datasets(root)
    matches = [
        p for p, number, known in datasets if name in (p.name, known) or (name.isdecimal() and int(name) == number)
    ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise EchoPlanError(f"{name!r} names several datasets", file=root, remedy="give the folder's full name")
    known = [dataset for _, _, dataset in datasets]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known[:10]
    there = f"; there are {', '.join(near)}" if near else ""
    raise EchoPlanError(f"there is no dataset {name!r} here{there}", file=root, remedy=remedy)
