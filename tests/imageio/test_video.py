"""AVI and MP4."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from echoplan.errors import EchoPlanError
from echoplan.imageio import probe_clip, read_clip, read_mask, write_clip, write_mask
from echoplan.imageio.arrays import stack_frames


@pytest.fixture
def smooth(clip):
    """A clip that codecs like: a bright disc that moves."""
    rows, columns = np.mgrid[:48, :64]
    frames = [200.0 * np.exp(-((rows - 20) ** 2 + (columns - 20 - 2 * t) ** 2) / 150) for t in range(12)]
    return replace(clip, frames=np.rint(frames).astype(np.uint8))


def encoded(path, frames, codec, pixels, *, rate=50, source="gray"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format=source)))
        container.mux(stream.encode())
    return path


def test_avi_keeps_every_pixel(tmp_path, clip):
    write_clip(tmp_path / "a.avi", clip)
    again = read_clip(tmp_path / "a.avi")
    assert np.array_equal(again.frames, clip.frames) and again.frames.dtype == np.uint8
    assert again.spacing_mm is None and again.frame_time_ms == pytest.approx(20.66, rel=1e-3)
    info = probe_clip(tmp_path / "a.avi")
    assert info.shape == clip.frames.shape and info.frame_time_ms == again.frame_time_ms


@pytest.mark.parametrize("crop", [(48, 64), (47, 63)])
def test_mp4_is_close(tmp_path, smooth, crop):
    smooth = replace(smooth, frames=smooth.frames[:, : crop[0], : crop[1]])
    write_clip(tmp_path / "a.mp4", smooth)
    again = read_clip(tmp_path / "a.mp4")
    assert again.frames.shape == smooth.frames.shape
    assert np.abs(again.frames.astype(float) - smooth.frames).mean() < 2
    assert again.frame_time_ms == pytest.approx(20.66, rel=1e-2)
    assert probe_clip(tmp_path / "a.mp4").shape == smooth.frames.shape


def test_motion_jpeg_as_echonet_has_it(tmp_path, smooth):
    path = encoded(tmp_path / "a.avi", smooth.frames, "mjpeg", "yuvj420p")
    clip = read_clip(path)
    assert clip.frame_time_ms == 20 and len(clip) == 12
    assert np.abs(clip.frames.astype(float) - smooth.frames).mean() < 3


def test_equal_colours_are_the_grey_value(tmp_path, clip):
    path = encoded(tmp_path / "a.avi", np.stack([clip.frames] * 3, -1), "ffv1", "bgr0", source="rgb24")
    assert np.array_equal(read_clip(path).frames, clip.frames)


@pytest.mark.parametrize("name", ["a.avi", "a.mp4"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_truncated(tmp_path, smooth, name, share):
    write_clip(tmp_path / name, smooth)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(EchoPlanError, match="truncated or damaged") as error:
        read_clip(tmp_path / name)
    assert name in str(error.value) and error.value.remedy
    with pytest.raises(EchoPlanError, match="truncated or damaged"):
        probe_clip(tmp_path / name)


def test_content_tells_the_format_not_the_name(tmp_path, clip):
    write_clip(tmp_path / "a.avi", clip)
    (tmp_path / "a.avi").rename(tmp_path / "a.mp4")
    assert np.array_equal(read_clip(tmp_path / "a.mp4").frames, clip.frames)


def test_what_a_video_cannot_hold(tmp_path, clip, mask):
    with pytest.raises(EchoPlanError, match="8-bit"):
        write_clip(tmp_path / "a.avi", replace(clip, frames=clip.frames.astype(np.uint16)))
    with pytest.raises(EchoPlanError, match="not written as videos"):
        write_mask(tmp_path / "m.avi", mask, like=clip)
    write_clip(tmp_path / "a.avi", clip)
    with pytest.raises(EchoPlanError, match="AVI files hold no labels"):
        read_mask(tmp_path / "a.avi")
    assert [item.name for item in tmp_path.iterdir()] == ["a.avi"]


def test_sound_alone_is_no_clip(tmp_path):
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(EchoPlanError, match="no video"):
        read_clip(tmp_path / "a.avi")


@pytest.mark.parametrize("told", [0, 3, 7, 12, 10**15, 10**30])
def test_frames_are_all_there_whatever_number_the_header_tells(told):
    pictures = np.random.default_rng(0).integers(0, 255, (7, 4, 5), dtype=np.uint8)
    np.testing.assert_array_equal(stack_frames(iter(pictures), told, Path("a")), pictures)
    for broken in ([], [pictures[0], pictures[1, :3]]):
        with pytest.raises(ValueError, match="frames"):
            stack_frames(broken, told, Path("a"))
