"""MetaImage: against SimpleITK, and broken pairs of .mhd and .raw."""

from __future__ import annotations

import os
from contextlib import suppress

import numpy as np
import pytest
import SimpleITK as sitk

from echoplan.errors import EchoPlanError
from echoplan.imageio import probe_clip, read_clip, read_mask, write_clip, write_mask

from ..real_data import REAL_DATA

REAL = REAL_DATA / "camus_mhd" / "patient0001"


def pair(folder, array, *, name="a", spacing="0.308 0.154 1.54", data=None):
    """A .mhd with its .raw, written by hand."""
    data = f"{name}.raw" if data is None else data
    (folder / f"{name}.mhd").write_text(
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        f"ElementSpacing = {spacing}\nDimSize = {array.shape[2]} {array.shape[1]} {array.shape[0]}\n"
        f"ElementType = MET_UCHAR\nElementDataFile = {data}\n"
    )
    (folder / f"{name}.raw").write_bytes(array.tobytes())
    return folder / f"{name}.mhd"


def test_what_is_written_is_read_again(tmp_path, clip):
    write_clip(tmp_path / "a.mha", clip)
    again = read_clip(tmp_path / "a.mha")
    assert np.array_equal(again.frames, clip.frames)
    assert again.spacing_mm == pytest.approx((0.154, 0.308)) and again.frame_time_ms == 20.66
    image = sitk.ReadImage(str(tmp_path / "a.mha"))
    assert image.GetSpacing() == pytest.approx((0.308, 0.154, 20.66))
    info = probe_clip(tmp_path / "a.mha")
    assert info.shape == (5, 24, 32) and info.frame_time_ms == 20.66


def test_a_pair(tmp_path, clip):
    path = pair(tmp_path, clip.frames)
    again = read_clip(path)
    assert np.array_equal(again.frames, clip.frames)
    assert again.spacing_mm == (0.154, 0.308) and again.frame_time_ms is None  # 1.54 is no time
    assert probe_clip(path).shape == (5, 24, 32)


def test_missing_and_short_data(tmp_path, clip):
    path = pair(tmp_path, clip.frames)
    (tmp_path / "a.raw").write_bytes(clip.frames.tobytes()[:100])
    for use in (read_clip, probe_clip):
        with pytest.raises(EchoPlanError, match="truncated: 100 bytes of 3840"):
            use(path)
    (tmp_path / "a.raw").unlink()
    for use in (read_clip, probe_clip):
        with pytest.raises(EchoPlanError, match=r"a\.raw is missing.*put a\.raw beside it"):
            use(path)


def test_truncated_mha(tmp_path, clip):
    write_clip(tmp_path / "a.mha", clip)
    content = (tmp_path / "a.mha").read_bytes()
    (tmp_path / "a.mha").write_bytes(content[:-800])
    with pytest.raises(EchoPlanError, match="truncated or damaged"):
        read_clip(tmp_path / "a.mha")


@pytest.mark.parametrize("spacing", ["0 0.154 1", "nan 0.154 1", "0.3 -0.154 1"])
def test_nonsense_spacing(tmp_path, clip, spacing):
    path = pair(tmp_path, clip.frames, spacing=spacing)
    with pytest.raises(EchoPlanError, match="no length"):
        read_clip(path)
    given = read_clip(path, spacing_mm=(0.2, 0.3))  # as cases.csv may give it
    assert given.spacing_mm == (0.2, 0.3) and np.array_equal(given.frames, clip.frames)


def test_misleading_names(tmp_path, clip):
    write_clip(tmp_path / "a.mha", clip)
    (tmp_path / "a.mha").rename(tmp_path / "a.txt")
    assert np.array_equal(read_clip(tmp_path / "a.txt").frames, clip.frames)
    pair(tmp_path, clip.frames, name="b").rename(tmp_path / "b.nii")
    assert np.array_equal(read_clip(tmp_path / "b.nii").frames, clip.frames)


def test_headers_that_make_no_sense(tmp_path, clip):
    path = pair(tmp_path, clip.frames)
    text = path.read_text()
    path.write_text(text.replace("DimSize = 32 24 5", "DimSize = 32 x 5"))
    with pytest.raises(EchoPlanError, match="cannot be understood"):
        read_clip(path)
    path.write_text(text.replace("ElementDataFile = a.raw", ""))
    with pytest.raises(EchoPlanError, match="no ElementDataFile"):
        read_clip(path)


