"""Words beside the fan, which may name the patient, are in no picture that is shown."""

from __future__ import annotations

import base64
import io
import re

import av
import numpy as np
import pytest
from masked import Masked, measured
from PIL import Image

from echoplan.evaluation import make_film, measure_patients, write_report
from echoplan.evaluation.report.overlays import write_overlay_video
from echoplan.evaluation.report.thumbnails import grey_levels
from echoplan.imageio import Clip

SHAPE, SPACING = (420, 560), (0.5, 0.5)


@pytest.fixture(scope="module")
def clips(sector_scene):
    """(with words, without), (T, H, W) uint8 and else the same."""
    return tuple(sector_scene(frames=4, shape=SHAPE, furniture=drawn)[0] for drawn in (True, False))


@pytest.fixture(scope="module")
def case():
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    masks = [
        (((rows - 150) / long) ** 2 + ((columns - 280) / (long / 2)) ** 2 < 1) & (rows < 180)
        for long in (50, 44, 38, 46)
    ]
    return Masked("a", np.stack(masks).astype(np.uint8), spacing_mm=SPACING, frame_time_ms=50.0)


def pictures_of_report(path, case, frames):
    """The pictures in report.html."""
    found = measured(case)
    film = make_film(found, frames, case.mask, SPACING)
    write_report(path, rows=measure_patients([found]), measurements=[found], films=[film])
    page = path.read_text(encoding="utf-8")
    found = re.findall(r"(?:data:image/webp;base64,|class=\"sheet\"[^>]*>)(UklGR[A-Za-z0-9+/=]+)", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("L")).astype(int) for text in found]


def test_no_picture_of_a_report_shows_words_outside_the_fan(tmp_path, clips, case):
    words, plain = clips
    assert (np.abs(words.astype(int) - plain) > 100).sum() > 4000
    shown, wanted = (pictures_of_report(tmp_path / "report.html", case, clip) for clip in clips)
    assert len(shown) == len(wanted) == 3  # end-diastole, end-systole, what the player plays
    for picture, other in zip(shown, wanted, strict=True):
        assert picture.max() > 150 and np.abs(picture - other).max() <= 2


def test_no_video_shows_them(tmp_path, clips, case):
    videos = []
    for number, frames in enumerate(clips):
        write_overlay_video(tmp_path / f"{number}.mp4", Clip(frames, SPACING, 50.0), case.mask, measured(case))
        with av.open(str(tmp_path / f"{number}.mp4")) as container:
            videos.append([frame.to_ndarray(format="gray").astype(int) for frame in container.decode(video=0)])
    assert len(videos[0]) == 4
    for picture, other in zip(*videos, strict=True):
        assert picture.max() > 150 and np.abs(picture - other).max() <= 2


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_the_words_do_not_darken_the_fan_either(clips, kind):
    words, plain = (clip.astype(kind) * kind(1 if kind is np.uint8 else 3) for clip in clips)
    assert np.array_equal(grey_levels(words)(words[1]), grey_levels(plain)(plain[1]))


def test_everything_is_shown_where_there_is_no_fan():
    frames = np.random.default_rng(0).integers(60, 200, (3, 90, 120), dtype=np.uint8)
    assert np.count_nonzero(grey_levels(frames)(frames[0])) > 0.9 * frames[0].size
