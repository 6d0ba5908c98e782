"""docs/tutorial.md holds: its commands run, word for word at toy size, and end in what it promises."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text(encoding="utf-8")


def test_the_commands_end_in_a_table_of_two_methods_and_a_report(tutorial: Any) -> None:
    table = (tutorial.root / "comparison" / "comparison.md").read_text(encoding="utf-8")
    for method in ("UNetTrainer", "PKEchoNetR18Trainer"):
        assert re.search(rf"^\| all +\| {method} ", table, re.M)
    with open(tutorial.root / "out" / "ef_report.csv", newline="") as stream:
        assert [row["patient"] for row in csv.DictReader(stream)] == ["patient0004"]
    assert (tutorial.root / "out" / "report.html").is_file() and (tutorial.root / "out" / "summary.json").is_file()


def test_the_page_shows_what_the_commands_print(tutorial: Any) -> None:
    """Line by line, but for what the size decides: numbers, and so the best of a table and the width of its columns."""
    said = "\n".join(file.read_text(encoding="utf-8") for file in (tutorial.root / "said").iterdir())
    printed = {form(line) for line in said.splitlines()}
    shown = [line for block in re.findall(r"^```text\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
    assert len(shown) > 20
    assert [line for line in shown if line.strip("… ") and form(line) not in printed] == []


def form(line: str) -> str:
    """A line without numbers, paths, bold face and widths of columns."""
    line = re.sub(r"\S*/\S*", "PATH", line)
    line = re.sub(r"(?:[<−+-] ?)?\d+(\.\d+)?|–", "#", line.replace("**", ""))
    return " ".join(re.sub(r"-+:?", "-", line).split())
