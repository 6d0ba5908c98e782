"""The table of formats and what no format knows."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from echoplan.errors import EchoPlanError
from echoplan.imageio import FORMATS, ending, find_format, formats, probe_clip, read_clip, read_mask, write_clip


@pytest.mark.parametrize(
    "content",
    [b"\0" * 400, b"hello, world", b"\x1f\x8bnot gzip at all", b"\x08\x00garbage" * 50, b"RIFF\0\0\0\0WAVE", b"x"],
)
def test_unknown_content(tmp_path, content):
    (tmp_path / "a.nii.gz").write_bytes(content)
    for use in (read_clip, read_mask):
        with pytest.raises(EchoPlanError, match=r"known format.*NIfTI, MetaImage, DICOM, AVI, MP4, PNG"):
            use(tmp_path / "a.nii.gz")


def test_nothing_and_empty(tmp_path):
    with pytest.raises(EchoPlanError, match="no such file"):
        read_clip(tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").touch()
    with pytest.raises(EchoPlanError, match="empty"):
        read_clip(tmp_path / "a.nii.gz")


def test_every_format_that_is_written_is_recognised(tmp_path, clip):
    for known in FORMATS:
        if known.write is None:
            continue
        for suffix in known.endings:
            path = tmp_path / f"clip{suffix}"
            write_clip(path, clip if known.name != "PNG" else type(clip)(clip.frames[:1]))
            assert find_format(path) is known
            assert read_clip(path).frames.shape[1:] == (24, 32)


def test_endings():
    assert [ending(name) for name in ("a.NII.GZ", "a.b.nii", "x/a.avi", "folder", "a.mhd")] == [
        ".nii.gz",
        ".nii",
        ".avi",
        "",
        "",
    ]


@pytest.mark.parametrize("name", ["a.dcm", "a.mhd", "a.xyz"])
def test_endings_nobody_writes(tmp_path, clip, name):
    with pytest.raises(EchoPlanError, match=r"not written as .*use one of: \.nii\.gz"):
        write_clip(tmp_path / name, clip)


def test_a_failed_write_leaves_the_old_file(tmp_path, clip, monkeypatch):
    write_clip(tmp_path / "a.avi", clip)
    before = (tmp_path / "a.avi").read_bytes()
    with pytest.raises(EchoPlanError):
        write_clip(tmp_path / "a.avi", type(clip)(clip.frames.astype(np.float32)))
    assert (tmp_path / "a.avi").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("use", [read_clip, read_mask, probe_clip, find_format])
def test_names_that_are_none(tmp_path, use):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lost").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "closed").write_bytes(b"x")
    names = {
        "a\0b.nii": "NUL", "x" * 300: "too long", "loop": "symbolic link that leads to itself",
        "lost": "no such file",
        "pipe": "device or a pipe",
        "closed/a.nii": "no such|Not a directory", os.fsdecode(b"M\xfc.nii"): "no such file",
    }  # fmt: skip
    for name, said in names.items():
        with pytest.raises(EchoPlanError, match=said) as error:
            use(tmp_path / name)
        assert error.value.file
    with pytest.raises(EchoPlanError, match="a folder, a device"):
        use("/dev/zero")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd", ".avi", ".mp4", ""])
@pytest.mark.parametrize("name", [b"M\xfcller", "Müller ❤".encode()])
def test_names_of_any_bytes(tmp_path, clip, name, suffix):
    """SimpleITK ends the process on a name that is no text."""
    path = tmp_path / os.fsdecode(name + suffix.encode())
    write_clip(path, clip)
    assert read_clip(path).frames.shape == probe_clip(path).shape == clip.frames.shape


def test_what_a_library_raises_becomes_an_error_that_names_the_file(tmp_path, clip, monkeypatch):
    write_clip(tmp_path / "a.nii", clip)
    for raised in (RecursionError("Doe"), OverflowError("Doe"), MemoryError(), OSError("Doe"), IndexError("Doe")):

        def fail(path, raised=raised):
            raise raised

        broken = tuple(replace(row, read=fail, probe=fail, read_labels=fail) for row in FORMATS)
        monkeypatch.setattr(formats, "FORMATS", broken)
        for use in (read_clip, probe_clip, read_mask):
            with pytest.raises(EchoPlanError) as error:
                use(tmp_path / "a.nii")
            assert error.value.file == str(tmp_path / "a.nii") and "Doe" not in str(error.value)
