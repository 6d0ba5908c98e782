"""AVI and MP4."""

from __future__ import annotations

import os
import zlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from echoplan.errors import EchoPlanError
from echoplan.imageio import probe_clip, read_clip, read_mask, video, write_clip, write_mask
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


@pytest.mark.parametrize(
    "folder", ["http:", "tcp:", "data:,", "concat:a|b", "file:x", "crypto:", "subfile,,start,0,end,9,,:"]
)
def test_names_that_look_like_protocols_are_names(tmp_path, smooth, folder, monkeypatch):
    """FFmpeg made a connection to `http:/127.0.0.1:9/x.avi`."""
    monkeypatch.chdir(tmp_path)
    path = Path(folder) / "127.0.0.1:9" / "x.avi"
    write_clip(path, smooth)
    assert np.array_equal(read_clip(path).frames, smooth.frames) and probe_clip(str(path)).shape == smooth.frames.shape


def test_a_playlist_is_no_video(tmp_path, smooth):
    write_clip(tmp_path / "a.avi", smooth)
    (tmp_path / "b.mp4").write_bytes(b"ffconcat version 1.0\nfile a.avi\n")
    with pytest.raises(EchoPlanError, match="known format"):
        read_clip(tmp_path / "b.mp4")


@pytest.mark.parametrize("name", [b"M\xfcller.avi", "Müller 🫀.mp4".encode()])
def test_names_of_any_bytes(tmp_path, smooth, name):
    path = tmp_path / os.fsdecode(name)
    write_clip(path, smooth)
    assert len(read_clip(path)) == probe_clip(path).shape[0] == 12


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.wmv", "wmv2"), ("a.mpg", "mpeg2video"), ("a.mpeg", "mpeg1video"), ("a.mkv", "libx264"), ("a.webm", "libvpx"),
     ("a.avi", "mpeg4"), ("a.mov", "libx264")],
)  # fmt: skip
def test_what_ffmpeg_reads_is_read(tmp_path, smooth, name, codec):
    path = encoded(tmp_path / name, smooth.frames, codec, "yuv420p", rate=25)
    clip = read_clip(path)
    assert np.abs(clip.frames.astype(float) - smooth.frames).mean() < 6
    assert probe_clip(path).shape == clip.frames.shape and clip.frame_time_ms == probe_clip(path).frame_time_ms == 40


def test_fewer_frames_than_the_container_tells(tmp_path, smooth):
    """A flipped bit in a chunk's name hides a frame: eleven would be measured as if they were all."""
    path = encoded(tmp_path / "a.avi", smooth.frames, "mjpeg", "yuvj420p")
    content = bytearray(path.read_bytes())
    places = [place for place in range(len(content)) if content[place : place + 4] == b"00dc"]
    content[places[5]] ^= 1
    content[places[5 + 12]] ^= 1  # and in the index
    path.write_bytes(content)
    with pytest.raises(EchoPlanError, match="container tells 12 frames, 11 can be read") as error:
        read_clip(path)
    assert "ffmpeg -i" in error.value.remedy


def test_frames_that_the_recorder_dropped_are_no_damage(tmp_path, smooth):
    """The index of an AVI lists them without content; its count has them all the same."""
    path = encoded(tmp_path / "a.avi", smooth.frames, "mjpeg", "yuvj420p")
    content = bytearray(path.read_bytes())
    places = [place for place in range(len(content)) if content[place : place + 4] == b"00dc"]
    size = int.from_bytes(content[places[5] + 4 : places[5] + 8], "little")
    content[places[5] + 4 : places[5] + 16] = bytes(4) + b"JUNK" + (size + size % 2 - 8).to_bytes(4, "little")
    content[places[5 + 12] + 12 : places[5 + 12] + 16] = bytes(4)
    path.write_bytes(content)
    assert len(read_clip(path)) == 11


def test_frames_that_an_edit_list_leaves_out_are_no_damage(tmp_path, smooth, caplog):
    """As phones and players trim a video: the frames stay in the file, and count."""
    source = encoded(tmp_path / "a.mp4", smooth.frames, "libx264", "yuv420p")
    with av.open(str(source)) as whole, av.open(str(tmp_path / "b.mp4"), "w") as trimmed:
        stream = whole.streams.video[0]
        copy = trimmed.add_stream_from_template(stream)
        for packet in whole.demux(stream):
            if packet.dts is not None:
                packet.pts -= int(3 / (50 * stream.time_base))
                packet.dts -= int(3 / (50 * stream.time_base))
                packet.stream = copy
                trimmed.mux(packet)
    assert len(read_clip(tmp_path / "b.mp4")) == probe_clip(tmp_path / "b.mp4").shape[0] == 9
    assert "3 of 12 frames are left out" in caplog.text


def test_frames_whose_time_a_flipped_bit_moves_behind_the_end_are_told_of(tmp_path, smooth, caplog):
    path = encoded(tmp_path / "a.mp4", smooth.frames, "libx264", "yuv420p")
    content = bytearray(path.read_bytes())
    content[content.index(b"ctts") + 12 + 8 * 6 + 4 + 1] ^= 64  # how much later than decoded the seventh is shown
    path.write_bytes(content)
    assert len(read_clip(path)) == probe_clip(path).shape[0] == 11
    assert "1 of 12 frames are left out" in caplog.text


