"""docs/troubleshooting.md quotes what the code says, and knows its exit statuses."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
# The first column of all tables but the one on installing, where other programs speak.
QUOTED = re.findall(r"^\| `([^`]+)` \|", PAGE.partition("## Clips")[2], re.M)
ANY = "…"


@cache
def messages() -> str:
    """All texts of the code, one a line, with `…` for values."""
    texts = []
    for room in ("echoplan", "preprocessing", "evaluation", "training", "experiment_planning", "inference"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    texts.append(
                        "".join(str(part.value) if isinstance(part, ast.Constant) else ANY for part in node.values)
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(text.replace("\n", " ") for text in texts)


@pytest.mark.parametrize("quoted", QUOTED)
def test_the_code_says_what_the_page_quotes(quoted: str) -> None:
    pattern = ".*".join(re.escape(part) for part in quoted.split(ANY))
    assert re.search(pattern, messages()), quoted


def test_there_is_something_to_quote() -> None:
    assert len(QUOTED) > 25 and not re.search("this sentence is nowhere", messages())
