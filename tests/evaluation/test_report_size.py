"""A page of 100 clips stays under 30 MB, whatever the clips and masks are."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from masked import Masked, measured
from scipy.ndimage import gaussian_filter

from echoplan.dataset import Case
from echoplan.evaluation import (
    CaseMeasurement,
    ef_agreement,
    find_phases,
    make_film,
    measure_patients,
    write_report,
)
from echoplan.evaluation.report import thumbnails as films
from echoplan.evaluation.report.figures import area_curve
from echoplan.evaluation.report.page import CASES_A_PAGE, TABLE_ROWS
from echoplan.evaluation.report.thumbnails import MARKED_BEATS, marked_beats

MOST_BYTES = 30_000_000
NAME = "hospital-of-some-long-name_2024-03-01_patient-{:04d}_apical-four-chamber-view_second-attempt"


def noisy(shape, frames, *, share, period, seed, half_ellipsoid):
    """Frames of a grain that compresses badly at every size, and a beating cavity with a ragged edge among specks."""
    random = np.random.default_rng(seed)
    masks = []
    for number in range(frames):
        squeeze = 0.25 * (1 - np.cos(2 * np.pi * number / period)) / 2
        mask = half_ellipsoid(0.7 * shape[0], 0.45 * shape[0] * (1 - squeeze), (1.0, 1.0), shape=shape)[0]
        masks.append(np.where(random.random(shape) < share, 1 - mask, mask))
    grain = gaussian_filter(random.normal(size=(frames, *shape)).astype(np.float32), (0, 1.5, 1.5))
    return np.clip(128 + 300 * grain, 0, 255).astype(np.uint8), np.stack(masks).astype(np.uint8)


WORST = {
    "few frames": {"shape": (256, 384), "frames": 6, "share": 0.25, "period": 6},
    "many beats": {"shape": (256, 384), "frames": 190, "share": 0.1, "period": 5},
}


@pytest.fixture(scope="module")
def worst(half_ellipsoid):
    """(case, measurement, film) of clips that are as bad as can be."""
    made = []
    for number, how in enumerate(WORST.values()):
        frames, mask = noisy(**how, seed=number, half_ellipsoid=half_ellipsoid)
        case = Masked(NAME.format(number), mask, "", "A4C", (0.5, 0.5), 90.0,
                        ef_percent=55.0 + number, edv_ml=90.0, esv_ml=45.0)  # fmt: skip
        found = measured(case)
        made.append((case, found, make_film(found, frames, mask, (0.5, 0.5))))
    return made


def doubtful(rows):
    """With intervals and as many words as a row can have."""
    names = [("ef", "percent"), ("edv", "ml"), ("esv", "ml")]
    bounds = {f"{name}_{end}_{unit}": value for name, unit in names for end, value in (("low", 40.0), ("high", 140.0))}
    reasons, note = "the area curve is ragged; " * 50, "frames 2 and 5: the mask is too thin for a shape; " * 50
    words = {"quality": "check", "quality_reasons": reasons, "note": note, "interval_coverage_percent": 90.0}
    return [replace(row, **bounds, **words) for row in rows]


def size(path, rows, measurements=(), own=()):
    agreement = ef_agreement(rows[:3])  # as long as that of all
    (file,) = write_report(path, rows=rows, measurements=measurements, films=own, agreement=agreement)
    return file.stat().st_size


def many_rows(count, row):
    """Rows of as many patients, which differ a little."""
    random = np.random.default_rng(0)
    shifts = random.normal(0, 8, (count, 6))
    columns = [f"{start}{name}" for start in ("", "reference_") for name in ("ef_percent", "edv_ml", "esv_ml")]
    rows = []
    for number, own in enumerate(shifts):
        values = {name: getattr(row, name) + shift for name, shift in zip(columns, own, strict=True)}
        rows.append(replace(row, **values, patient=NAME.format(number)))
    return rows


def test_a_hundred_of_the_worst_clips_and_all_that_is_beside_them(worst, tmp_path):
    _, measurements, made = zip(*worst, strict=True)
    rows = doubtful(measure_patients(measurements))
    without = size(tmp_path / "a.html", rows)
    clips = [
        size(tmp_path / "b.html", rows, [replace(measured, note="not usable; " * 100)], [film]) - without
        for measured, film in zip(measurements, made, strict=True)
    ]
    assert min(clips) > 200_000  # bad clips they are
    assert max(clips) < films._FILM_BYTES + 40_000
    for count in (CASES_A_PAGE, TABLE_ROWS):
        row = rows[0] if count == CASES_A_PAGE else replace(rows[0], quality_reasons="ragged", note="single plane")
        page = size(tmp_path / "c.html", many_rows(count, row))
        assert page + CASES_A_PAGE * max(clips) < MOST_BYTES


def test_the_parts_of_the_worst_clips_are_within_their_bounds(worst):
    for _, found, film in worst:
        assert film.outlined_in_part
        assert len(film.sheet.outlines) <= films._OUTLINE_BYTES
        assert all(len(still.webp) <= films._STILL_BYTES for still in film.stills)
        assert len(film.sheet.webp) <= films._SHEET_BYTES
        assert len(film.sheet.frames) <= films._MOST_FRAMES + 2 * MARKED_BEATS
        assert set(film.marks) <= {frame for beat in marked_beats(found.phases) for frame in beat}
    many = worst[1][1].phases
    assert len(many.beats) > MARKED_BEATS == len(marked_beats(many))
    assert (many.ed_frame, many.es_frame) in marked_beats(many)


def test_the_bound_follows_from_the_constants():
    """Of a clip 40 kB are left for its curve, its numbers and its words, and of the page 2 MB for all else."""
    assert CASES_A_PAGE * (films._FILM_BYTES + 40_000) + 2_000_000 <= MOST_BYTES
    rest = films._FILM_BYTES - 4 / 3 * (films._OUTLINE_BYTES + 2 * films._STILL_BYTES) - MARKED_BEATS * 2 * 800
    assert rest > 50_000  # the sheet's share at the very least


@pytest.mark.parametrize("frames", [1, 300, 5000])
def test_a_curve_of_any_length_is_small_and_shows_the_extremes(frames):
    area = np.random.default_rng(0).uniform(500, 3000, frames)
    area[frames // 2] = 4000
    phases = find_phases(area, frame_time_ms=20)
    svg = area_curve(CaseMeasurement(Case("a", "a", "", view="A4C", frame_time_ms=20.0), area, "mm2", phases)).svg
    assert len(svg) < 32_000
    x0, _, y0, dy = (float(value) for value in re.search(r'data-scale="([^"]+)"', svg).group(1).split())
    path = re.search(r'class="area"> <path d="([^"]+)"', svg).group(1)
    places = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path), float)
    assert places[:, 1].min() == pytest.approx(y0 + 40 * dy, abs=0.01)
    assert places[0, 0] == pytest.approx(x0, abs=0.01)


def test_a_page_says_what_of_a_clip_is_not_shown(worst, tmp_path):
    _, found, film = worst[1]
    rows = [replace(row, note="word " * 300) for row in measure_patients([found])]
    write_report(tmp_path / "a.html", rows=rows, measurements=[found], films=[film])
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    beats = len(found.phases.beats)
    assert f"{MARKED_BEATS} of {beats} beats are marked" in page
    assert re.search(rf"\({len(found.beats)} beats, [\d.−]+ to [\d.−]+ %\)", page)
    assert "in so many pieces that outlines show the largest" in page
    assert page.count("word word") and "word… (shortened)" in page
