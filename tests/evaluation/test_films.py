"""Clips made small for the report."""

from __future__ import annotations

import io
from dataclasses import asdict, replace

import numpy as np
import pytest
from masked import Masked, measured
from PIL import Image

from echoplan.evaluation import make_film
from echoplan.evaluation.report.contours import OUTLINE_STEPS
from echoplan.evaluation.report.thumbnails import PICTURES, PLAYERS, Frame, film_frames, grey_levels, picture_of

SPACING = (0.4, 0.8)


@pytest.fixture(scope="module")
def case(half_ellipsoid):
    sizes = [(80, 46), (76, 42), (70, 36), (64, 30), (70, 38)]
    mask = np.stack([half_ellipsoid(*size, SPACING, shape=(280, 150))[0] for size in sizes])
    return Masked("a", mask, spacing_mm=SPACING, frame_time_ms=50.0)


def clip_of(case):
    """A clip whose frames differ in brightness: 40, 60, 80 ... within the cavity."""
    return (case.mask * (40 + 20 * np.arange(len(case.mask)))[:, None, None]).astype(np.uint8)


def opened(webp):
    return np.asarray(Image.open(io.BytesIO(webp)).convert("L")).astype(int)


def unpacked(sheet):
    """The outlines of each frame, as the page's script reads them."""
    values = iter(np.frombuffer(sheet.outlines, "<u2").tolist())
    frames = []
    for _ in sheet.frames:
        lines = [
            np.array([(next(values), next(values)) for _ in range(next(values))]) / OUTLINE_STEPS
            for _ in range(next(values))
        ]
        frames.append(lines)
    assert next(values, None) is None
    return frames


def area(line):
    x, y = line.T
    return abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2


def test_the_heart_keeps_its_proportions(case):
    film = make_film(measured(case), clip_of(case), case.mask, SPACING)
    assert film.height == 256
    assert film.width / film.height == pytest.approx(150 * 0.8 / (280 * 0.4), abs=0.01)
    ed, es = film.stills
    assert (ed.phase, ed.frame, es.phase, es.frame) == ("end-diastole", 0, "end-systole", 3)
    (outline,) = ed.outline
    height, width = np.ptp(outline[:, 1]) / film.height * 112, np.ptp(outline[:, 0]) / film.width * 120
    assert (height, width) == pytest.approx((80, 46), abs=1)
    assert np.linalg.norm(ed.marks.axis[1] - ed.marks.axis[0]) * 112 / 256 == pytest.approx(80, abs=1)


