"""What echoplan_doctor sees and what it calls a problem."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import re
from collections import namedtuple
from pathlib import Path

import pytest

from echoplan import __version__
from echoplan.doctor import diagnose, doctor

SETUP = Path(__file__).parents[1] / "setup.cfg"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def all_is_well(monkeypatch):
    """This machine's disk and packages are no part of the tests."""
    monkeypatch.setattr("echoplan.doctor.importlib.metadata.version", lambda name: f"1.0+{name}")
    monkeypatch.setattr("echoplan.doctor.shutil.disk_usage", lambda path: Usage(10**12, 0, 200 * 10**9))


def line_of(lines, start):
    return next(line for line in lines if line.startswith(start))


def test_the_folders_and_where_they_come_from(tmp_path):
    raw = tmp_path / "mine"
    for name in ("Dataset001_A", "Dataset002_B"):
        (raw / name).mkdir(parents=True)
    lines, problems = diagnose({"ECHOPLAN_ROOT": str(tmp_path), "echoplan_raw": str(raw)})
    assert line_of(lines, "raw ") == f"raw           {raw} ($echoplan_raw), 2 dataset(s), 200 GB free"
    assert f"{tmp_path / 'preprocessed'} ($ECHOPLAN_ROOT), 0 dataset(s)" in line_of(lines, "preprocessed ")
    assert f"{tmp_path / 'results'} ($ECHOPLAN_ROOT)" in line_of(lines, "results ")
    assert problems == []


def test_the_default_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    lines, _ = diagnose({})
    assert f"{tmp_path / 'echoplan' / 'raw'} (default)" in line_of(lines, "raw ")


def test_versions_and_device(tmp_path):
    lines, _ = diagnose({"ECHOPLAN_ROOT": str(tmp_path)})
    assert lines[0].startswith(f"echoplan {__version__}, Python 3.")
    assert line_of(lines, "torch ").split() == ["torch", "1.0+torch"]
    assert re.fullmatch(r"device +(cuda|mps|cpu) \(--device auto takes it\)", line_of(lines, "device"))


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    allowed = os.access
    locked = tmp_path / "locked"
    locked.mkdir()
    monkeypatch.setattr("echoplan.doctor.os.access", lambda path, mode: Path(path) != locked and allowed(path, mode))
    environment = {"ECHOPLAN_ROOT": str(tmp_path), "echoplan_results": str(locked / "not" / "there" / "yet")}
    _, problems = diagnose(environment)
    assert len(problems) == 1
    assert f"{locked} cannot be written to; set echoplan_results" in problems[0]


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "raw").write_text("")
    _, problems = diagnose({"ECHOPLAN_ROOT": str(tmp_path)})
    assert len(problems) == 1 and f"{tmp_path / 'raw'} is a file" in problems[0]


def test_little_disk_space(tmp_path, monkeypatch):
    monkeypatch.setattr("echoplan.doctor.shutil.disk_usage", lambda path: Usage(10**12, 10**12, 2.5 * 10**9))
    _, problems = diagnose({"ECHOPLAN_ROOT": str(tmp_path)})
    assert len(problems) == 3 and all("only 2.5 GB are free" in problem for problem in problems)


def requirements():
    setup = configparser.ConfigParser()
    setup.read(SETUP)
    return re.findall(r"^([\w-]+)(?:\[.*\])?>=", setup["options"]["install_requires"], flags=re.MULTILINE)


def test_each_missing_package_is_a_problem(tmp_path, monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("echoplan.doctor.importlib.metadata.version", version)
    _, problems = diagnose({"ECHOPLAN_ROOT": str(tmp_path)})
    wanted = [f"the package {name} is not installed; run: pip install {name}".lower() for name in requirements()]
    assert sorted(map(str.lower, problems)) == sorted(wanted)


def test_the_command_exits_1_where_there_is_a_problem(tmp_path, monkeypatch, capsys):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"echoplan_{name}", raising=False)
    monkeypatch.setenv("ECHOPLAN_ROOT", str(tmp_path))
    assert doctor([]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing is missing"
    (tmp_path / "raw").write_text("")
    assert doctor([]) == 1
    assert "problem: " in capsys.readouterr().out
