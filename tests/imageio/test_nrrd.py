"""NRRD: against SimpleITK, and headers that point elsewhere."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from echoplan.errors import EchoPlanError
from echoplan.imageio import Clip, probe_clip, read_clip, read_mask, write_clip, write_mask

SCALARS = ("UInt8", "Int8", "UInt16", "Int16", "UInt32", "Int32", "UInt64", "Int64", "Float32", "Float64")


@pytest.fixture
def file(tmp_path, clip):
    """A .nrrd written by hand."""
    path = tmp_path / "a.nrrd"
    header = (
        "NRRD0004\ntype: unsigned char\ndimension: 3\nsizes: 32 24 5\nspacings: 0.3 0.2 1.5\nencoding: raw\n"
        "# Doe^Jane\nDoe:=Jane\n\n"
    )
    path.write_bytes(header.encode() + clip.frames.tobytes())
    return path


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("size", [(8, 6), (8, 6, 1), (8, 6, 5), (8, 6, 1, 5)])
def test_files_of_simpleitk_are_read_as_it_reads_them(tmp_path, name, compressed, size):
    for kind in SCALARS:
        image = sitk.GetImageFromArray(
            np.random.default_rng(0).integers(0, 100, size[::-1]).astype(kind.lower()), False
        )
        image.SetSpacing([0.3, 0.2, 9.0, 7.0][: len(size)])
        image.SetDirection((-np.eye(len(size))).ravel().tolist())
        sitk.WriteImage(image, str(tmp_path / name), useCompression=compressed)
        expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name)))
        clip = read_clip(tmp_path / name)
        assert np.array_equal(clip.frames, expected.reshape(-1, 6, 8)) and clip.spacing_mm == pytest.approx((0.2, 0.3))
        assert np.array_equal(read_mask(tmp_path / name), clip.frames)
        assert probe_clip(tmp_path / name).shape == clip.frames.shape


def test_channels_and_sequences(tmp_path, clip):
    grey = clip.frames
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([grey] * 3, -1), isVector=True), str(tmp_path / "c.nrrd"))
    assert np.array_equal(read_clip(tmp_path / "c.nrrd").frames, grey)
    with pytest.raises(EchoPlanError, match="one channel"):
        read_mask(tmp_path / "c.nrrd")
    header = (  # as 3D Slicer saves a cine: the time is the first axis
        "NRRD0005\ntype: uint8\ndimension: 4\nsizes: 5 32 24 1\nkinds: list domain domain domain\nencoding: gzip\n"
        "space directions: none (0.3,0,0) (0,0.2,0) (0,0,1)\n\n"
    )
    content = header.encode() + gzip.compress(np.ascontiguousarray(np.moveaxis(grey[None], 1, -1)).tobytes())
    (tmp_path / "s.seq.nrrd").write_bytes(content)
    again = read_clip(tmp_path / "s.seq.nrrd")
    assert np.array_equal(again.frames, grey) and again.spacing_mm == (0.2, 0.3)


@pytest.mark.parametrize("time", [None, 20.66])
@pytest.mark.parametrize("spacing", [None, (0.154, 0.308)])
def test_what_is_written_is_read_again(tmp_path, clip, mask, spacing, time):
    write_clip(tmp_path / "a.nrrd", Clip(clip.frames, spacing, time))
    again = read_clip(tmp_path / "a.nrrd")
    assert np.array_equal(again.frames, clip.frames) and again.spacing_mm == (spacing and pytest.approx(spacing))
    assert again.frame_time_ms == time
    write_mask(tmp_path / "m.nrrd", mask, like=clip)
    assert np.array_equal(read_mask(tmp_path / "m.nrrd"), mask)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "m.nrrd"))), mask)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("encoding: raw", "encoding: raw\ndata file: /etc/passwd", "no plain file name"),
        ("encoding: raw", "encoding: raw\ndata file: ../a.raw", "no plain file name"),
        ("encoding: raw", "encoding: raw\ndatafile: a%03d.raw 1 4 1", "no plain file name"),
        ("encoding: raw", "encoding: raw\ndata file: LIST", "no plain file name"),
        ("encoding: raw", "encoding: raw\ndata file: a.raw", "is missing"),
        ("encoding: raw", "encoding: bzip2", "raw or gzip"),
        ("encoding: raw", "encoding: raw\nbyte skip: -1", "skip"),
        ("encoding: raw", "encoding: gzip", "truncated or damaged"),
        ("sizes: 32 24 5", "sizes: 32 24 6", "truncated or damaged"),
        ("sizes: 32 24 5", "sizes: 65535 65535 1", "pixels a frame"),
        ("sizes: 32 24 5", "sizes: 1024 768 99999", "may take 8 GB"),
        ("sizes: 32 24 5", "sizes: 32 0 5", "no clip"),
        ("dimension: 3", "dimension: 2", "dimension"),
        ("type: unsigned char", "type: block", "type"),
        ("0.3 0.2 1.5", "0.3 Doe 1.5", "space directions"),
    ],
)
def test_headers_are_not_believed(file, old, new, said):
    content = file.read_bytes()
    assert old.encode() in content
    file.write_bytes(content.replace(old.encode(), new.encode()))
    with pytest.raises(EchoPlanError, match=said) as error:
        read_clip(file)
    assert "Doe" not in str(error.value)


def test_a_flipped_byte_is_found(tmp_path, clip):
    write_clip(tmp_path / "a.nrrd", clip)
    content = bytearray((tmp_path / "a.nrrd").read_bytes())
    content[-6] ^= 0xFF  # the checksum of gzip's trailer
    (tmp_path / "a.nrrd").write_bytes(content)
    with pytest.raises(EchoPlanError, match="damaged"):
        read_clip(tmp_path / "a.nrrd")
