"""Each public function of the packages that users import has a runnable example, and all examples are right."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("echoplan.imageio", "echoplan.evaluation", "echoplan.inference", "echoplan.networks")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public_names() -> list[tuple[str, str]]:
    """(package, name) of every function and class that a package offers."""
    return [
        (package, name)
        for package in PACKAGES
        for name in importlib.import_module(package).__all__
        if inspect.isroutine(item := getattr(importlib.import_module(package), name)) or inspect.isclass(item)
    ]


def examples_of(package: str, name: str) -> list[doctest.DocTest]:
    """The examples of a function, or of a class and its methods. They see nothing but what they import."""
    item = getattr(importlib.import_module(package), name)
    return [test for test in doctest.DocTestFinder().find(item, name, globs={}) if test.examples]


WITH_EXAMPLES = [(package, name) for package, name in public_names() if examples_of(package, name)]


def test_every_public_function_has_an_example() -> None:
    """Records are shown by the functions that return them."""
    missing = [
        f"{package}.{name}"
        for package, name in public_names()
        if (package, name) not in WITH_EXAMPLES
        and not dataclasses.is_dataclass(getattr(importlib.import_module(package), name))
    ]
    assert missing == []


@pytest.mark.parametrize(("package", "name"), WITH_EXAMPLES)
def test_examples_run(package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report: list[str] = []
    for test in examples_of(package, name):
        doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=report.append)
    assert "".join(report) == ""


class Nearly(doctest.OutputChecker):
    """Takes numbers that differ in the last digits shown, as networks' do between machines, for equal."""

    number = re.compile(r"\d+\.\d+")

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        texts = [self.number.sub("#", " ".join(text.split())) for text in (want, got)]
        pairs = zip(self.number.findall(want), self.number.findall(got), strict=False)
        close = all(abs(float(a) - float(b)) <= 0.03 * abs(float(a)) for a, b in pairs)
        return super().check_output(want, got, optionflags) or (texts[0] == texts[1] and close)


def test_the_page_on_python_runs_and_names_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(page, {}, "api.md", "docs/api.md", 0)
    report: list[str] = []
    doctest.DocTestRunner(checker=Nearly(), optionflags=OPTIONS).run(test, out=report.append)
    assert "".join(report) == "" and len(test.examples) > 20
    assert [name for _, name in public_names() if f"| `{name}` |" not in page] == []
