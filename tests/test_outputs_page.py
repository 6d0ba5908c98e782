"""docs/outputs.md describes every column and key that the commands of the tutorial write."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from echoplan.evaluation import PatientRow

PAGE = (Path(__file__).parents[1] / "docs" / "outputs.md").read_text(encoding="utf-8")
UNITS = {"percent": ("%", "EF points"), "ml": ("mL",), "ms": ("ms",), "bpm": ("beats a minute",)}
# Whose keys are names of cases, patients, structures, models, epochs and the like, or are described on another page.
NAMES = {"cases", "patients", "labels", "per_case", "per_patient", "failures", "left_out", "missing", "methods", "mean",
         "weights", "limits", "sources", "decisions", "configurations", "trainers", "plan", "settings", "frames",
         "files", "source", "evidence", "arrays", "doubts", "rows", "views", "labelled_patterns", "dtypes"}  # fmt: skip
ELSEWHERE = ("dataset.json", "cases.csv")  # docs/formats.md


def section(name: str) -> str:
    """The part of the page that describes a file, by the heading that names it or the first that has the name."""
    parts = re.split(r"^## ", PAGE, flags=re.M)[1:]
    by_heading = [part for part in parts if name in part.splitlines()[0]]
    found = by_heading or [part for part in parts if f"`{name}`" in part]
    assert found, f"no section of docs/outputs.md describes {name}"
    return found[0]


def keys(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        for name, inside in content.items():
            yield name
            if name not in NAMES:
                yield from keys(inside)
    elif isinstance(content, list):
        for item in content:
            yield from keys(item)


def written(file: Path) -> set[str]:
    """The columns of a CSV, or the keys of JSON."""
    with open(file, encoding="utf-8", newline="") as stream:
        if file.suffix == ".csv":
            return set(next(csv.reader(stream)))
        lines = stream.read().splitlines() if file.suffix == ".jsonl" else [stream.read()]
    return {key for line in lines for key in keys(json.loads(line))}


def described(part: str) -> set[str]:
    return {word for code in re.findall(r"`([^`]+)`", part) for word in re.findall(r"\w+", code)}


@pytest.mark.parametrize("name", [field.name for field in fields(PatientRow)])
def test_each_column_of_the_report_is_described_with_its_unit(name: str) -> None:
    (row,) = [line.split(" | ") for line in section("ef_report.csv").splitlines()
              if line.startswith("| ") and f"`{name}`" in line.split(" | ")[0]]  # fmt: skip
    unit = UNITS.get(name.rpartition("_")[2])
    assert unit is None or row[1].strip() in unit


def test_all_that_the_tutorials_commands_write_is_described(tutorial: Any) -> None:
    files: dict[str, set[str]] = {}
    for file in sorted(tutorial.root.rglob("*")):
        if file.suffix in (".csv", ".json", ".jsonl") and file.name not in ELSEWHERE:
            of_a_case = file.suffix == ".json" and file.with_suffix(".b2nd").is_file()
            name = "store.json" if of_a_case else file.name
            files.setdefault(name, set()).update(written(file))
    assert {"ef_report.csv", "metrics.jsonl", "summary.json", "comparison.json", "best_configuration.json"} <= set(
        files
    )
    missing = {name: sorted(found - described(section(name))) for name, found in files.items()}
    assert {name: words for name, words in missing.items() if words} == {}
