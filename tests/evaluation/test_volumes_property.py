"""Whatever a mask looks like, a volume is a positive number or a named reason."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from echoplan.errors import EchoPlanError
from echoplan.evaluation import VOLUME_RULES, find_landmarks, find_landmarks_of_beat
from echoplan.evaluation.ventricle.landmarks import disc_segments
from echoplan.evaluation.ventricle.volumes import volumes_of_views

SIDE = 40
KINDS = ("blob", "line", "speck", "concave", "border", "full", "noise", "empty")


def odd_mask(kind: str, random: np.random.Generator) -> np.ndarray:
    """A (40, 40) mask that no ventricle has."""
    row, column = np.mgrid[:SIDE, :SIDE]
    centre, radius = random.uniform(8, SIDE - 8, 2), random.uniform(3, 18)
    if kind == "blob":
        return gaussian_filter(random.normal(size=(SIDE, SIDE)), random.uniform(1, 5)) > 0
    if kind == "line":
        angle, thickness = random.uniform(0, np.pi), random.uniform(0.4, 1.6)
        return np.abs((row - centre[0]) * np.cos(angle) + (column - centre[1]) * np.sin(angle)) < thickness
    if kind == "speck":
        mask = np.zeros((SIDE, SIDE), bool)
        mask[tuple(random.integers(0, SIDE, (2, random.integers(1, 4))))] = True
        return mask
    if kind == "concave":
        disc = np.hypot(row - centre[0], column - centre[1]) < radius
        return disc & (np.hypot(row - centre[0] - radius / 2, column - centre[1]) > radius * random.uniform(0.4, 0.9))
    if kind == "border":
        return (row < random.integers(1, SIDE)) & (column >= random.integers(0, SIDE - 1))
    if kind == "full":
        return np.ones((random.integers(1, SIDE), random.integers(1, SIDE)), bool)
    if kind == "noise":
        return random.random((SIDE, SIDE)) < random.uniform(0.2, 0.95)
    return np.zeros((random.integers(0, 9), random.integers(0, 9)), bool)


@pytest.mark.parametrize("kind", KINDS)
def test_odd_masks_give_a_volume_or_a_reason(kind):
    random = np.random.default_rng(KINDS.index(kind))
    measured = 0
    for _ in range(60):
        mask, spacing = odd_mask(kind, random), tuple(random.uniform(0.2, 1.5, 2))
        try:
            marks = find_landmarks(mask, spacing)
        except EchoPlanError as error:
            assert "mask" in str(error)
            continue
        measured += 1
        assert np.isfinite([marks.length, marks.penalty, *marks.hinges.ravel(), *marks.apex]).all()
        assert np.isfinite(disc_segments(marks)).all()
        for rule in VOLUME_RULES:
            volumes = volumes_of_views([(marks, marks)], [(marks, marks)], rule)
            assert np.isfinite(volumes).all()
            assert min(volumes) > 0
    assert (measured == 0) == (kind in ("speck", "empty"))


def test_odd_pairs_of_masks_too():
    random = np.random.default_rng(9)
    for _ in range(40):
        masks = [odd_mask(str(random.choice(KINDS[:1] + KINDS[3:5])), random) for _ in range(2)]
        try:
            pair = find_landmarks_of_beat(*masks, (0.5, 0.5))
        except EchoPlanError:
            continue
        assert all(np.isfinite(marks.length) for marks in pair)
