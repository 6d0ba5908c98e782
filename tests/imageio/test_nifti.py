"""NIfTI: against SimpleITK, and what a user may hand in."""

from __future__ import annotations

import errno
import gzip
import resource
import struct
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from echoplan.errors import EchoPlanError
from echoplan.imageio import Clip, nifti, probe_clip, read_clip, read_mask, write_clip, write_mask


def written(path, array, spacing=None, **keywords):
    image = sitk.GetImageFromArray(array, **keywords)
    if spacing:
        image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path), useCompression=str(path).endswith(".gz"))
    return path


def patched(path, offset, code, *values):
    content = bytearray(path.read_bytes())
    struct.pack_into(code, content, offset, *values)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_what_is_written_is_read_again(tmp_path, clip, name):
    write_clip(tmp_path / name, clip)
    again = read_clip(tmp_path / name)
    assert np.array_equal(again.frames, clip.frames) and again.frames.dtype == np.uint8
    assert again.spacing_mm == pytest.approx((0.154, 0.308))
    assert again.frame_time_ms == pytest.approx(20.66)
    assert again.source == str(tmp_path / name)
    assert again.frames.flags.writeable
    assert list(tmp_path.iterdir()) == [tmp_path / name]  # nothing half-written lies about


def test_simpleitk_reads_what_is_written(tmp_path, clip):
    write_clip(tmp_path / "a.nii.gz", clip)
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    assert image.GetSize() == (32, 24, 5)
    assert image.GetSpacing() == pytest.approx((0.308, 0.154, 20.66))
    assert np.array_equal(sitk.GetArrayFromImage(image), clip.frames)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("u1", "u1"), ("i1", "u1"), ("u2", "u2"), ("i2", "u2"), ("i4", "u2"), ("f4", "f4"), ("f8", "f4")],
)
def test_types_agree_with_simpleitk(tmp_path, dtype, expected):
    array = np.random.default_rng(1).integers(0, 100, (3, 6, 8)).astype(dtype)
    clip = read_clip(written(tmp_path / "a.nii.gz", array))
    assert clip.frames.dtype == np.dtype(expected)
    assert np.array_equal(clip.frames, array)


def test_negative_intensities_become_float(tmp_path):
    array = np.arange(-12, 12, dtype=np.int16).reshape(1, 4, 6)
    clip = read_clip(written(tmp_path / "a.nii", array))
    assert clip.frames.dtype == np.float32 and np.array_equal(clip.frames, array)


