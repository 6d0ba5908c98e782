from __future__ import annotations

import numpy as np
import pytest

from echoplan.errors import EchoPlanError
from echoplan.labels import IGNORE
from echoplan.preprocessing.clip import normalise
from echoplan.training.augmentation import (
    THE_SIX,
    ULTRASOUND,
    Augmentation,
    Brightness,
    Contrast,
    DepthChange,
    FieldOfView,
    FrameDrop,
    SectorAffine,
    SectorMove,
    augmentation_parts,
    build_augmentation,
    move_clip,
)
from echoplan.training.methods import method_registry
from echoplan.training.recipe import Recipe

SIDE = 64
APEX = (0.0, 31.5)


def disc(row: float, column: float, radius: float = 6.0) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2).astype(np.uint8)[None]


def centre(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask[0])
    return float(rows.mean()), float(columns.mean())


def apply(draw: SectorMove, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return move_clip(draw, mask * np.uint8(200), mask, apex=APEX, classes=2)


@pytest.mark.parametrize("degrees", [-20.0, 7.0, 20.0])
def test_rotation_keeps_the_distance_to_the_apex_and_turns_by_the_angle(degrees: float) -> None:
    _, moved = apply(SectorMove(degrees=degrees), disc(40, 31.5))
    row, column = centre(moved)
    assert np.hypot(row - APEX[0], column - APEX[1]) == pytest.approx(40, abs=0.5)
    # counter-clockwise on the screen: what hangs below the apex swings to the right
    assert np.degrees(np.arctan2(column - APEX[1], row - APEX[0])) == pytest.approx(degrees, abs=0.7)


def test_scale_moves_away_from_the_apex_and_enlarges() -> None:
    _, moved = apply(SectorMove(scale=1.25), disc(32, 31.5, 9))
    assert centre(moved)[0] == pytest.approx(40, abs=0.5)
    assert moved.sum() == pytest.approx(disc(32, 31.5, 9).sum() * 1.25**2, rel=0.04)


def test_mirror_swaps_left_and_right() -> None:
    _, moved = apply(SectorMove(mirror=True), disc(30, 20))
    assert centre(moved) == pytest.approx((30, 43), abs=0.1)


@pytest.mark.parametrize("draw", [SectorMove(15, 1.2), SectorMove(-18, 0.8, True)])
def test_pixels_and_labels_move_alike(draw: SectorMove) -> None:
    frames, labels = apply(draw, disc(35, 28, 9))
    assert ((frames > 100) == (labels == 1)).mean() > 0.998


def test_all_frames_of_a_clip_move_alike() -> None:
    clip = np.repeat(disc(30, 30), 5, axis=0)
    frames, labels = move_clip(SectorMove(12, 1.1, True), clip * np.uint8(99), clip, apex=APEX, classes=2)
    assert (frames == frames[0]).all() and (labels == labels[0]).all()


def test_unlabelled_frames_stay_wholly_unlabelled() -> None:
    labels = np.concatenate([disc(30, 30), np.full((1, SIDE, SIDE), 255, np.uint8)])
    _, moved = move_clip(SectorMove(20, 0.7), labels, labels, apex=APEX, classes=2)
    assert (moved[1] == 255).all() and set(np.unique(moved[0])) == {0, 1}


def test_several_structures_keep_their_values() -> None:
    labels = disc(30, 20) + 2 * disc(30, 44)
    _, moved = move_clip(SectorMove(mirror=True), labels, labels, apex=APEX, classes=3)
    assert centre(moved == 1)[1] == pytest.approx(43, abs=0.2) and centre(moved == 2)[1] == pytest.approx(19, abs=0.2)


def test_no_change_is_no_change() -> None:
    frames, labels = apply(SectorMove(), disc(30, 30))
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


def test_a_seed_gives_the_same_sample_and_leaves_the_global_generators_alone() -> None:
    augmentation = build_augmentation("strong", rotation_degrees=20, mirror=True)
    clip = np.random.default_rng(0).normal(size=(3, SIDE, SIDE)).astype(np.float32)
    before = np.random.get_state()[1].copy()
    first = augmentation.colour(clip.copy(), seed=(1, 2, 3))
    np.testing.assert_array_equal(first, augmentation.colour(clip.copy(), seed=(1, 2, 3)))
    np.testing.assert_array_equal(before, np.random.get_state()[1])
    assert any((augmentation.colour(clip.copy(), seed=(1, 2, k)) != first).any() for k in range(10))


@pytest.mark.parametrize("kind", ["light", "moderate"])
def test_a_papers_grey_levels_are_one_draw_for_the_whole_clip(kind: str) -> None:
    augmentation = build_augmentation(kind, rotation_degrees=0, mirror=False)
    grey = np.repeat(np.random.default_rng(0).uniform(30, 200, (1, SIDE, SIDE)).astype(np.uint8), 4, axis=0)
    labels, changed = np.zeros_like(grey), 0
    for seed in range(8):
        moved, _ = augmentation.move(grey, labels, apex=APEX, classes=2, seed=(seed,))
        assert (moved == moved[0]).all()
        changed += bool(abs(moved - grey).max() > 1)
    assert changed >= 4
    assert augmentation.intensity is None  # nothing is left to do on standardised values


def test_light_moves_the_mean_of_the_standardised_clip_by_what_brightness_does_to_grey_levels() -> None:
    augmentation = build_augmentation("light", rotation_degrees=0, mirror=False)
    grey = np.random.default_rng(0).uniform(20, 140, (3, SIDE, SIDE)).astype(np.uint8)
    labels, mean, std = np.zeros_like(grey), grey.mean(), grey.std()
    shifts = []
    for seed in range(200):
        moved, _ = augmentation.move(grey, labels, apex=APEX, classes=2, seed=(seed,))
        shifts.append(float(normalise(moved, mean, std, "zscore_sector").mean()))
    most = 0.15 * mean / std  # about a third of a deviation
    assert max(shifts) == pytest.approx(most, rel=0.05) and min(shifts) == pytest.approx(-most, rel=0.05)
    assert np.mean(np.abs(shifts) < 1e-3) == pytest.approx(0.5, abs=0.1)  # brightness acts on half; contrast keeps it


@pytest.mark.parametrize(
    ("kind", "generic", "transforms"),
    [
        ("ultrasound", "flips", {"rotation", "depth", "attenuation", "shadow", "haze", "speckle"}),
        ("haze+rotation", "flips", {"rotation", "haze"}),
        ("ultrasound+time_gain+haze", "flips", {*THE_SIX, "time_gain"}),
        ("strong+haze", "strong", {"haze"}),
        ("light", "light", set()),
        ("none", "none", set()),
    ],
)
def test_a_policy_is_made_of_its_parts_in_the_order_they_act(kind: str, generic: str, transforms: set[str]) -> None:
    found, names = augmentation_parts(kind)
    assert found == generic and set(names) == transforms and len(names) == len(transforms)
    assert list(names) == [name for name in ULTRASOUND if name in transforms]
    made = build_augmentation(kind, rotation_degrees=10, mirror=True)
    own = {"light": [Brightness, Contrast]}.get(generic, [])
    assert [type(one) for one in made.transforms] == [*(type(ULTRASOUND[name]()) for name in names), *own]
    assert (made.intensity is None) == (generic != "strong")
    assert all(one.degrees == 10 for one in made.transforms if hasattr(one, "degrees"))  # what suits the views


@pytest.mark.parametrize("kind", ["", "hazy", "strong+light", "none+haze", "ultrasound+fog"])
def test_a_policy_that_is_none_says_what_there_is(kind: str) -> None:
    with pytest.raises(EchoPlanError, match="there is no augmentation") as raised:
        Recipe(augmentation=kind)
    assert "time_gain" in str(raised.value)


def test_generic_is_the_methods_own_and_named_in_full() -> None:
    for method in method_registry().values():
        own = method.recipe.augmentation
        chosen = method.with_settings({"augmentation": "generic"}).recipe.augmentation
        assert chosen == ("strong" if own == "none" else own)


def fan() -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    inside = (np.hypot(rows, columns - 31.5) < 60) & (abs(np.arctan2(columns - 31.5, rows)) < 0.7)
    noise = np.random.default_rng(0).integers(30, 200, (4, SIDE, SIDE))
    labels = np.repeat(disc(35, 30, 9), 4, axis=0)
    labels[1] = IGNORE
    labels[2, 30:33] = IGNORE
    return (noise * inside).astype(np.uint8), labels


def test_ultrasound_acts_now_and_then_and_the_same_for_the_same_seed() -> None:
    augmentation = build_augmentation("ultrasound", rotation_degrees=20, mirror=False)
    frames, labels = fan()
    about = {"apex": APEX, "classes": 2}
    same = 0
    for place in range(40):
        moved, own = augmentation.move(frames, labels, seed=(1, 2, place), **about)
        again, own_again = augmentation.move(frames, labels, seed=(1, 2, place), **about)
        np.testing.assert_array_equal(moved, again)
        np.testing.assert_array_equal(own, own_again)
        assert moved.dtype == np.float32 and moved.min() >= 0 and moved.max() <= 255
        assert (own[1] == IGNORE).all() and (own[2] == IGNORE).any() and not (own[0] == IGNORE).any()
        same += bool((moved == frames).all())
    assert same in range(1, 8)  # nothing acts in a share of 0.5^2 0.7^4
    np.testing.assert_array_equal(frames, fan()[0])  # what came in is as it was


def test_joined_moves_resample_once() -> None:
    frames, labels = fan()
    once = move_clip(SectorMove(9, 1.1), frames, labels, apex=APEX, classes=2)
    both = SectorMove(degrees=9).then(SectorMove(scale=1.1))
    np.testing.assert_array_equal(once[0], move_clip(both, frames, labels, apex=APEX, classes=2)[0])
    assert SectorMove(mirror=True).then(SectorMove(2, mirror=True, opening=1.2)) == SectorMove(2, opening=1.2)


def test_all_moves_of_a_policy_act_together() -> None:
    frames, labels = fan()
    shrinking, widening = DepthChange(scale=(0.9, 0.9), probability=1), FieldOfView(opening=(1.1, 1.1), probability=1)
    augmentation = Augmentation(SectorAffine(0, scale=(1.2, 1.2)), (), [shrinking, widening])
    moved, own = augmentation.move(frames, labels, apex=APEX, classes=2, seed=(0,))
    wanted, theirs = move_clip(SectorMove(scale=1.08, opening=1.1), frames, labels, apex=APEX, classes=2)
    np.testing.assert_allclose(moved, wanted, atol=0.02)
    assert (own != theirs).mean() < 1e-4


def test_generic_recipes_leave_grey_levels_to_batchgenerators() -> None:
    frames, labels = fan()
    moved, _ = build_augmentation("strong", rotation_degrees=0, mirror=False).move(
        frames, labels, apex=APEX, classes=2, seed=(3,)
    )
    plain = SectorAffine(0, scale=(0.7, 1.4), probability=0.5).draw(np.random.default_rng([3, 0]))
    np.testing.assert_array_equal(moved, move_clip(plain, frames, labels, apex=APEX, classes=2)[0])


def test_only_timing_transforms_choose_other_frames() -> None:
    frames = (0, 2, 4, 6, 8)
    about = {"labelled": [0, 8], "native_frames": 20}
    for seed in range(20):
        unchanged = build_augmentation("ultrasound", rotation_degrees=9, mirror=True)
        assert unchanged.retime(frames, seed=(seed,), **about) == frames
    dropped = Augmentation(None, (), [FrameDrop(share=(1, 1), probability=1)])
    assert dropped.retime(frames, labelled=[4, 5], native_frames=20, seed=(0,)) == (0, 0, 4, 4, 4)
    played = build_augmentation("cine_speed", rotation_degrees=9, mirror=True)
    samples = {played.retime(frames, seed=(seed,), **about) for seed in range(40)}
    assert frames in samples and len(samples) > 8 and all(len(numbers) == 5 for numbers in samples)
