"""What the file of a user's own trainer imports, read without running it."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path


def missing_packages(file: Path) -> list[str]:
    """What a file imports and this machine does not have, by its first name; nothing is imported."""
    return [name for name in _imported(file) if name not in sys.stdlib_module_names and not _places(name)]


def modules_beside(file: Path) -> list[Path]:
    """The modules that a file imports from its own folder, and that are not installed besides."""
    beside = []
    for name in _imported(file):
        modules = [
            path for path in (file.with_name(f"{name}.py"), file.parent / name / "__init__.py") if path.is_file()
        ]
        folders = {place.resolve().parent for place in _places(name)}
        if modules and name not in sys.stdlib_module_names and (not folders or file.parent.resolve() in folders):
            beside.append(modules[0])
    return beside


def _imported(file: Path) -> list[str]:
    """The first parts of all modules that a file imports, anywhere in it, sorted."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # it will say so itself when it runs
        return []
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level and node.module
    }
    return sorted({name.partition(".")[0] for name in names})


def _places(name: str) -> list[Path]:
    """Where a module that can be imported lies; none where it cannot."""
    try:
        spec = importlib.util.find_spec(name)
    except (ValueError, ImportError):
        return []
    return (
        []
        if spec is None
        else [Path(place) for place in (spec.origin, *(spec.submodule_search_locations or ())) if place]
    )