def test_scaled_intensities(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(1, 4, 6)
    path = patched(written(tmp_path / "a.nii", array), 112, "<2f", 0.5, 3.0)
    assert np.array_equal(read_clip(path).frames, sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    assert read_clip(path).frames[0, 0, 2] == 4.0


def test_big_endian(tmp_path):
    array = np.arange(24, dtype=">i2").reshape(1, 4, 6)
    head = bytearray(352)
    struct.pack_into(">i", head, 0, 348)
    struct.pack_into(">8h", head, 40, 3, 6, 4, 1, 1, 1, 1, 1)
    struct.pack_into(">2h", head, 70, 4, 16)
    struct.pack_into(">8f", head, 76, 1, 0.3, 0.2, 1, 0, 0, 0, 0)
    struct.pack_into(">f", head, 108, 352)
    head[344:348] = b"n+1\0"
    (tmp_path / "a.nii").write_bytes(bytes(head) + array.tobytes())
    clip = read_clip(tmp_path / "a.nii")
    assert np.array_equal(clip.frames, array) and clip.spacing_mm == pytest.approx((0.2, 0.3))


def test_a_2d_file_is_one_frame_without_a_frame_time(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(4, 6)
    clip = read_clip(written(tmp_path / "a.nii.gz", array, (0.3, 0.2)))
    assert np.array_equal(clip.frames, array[None])
    assert clip.spacing_mm == pytest.approx((0.2, 0.3)) and clip.frame_time_ms is None


def test_a_slice_distance_is_no_frame_time(tmp_path):
    """CAMUS' files say 1.54 or 1 for their third spacing: neither is a time."""
    path = written(tmp_path / "a.nii.gz", np.zeros((3, 4, 6), np.uint8), (0.3, 0.2, 1.54))
    assert read_clip(path).frame_time_ms is None


@pytest.mark.parametrize(
    ("units", "step", "time"), [(8, 0.02, 20.0), (16, 20.0, 20.0), (16, 0.02, None), (0, 20.0, None)]
)
def test_4d_with_a_singleton(tmp_path, units, step, time):
    """The fourth axis has units of time of its own (8: seconds, 16: milliseconds, 0: nobody knows)."""
    array = np.random.default_rng(2).integers(0, 99, (3, 4, 6), dtype=np.uint8)
    image = sitk.JoinSeries([sitk.GetImageFromArray(frame[None]) for frame in array])
    image.SetSpacing((0.3, 0.2, 1.0, step))
    sitk.WriteImage(image, str(tmp_path / "a.nii"))
    path = patched(tmp_path / "a.nii", 123, "<B", 2 | units)
    clip = read_clip(path)
    assert np.array_equal(clip.frames, array)
    assert clip.frame_time_ms == (None if time is None else pytest.approx(time))


def test_units_of_length(tmp_path):
    path = written(tmp_path / "a.nii", np.zeros((1, 4, 6), np.uint8), (300.0, 200.0, 1.0))
    assert read_clip(patched(path, 123, "<B", 3)).spacing_mm == pytest.approx((0.2, 0.3))  # micrometres
    assert read_clip(patched(path, 123, "<B", 0)).spacing_mm is None  # none: mm, and no pixel has 200 of them
    path = written(tmp_path / "b.nii", np.zeros((1, 4, 6), np.uint8), (0.3, 0.2, 1.0))
    assert read_clip(patched(path, 123, "<B", 0)).spacing_mm == pytest.approx((0.2, 0.3))


def test_colour(tmp_path):
    grey = np.random.default_rng(3).integers(0, 256, (2, 4, 6), dtype=np.uint8)
    equal = written(tmp_path / "equal.nii.gz", np.stack([grey] * 3, -1), isVector=True)
    assert np.array_equal(read_clip(equal).frames, grey)
    red = np.zeros((2, 4, 6, 3), np.uint8)
    red[..., 0] = 200
    assert (read_clip(written(tmp_path / "red.nii.gz", red, isVector=True)).frames == 60).all()  # 0.299 * 200


def test_content_tells_the_format_not_the_name(tmp_path, clip):
    write_clip(tmp_path / "a.nii.gz", clip)
    for name in ("a.dat", "a.nii", "a.dcm"):
        (tmp_path / name).write_bytes((tmp_path / "a.nii.gz").read_bytes())
        assert np.array_equal(read_clip(tmp_path / name).frames, clip.frames)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
@pytest.mark.parametrize("share", [0.05, 0.6, 0.99])
def test_truncated(tmp_path, clip, name, share):
    write_clip(tmp_path / name, clip)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(EchoPlanError, match=r"truncated|known format") as error:
        read_clip(tmp_path / name)
    assert name in str(error.value) and error.value.remedy


def test_a_flipped_byte_is_found(tmp_path, clip):
    write_clip(tmp_path / "a.nii.gz", clip)
    content = bytearray((tmp_path / "a.nii.gz").read_bytes())
    content[-6] ^= 0xFF  # the checksum of gzip's trailer
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(EchoPlanError, match="damaged"):
        read_clip(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("bad", [0.0, float("nan"), -0.3, float("inf")])
def test_nonsense_spacing(tmp_path, bad):
    path = patched(written(tmp_path / "a.nii", np.ones((2, 4, 6), np.uint8)), 80, "<f", bad)
    with pytest.raises(EchoPlanError, match=r"no length.*mend the header, or give spacing_row_mm"):
        read_clip(path)
    with pytest.raises(EchoPlanError, match="no length"):
        probe_clip(path)
    assert read_clip(path, spacing_mm=(0.2, 0.3), frame_time_ms=25).spacing_mm == (0.2, 0.3)


def test_volumes_over_time_are_refused(tmp_path):
    image = sitk.JoinSeries([sitk.GetImageFromArray(np.zeros((5, 4, 6), np.uint8))] * 3)
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    with pytest.raises(EchoPlanError, match="no 2D clip"):
        read_clip(tmp_path / "a.nii.gz")


def test_nan_intensities(tmp_path, caplog):
    array = np.ones((2, 4, 6), np.float32)
    array[0, 0, 0] = np.nan
    clip = read_clip(written(tmp_path / "a.nii.gz", array))
    assert clip.frames[0, 0, 0] == 0 and clip.frames.sum() == 47 and "1 NaN" in caplog.text
    with pytest.raises(EchoPlanError, match="every intensity"):
        read_clip(written(tmp_path / "b.nii.gz", np.full((1, 2, 2), np.nan, np.float32)))


def test_impossible_headers(tmp_path):
    path = written(tmp_path / "a.nii", np.zeros((2, 4, 6), np.uint8))
    for offset, code, values, message in [(40, "<h", (9,), "dimensions"), (70, "<h", (32,), "data type 32")]:
        copy = tmp_path / "copy.nii"
        copy.write_bytes(path.read_bytes())
        with pytest.raises(EchoPlanError, match=message):
            read_clip(patched(copy, offset, code, *values))
    copy.write_bytes(path.read_bytes()[:344] + b"ni1\0")
    with pytest.raises(EchoPlanError, match="two files"):
        read_clip(copy)


def test_probe_reads_the_header_alone(tmp_path, clip):
    write_clip(tmp_path / "a.nii.gz", clip)
    with gzip.open(tmp_path / "a.nii.gz") as stream:
        head = stream.read(352)
    (tmp_path / "head.nii").write_bytes(head)  # no pixels at all
    info = probe_clip(tmp_path / "head.nii")
    assert info.shape == (5, 24, 32)
    assert info.spacing_mm == pytest.approx((0.154, 0.308)) and info.frame_time_ms == pytest.approx(20.66)


def test_masks(tmp_path, clip, mask):
    write_mask(tmp_path / "m.nii.gz", mask, like=clip)
    again = read_mask(tmp_path / "m.nii.gz", frames_shape=clip.frames.shape)
    assert again.dtype == np.uint8 and np.array_equal(again, mask)
    assert read_clip(tmp_path / "m.nii.gz").spacing_mm == pytest.approx(clip.spacing_mm)
    assert np.array_equal(read_mask(written(tmp_path / "f.nii.gz", mask.astype(np.float64))), mask)
    assert np.array_equal(read_mask(written(tmp_path / "i.nii.gz", mask.astype(np.int32))), mask)


def test_masks_that_are_none(tmp_path, clip, mask):
    with pytest.raises(EchoPlanError, match="whole numbers"):
        read_mask(written(tmp_path / "p.nii.gz", mask.astype(np.float32) * 0.5))
    with pytest.raises(EchoPlanError, match=r"0\.\.255"):
        read_mask(written(tmp_path / "h.nii.gz", mask.astype(np.int16) * 2))
    with pytest.raises(EchoPlanError, match=r"0\.\.255"):
        read_mask(written(tmp_path / "n.nii.gz", mask.astype(np.int16) - 1))
    with pytest.raises(EchoPlanError, match="one channel"):
        read_mask(written(tmp_path / "v.nii.gz", np.stack([mask] * 3, -1), isVector=True))
    write_mask(tmp_path / "m.nii.gz", mask, like=clip)
    with pytest.raises(EchoPlanError, match=r"\(5, 24, 32\).*\(5, 24, 30\)"):
        read_mask(tmp_path / "m.nii.gz", frames_shape=(5, 24, 30))


def test_masks_must_fit_to_be_written(tmp_path, clip, mask):
    with pytest.raises(EchoPlanError, match=r"\(4, 24, 32\)"):
        write_mask(tmp_path / "m.nii.gz", mask[:4], like=clip)
    with pytest.raises(EchoPlanError, match="whole numbers"):
        write_mask(tmp_path / "m.nii.gz", mask + 0.25, like=clip)
    write_mask(tmp_path / "m.nii.gz", mask == 1, like=clip)
    assert np.array_equal(read_mask(tmp_path / "m.nii.gz"), mask == 1)


@pytest.mark.parametrize("time", [None, 20.66])
@pytest.mark.parametrize("spacing", [None, (0.154, 0.308)])
@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha"])
def test_what_is_unknown_stays_unknown(tmp_path, clip, name, spacing, time):
    """A file must have a spacing; 1 mm made up would end in volumes made up."""
    frames = clip.frames.astype(np.uint16) * 200
    write_clip(tmp_path / name, Clip(frames, spacing, time))
    again = read_clip(tmp_path / name)
    assert np.array_equal(again.frames, frames) and again.frames.dtype == np.uint16
    assert again.spacing_mm == (None if spacing is None else pytest.approx(spacing))
    assert again.frame_time_ms == (None if time is None else pytest.approx(time))
    assert probe_clip(tmp_path / name).spacing_mm == again.spacing_mm


@contextmanager
def files_no_longer_than(size):
    """Writing on beyond `size` bytes fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
@pytest.mark.parametrize("size", [0, 1000])
def test_a_short_file_is_never_taken_for_a_whole_one(tmp_path, clip, name, size):
    with pytest.raises(EchoPlanError, match="larger than the system") as caught, files_no_longer_than(size):
        write_clip(tmp_path / name, clip)
    assert caught.value.fatal and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no disk that is always full")
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_a_full_disk_is_noticed(tmp_path, clip, name):
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        nifti.write(tmp_path / name, clip)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4", ">f4"])
@pytest.mark.parametrize(("spacing", "time"), [((0.154, 0.308), 20.66), (None, None)])
@pytest.mark.parametrize("count", [1, 5])
def test_files_are_as_simpleitk_writes_them(tmp_path, clip, dtype, spacing, time, count):
    """Byte for byte, so that no program sees another orientation."""
    frames = clip.frames[:count].astype(dtype)
    write_clip(tmp_path / "own.nii", Clip(frames, spacing, time))
    image = sitk.GetImageFromArray(frames.astype(dtype.lstrip(">")))
    row, column = spacing or (1.0, 1.0)
    image.SetSpacing((column, row, time or 1.0))
    image.SetMetaData("ITK_FileNotes", nifti_notes(spacing, time))
    sitk.WriteImage(image, str(tmp_path / "theirs.nii"))
    own, theirs = ((tmp_path / f"{name}.nii").read_bytes() for name in ("own", "theirs"))
    assert len(own) == len(theirs) and own[352:] == theirs[352:]
    own, theirs = (struct.unpack(HEADER, content[:348]) for content in (own, theirs))
    assert own == theirs  # where zeros may have either sign


HEADER = "<i10s18sihcB8h3f4h8f3fhcB4f2i80s24s2h6f4f4f4f16s4s"


def nifti_notes(spacing, time):
    notes = [] if time is None else ["EchoPlan: third spacing is the frame time in ms"]
    return "; ".join(notes if spacing else [*notes, "EchoPlan: spacing unknown"])


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_the_same_clip_makes_the_same_bytes(tmp_path, clip, name):
    write_clip(tmp_path / name, clip)
    first = (tmp_path / name).read_bytes()
    write_clip(tmp_path / "b" / name, Clip(clip.frames[:, ::-1][:, ::-1], clip.spacing_mm, clip.frame_time_ms))
    assert (tmp_path / "b" / name).read_bytes() == first


def test_more_frames_than_nifti_holds(tmp_path):
    with pytest.raises(EchoPlanError, match="at most 32767") as caught:
        write_clip(tmp_path / "a.nii.gz", Clip(np.zeros((32768, 2, 2), np.uint8)))
    assert "shorter" in caught.value.remedy and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("offset", [0.0, -1.0, 1e9, float("nan"), float("inf")])
def test_pixels_where_none_can_be(tmp_path, clip, offset):
    write_clip(tmp_path / "a.nii", clip)
    with pytest.raises(EchoPlanError, match="puts the pixels where none can be"):
        read_clip(patched(tmp_path / "a.nii", 108, "<f", offset))


def test_more_than_a_clip_may_take(tmp_path, clip):
    write_clip(tmp_path / "a.nii", clip)
    with pytest.raises(EchoPlanError, match=r"take 12\.9 GB of memory; a clip may take 8 GB"):
        read_clip(patched(tmp_path / "a.nii", 40, "<8h", 3, 1024, 768, 16384, 1, 1, 1, 1))
    with pytest.raises(EchoPlanError, match="pixels a frame"):
        read_clip(patched(tmp_path / "a.nii", 40, "<8h", 3, 32767, 32767, 1, 1, 1, 1, 1))


def test_zeros_behind_a_compressed_clip(tmp_path, clip):
    """Padding is fine, in and behind the stream; gigabytes of it are not gone through byte by byte, nor inflated."""
    write_clip(tmp_path / "a.nii.gz", clip)
    whole = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(whole + bytes(2**25))
    start = time.process_time()
    assert np.array_equal(read_clip(tmp_path / "a.nii.gz").frames, clip.frames)
    assert time.process_time() - start < 3
    plain = gzip.decompress(whole)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(plain + bytes(2**20)) + gzip.compress(bytes(1000)))
    assert np.array_equal(read_clip(tmp_path / "a.nii.gz").frames, clip.frames)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(plain + bytes(2**25)))
    with pytest.raises(EchoPlanError, match="far more than its header tells"):
        read_clip(tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").write_bytes(whole + b"garbage")
    with pytest.raises(EchoPlanError, match="truncated or damaged"):
        read_clip(tmp_path / "a.nii.gz")


def test_a_clip_in_several_members(tmp_path, clip):
    """As bgzip and pigz write it."""
    write_clip(tmp_path / "a.nii", clip)
    plain = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(
        b"".join(gzip.compress(plain[at : at + 999]) for at in range(0, len(plain), 999))
    )
    assert np.array_equal(read_clip(tmp_path / "b.nii.gz").frames, clip.frames)
    assert probe_clip(tmp_path / "b.nii.gz").shape == clip.frames.shape