def test_the_sheet_holds_every_frame_in_order_and_its_outline(case):
    film = make_film(measured(case), clip_of(case), case.mask, SPACING)
    sheet = film.sheet
    assert sheet.frames == (0, 1, 2, 3, 4)
    whole, middles = opened(sheet.webp), []
    for number in range(5):
        top, left = number // sheet.columns * sheet.height, number % sheet.columns * sheet.width
        middles.append(whole[top + sheet.height // 2, left + sheet.width // 2])
    assert np.all(np.diff(middles) > 20)
    pixels = (film.width / 150) * (film.height / 280)
    for frame, lines in enumerate(unpacked(sheet)):
        assert len(lines) == 1
        assert area(lines[0]) == pytest.approx(case.mask[frame].sum() * pixels, rel=0.02)


def test_the_discs_have_the_cavitys_width(case):
    film = make_film(measured(case), clip_of(case), case.mask, SPACING)
    assert set(film.marks) == {0, 3}
    discs = film.marks[0].discs
    assert discs.shape == (20, 2, 2)
    widths = np.linalg.norm(discs[:, 1] - discs[:, 0], axis=1) * 112 / 256
    heights = (np.arange(20) + 0.5) / 20
    np.testing.assert_allclose(widths, 46 * np.sqrt(1 - heights**2), atol=2.5)


def test_several_pieces_and_no_cavity_at_all(case):
    mask = case.mask.copy()
    mask[1, :4, :4] = 1
    mask[2] = 0
    film = make_film(measured(case), clip_of(case), mask, SPACING)
    assert [len(lines) for lines in unpacked(film.sheet)] == [1, 2, 0, 1, 1]
    empty = Masked("b", case.mask * 0)
    film = make_film(measured(empty), clip_of(case), empty.mask)
    assert film.stills == () and film.marks == {} and len(film.sheet.frames) == 5


def test_beats_that_were_not_all_measured_have_no_landmarks(half_ellipsoid):
    big, small = (half_ellipsoid(*size, (1.0, 1.0), shape=(100, 70))[0] for size in ((80, 46), (64, 30)))
    thin = np.zeros_like(big)
    thin[20:80, 30] = 1
    mask = np.stack([big, big, thin, big, big, small, big, big])
    found = measured(Masked("a", mask, spacing_mm=(1.0, 1.0), frame_time_ms=200.0))
    assert len(found.beats) == 1 and len(found.phases.beats) == 2
    film = make_film(found, mask * 90, mask, (1.0, 1.0))
    assert film.marks == {} and [still.marks for still in film.stills] == [None, None]


def test_a_long_noisy_clip_stays_small_and_keeps_its_phases():
    random = np.random.default_rng(0)
    frames = random.integers(0, 255, (150, 100, 100)).astype(np.uint8)
    mask = np.zeros((150, 100, 100), np.uint8)
    for number in range(150):
        reach = 40 if number == 101 else 25 if number == 131 else 30
        mask[number, 50 - reach : 50 + reach, 40:60] = 1
    found = measured(Masked("a", mask, ed_frame=101, es_frame=131, spacing_mm=(1.0, 1.0)))
    film = make_film(found, frames, mask, (1.0, 1.0))
    assert len(film.sheet.webp) <= 160_000
    assert film.sheet.frames == tuple(sorted({*range(0, 150, 2), 101, 131}))
    assert film.sheet.height < 100 and film.height == 256


@pytest.mark.parametrize("player", [True, False])
@pytest.mark.parametrize("count", [5, 400])
def test_the_frames_named_are_all_that_a_film_needs(case, player, count):
    mask = case.mask[np.arange(count) % len(case.mask)]
    frames = clip_of(case)[np.arange(count) % len(case.mask)]
    found = measured(replace(case, mask=mask, ed_frame=None, es_frame=None))
    needed = film_frames(found, count, player=player)
    assert len(needed) <= (5 if count == 5 else 200 if player else 2)
    some = make_film(found, frames, {frame: mask[frame] for frame in needed}, SPACING, player=player)
    whole = make_film(found, frames, mask, SPACING, player=player)
    np.testing.assert_equal(asdict(some), asdict(whole))


def test_large_reports_have_stills_and_then_no_pictures(case):
    assert [picture_of(number) for number in (0, PLAYERS - 1, PLAYERS, PICTURES - 1, PICTURES)] == [
        "player", "player", "stills", "stills", "none",
    ]  # fmt: skip
    film = make_film(measured(case), clip_of(case), case.mask, SPACING, player=False)
    assert film.sheet is None and len(film.stills) == 2


def test_brightness_is_the_clips_and_not_each_frames():
    frames = np.stack([np.full((8, 8), value, np.int16) for value in (-50, 0, 350)])
    grey = grey_levels(frames)
    assert [int(grey(frame)[0, 0]) for frame in frames] == pytest.approx([0, 32, 255], abs=2)
    assert grey_levels(frames[:1] * 0)(frames[0] * 0).max() == 0


@pytest.mark.parametrize(("shape", "spacing"), [((101, 333), None), ((57, 57), (0.3, 0.2)), ((1000, 20), (1, 1))])
def test_videos_have_even_sides(shape, spacing):
    frame = Frame.fit(shape, spacing, highest=512, widest=768, even=True)
    assert frame.width % 2 == frame.height % 2 == 0
    assert frame.height <= 512 and frame.width <= 768 and max(frame.height / 512, frame.width / 768) > 0.99
