"""The three folders everything lives in, and datasets found in them by name, id or folder name, or several of them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from echoplan.errors import EchoPlanError

_DATASET_FOLDER = re.compile(r"Dataset(\d{3,})_(.+)")
_JOINED = "+"  # between the names of datasets that are trained jointly; no dataset's name may hold it


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

    def absolute(self) -> Folders:
        """As processes with another working directory find them."""
        return Folders(self.raw.absolute(), self.preprocessed.absolute(), self.results.absolute())

    def find_raw(self, name: str) -> Path:
        """The raw folder of the dataset called `name` (its name, id or folder name); EchoPlanError if there is none."""
        if names_several(name) and not _matches(self.raw, name):
            raise EchoPlanError(
                f"{name} is several raw datasets, and here one is needed", file=self.raw, remedy="name one of them"
            )
        return self._find(self.raw, name)

    def find_sources(self, name: str) -> tuple[Path, ...]:
        """The raw folder of a dataset, or those of the datasets that `name` joins by "+", by their names' order.

        Raises:
            EchoPlanError: one is not there, or is named twice.
        """
        sources = {dataset_name(path): path for path in map(self.find_raw, name.split(_JOINED))}
        if len(sources) < len(name.split(_JOINED)):
            raise EchoPlanError(f"{name} names a dataset twice", file=self.raw, remedy="name each one once")
        return tuple(sources[source] for source in sorted(sources))

    def name_of_several(self, name: str) -> str:
        """What the folders of several datasets are called: their names, however they are called here, in order."""
        names = set()
        for part in name.split(_JOINED):
            found = [path for root in (self.raw, self.preprocessed, self.results) for path in _matches(root, part)]
            names.add(dataset_name(found[0]) if found else part)
        return _JOINED.join(sorted(names))

    def find_preprocessed(self, name: str) -> Path:
        """Like `find_raw`, for what is planned and preprocessed; of several datasets too, in any order."""
        return self._find(self.preprocessed, self._home(self.preprocessed, name))

    def find_results(self, name: str) -> Path:
        """Like `find_preprocessed`, for what is trained."""
        return self._find(self.results, self._home(self.results, name))

    def _find(self, root: Path, name: str) -> Path:
        matches = _matches(root, name)
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise EchoPlanError(f"{name!r} names several datasets", file=root, remedy="give the folder's full name")
        known = [dataset_name(path) for path in dataset_folders(root)]
        near = _near(name, known) or known[:10]
        there = f"; there are {', '.join(near)}" if near else ""
        raise EchoPlanError(f"there is no dataset {name!r} here{there}", file=root, remedy=self._next_step(root, name))

    def _next_step(self, root: Path, name: str) -> str:
        """What makes the dataset's folder in one of the three, by how far it has come; of a misspelt one, its name."""
        several = names_several(name) and not _matches(self.raw, name)
        lacking = [part for part in (name.split(_JOINED) if several else [name]) if not _matches(self.raw, part)]
        raw = not lacking
        if root == self.preprocessed and raw:
            return f"run echoplan_plan_and_preprocess -d {name} first"
        if root == self.results and _matches(self.preprocessed, name):
            return f"train first: echoplan_train {name} 0 -tr UNetTrainer"
        if root == self.results and raw:
            return f"run echoplan_plan_and_preprocess -d {name}, then echoplan_train {name} 0 -tr UNetTrainer"
        sought = lacking[0] if several and lacking else name
        convert = (
            f"convert {sought if several else 'the dataset'} first (echoplan_convert_dataset, echoplan_make_phantom)"
        )
        homes = (self.raw, self.preprocessed, self.results)
        near = _near(sought, {dataset_name(path): None for home in homes for path in dataset_folders(home)})
        return f"do you mean {' or '.join(near)}? If not, {convert}" if near else convert

    def _home(self, root: Path, name: str) -> str:
        return self.name_of_several(name) if names_several(name) and not _matches(root, name) else name

    def home_of_installed(self, folder: str, *, name: str | None = None) -> Path:
        """The results folder for models that were trained elsewhere; it may be there already.

        A dataset of the same name here, in any of the three folders and whatever its id, has them in its folder. Else
        they keep their folder's name, with the next free id where another dataset here has theirs.

        Args:
            folder: what it was called there: Dataset001_CAMUS, or CAMUS+EchoNet.
            name: what the dataset, or its folder, is to be called here; None: as there.

        Raises:
            EchoPlanError: the name has odd characters, or several datasets here have it.
        """
        wanted = folder if name is None else name
        match = _DATASET_FOLDER.fullmatch(wanted)
        own = match[2] if match else wanted
        if name is not None:
            _check_dataset_name(own)
        elif match is None:  # several datasets
            return self.results / folder
        known = {
            path.name: (number, called)
            for root in (self.results, self.preprocessed, self.raw)
            for path, number, called in _datasets(root)
        }
        same = [path for path, (_, called) in known.items() if called == own]
        if wanted in same or (match and name is not None):
            return self.results / wanted
        if len(same) > 1:
            raise EchoPlanError(
                f"several datasets here are called {own}: {', '.join(same)}",
                file=self.results,
                remedy="give the whole name of a folder with -d",
            )
        if same:
            return self.results / same[0]
        there = _DATASET_FOLDER.fullmatch(folder)
        number, taken = int(there[1]) if there else 1, {number for number, _ in known.values()}
        return self.results / f"Dataset{max(taken) + 1 if number in taken else number:03d}_{own}"

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
        _check_dataset_name(name)
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


def _check_dataset_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name.isdecimal():
        raise EchoPlanError(f"{name!r} cannot name a dataset", remedy="use letters, digits, '-', '_', not digits alone")


def names_several(name: str) -> bool:
    """Whether a name joins several datasets, as in CAMUS+EchoNet."""
    return _JOINED in name


def dataset_folders(root: Path) -> list[Path]:
    """The folders of datasets, and of several trained jointly, in one of the three folders."""
    several = [path for path in sorted(root.iterdir()) if names_several(path.name)] if root.is_dir() else []
    datasets = [path for path, _, _ in _datasets(root)]
    return datasets + [path for path in several if path.is_dir() and path not in datasets]


def _datasets(root: Path) -> list[tuple[Path, int, str]]:
    found = []
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        match = _DATASET_FOLDER.fullmatch(path.name)
        if match and path.is_dir():
            found.append((path, int(match[1]), match[2]))
    return found


def _matches(root: Path, name: str) -> list[Path]:
    found = [
        path
        for path, number, known in _datasets(root)
        if name in (path.name, known) or (name.isdecimal() and int(name) == number)
    ]
    return found or [path for path in dataset_folders(root) if names_several(name) and path.name == name]


def _near(name: str, known: Iterable[str]) -> list[str]:
    """The known names that are spelled most alike, whatever their case."""
    by_word = {word.casefold(): word for word in known}
    return [by_word[word] for word in difflib.get_close_matches(name.casefold(), by_word, n=3, cutoff=0.5)]
