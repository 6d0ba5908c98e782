"""Ultrasound's own augmentations: each one's effect measured, labels and surroundings untouched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from echoplan.errors import EchoPlanError
from echoplan.labels import IGNORE
from echoplan.training.augmentation import (
    ULTRASOUND,
    AttenuationDraw,
    Brightness,
    CineSpeed,
    CineSpeedDraw,
    Contrast,
    DepthAttenuation,
    DepthChange,
    FieldOfView,
    FrameDrop,
    FrameDropDraw,
    Gamma,
    GaussianShadow,
    Haze,
    HazeDraw,
    IntensityTransform,
    MovingTransform,
    PolarSpeckle,
    Rotation,
    Sector,
    SectorMove,
    ShadowDraw,
    SpeckleDraw,
    TimeGain,
    TimeGainDraw,
)

SIDE, FRAMES = 128, 6
APEX = (2.0, 63.5)
DEPTH, HALF_ANGLE = 118.0, 0.7
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]
RADIUS = np.hypot(ROWS - APEX[0], COLUMNS - APEX[1])
ANGLE = np.arctan2(COLUMNS - APEX[1], ROWS - APEX[0])
INSIDE = (RADIUS <= DEPTH) & (abs(ANGLE) <= HALF_ANGLE)
INTENSITY = [name for name, make in ULTRASOUND.items() if isinstance(make(), IntensityTransform)]
MOVING = [name for name, make in ULTRASOUND.items() if isinstance(make(), MovingTransform)]
NOTHING: dict[str, Any] = {
    "attenuation": AttenuationDraw(0.0),
    "shadow": ShadowDraw(0.0, 0.5, 0.5, 0.1, 0.1),
    "haze": HazeDraw(0.0, 0.5, 0.1, 3),
    "speckle": SpeckleDraw(9, 0.0, 60, 60, 3),
    "time_gain": TimeGainDraw((1.0,) * 8),
    "rotation": SectorMove(),
    "depth": SectorMove(),
    "field_of_view": SectorMove(),
}


def clip(grey: float | None = 100.0, frames: int = FRAMES) -> dict[str, Any]:
    """A fan of one grey level, or of noise, with a blob of labels, one frame without and one with holes."""
    noise = np.random.default_rng(5).uniform(20, 180, (frames, SIDE, SIDE))
    picture = (noise if grey is None else np.full_like(noise, grey)) * INSIDE
    labels = np.repeat(((RADIUS - 60) ** 2 + (50 * ANGLE - 5) ** 2 < 400).astype(np.uint8)[None], frames, axis=0)
    labels[1:2] = IGNORE
    labels[2:3, 40:44] = IGNORE
    return {"frames": picture.astype(np.float32), "labels": labels, "apex": APEX, "classes": 2}


def applied(transform: Any, draw: Any, made: dict[str, Any]) -> np.ndarray:
    return transform.apply(draw, **made)["frames"]


def test_brightness_contrast_and_gamma_are_their_equations_inside_the_sector() -> None:
    before = clip(None)["frames"]
    mean = before[:, INSIDE].mean()
    for transform, draw, expected in (
        (Brightness(factor=(1.2, 1.2)), 1.2, before * 1.2),
        (Brightness(factor=(2, 2)), 2.0, np.minimum(before * 2, 255)),
        (Contrast(factor=(0.5, 0.5)), 0.5, mean + 0.5 * (before - mean)),
        (Contrast(factor=(3, 3)), 3.0, np.clip(mean + 3 * (before - mean), 0, 255)),
        (Gamma(factor=(0.7, 0.7)), 0.7, 255 * (before / 255) ** 0.7),
    ):
        assert transform.draw(np.random.default_rng(0)) == pytest.approx(draw)
        after = applied(transform, draw, clip(None))
        np.testing.assert_allclose(after[:, INSIDE], expected[:, INSIDE], rtol=1e-4, atol=1e-3)
        assert not after[:, ~INSIDE].any()
    black = clip(0.0)
    assert not applied(Contrast(factor=(2, 2)), 2.0, black).any()  # no sector, no mean
    with pytest.raises(EchoPlanError, match="factor of grey levels"):
        Gamma(factor=(2, 1))


# What holds for all of them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INTENSITY)
def test_labels_and_surroundings_stay_bit_for_bit(name: str) -> None:
    transform, made = ULTRASOUND[name](), clip(None)
    made["frames"] += 3 * ~INSIDE  # as compression leaves it
    before, labels = made["frames"].copy(), made["labels"].copy()
    changed = 0
    for seed in range(6):
        after = transform(np.random.default_rng(seed), **{**made, "frames": before.copy()})
        np.testing.assert_array_equal(after["labels"], labels)
        np.testing.assert_array_equal(after["frames"][:, ~INSIDE], before[:, ~INSIDE])
        assert after["frames"].dtype == np.float32
        assert after["frames"].min() >= 0 and after["frames"].max() <= 255
        changed += bool((after["frames"] != before).any())
    assert changed == 6


@pytest.mark.parametrize("name", [*INTENSITY, *MOVING])
def test_nothing_changes_at_strength_0(name: str) -> None:
    made = clip(None)
    before, labels = made["frames"].copy(), made["labels"].copy()
    after = ULTRASOUND[name]().apply(NOTHING[name], **made)
    np.testing.assert_array_equal(after["frames"], before)
    np.testing.assert_array_equal(after["labels"], labels)


@pytest.mark.parametrize("name", [*INTENSITY, *MOVING])
def test_a_seed_says_it_all(name: str) -> None:
    transform = ULTRASOUND[name]()
    first, again, other = (transform.draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other
    np.testing.assert_array_equal(applied(transform, first, clip(None)), applied(transform, again, clip(None)))
    assert (applied(transform, first, clip(None)) != applied(transform, other, clip(None))).any()


@pytest.mark.parametrize("name", MOVING)
def test_pixels_that_are_the_labels_move_as_the_labels(name: str) -> None:
    transform, made = ULTRASOUND[name](), clip()
    made["labels"][1:] = made["labels"][0]
    changed = 0
    for seed in range(5):
        picture = (made["labels"] == 1).astype(np.float32)
        after = transform(np.random.default_rng(seed), **{**made, "frames": picture})
        np.testing.assert_array_equal((after["frames"] > 0.5).astype(np.uint8), after["labels"])
        changed += bool((after["labels"] != made["labels"]).any())
    assert changed >= 3


@pytest.mark.parametrize("name", MOVING)
def test_ignored_pixels_move_and_stay_ignored(name: str) -> None:
    transform, made = ULTRASOUND[name](), clip()
    made["labels"] = np.concatenate([made["labels"], (made["labels"][2:3] == IGNORE).astype(np.uint8)])
    made["frames"] = np.zeros(made["labels"].shape, np.float32)
    after = transform(np.random.default_rng(4), **made)["labels"]
    assert (after[1] == IGNORE).all() and set(np.unique(after[0])) == {0, 1}
    # a stripe of 255 moves just as a stripe of 1 does, up to its neighbours' share at the very border
    assert ((after[2] == IGNORE) != (after[-1] == 1)).mean() < 0.002


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Rotation, {"degrees": -1}), (DepthChange, {"scale": (1.1, 0.9)}), (DepthChange, {"scale": (0.0, 1.0)}),
        (DepthAttenuation, {"rate": (0, 9)}), (GaussianShadow, {"strength": (0, 1.2)}), (Haze, {"width": (0, 0.1)}),
        (PolarSpeckle, {"phasors": (15, 5)}), (TimeGain, {"bands": 1}), (FieldOfView, {"opening": (0.1, 1)}),
        (CineSpeed, {"speed": (0.0, 1.0)}), (FrameDrop, {"share": (0, 2)}), (Haze, {"probability": 1.5}),
        (Rotation, {"degrees": float("nan")}),
    ],
)  # fmt: skip
def test_settings_out_of_bounds_are_refused(kind: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(EchoPlanError, match="it must lie in"):
        kind(**settings)


def test_draws_fill_their_bounds() -> None:
    random = np.random.default_rng(0)
    draws = {name: [ULTRASOUND[name]().draw(random) for _ in range(1000)] for name in (*INTENSITY, *MOVING)}
    for name, field, low, high in [
        ("rotation", "degrees", -15, 15), ("depth", "scale", 0.85, 1.15), ("field_of_view", "opening", 0.9, 1.1),
        ("attenuation", "rate", 0, 1.5), ("shadow", "strength", 0, 0.6), ("haze", "strength", 0, 0.5),
        ("haze", "radius", 0.05, 0.95), ("speckle", "phasors", 5, 15), ("speckle", "lines", 50, 100),
    ]:  # fmt: skip
        values = np.array([getattr(draw, field) for draw in draws[name]])
        margin = 0.02 * (high - low)
        assert low <= values.min() < low + margin and high - margin < values.max() <= high, (name, field)
    assert set(draw.phasors for draw in draws["speckle"]) == set(range(5, 16))


# The sector --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0.0, 15.0, -15.0])
def test_the_sector_is_found_with_its_black_cavities_and_at_any_tilt(degrees: float) -> None:
    made = clip(None)
    made["frames"][:, 50:80, 50:75] = 0
    made["frames"] = applied(Rotation(), SectorMove(degrees=degrees), made)
    sector = Sector.of(made["frames"], apex=APEX)
    tilted = (RADIUS <= DEPTH) & (abs(ANGLE - np.deg2rad(degrees)) <= HALF_ANGLE)
    assert (sector.inside != tilted).mean() < 0.02
    assert sector.inside[50:80, 50:75].all()
    assert sector.depth == pytest.approx(DEPTH, abs=1.5)
    middle = np.deg2rad(degrees)
    assert sector.angles[0] == pytest.approx(max(middle - HALF_ANGLE, ANGLE[tilted].min()), abs=0.03)


def test_the_black_under_a_curved_probe_is_outside() -> None:
    made = clip(None)
    made["frames"] *= RADIUS > 30
    assert not Sector.of(made["frames"], apex=APEX).inside[:31, 62:66].any()


@pytest.mark.parametrize("name", INTENSITY)
def test_a_black_clip_stays_black(name: str) -> None:
    made = clip()
    made["frames"][:] = 0
    assert not ULTRASOUND[name]()(np.random.default_rng(0), **made)["frames"].any()


# Each one's effect -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [-15.0, 8.0, 15.0])
def test_rotation_keeps_the_apex_and_depths_and_turns_every_beam(degrees: float) -> None:
    made = clip(100.0, 1)
    made["frames"] = (100 * np.exp(-((RADIUS - 70) ** 2 + (70 * ANGLE) ** 2) / 50))[None].astype(np.float32)
    after = applied(Rotation(), SectorMove(degrees=degrees), made)[0]
    assert (after * RADIUS).sum() / after.sum() == pytest.approx(70, abs=0.4)
    assert np.degrees((after * ANGLE).sum() / after.sum()) == pytest.approx(degrees, abs=0.2)


@pytest.mark.parametrize("scale", [0.85, 1.15])
def test_depth_change_scales_distances_from_the_apex_and_the_spacing(scale: float) -> None:
    made = clip(100.0, 1)
    made["frames"] = (100 * np.exp(-((RADIUS - 70) ** 2 + (70 * ANGLE - 9) ** 2) / 50))[None].astype(np.float32)
    distance, beam = ((made["frames"][0] * place).sum() / made["frames"].sum() for place in (RADIUS, ANGLE))
    made["spacing_mm"] = (0.5, 0.4)
    moved = DepthChange().apply(SectorMove(scale=scale), **made)
    after = moved["frames"][0]
    assert (after * RADIUS).sum() / after.sum() == pytest.approx(distance * scale, abs=0.05)
    assert (after * ANGLE).sum() / after.sum() == pytest.approx(beam, abs=0.004)
    # what was 20 mm is 20 mm
    assert moved["spacing_mm"] == pytest.approx((0.5 / scale, 0.4 / scale))
    area = (made["labels"] == 1).sum() * 0.5 * 0.4
    assert (moved["labels"] == 1).sum() * np.prod(moved["spacing_mm"]) == pytest.approx(area, rel=0.02)


def test_field_of_view_multiplies_angles_and_keeps_depths() -> None:
    made = clip(100.0, 1)
    made["frames"] = (100 * np.exp(-((RADIUS - 70) ** 2 + (70 * (ANGLE - 0.4)) ** 2) / 30))[None].astype(np.float32)
    after = applied(FieldOfView(), SectorMove(opening=1.1), made)[0]
    assert (after * RADIUS).sum() / after.sum() == pytest.approx(70, abs=0.4)
    assert (after * ANGLE).sum() / after.sum() == pytest.approx(0.44, abs=0.004)


@pytest.mark.parametrize("rate", [0.5, 1.5])
def test_attenuation_is_exponential_in_depth(rate: float) -> None:
    after = applied(DepthAttenuation(), AttenuationDraw(rate), clip(None, 40)) / np.maximum(clip(None, 40)["frames"], 1)
    shells = [INSIDE & (abs(RADIUS - middle) < 4) for middle in range(12, 112, 8)]
    depths = [RADIUS[shell].mean() / DEPTH for shell in shells]
    fit = stats.linregress(depths, np.log([after[:, shell].mean() for shell in shells]))
    assert fit.slope == pytest.approx(-rate, rel=0.03) and fit.intercept == pytest.approx(0, abs=0.02)
    assert fit.rvalue**2 > 0.999


def test_a_shadow_is_the_same_in_all_frames_and_darkest_in_its_middle() -> None:
    draw = ShadowDraw(0.6, beam=0.3, depth=0.6, width=0.1, length=0.2)
    made = clip(None)
    share = applied(GaussianShadow(), draw, clip(None))[:, INSIDE] / made["frames"][:, INSIDE]
    np.testing.assert_allclose(share, np.broadcast_to(share[0], share.shape), rtol=1e-5)
    picture = np.ones((SIDE, SIDE))
    picture[INSIDE] = share[0]
    darkest = np.unravel_index(picture.argmin(), picture.shape)
    assert picture.min() == pytest.approx(0.4, abs=0.01)
    assert RADIUS[darkest] / DEPTH == pytest.approx(0.6, abs=0.02)
    assert ANGLE[darkest] == pytest.approx(-0.4 * HALF_ANGLE, abs=0.03)
    # one standard deviation along the beam
    ring = INSIDE & (abs(ANGLE - ANGLE[darkest]) < 0.02) & (abs(RADIUS / DEPTH - 0.8) < 0.01)
    assert 1 - picture[ring].mean() == pytest.approx(0.6 * np.exp(-0.5), abs=0.02)


def test_haze_is_a_still_band_of_noise_that_is_new_every_frame() -> None:
    draw = HazeDraw(0.4, radius=0.5, width=0.08, seed=7)
    noise = (applied(Haze(), draw, clip(20.0, 40)) - 20)[:, INSIDE]
    depth = RADIUS[INSIDE] / DEPTH
    band = np.exp(-((depth - 0.5) ** 2) / (2 * 0.08**2))
    np.testing.assert_allclose(noise.mean(axis=0), 255 * 0.4 * 0.5 * band, atol=35)  # 4 sigma of 40 frames' mean
    middle = noise[:, band > 0.99]
    assert middle.mean() == pytest.approx(51, rel=0.02) and middle.std() == pytest.approx(102 / 12**0.5, rel=0.03)
    assert stats.kstest(middle.ravel() / 102, stats.uniform(0, 1).cdf).statistic < 0.02
    for edge in (0.42, 0.58):  # one standard deviation away
        assert noise[:, abs(depth - edge) < 0.008].mean() == pytest.approx(51 * np.exp(-0.5), rel=0.03)
    correlation = np.corrcoef(middle)
    assert abs(correlation[~np.eye(40, dtype=bool)]).max() < 5 / middle.shape[1] ** 0.5
    assert noise[:, abs(depth - 0.5) > 0.35].max() < 0.02


@pytest.mark.parametrize("phasors", [5, 10, 15])
def test_speckle_has_the_moments_of_its_number_of_phasors(phasors: int) -> None:
    found = []
    for seed in range(24):
        draw = SpeckleDraw(phasors, 0.2, lines=90, samples=100, seed=seed)
        found.append(applied(PolarSpeckle(), draw, clip(100.0, 2))[0, INSIDE])
    power = phasors * 0.2**2
    assert np.mean(found) == pytest.approx(100 + 2 * power, abs=0.25)
    assert np.var(found) == pytest.approx(4 * 100 * power + 4 * power**2, rel=0.04)
    # |sqrt(I) + z|^2 / M s^2 has the noncentral chi-square distribution of two degrees of freedom
    one = np.array([values[::97] for values in found]).ravel() / power
    assert stats.kstest(one, stats.ncx2(2, 100 / power).cdf).pvalue > 1e-3


def test_speckle_is_the_same_in_all_frames_and_coarser_with_depth() -> None:
    draw = SpeckleDraw(15, 0.2, lines=50, samples=100, seed=1)
    after = applied(PolarSpeckle(), draw, clip(100.0))
    assert (after == after[0]).all()
    noise = (after[0] - 100) * INSIDE

    def likeness(low: float, high: float) -> float:
        """Of neighbours across the beams, near the middle line."""
        part = noise[int(low) : int(high), 50:78]
        return float(np.corrcoef(part[:, 1:].ravel(), part[:, :-1].ravel())[0, 1])

    assert likeness(90, 118) > likeness(25, 53) + 0.1


def test_more_phasors_and_brighter_tissue_give_more_speckle() -> None:
    spread = {
        (phasors, grey): applied(PolarSpeckle(), SpeckleDraw(phasors, 0.2, 80, 80, 1), clip(grey, 1))[0, INSIDE].std()
        for phasors in (5, 15)
        for grey in (25.0, 100.0)
    }
    assert spread[15, 100] / spread[5, 100] == pytest.approx(3**0.5, rel=0.03)
    assert spread[5, 100] / spread[5, 25] == pytest.approx(2, rel=0.03)


def test_time_gain_follows_its_sliders() -> None:
    gains = (0.8, 1.2, 0.9, 1.1)
    after = applied(TimeGain(), TimeGainDraw(gains), clip(100.0, 1))[0]
    for slider, gain in enumerate(gains):
        at = INSIDE & (abs(RADIUS / DEPTH - slider / 3) < 0.01)
        assert after[at].mean() == pytest.approx(100 * gain, abs=2)


# Time --------------------------------------------------------------------------------------------------------------

TIMES = {"frame_numbers": (0, 3, 6, 9, 12), "labelled_frames": [0, 12, 20], "native_frames": 25}


@pytest.mark.parametrize(
    ("speed", "anchor", "wanted"),
    [
        (1.0, 0.5, (0, 3, 6, 9, 12)),
        (2.0, 0.0, (0, 6, 12, 18, 24)),
        (0.5, 0.0, (0, 2, 3, 4, 6)),
        (0.5, 0.9, (6, 8, 9, 10, 12)),
        (2.0, 0.9, (0, 0, 0, 6, 12)),
        (1.25, 0.0, (0, 4, 8, 12, 15)),  # 11.25 would be frame 11, next to a labelled one
    ],
)
def test_cine_speed_plays_about_a_labelled_frame(speed: float, anchor: float, wanted: tuple[int, ...]) -> None:
    assert CineSpeed().apply(CineSpeedDraw(speed, anchor), **TIMES)["frame_numbers"] == wanted


def test_cine_speed_always_keeps_a_label_and_the_recording() -> None:
    transform = CineSpeed(speed=(0.25, 4))
    for seed in range(200):
        frames = transform(np.random.default_rng(seed), **TIMES)["frame_numbers"]
        assert set(frames) & {0, 12} and min(frames) >= 0 and max(frames) <= 24 and list(frames) == sorted(frames)
    lone = {"frame_numbers": (4,), "labelled_frames": [4], "native_frames": 9}
    assert transform(np.random.default_rng(0), **lone)["frame_numbers"] == (4,)


def test_dropped_frames_show_the_one_before_and_labels_are_never_lost() -> None:
    everything = FrameDrop().apply(FrameDropDraw(1.0, 0), **{**TIMES, "labelled_frames": [6, 12]})
    assert everything["frame_numbers"] == (0, 0, 6, 6, 12)
    assert FrameDrop().apply(FrameDropDraw(0.0, 0), **TIMES)["frame_numbers"] == TIMES["frame_numbers"]
    many = {"frame_numbers": tuple(range(10_000)), "labelled_frames": [], "native_frames": 10_000}
    kept = np.array(FrameDrop().apply(FrameDropDraw(0.3, 1), **many)["frame_numbers"]) == np.arange(10_000)
    assert kept.mean() == pytest.approx(0.7, abs=0.02)