def test_masks(tmp_path, clip, mask):
    write_mask(tmp_path / "m.mha", mask, like=clip)
    assert np.array_equal(read_mask(tmp_path / "m.mha", frames_shape=mask.shape), mask)
    sitk.WriteImage(sitk.GetImageFromArray(mask.astype(np.float32) / 2), str(tmp_path / "p.mha"))
    with pytest.raises(EchoPlanError, match="whole numbers"):
        read_mask(tmp_path / "p.mha")


@pytest.mark.skipif(not REAL.is_dir(), reason="CAMUS is not here")
def test_the_challenges_real_files():
    clip = read_clip(REAL / "patient0001_2CH_ED.mhd")
    assert clip.frames.shape == (1, 778, 549) and clip.spacing_mm == (0.154, 0.308)
    mask = read_mask(REAL / "patient0001_2CH_ED_gt.mhd", frames_shape=clip.frames.shape)
    assert set(np.unique(mask)) == {0, 1, 2, 3}
    with pytest.raises(EchoPlanError, match=r"patient0001_2CH_sequence\.raw is missing"):
        read_clip(REAL / "patient0001_2CH_sequence.mhd")


SCALARS = ("UInt8", "Int8", "UInt16", "Int16", "UInt32", "Int32", "UInt64", "Int64", "Float32", "Float64")


@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("size", [(8, 6), (8, 6, 1), (8, 6, 5), (8, 6, 1, 5), (8, 6, 5, 1)])
def test_files_of_simpleitk_are_read_as_it_reads_them(tmp_path, name, compressed, size):
    """Every type of pixel, with a direction that is not the usual one, in one file and in two."""
    for kind in SCALARS:
        array = np.random.default_rng(0).integers(0, 100, size[::-1]).astype(kind.lower())
        image = sitk.GetImageFromArray(array, isVector=False)
        assert image.GetPixelID() == getattr(sitk, f"sitk{kind}")
        image.SetSpacing([0.3, 0.2, 9.0, 7.0][: len(size)])
        image.SetDirection((-np.eye(len(size))).ravel().tolist())
        sitk.WriteImage(image, str(tmp_path / name), useCompression=compressed)
        expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name)))
        clip = read_clip(tmp_path / name)
        assert np.array_equal(clip.frames, expected.reshape(-1, 6, 8)) and clip.spacing_mm == (0.2, 0.3)
        assert np.array_equal(read_mask(tmp_path / name), clip.frames)
        assert probe_clip(tmp_path / name).shape == clip.frames.shape


@pytest.mark.parametrize("channels", [3, 4])
def test_channels_are_read_as_simpleitk_reads_them(tmp_path, channels):
    grey = np.random.default_rng(3).integers(0, 256, (2, 6, 8), dtype=np.uint8)
    image = sitk.GetImageFromArray(np.stack([grey] * channels, -1), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "a.mha"), useCompression=True)
    assert np.array_equal(read_clip(tmp_path / "a.mha").frames, grey)
    with pytest.raises(EchoPlanError, match="one channel"):
        read_mask(tmp_path / "a.mha")
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([grey] * 2, -1), isVector=True), str(tmp_path / "b.mha"))
    with pytest.raises(EchoPlanError, match="2 channels"):
        read_clip(tmp_path / "b.mha")


@pytest.mark.parametrize(
    ("lines", "data"),
    [
        ("BinaryDataByteOrderMSB = True", ">u2"),
        ("ElementByteOrderMSB = 1", ">u2"),
        ("BinaryDataByteOrderMSB = False\nElementByteOrderMSB = True", "<u2"),
        ("HeaderSize = 7", "<u2"),
        ("HeaderSize = -1", "<u2"),
        ("ElementSize = 0.3 0.2 1", "<u2"),
        ("", "<u2"),
    ],
)
def test_header_keys_mean_what_they_mean_to_simpleitk(tmp_path, lines, data):
    array = np.random.default_rng(1).integers(0, 60000, (3, 4, 5)).astype(data)
    before = b"1234567" if "HeaderSize" in lines else b""
    (tmp_path / "a b.raw").write_bytes(before + array.tobytes())
    (tmp_path / "a.mhd").write_text(
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 5 4 3\n{lines}\nElementType = MET_USHORT\n"
        "ElementDataFile = a b.raw\n"
    )
    clip = read_clip(tmp_path / "a.mhd")
    image = sitk.ReadImage(str(tmp_path / "a.mhd"))
    assert np.array_equal(clip.frames, array) and np.array_equal(clip.frames, sitk.GetArrayFromImage(image))
    assert clip.spacing_mm == ((0.2, 0.3) if "ElementSize" in lines else None)


