"""A share of the fuzzer's inputs, and that the fuzzer finds what it looks for. `make fuzz` reads many more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from echoplan.errors import EchoPlanError
from echoplan.imageio import Clip

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def fuzz():
    """The fuzzer as a module; its folder is one of scripts, not of a package."""
    sys.path.insert(0, str(HERE))
    try:
        import fuzz

        yield fuzz
    finally:
        sys.path.remove(str(HERE))


def test_a_share_of_the_inputs():
    command = [sys.executable, str(HERE / "fuzz.py"), "--inputs", "400", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and "nothing found" in done.stdout, done.stdout + done.stderr


def refuse(path):
    raise EchoPlanError("no", file=path)


def die(path):
    os.kill(os.getpid(), signal.SIGKILL)


def hang(path):
    time.sleep(60)


def raise_something(path):
    raise KeyError("x")


def name_no_file(path):
    raise EchoPlanError("no")


def quote(path):
    raise EchoPlanError("no patient Doe", file=path)


def write_a_file(path):
    path.with_name("other").touch()
    refuse(path)


def take_memory(path):
    np.ones(2**30, np.float64)


def read_another_file(path):
    return Clip(np.full((1, 4, 4), 0xA7, np.uint8))


def give_other_pixels(path):
    return Clip(np.ones((1, 4, 4), np.uint8))


def give_no_clip(path):
    return Clip(np.ones((4, 4), np.uint8))


@pytest.mark.parametrize(
    ("reader", "kind"),
    [(die, "death"), (hang, "hang"), (raise_something, "untyped"), (name_no_file, "untyped"), (quote, "quotes"),
     (write_a_file, "outside"), (read_another_file, "outside"), (give_other_pixels, "pixels"), (give_no_clip, "shape"),
     (take_memory, "untyped"), (refuse, None)],
)  # fmt: skip
def test_the_fuzzer_finds_what_it_looks_for(fuzz, tmp_path, monkeypatch, reader, kind):
    monkeypatch.setattr(fuzz, "read_clip", reader)
    monkeypatch.setattr(fuzz, "probe_clip", refuse)
    monkeypatch.setattr(fuzz, "read_mask", refuse)
    monkeypatch.setattr(fuzz, "WAITING", 1)
    (tmp_path / "empty").mkdir()
    content = b"0123456789" * 9
    seed = fuzz.Seed("a", {"a.nii": content}, guarded=(0, len(content)))
    good = {"a": np.zeros((1, 4, 4), np.uint8)}
    findings = list(fuzz.run(range(2), 1, ([seed], tmp_path, good)))
    found = {found for _, found, _ in findings}
    assert kind in found if kind else not found
    assert {number for number, _, _ in findings} == ({0, 1} if kind else set())
