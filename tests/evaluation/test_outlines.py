"""Outlines to look at: as they always were for clean masks, few and small for noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree
from skimage.draw import disk
from skimage.measure import approximate_polygon, find_contours

from echoplan.evaluation.report import contours as outlines
from echoplan.evaluation.report.contours import OUTLINE_STEPS, enclosed, packed, trace, within
from echoplan.evaluation.report.thumbnails import Frame

TOLERANCE = 0.4


def as_they_were(mask, frame):
    """The lines of all pixels of a mask at its own size, with skimage's polygons."""
    lines = find_contours(np.pad(mask != 0, 1).astype(np.float32), 0.5)
    scale = (frame.scale_x, frame.scale_y)
    return [(approximate_polygon(line, TOLERANCE)[:-1] - 0.5)[:, ::-1] * scale for line in lines]


def along(lines):
    """Points on closed lines, a quarter of a pixel apart or less."""
    parts = []
    for line in lines:
        for start, end in zip(line, np.roll(line, -1, axis=0), strict=True):
            steps = max(2, int(4 * np.linalg.norm(end - start)))
            parts.append(start + (end - start) * np.linspace(0, 1, steps)[:, None])
    return np.concatenate(parts)


def apart(first, second):
    """The farthest that a point of one set of lines lies from the other set, in pixels."""
    here, there = along(first), along(second)
    return max(cKDTree(a).query(b)[0].max() for a, b in ((here, there), (there, here)))


def clean_masks(half_ellipsoid):
    rows, columns = np.mgrid[:480, :640]
    oval = ((rows - 240) / 150) ** 2 + ((columns - 320) / 80) ** 2
    ring = np.where((oval < 1) & (oval > 0.5), 1, 0)
    two = ring.copy()
    two[400:440, 500:560] = 1
    return {
        "half ellipsoid": (half_ellipsoid(80, 46, (0.4, 0.8), shape=(280, 150))[0], (0.4, 0.8)),
        "larger than shown": (half_ellipsoid(80, 46, (0.2, 0.25), shape=(600, 500))[0], (0.2, 0.25)),
        "oval": (oval < 1, (0.4, 0.4)),
        "ring": (ring, (0.4, 0.4)),
        "two pieces, wide pixels": (two, (0.3, 0.5)),
        "at the edge": (rows[:200, :300] + columns[:200, :300] < 150, None),
    }


@pytest.mark.parametrize("name", clean_masks(lambda *_, **__: (np.zeros((1, 1)), 0)))
def test_a_clean_mask_looks_as_it_always_did(name, half_ellipsoid):
    mask, spacing = clean_masks(half_ellipsoid)[name]
    frame = Frame.fit(mask.shape, spacing)
    lines, before = frame.outline(mask), as_they_were(mask, frame)
    assert len(lines) == len(before)
    assert apart(lines, before) < 1
    assert sum(map(len, lines)) <= sum(map(len, before))
    area = np.count_nonzero(mask) * frame.scale_x * frame.scale_y
    assert enclosed(lines) == pytest.approx(area, rel=0.01)


def test_a_mask_smaller_than_shown_is_traced_pixel_by_pixel(half_ellipsoid):
    mask = half_ellipsoid(80, 46, (0.9, 0.9), shape=(112, 112))[0].copy()
    mask[3, 3] = 1
    frame = Frame.fit(mask.shape, None)
    lines, before = frame.outline(mask), as_they_were(mask, frame)
    assert len(lines) == 2  # five pixels of the frame are seen
    assert apart(lines, before) < 1  # of several points as far from a chord either may be kept


def test_polygons_are_those_of_skimage():
    random = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 400)
    lines = []
    for _ in range(5):
        radius = 50 + np.cumsum(random.normal(0, 1, 400))
        line = radius[:, None] * np.stack((np.sin(angle), np.cos(angle)), axis=1)
        line[-1] = line[0]
        lines.append(line)
    for tolerance in (0.4, 3.0):
        for line, own in zip(outlines._simplified(lines, tolerance), lines, strict=True):
            np.testing.assert_array_equal(line, approximate_polygon(own, tolerance))
    assert outlines._simplified([], 1.0) == []


