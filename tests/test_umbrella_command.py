"""`echoplan`: what commands there are, and each of them by its short name."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from echoplan import scripts


def test_it_lists_each_command_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    names = [
        line.split("=")[0].strip() for line in setup["options.entry_points"]["console_scripts"].strip().split("\n")
    ]
    assert scripts.echoplan([]) == 0
    shown = capsys.readouterr().out
    listed = [line.split()[0] for line in shown.splitlines() if line.startswith("  echoplan_")]
    assert sorted(listed) == sorted(set(names) - {"echoplan"})


def test_a_command_runs_by_its_short_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scripts.echoplan(["evaluate_folder", str(tmp_path), str(tmp_path)]) == 1
    assert "error:" in capsys.readouterr().err


def test_a_misspelt_one_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert scripts.echoplan(["pedict", "-i", "x"]) == 1
    assert "did you mean predict" in capsys.readouterr().err
