from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest

from echoplan.errors import EchoPlanError
from echoplan.evaluation import (
    camus_biplane_volumes,
    ejection_fraction,
    find_landmarks,
    find_landmarks_of_beat,
    lv_contour,
    lv_volume_biplane,
    lv_volume_single_plane,
)

FLIPS = [(), (0,), (1,), (0, 1)]
FINE = (0.3, 0.3)
ED, ES = (85.0, 48.0), (68.0, 36.0)  # length and width in mm


@pytest.mark.parametrize("spacing", [FINE, (0.3, 0.15), (0.2, 0.4)])
@pytest.mark.parametrize("tilt", [-30, -17, 0, 8, 30])
def test_single_plane_volume_of_half_ellipsoids(half_ellipsoid, tilt, spacing):
    for flips in FLIPS:
        (ed, edv), (es, esv) = (
            half_ellipsoid(*size, spacing, tilt=tilt, shift=(0.1, 0.17), flips=flips) for size in (ED, ES)
        )
        volumes = [lv_volume_single_plane(mask, spacing) for mask in (ed, es)]
        assert volumes == pytest.approx([edv, esv], rel=0.01)
        assert ejection_fraction(*volumes) == pytest.approx(ejection_fraction(edv, esv), abs=0.5)


@pytest.mark.parametrize("size", [(70, 60), (60, 50), (90, 30), (45, 36)])
def test_round_and_slender_cavities(half_ellipsoid, size):
    for tilt in (-25, 0, 14):
        mask, volume = half_ellipsoid(*size, FINE, tilt=tilt)
        assert lv_volume_single_plane(mask, FINE) == pytest.approx(volume, rel=0.01)


@pytest.mark.parametrize("tilt", [-30, -12, 0, 21])
@pytest.mark.parametrize("flips", FLIPS)
def test_ejection_fraction_at_112_pixels(half_ellipsoid, tilt, flips):
    spacing = (1.05, 1.05)
    (ed, edv), (es, esv) = (
        half_ellipsoid(*size, spacing, tilt=tilt, shape=(112, 112), flips=flips) for size in (ED, ES)
    )
    got = ejection_fraction(lv_volume_single_plane(ed, spacing), lv_volume_single_plane(es, spacing))
    assert got == pytest.approx(ejection_fraction(edv, esv), abs=1)


@pytest.mark.parametrize(("tilt_a2c", "tilt_a4c"), [(-30, 20), (0, 0), (15, -30)])
def test_biplane_volume_of_elliptic_half_ellipsoids(half_ellipsoid, tilt_a2c, tilt_a4c):
    spacings = (0.3, 0.3), (0.3, 0.2)
    for flips in FLIPS:
        a2c, _ = half_ellipsoid(80, 40, spacings[0], tilt=tilt_a2c, flips=flips)
        a4c, _ = half_ellipsoid(80, 52, spacings[1], tilt=tilt_a4c)
        truth = 2 / 3 * np.pi * 20 * 26 * 80 / 1000
        assert lv_volume_biplane(a2c, a4c, *spacings) == pytest.approx(truth, rel=0.01)


def test_biplane_takes_the_larger_length_and_warns(half_ellipsoid, caplog):
    short, _ = half_ellipsoid(64, 40, FINE)
    long, _ = half_ellipsoid(80, 40, FINE)
    with caplog.at_level(logging.WARNING):
        volume = lv_volume_biplane(short, long, FINE, FINE)
    assert volume == pytest.approx(2 / 3 * np.pi * 20 * 20 * 80 / 1000, rel=0.01)
    assert "20 %" in caplog.text
    caplog.clear()
    lv_volume_biplane(long, long, FINE, FINE)
    assert not caplog.text


def test_camus_rule_follows_its_formula(half_ellipsoid):
    ed, _ = half_ellipsoid(*ED, FINE)
    es, _ = half_ellipsoid(*ES, FINE)
    ordinary = ejection_fraction(*(lv_volume_biplane(mask, mask, FINE, FINE) for mask in (ed, es))) / 100
    edv, esv = camus_biplane_volumes((ed, ed), (es, es), FINE, FINE)
    assert edv == pytest.approx(lv_volume_single_plane(ed, FINE))
    assert ejection_fraction(edv, esv) / 100 == pytest.approx(1 - (1 - ordinary) * ED[0] / ES[0], abs=0.01)