@pytest.mark.parametrize(
    "name",
    ["%n 1 4 1", "%s%s%s%s 1 4 1", "%" + "d" * 3000, "d%d.raw 1 4 0", "%999999999d 1 4 1", "LIST", "LIST 2", "", ".",
     "/etc/passwd", "../b.raw", "sub/b.raw", "..\\b.raw", "C:b.raw", "/dev/zero", "pipe", "a\tb", "..", "x" * 300],
)  # fmt: skip
def test_data_elsewhere_is_not_read(tmp_path, clip, name):
    """What ended the process, read for ever, or read files that are not the clip's."""
    folder = tmp_path / "clip"
    (folder / "sub").mkdir(parents=True)
    for other in (tmp_path / "b.raw", folder / "sub" / "b.raw"):
        other.write_bytes(clip.frames.tobytes())
    os.mkfifo(folder / "pipe")
    path = pair(folder, clip.frames, data=name)
    for use in (read_clip, probe_clip, read_mask):
        with pytest.raises(EchoPlanError, match=r"no plain file name|pipe is missing"):
            use(path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("NDims = 3", "NDims = -1", "DimSize"),
        ("NDims = 3", "NDims = 2", "DimSize"),
        ("DimSize = 32 24 5", "DimSize = 32 24 -5", "DimSize"),
        ("DimSize = 32 24 5", "DimSize = 0 24 5", "no clip"),
        ("DimSize = 32 24 5", "DimSize = 999999999 999999999 999999999", "pixels a frame"),
        ("DimSize = 32 24 5", "DimSize = 1024 768 100000", "may take 8 GB"),
        ("MET_UCHAR", "MET_ARRAY", "ElementType"),
        ("BinaryData = True", "BinaryData = False", "written as words"),
        ("NDims = 3", "NDims = 3\nHeaderSize = -2", "HeaderSize"),
        ("NDims = 3", "NDims = 3\nElementNumberOfChannels = 1e9", "ElementNumberOfChannels"),
        ("NDims = 3", "NDims = 3\nElementNumberOfChannels = 0", "truncated|no clip|channels"),
        ("ElementSpacing = 0.308 0.154 1.54", "ElementSpacing = Doe 0.154", "ElementSpacing"),
        ("ElementSpacing = 0.308 0.154 1.54", "ElementSpacing = 0.154", "ElementSpacing"),
        ("CompressedData = False", "CompressedData = True\nCompressedDataSize = -4", "CompressedDataSize"),
        ("CompressedData = False", "CompressedData = True", "truncated or damaged"),
    ],
)
def test_headers_are_not_believed(tmp_path, clip, old, new, said):
    path = pair(tmp_path, clip.frames)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(EchoPlanError, match=said) as error:
        read_clip(path)
    assert "Doe" not in str(error.value)


def test_every_flipped_bit_of_compressed_pixels_is_noticed(tmp_path, clip, mask):
    write_mask(tmp_path / "m.mha", mask, like=clip)
    content = (tmp_path / "m.mha").read_bytes()
    first = content.index(b"LOCAL\n") + 6
    unnoticed = 0
    for place in range(first, len(content)):
        for bit in (1, 128):
            flipped = bytearray(content)
            flipped[place] ^= bit
            (tmp_path / "m.mha").write_bytes(flipped)
            with suppress(EchoPlanError):
                unnoticed += not np.array_equal(read_mask(tmp_path / "m.mha"), mask)
    assert unnoticed == 0


def test_compressed_pixels_without_their_length(tmp_path, clip):
    """The format's library gives what lay in memory before."""
    write_clip(tmp_path / "a.mha", clip)
    content = (tmp_path / "a.mha").read_bytes()
    line = content[content.index(b"CompressedDataSize") : content.index(b"TransformMatrix")]
    (tmp_path / "a.mha").write_bytes(content.replace(line, b""))
    assert np.array_equal(read_clip(tmp_path / "a.mha").frames, clip.frames)
    (tmp_path / "a.mha").write_bytes(content.replace(line, b"CompressedDataSize = 90\n"))
    with pytest.raises(EchoPlanError, match="truncated or damaged"):
        read_clip(tmp_path / "a.mha")
