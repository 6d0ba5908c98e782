"""Videos with outlines."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from masked import Masked, measured

from echoplan.errors import EchoPlanError
from echoplan.evaluation.report import overlays
from echoplan.evaluation.report.overlays import write_overlay_video, write_overlays
from echoplan.imageio import Clip, write_clip, write_mask
from echoplan.scripts import report as report_command

SPACING = (1.0, 0.9)
FRAME_MS = 40.0


@pytest.fixture
def heart(half_ellipsoid):
    """(clip, mask) of one beat in odd-sized frames."""
    sizes = [(80, 46), (74, 40), (66, 30), (74, 40)]
    mask = np.stack([half_ellipsoid(*size, SPACING, shape=(121, 91))[0] for size in sizes])
    return Clip((60 + mask * 60).astype(np.uint8), SPACING, FRAME_MS, "phantom"), mask


def measured_heart(clip, mask, name="a"):
    phases = {"ed_frame": 0, "es_frame": 2} if len(mask) > 2 else {}
    return measured(Masked(name, mask, spacing_mm=clip.spacing_mm, frame_time_ms=clip.frame_time_ms, **phases))


def frames_of(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream, [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(stream)]


def extent(frame, colour):
    """(top, bottom, left, right) of the pixels near a colour."""
    rows, columns = (np.abs(frame - colour).max(axis=2) < 70).nonzero()
    return rows.min(), rows.max(), columns.min(), columns.max()


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
def test_a_video_in_real_time_with_outline_and_axis(tmp_path, heart, monkeypatch, codec):
    if codec == "mpeg4":  # as where FFmpeg was built without H.264
        monkeypatch.setattr(overlays, "_CODECS", {"nothing_like_it": {}, "mpeg4": overlays._CODECS["mpeg4"]})
    clip, mask = heart
    write_overlay_video(tmp_path / "a.mp4", clip, mask, measured_heart(clip, mask))
    stream, frames = frames_of(tmp_path / "a.mp4")
    assert (stream.codec_context.name, stream.pix_fmt) == (codec, "yuv420p")
    assert stream.average_rate == Fraction(25) and len(frames) == 4
    height, width = frames[0].shape[:2]
    assert height % 2 == width % 2 == 0 and width / height == pytest.approx(91 * 0.9 / 121, abs=0.01)
    for frame, own in zip(frames, mask, strict=True):
        top, bottom, left, right = extent(frame[: height - 30], (230, 159, 0))
        rows, columns = own.nonzero()
        scale = height / 121
        assert (top / scale, bottom / scale) == pytest.approx((rows.min(), rows.max()), abs=2)
        assert ((right - left) / width * 91) == pytest.approx(np.ptp(columns), abs=3)
    axis_top, axis_bottom, *_ = extent(frames[1][: height - 30], (86, 180, 233))
    assert axis_bottom - axis_top > 0.5 * height  # between the phases too


def test_the_phases_are_named_on_their_frames(tmp_path, heart):
    clip, mask = heart
    write_overlay_video(tmp_path / "a.mp4", clip, mask, measured_heart(clip, mask))
    _, frames = frames_of(tmp_path / "a.mp4")
    blue, red = (0, 114, 178), (213, 94, 0)
    foot = [frame[-34:, frame.shape[1] // 2 :] for frame in frames]
    near = [[int((np.abs(part - colour).max(axis=2) < 40).sum()) > 200 for colour in (blue, red)] for part in foot]
    assert near == [[True, False], [False, False], [False, True], [False, False]]


def test_clips_without_cavity_or_time_have_a_video_too(tmp_path, heart):
    clip, mask = heart
    still = Clip(clip.frames[:1], None, None, "phantom")
    write_overlay_video(tmp_path / "a.mp4", still, mask[:1] * 0, measured_heart(still, mask[:1] * 0))
    stream, frames = frames_of(tmp_path / "a.mp4")
    assert len(frames) == 1 and stream.average_rate == Fraction(25)
    mask[1] = 0
    write_overlay_video(tmp_path / "b.mp4", clip, mask, measured_heart(clip, mask))
    assert len(frames_of(tmp_path / "b.mp4")[1]) == 4


def test_no_codec_is_a_users_error(tmp_path, heart, monkeypatch):
    monkeypatch.setattr(overlays, "_CODECS", {"nothing_like_it": {}})
    with pytest.raises(EchoPlanError, match="PyAV"):
        write_overlay_video(tmp_path / "a.mp4", *heart, measured_heart(*heart))


def test_one_broken_case_does_not_stop_the_rest(tmp_path, heart):
    clip, mask = heart
    for name in "ab":
        write_clip(tmp_path / f"{name}.nii.gz", clip)
        write_mask(tmp_path / "masks" / f"{name}.nii.gz", mask, like=clip)
    write_mask(tmp_path / "masks" / "short.nii.gz", mask[:2], like=Clip(clip.frames[:2], SPACING, FRAME_MS, ""))
    jobs = {
        name: (tmp_path / f"{file}.nii.gz", tmp_path / "masks" / f"{own}.nii.gz", measured_heart(clip, mask))
        for name, file, own in (("a", "a", "a"), ("gone", "gone", "a"), ("short", "a", "short"), ("b", "b", "b"))
    }
    results = write_overlays(tmp_path / "overlays", jobs, 1)
    assert sorted(results.done) == ["a", "b"] and sorted(results.failures) == ["gone", "short"]
    assert "(2, 121, 91)" in results.failures["short"]
    assert sorted(file.name for file in (tmp_path / "overlays").iterdir()) == ["a.mp4", "b.mp4"]


def test_the_report_command_writes_them(tmp_path, heart, capsys, monkeypatch):
    clip, mask = heart
    for name in "ab":
        write_clip(tmp_path / "clips" / f"{name}.nii.gz", clip)
        write_mask(tmp_path / "masks" / f"{name}.nii.gz", mask, like=clip)
    written = overlays.write_overlay_video

    def fail_once(path, *arguments):
        if path.stem == "a":
            raise EchoPlanError("no video today")
        written(path, *arguments)

    monkeypatch.setattr(overlays, "write_overlay_video", fail_once)
    folders = ["-i", str(tmp_path / "clips"), "-m", str(tmp_path / "masks"), "-o", str(tmp_path / "out")]
    assert report_command([*folders, "--overlays", "-np", "0"]) == 1
    assert [file.name for file in (tmp_path / "out" / "overlays").iterdir()] == ["b.mp4"]
    assert "overlay of a: no video today" in capsys.readouterr().err
    assert (tmp_path / "out" / "report.html").read_text().count('class="player"') == 2