@pytest.mark.parametrize(("tilt", "flips"), list(itertools.product([-30, 0, 27], FLIPS)))
def test_landmarks_lie_where_they_should(half_ellipsoid, tilt, flips):
    spacing, shape = (0.5, 0.25), (220, 440)
    mask, _ = half_ellipsoid(70, 40, spacing, tilt=tilt, shape=shape, flips=flips)
    marks = find_landmarks(mask, spacing)
    turn = np.radians(tilt)
    up = np.array([-np.cos(turn), -np.sin(turn)])
    centre = (np.array(shape) - 1) / 2 * spacing
    apex, base = centre + 35 * up, centre - 35 * up
    for axis in flips:
        apex[axis], base[axis] = (2 * centre[axis] - point[axis] for point in (apex, base))
    assert np.linalg.norm(marks.apex - apex) < 2
    assert np.linalg.norm(marks.base_middle - base) < 1
    assert marks.length == pytest.approx(70, rel=0.01)
    assert np.linalg.norm(np.diff(marks.hinges, axis=0)) == pytest.approx(40, rel=0.03)


def test_the_two_phases_of_a_beat_point_the_same_way(half_ellipsoid):
    """An egg that is flat at the wrong end is put right by the clear shape of the other phase."""
    row, column = np.mgrid[:361, :361] - 180
    egg = ((row / 140) ** 2 + (column / 90) ** 2 <= 1) & (row > -125)
    clear, _ = half_ellipsoid(80, 40, FINE)
    assert find_landmarks(egg, FINE).direction @ (1, 0) > 0.9
    assert find_landmarks(clear, FINE).direction @ (-1, 0) > 0.9
    for masks in ((egg, clear), (clear, egg)):
        assert all(marks.direction @ (-1, 0) > 0.9 for marks in find_landmarks_of_beat(*masks, FINE))
    for masks in ((np.flip(egg, 0), np.flip(clear, 0)), (egg, np.flip(clear, 0))):
        assert all(marks.direction @ (1, 0) > 0.9 for marks in find_landmarks_of_beat(*masks, FINE))


def test_volume_scales_with_the_cube_of_the_pixel(half_ellipsoid):
    mask, _ = half_ellipsoid(70, 40, FINE, tilt=10)
    assert lv_volume_single_plane(mask, (0.6, 0.6)) == pytest.approx(8 * lv_volume_single_plane(mask, FINE))


def test_specks_and_holes_do_not_count(half_ellipsoid):
    mask, volume = half_ellipsoid(70, 40, FINE)
    rows, columns = mask.shape
    mask[rows // 2 : rows // 2 + 6, columns // 2 : columns // 2 + 6] = 0
    mask[:9, :9] = 1
    assert lv_volume_single_plane(mask, FINE) == pytest.approx(volume, rel=0.01)


def test_contour_area_is_that_of_the_pixels(half_ellipsoid):
    mask, _ = half_ellipsoid(70, 40, (0.5, 0.5), tilt=20)
    row, column = lv_contour(mask, (0.5, 0.5)).T
    area = abs(np.sum(row * np.roll(column, -1) - np.roll(row, -1) * column)) / 2
    assert area == pytest.approx((mask.sum() - 0.5) * 0.25)


def degenerate():
    speck, line = np.zeros((40, 40), np.uint8), np.zeros((200, 40), np.uint8)
    speck[3:6, 3:6] = 1
    line[5:190, 7] = 1
    return [np.zeros((40, 40), np.uint8), speck, np.ones((2, 40, 40), np.uint8)], line


@pytest.mark.parametrize("mask", degenerate()[0])
def test_masks_without_a_shape_are_named(mask):
    with pytest.raises(EchoPlanError):
        lv_volume_single_plane(mask, FINE)


def test_odd_masks_give_a_finite_volume_or_a_reason():
    random = np.random.default_rng(0)
    odd = [degenerate()[1], np.ones((50, 50)), np.eye(60), *(random.random((30, 50, 50)) > 0.45)]
    for mask in odd:
        try:
            assert lv_volume_single_plane(mask, (0.5, 0.3)) > 0
        except EchoPlanError as error:
            assert "mask" in str(error)


def test_ejection_fraction_is_never_swapped():
    assert ejection_fraction(100, 40) == pytest.approx(60)
    assert ejection_fraction(40, 100) == pytest.approx(-150)
    for pair in ((0, 0), (-1, 3), (float("nan"), 3), (3, float("inf"))):
        with pytest.raises(EchoPlanError):
            ejection_fraction(*pair)


@pytest.mark.parametrize(("patient", "ef"), [("patient0001", 63.2), ("patient0002", 49.4), ("patient0003", 55.4)])
def test_camus_patients(camus_masks, patient, ef):
    masks = {(view, phase): camus_masks(patient, view, phase) for view in ("2CH", "4CH") for phase in ("ED", "ES")}
    edv, esv = (
        lv_volume_biplane(masks["2CH", p][0], masks["4CH", p][0], masks["2CH", p][1], masks["4CH", p][1])
        for p in ("ED", "ES")
    )
    assert ejection_fraction(edv, esv) == pytest.approx(ef, abs=1)
