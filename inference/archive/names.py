"""Whether a text names a case, a patient or a place on this machine, before it leaves it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from echoplan import layout
from echoplan.files import read_json

_FEWEST_LETTERS = 4  # shorter names are words of every text


def names_of_cases(model: Path) -> set[str]:
    """The cases and patients that a model folder knows: those of its fingerprint, and of its folds."""
    names: set[str] = set()
    if (model / layout.FINGERPRINT_FILE).is_file():
        content = read_json(model / layout.FINGERPRINT_FILE)
        cases = content.get("cases", {})
        names |= {*cases, *content.get("failed_cases", {})}
        names |= {str(about.get("patient", "")) for about in cases.values()}
    for file in model.glob("fold_*/debug.json"):
        content = read_json(file)
        names |= {*content.get("train", ()), *content.get("val", ())}
    names |= {name.partition("__")[2] for name in names}  # a joint's bear their dataset's name in front
    return {name for name in names if len(name) >= _FEWEST_LETTERS}


def find_names(text: str, names: Iterable[str]) -> list[str]:
    """Those of the names that stand in a text as words of their own."""
    there = (name for name in names if name in text)
    return sorted(name for name in there if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text))


def find_paths(settings: Mapping[str, Any]) -> list[str]:
    """The settings that look like paths, as key=value."""
    texts = {name: value for name, value in settings.items() if isinstance(value, str)}
    return [f"{name}={value}" for name, value in texts.items() if re.search(r"[/\\]", value)]
