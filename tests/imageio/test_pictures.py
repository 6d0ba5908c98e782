"""PNG and JPEG, alone and in folders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from echoplan.errors import EchoPlanError
from echoplan.imageio import probe_clip, read_clip, read_mask, write_clip, write_mask


def test_a_folder_and_back(tmp_path, clip):
    write_clip(tmp_path / "clip", clip)
    assert sorted(item.name for item in (tmp_path / "clip").iterdir())[0] == "frame_0000.png"
    again = read_clip(tmp_path / "clip")
    assert np.array_equal(again.frames, clip.frames)
    assert again.spacing_mm is None and again.frame_time_ms is None
    assert probe_clip(tmp_path / "clip").shape == clip.frames.shape
    write_clip(tmp_path / "clip", replace(clip, frames=clip.frames[:2]))  # replaced as a whole
    assert len(read_clip(tmp_path / "clip")) == 2
    assert [item.name for item in tmp_path.iterdir()] == ["clip"]


def test_natural_order(tmp_path):
    for value, name in enumerate(["f2.png", "f10.png", "f100.PNG"]):
        Image.fromarray(np.full((4, 6), value, np.uint8)).save(tmp_path / name)
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / ".f0.png").write_bytes(b"x")
    assert read_clip(tmp_path).frames[:, 0, 0].tolist() == [0, 1, 2]


def test_a_single_picture(tmp_path, clip):
    one = replace(clip, frames=clip.frames[:1].astype(np.uint16) * 200)
    write_clip(tmp_path / "a.png", one)
    again = read_clip(tmp_path / "a.png")
    assert np.array_equal(again.frames, one.frames) and again.frames.dtype == np.uint16
    assert probe_clip(tmp_path / "a.png").shape == (1, 24, 32)


def test_colour_and_palette(tmp_path, clip):
    grey = clip.frames[0]
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "equal.png")
    Image.fromarray(np.dstack([grey, grey, grey, np.zeros_like(grey)])).save(tmp_path / "alpha.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    for name in ("equal.png", "alpha.png", "palette.png"):
        assert np.array_equal(read_clip(tmp_path / name).frames[0], grey)
    Image.fromarray(np.full((4, 6, 3), (0, 100, 0), np.uint8)).save(tmp_path / "green.png")
    assert (read_clip(tmp_path / "green.png").frames == 59).all()


def test_jpeg(tmp_path):
    Image.fromarray(np.full((16, 16), 90, np.uint8)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_clip(tmp_path / "a.jpg").frames.astype(int) - 90).max() <= 1
    with pytest.raises(EchoPlanError, match="JPEG cannot hold labels"):
        read_mask(tmp_path / "a.jpg")


def test_masks(tmp_path, clip, mask):
    write_mask(tmp_path / "m", mask, like=clip)
    assert np.array_equal(read_mask(tmp_path / "m", frames_shape=mask.shape), mask)
    palette = Image.fromarray(mask[1]).convert("L")
    palette = palette.point(lambda value: value)
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] + [7] * 759)  # red and green stand for labels 1 and 2
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_mask(tmp_path / "palette.png")[0], mask[1])
    Image.fromarray(np.stack([mask[1]] * 3, -1)).save(tmp_path / "equal.png")
    assert np.array_equal(read_mask(tmp_path / "equal.png")[0], mask[1])
    Image.fromarray(np.full((4, 6, 3), (0, 100, 0), np.uint8)).save(tmp_path / "green.png")
    with pytest.raises(EchoPlanError, match="coloured"):
        read_mask(tmp_path / "green.png")


def test_broken_folders(tmp_path, clip):
    (tmp_path / "empty").mkdir()
    with pytest.raises(EchoPlanError, match="holds no PNG"):
        read_clip(tmp_path / "empty")
    write_clip(tmp_path / "clip", clip)
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "clip" / "z.png")
    with pytest.raises(EchoPlanError, match=r"\(4, 6\).*\(24, 32\)") as error:
        read_clip(tmp_path / "clip")
    assert error.value.file.endswith("z.png")
    content = (tmp_path / "clip" / "frame_0002.png").read_bytes()
    (tmp_path / "clip" / "frame_0002.png").write_bytes(content[:200])
    with pytest.raises(EchoPlanError, match=r"truncated or damaged.*frame_0002"):
        read_clip(tmp_path / "clip")
    (tmp_path / "clip" / "frame_0000.png").write_bytes(b"nothing")
    with pytest.raises(EchoPlanError, match=r"damaged.*frame_0000"):
        probe_clip(tmp_path / "clip")


def test_what_png_cannot_hold(tmp_path, clip):
    with pytest.raises(EchoPlanError, match="one frame, this clip has 5"):
        write_clip(tmp_path / "a.png", clip)
    with pytest.raises(EchoPlanError, match="float32"):
        write_clip(tmp_path / "clip", replace(clip, frames=clip.frames.astype(np.float32)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(EchoPlanError, match="more than pictures"):
        write_clip(tmp_path / "mine", clip)
    (tmp_path / "plain").touch()
    with pytest.raises(EchoPlanError, match="not a folder"):
        write_clip(tmp_path / "plain", clip)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["mine", "plain"]
