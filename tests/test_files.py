"""Files are whole or not there, and hold plain types."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from echoplan.errors import EchoPlanError
from echoplan.files import (
    atomic_path,
    partial_prefix,
    plain,
    read_json,
    sweep_partial_files,
    write_csv,
    write_json,
    write_text,
)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_and_an_interruption_leave_the_old_file_and_no_partial_one(tmp_path, error):
    target = tmp_path / "report.json"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_file_is_not_there_before_the_block_ends(tmp_path):
    target = tmp_path / "new" / "folder" / "mask.nii.gz"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"mask")
        assert not target.exists()
        assert temporary.parent == target.parent  # a move within one file system
        assert temporary.name.endswith("mask.nii.gz")  # writers choose the format by the ending
    assert target.read_bytes() == b"mask"
    assert list(target.parent.iterdir()) == [target]


def killed(code: str) -> int:
    """The number of a process that ran some code and was killed in its midst."""
    process = subprocess.Popen([sys.executable, "-c", f"{code}; import os; os.kill(os.getpid(), 9)"])
    assert process.wait() == -9
    return process.pid


@pytest.mark.skipif(os.name == "nt", reason="Windows does not say which processes live")
def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path):
    target = tmp_path / "below" / "mask.nii.gz"
    number = killed(f"from echoplan.files import atomic_path; p = atomic_path({str(target)!r}).__enter__(); p.touch()")
    (left,) = target.parent.iterdir()
    assert left.name == partial_prefix().replace(str(os.getpid()), str(number)) + target.name
    folder = tmp_path / left.name.replace("mask.nii.gz", "pictures")
    folder.mkdir()
    (folder / "frame_0000.png").touch()
    other_machine = tmp_path / f".partial-elsewhere.0-{number}-mask.nii.gz"
    other_machine.touch()
    whole = tmp_path / "mask.nii.gz"
    with atomic_path(whole) as mine:
        mine.touch()
        assert sweep_partial_files(tmp_path) == 2
        assert mine.exists()
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == [other_machine, whole]
    assert not folder.exists() and sweep_partial_files(tmp_path / "nowhere") == 0


def test_a_block_that_writes_nothing_leaves_the_old_file(tmp_path):
    target = tmp_path / "report.json"
    target.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(target):
        pass
    assert target.read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_for_people(tmp_path):
    target = tmp_path / "report.json"
    target.write_text("old")
    with pytest.raises(EchoPlanError, match="the disk is full") as caught, atomic_path(target) as temporary:
        temporary.write_text("half")
        with open("/dev/full", "w") as full:
            full.write("more than fits")  # the operating system's own ENOSPC, on flush
    assert caught.value.fatal
    assert caught.value.file == str(target)
    assert "free some space" in str(caught.value)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_a_disk_that_is_full_at_the_last_step(tmp_path, monkeypatch, number, call):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    target = tmp_path / "folder" / "report.json"
    with monkeypatch.context() as patched:
        patched.setattr(Path if call == "mkdir" else os, call, refuse)
        with pytest.raises(EchoPlanError, match="the disk is full") as caught:
            write_text(target, "new")
    assert caught.value.fatal
    assert not target.parent.exists() or list(target.parent.iterdir()) == []


def test_files_are_flushed_as_windows_wants_it(tmp_path, monkeypatch):
    fcntl, fsync = pytest.importorskip("fcntl"), os.fsync

    def flush(number):
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "open for reading alone")
        fsync(number)

    monkeypatch.setattr(os, "fsync", flush)
    write_text(tmp_path / "report.json", "new")
    assert (tmp_path / "report.json").read_text() == "new"


def test_other_errors_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError), atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text("x")
        raise PermissionError(errno.EACCES, "no")
    assert list(tmp_path.iterdir()) == []


def test_csv_round_trip_with_empty_cells(tmp_path):
    path = tmp_path / "ef.csv"
    rows = [{"case": "a, with comma", "ef": np.float32(55.5)}, {"case": "ü", "ef": float("nan")}, {"case": None}]
    write_csv(path, rows, ("case", "ef"))
    with open(path, newline="", encoding="utf-8") as stream:
        assert list(csv.reader(stream)) == [["case", "ef"], ["a, with comma", "55.5"], ["ü", ""], ["", ""]]


def test_csv_refuses_unknown_columns_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "ef.csv"
    write_csv(path, [{"case": "a"}], ("case",))
    with pytest.raises(ValueError, match="edv"):
        write_csv(path, [{"case": "b"}, {"case": "c", "edv": 100}], ("case",))
    assert path.read_text().split() == ["case", "a"]
    assert list(tmp_path.iterdir()) == [path]


def test_plain_gives_types_that_json_knows():
    value = {
        1: np.int64(3), "nan": float("nan"), "inf": -np.inf, "f32": np.float32(0.5), "bool": np.bool_(True),
        "array": np.array([[1.0, np.nan]]), "tensor": torch.tensor([1, 2]), "path": Path("a") / "b",
        "tuple": (np.uint8(255), [np.float64("inf")]), "text": np.str_("LV"), "none": None,
    }  # fmt: skip
    made = plain(value)
    assert made == {
        "1": 3, "nan": None, "inf": None, "f32": 0.5, "bool": True, "array": [[1.0, None]], "tensor": [1, 2],
        "path": os.path.join("a", "b"), "tuple": [255, [None]], "text": "LV", "none": None,
    }  # fmt: skip
    assert type(made["1"]) is int and type(made["f32"]) is float and made["bool"] is True
    assert type(made["tuple"][0]) is int


def test_json_round_trip_is_strict_json(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"ef": np.nan, "name": "Müller", "frames": (0, np.int32(17))})
    text = path.read_text(encoding="utf-8")
    assert "NaN" not in text and "Müller" in text and text.endswith("}\n")
    assert json.loads(text) == read_json(path) == {"ef": None, "name": "Müller", "frames": [0, 17]}


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00"])
def test_broken_json_names_the_file(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(EchoPlanError, match="not valid JSON") as caught:
        read_json(path)
    assert caught.value.file == str(path)


def test_missing_json_names_the_file(tmp_path):
    with pytest.raises(EchoPlanError, match="missing") as caught:
        read_json(tmp_path / "a.json")
    assert caught.value.file == str(tmp_path / "a.json")


def test_numbers_stand_in_a_line(tmp_path):
    content = {"a": [1, None, -1e-9], "b": [[True], []], "c": ["x", 1], "d": "[\n1, 2]"}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert '"a": [1, null, -1e-09],\n' in (tmp_path / "a.json").read_text()
