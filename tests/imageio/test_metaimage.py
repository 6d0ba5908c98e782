"""MetaImage: against SimpleITK, and broken pairs of .mhd and .raw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from echoplan.errors import EchoPlanError
from echoplan.imageio import probe_clip, read_clip, read_mask, write_clip, write_mask

REAL = Path("/work/shared/data/camus_mhd/patient0001")


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