def test_what_its_own_line_would_cover_is_left_out():
    mask = np.zeros((480, 640), bool)
    mask[disk((240, 320), 100)] = True
    clean = trace(mask, (320, 240))
    assert len(clean) == 1
    mask[20:22, 20:26] = True  # 3 pixels shown
    mask[230:232, 300:306] = False
    assert len(trace(mask, (320, 240))) == 1
    mask[40:44, 40:46] = True  # 6 pixels shown
    mask[250:254, 300:306] = False
    lines = trace(mask, (320, 240))
    assert len(lines) == 3
    assert apart(lines[:1], clean) < 1e-9
    assert all(np.ptp(line, axis=0).max() <= 4 for line in lines[1:])


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.7])
def test_noise_has_few_lines_and_the_largest_piece_is_among_them(share):
    random = np.random.default_rng(0)
    mask = random.random((480, 640)) < share
    lines = trace(mask, (341, 256))
    assert sum(map(len, lines)) < 2 * 2 * (341 + 256)
    if share < 0.5:
        mask[disk((240, 320), 80)] = True
        mask[disk((240, 320), 20)] = False
        outer = trace(mask, (341, 256))[0]
        centre = np.array((320.5, 240.5)) * (341 / 640, 256 / 480)
        distance = np.hypot(*(outer - centre).T) / (256 / 480)
        assert np.median(distance) == pytest.approx(80, abs=8)


@pytest.mark.parametrize("kind", ["chequers", "stripes", "comb", "spiral", "full", "empty", "one pixel"])
def test_masks_made_to_be_hard_are_traced_too(kind):
    rows, columns = np.mgrid[:256, :341]
    angle, radius = np.arctan2(rows - 128, columns - 170), np.hypot(rows - 128, columns - 170)
    mask = {
        "chequers": (rows // 2 + columns // 2) % 2 == 0,
        "stripes": rows % 6 < 3,
        "comb": (rows % 6 < 3) | (columns < 4),
        "spiral": (radius / 6 + angle / np.pi * 3) % 6 < 3,
        "full": rows >= 0,
        "empty": rows < 0,
        "one pixel": (rows == 0) & (columns == 0),
    }[kind]
    lines = trace(mask, (341, 256))
    assert sum(map(len, lines)) < 2 * 2 * (341 + 256)
    assert all(len(line) > 2 and line.min() >= 0 and (line <= (341, 256)).all() for line in lines)
    if kind == "full":
        assert enclosed(lines) == pytest.approx(341 * 256, rel=1e-3)
    assert bool(lines) == (kind not in ("empty", "one pixel"))


def unpacked(content, frames):
    values = iter(np.frombuffer(content, "<u2").tolist())
    read = [
        [np.array([(next(values), next(values)) for _ in range(next(values))]) / OUTLINE_STEPS
         for _ in range(next(values))]
        for _ in range(frames)
    ]  # fmt: skip
    assert next(values, None) is None
    return read


def test_lines_within_the_bytes_stay_as_they_are():
    random = np.random.default_rng(0)
    frames = [[random.uniform(0, 300, (count, 2)) for count in counts] for counts in ((9, 5), (), (7,))]
    kept = within(frames, 100)
    assert len(packed(kept)) == 3 * 2 + 3 * 2 + 4 * 21 == 96
    for lines, own in zip(unpacked(packed(kept), 3), frames, strict=True):
        assert len(lines) == len(own)
        for line, other in zip(lines, own, strict=True):
            np.testing.assert_allclose(line, other, atol=0.5 / OUTLINE_STEPS)
    assert packed([]) == b"" and within([[]], 10) == [[]]


def test_of_too_many_lines_the_largest_stay():
    circle = np.stack((np.cos(np.linspace(0, 6.2, 60)), np.sin(np.linspace(0, 6.2, 60))), axis=1)
    sizes = [60.0, 30.0, 20.0, 10.0]
    many = [150 + size * circle for size in sizes]
    kept = within([many, many[:1]], 1000)
    assert [len(lines) for lines in kept] == [2, 1]
    assert len(packed(kept)) <= 1000
    for line, own in zip(kept[0], many, strict=False):
        np.testing.assert_array_equal(line, own)


def test_one_line_too_long_has_fewer_points():
    turns = np.linspace(0, 2 * np.pi, 900, endpoint=False)
    ragged = (100 + 15 * np.sin(23 * turns))[:, None] * np.stack((np.cos(turns), np.sin(turns)), axis=1) + 150
    ((line,),) = within([[ragged]], 240)
    assert len(packed([[line]])) <= 240 and len(line) > 12
    assert set(map(tuple, line)) <= set(map(tuple, ragged))
    assert enclosed([line]) == pytest.approx(enclosed([ragged]), rel=0.3)
