from __future__ import annotations

import numpy as np
import pytest

from echoplan.training.data.augmentation import AffineDraw, SectorAffine, build_augmentation

SIDE = 64
APEX = (0.0, 31.5)


def disc(row: float, column: float, radius: float = 6.0) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2).astype(np.uint8)[None]


def centre(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask[0])
    return float(rows.mean()), float(columns.mean())


def apply(draw: AffineDraw, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return SectorAffine.apply(draw, mask * np.uint8(200), mask, apex=APEX, classes=2)


@pytest.mark.parametrize("degrees", [-20.0, 7.0, 20.0])
def test_rotation_keeps_the_distance_to_the_apex_and_turns_by_the_angle(degrees: float) -> None:
    _, moved = apply(AffineDraw(degrees=degrees), disc(40, 31.5))
    row, column = centre(moved)
    assert np.hypot(row - APEX[0], column - APEX[1]) == pytest.approx(40, abs=0.5)
    # counter-clockwise on the screen: what hangs below the apex swings to the right
    assert np.degrees(np.arctan2(column - APEX[1], row - APEX[0])) == pytest.approx(degrees, abs=0.7)


def test_scale_moves_away_from_the_apex_and_enlarges() -> None:
    _, moved = apply(AffineDraw(scale=1.25), disc(32, 31.5, 9))
    assert centre(moved)[0] == pytest.approx(40, abs=0.5)
    assert moved.sum() == pytest.approx(disc(32, 31.5, 9).sum() * 1.25**2, rel=0.04)


def test_mirror_swaps_left_and_right() -> None:
    _, moved = apply(AffineDraw(mirror=True), disc(30, 20))
    assert centre(moved) == pytest.approx((30, 43), abs=0.1)


@pytest.mark.parametrize("draw", [AffineDraw(15, 1.2), AffineDraw(-18, 0.8, True)])
def test_pixels_and_labels_move_alike(draw: AffineDraw) -> None:
    frames, labels = apply(draw, disc(35, 28, 9))
    assert ((frames > 100) == (labels == 1)).mean() > 0.998


def test_all_frames_of_a_clip_move_alike() -> None:
    clip = np.repeat(disc(30, 30), 5, axis=0)
    frames, labels = SectorAffine.apply(AffineDraw(12, 1.1, True), clip * np.uint8(99), clip, apex=APEX, classes=2)
    assert (frames == frames[0]).all() and (labels == labels[0]).all()


def test_unlabelled_frames_stay_wholly_unlabelled() -> None:
    labels = np.concatenate([disc(30, 30), np.full((1, SIDE, SIDE), 255, np.uint8)])
    _, moved = SectorAffine.apply(AffineDraw(20, 0.7), labels, labels, apex=APEX, classes=2)
    assert (moved[1] == 255).all() and set(np.unique(moved[0])) == {0, 1}


def test_several_structures_keep_their_values() -> None:
    labels = disc(30, 20) + 2 * disc(30, 44)
    _, moved = SectorAffine.apply(AffineDraw(mirror=True), labels, labels, apex=APEX, classes=3)
    assert centre(moved == 1)[1] == pytest.approx(43, abs=0.2) and centre(moved == 2)[1] == pytest.approx(19, abs=0.2)


def test_no_change_is_no_change() -> None:
    frames, labels = apply(AffineDraw(), disc(30, 30))
    np.testing.assert_array_equal(frames, disc(30, 30) * 200)
    np.testing.assert_array_equal(labels, disc(30, 30))


def test_draws_stay_in_their_bounds_and_spread() -> None:
    transform = SectorAffine(20, scale=(0.7, 1.4), mirror=True, probability=0.5)
    draws = [transform.draw(np.random.default_rng(seed)) for seed in range(2000)]
    degrees, scales = np.array([d.degrees for d in draws]), np.array([d.scale for d in draws])
    assert abs(degrees).max() <= 20 and abs(degrees).max() > 19
    assert scales.min() >= 0.7 and scales.max() <= 1.4
    assert np.mean(degrees != 0) == pytest.approx(0.5, abs=0.04) and np.mean(
        [d.mirror for d in draws]
    ) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("kind", ["strong", "light"])
def test_a_seed_gives_the_same_sample_and_leaves_the_global_generators_alone(kind: str) -> None:
    augmentation = build_augmentation(kind, rotation_degrees=20, mirror=True)
    clip = np.random.default_rng(0).normal(size=(3, SIDE, SIDE)).astype(np.float32)
    before = np.random.get_state()[1].copy()
    first = augmentation.colour(clip.copy(), seed=(1, 2, 3))
    np.testing.assert_array_equal(first, augmentation.colour(clip.copy(), seed=(1, 2, 3)))
    np.testing.assert_array_equal(before, np.random.get_state()[1])
    assert any((augmentation.colour(clip.copy(), seed=(1, 2, k)) != first).any() for k in range(10))


def test_brightness_is_one_draw_for_the_whole_clip() -> None:
    augmentation = build_augmentation("light", rotation_degrees=0, mirror=False)
    clip = np.repeat(np.random.default_rng(0).normal(size=(1, SIDE, SIDE)), 4, axis=0).astype(np.float32)
    for seed in range(8):
        changed = augmentation.colour(clip.copy(), seed=(seed,))
        assert (changed == changed[0]).all()
