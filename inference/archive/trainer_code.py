"""The file of a user's own trainer: found, and looked at, without running it."""

from __future__ import annotations

import ast
import importlib.util
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...training.methods.registry import offering_package


@dataclass(frozen=True)
class TrainerOrigin:
    """Where a trainer comes from.

    Attributes:
        source: how a checkpoint names it that has its file, if it has one, beside it in the model folder.
        file: the user's file; None for a trainer that goes by its name.
        package: what offers it by its name; None where it has a file, or nothing does.
    """

    source: str
    file: Path | None
    package: str | None

    @classmethod
    def of(cls, source: str) -> TrainerOrigin:
        """From what `find_trainer` takes: a name, or path/to/file.py:Class."""
        file, _, class_name = source.rpartition(":")
        if not file.endswith(".py"):
            return cls(source, None, offering_package(source))
        path = Path(file).expanduser()
        return cls(f"{path.name}:{class_name}", path, None)


def packages_missing(code: bytes) -> list[str]:
    """What code imports and this machine does not have, by its first name; nothing is imported."""
    return [name for name in sorted(_imported(code)) if not _installed(name)]


def files_beside(file: Path) -> list[Path]:
    """The modules that a file imports from its own folder."""
    beside = []
    for name in sorted(_imported(file.read_bytes())):
        found = [path for path in (file.with_name(f"{name}.py"), file.parent / name / "__init__.py") if path.is_file()]
        if found and not _installed(name, but_for=file.parent):
            beside.append(found[0])
    return beside


def _imported(code: bytes) -> set[str]:
    """The first parts of all modules that code imports, anywhere in it."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # it will say so itself when it runs
        return set()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def _installed(name: str, *, but_for: Path | None = None) -> bool:
    """Whether a module can be imported, and not merely because it lies in the folder `but_for`."""
    if name in sys.stdlib_module_names:
        return True
    with suppress(ValueError, ImportError):
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
        folders = {Path(place).resolve().parent for place in places if place}
        return spec is not None and (but_for is None or but_for.resolve() not in folders)
    return False