def test_every_flipped_bit_of_an_ffv1_frame_is_noticed(tmp_path, clip):
    write_clip(tmp_path / "a.avi", clip)
    content = (tmp_path / "a.avi").read_bytes()
    first, last = content.index(b"movi") + 12, content.index(b"idx1")
    for place in range(first, last, 97):
        flipped = bytearray(content)
        flipped[place] ^= 4
        (tmp_path / "a.avi").write_bytes(flipped)
        try:
            frames = read_clip(tmp_path / "a.avi").frames
        except EchoPlanError:
            continue
        assert np.array_equal(frames, clip.frames)


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [{}, {"hflip": True}, {"vflip": True}])
def test_the_display_matrix_is_honoured(tmp_path, turn, mirror):
    picture = np.zeros((48, 64), np.uint8)
    picture[:10, :30], picture[:10, :10] = 200, 90  # looks different however it is held
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"crf": "1"})
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV writes no display matrix")
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(turn, **mirror)
        for frame in [picture] * 3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())
    upright = np.rot90(picture, turn // 90)  # anticlockwise, and then mirrored
    upright = upright[:, ::-1] if "hflip" in mirror else upright[::-1] if "vflip" in mirror else upright
    clip = read_clip(tmp_path / "a.mp4")
    assert clip.frames.shape == probe_clip(tmp_path / "a.mp4").shape == (3, *upright.shape)
    assert np.abs(clip.frames[0].astype(float) - upright).mean() < 1


def box(kind: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + kind + content


def nested(depth: int) -> bytes:
    return b"".join((8 * (depth - level)).to_bytes(4, "big") + b"udta" for level in range(depth))


MANY = box(b"free", b"") * 250_000
ENDLESS = {
    "outermost": MANY,
    "in the header": box(b"moov", MANY),
    "two deep": box(b"moov", box(b"trak", box(b"udta", box(b"free", b"") * 100) * 5000)),
    "to the end of their box": box(b"moov", bytes(4) + b"udta" + MANY),
    "in metadata": box(b"moov", box(b"meta", bytes(4) + MANY)),
    "in a picture's entry": box(b"moov", box(b"stsd", bytes(7) + b"\1" + box(b"avc1", bytes(78) + MANY))),
    "called free": box(b"moov", b"") + box(b"free", box(b"mvhd", bytes(100)) + MANY),
    "of a long length": b"\0\0\0\1moov" + (16 + len(MANY)).to_bytes(8, "big") + MANY,
    "keys": box(b"moov", box(b"pssh", bytes(24)) * 10_000),
    "fragments": box(b"moof", box(b"traf", b"") * 2) * 100_000,
    "nested": box(b"moov", nested(300_000)),
    "samples of fragments": box(b"moof", box(b"traf", box(b"trun", bytes(4) + (1000).to_bytes(4, "big")))) * 100,
    "samples of one size": box(b"moov", box(b"stsz", bytes(3) + b"\0\0\0\0\1" + (80_000_000).to_bytes(4, "big"))),
    "deflated": box(b"moov", box(b"cmov", box(b"cmvd", len(MANY).to_bytes(4, "big") + zlib.compress(MANY)))),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_boxes_without_end(tmp_path, kind):
    (tmp_path / "a.mp4").write_bytes(box(b"ftyp", b"isom\0\0\0\0") + ENDLESS[kind])
    with pytest.raises(EchoPlanError, match=r"too many boxes|compressed or encrypted|more frames than bytes"):
        probe_clip(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_frames_without_end(tmp_path, smooth, name, monkeypatch):
    encoded(tmp_path / name, smooth.frames, "mjpeg", "yuvj420p")
    monkeypatch.setattr(video, "_MOST_PACKETS", 11)
    for use in (read_clip, probe_clip):
        with pytest.raises(EchoPlanError, match="more than 11 frames"):
            use(tmp_path / name)
    monkeypatch.setattr(video, "_MOST_PACKETS", 12)
    assert len(read_clip(tmp_path / name)) == probe_clip(tmp_path / name).shape[0] == 12


def test_boxes_of_a_video_written_frame_by_frame_are_not_too_many(tmp_path, smooth):
    with av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "frag_every_frame+empty_moov"}) as container:
        stream = container.add_stream("mjpeg", rate=Fraction(50))
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuvj420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16), np.uint8), format="gray")
        for _ in range(3000):
            container.mux(stream.encode(frame.reformat(format="yuvj420p")))
        container.mux(stream.encode())
    assert len(read_clip(tmp_path / "a.mp4")) == 3000


def test_metadata_of_any_bytes(tmp_path, smooth):
    path = encoded(tmp_path / "a.avi", smooth.frames, "mjpeg", "yuvj420p")
    content = path.read_bytes()
    assert b"ISFT" in content
    place = content.index(b"ISFT") + 8
    path.write_bytes(content[:place] + b"\xfc\xff" + content[place + 2 :])
    assert len(read_clip(path)) == 12
