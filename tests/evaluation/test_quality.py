"""What is worth a second look, and why."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from masked import Masked, measured

from echoplan.evaluation import PatientRow, measure_patients
from echoplan.evaluation.quality import (
    Limit,
    area_roughness,
    clip_measures,
    default_limits,
    find_doubts,
    limits_from_crossval,
    patient_measures,
    with_quality,
)


def heart(frames=20, *, contraction=0.3, shape=(64, 64), length=22, width=12):
    """(T, H, W) bool: half an ellipse that beats once, with the given share of shortening."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    masks = []
    for phase in np.linspace(0, 1, frames):
        scale = 1 - contraction * (1 - np.cos(2 * np.pi * phase)) / 2
        inside = ((rows - 32) / (length * scale)) ** 2 + ((columns - 32) / (width * scale)) ** 2 < 1
        masks.append(inside & (rows < 32 + 0.7 * length * scale))
    return np.stack(masks)


def measured_clip(mask, view="A4C", case="p_A4C"):
    return measured(Masked(case, mask, "p", view, (1.0, 1.0), 40.0))


def words_of(mask, **others):
    doubts = find_doubts({**clip_measures(mask, measured_clip(mask)), **others}, default_limits())
    return {doubt.measure: doubt.words for doubt in doubts}


def test_a_smooth_whole_beat_raises_no_doubt():
    assert words_of(heart(), edge_share=0.0) == {}


def test_noise_on_an_area_curve_is_measured():
    random = np.random.default_rng(0)
    noise = random.normal(0, 0.2, 4000)
    curve = np.sin(np.arange(4000) / 200)
    assert area_roughness(curve + noise) == pytest.approx(0.2 / np.ptp(curve + noise), rel=0.05)
    assert area_roughness(curve) < 0.001
    assert area_roughness(np.arange(4.0)) is None and area_roughness(np.ones(20)) is None


def test_a_flickering_mask_is_doubted():
    mask = heart()
    mask[5::4, 30:] = False
    assert "ragged" in words_of(mask)["area_roughness"]


def test_islands_gaps_tiny_and_short_clips_are_doubted():
    mask = heart()
    mask[:, 2:9, 2:12] = True
    assert "outside its largest part" in words_of(mask)["stray_share"]
    mask = heart()
    mask[12] = False
    assert words_of(mask)["empty_share"] == "5 % of the frames have no cavity"
    assert "tiny" in words_of(heart(length=4, width=3))["area_share"]
    assert "hardly changes" in words_of(heart(contraction=0.01))["area_change"]
    assert "3 frames" in words_of(heart(frames=3))["frames"]
    assert "30 %" in words_of(heart(), edge_share=0.3)["edge_share"]


def test_two_frames_are_no_reason_to_doubt_where_their_phases_are_given():
    """All 50 CAMUS patients of two frames read "check", although their phases were given."""
    mask = heart(frames=3)[:2]
    found = measured(Masked("p_A4C", mask, "p", "A4C", (1.0, 1.0), 40.0))
    assert clip_measures(mask, found)["frames"] == 2
    given = measured(Masked("p_A4C", mask, "p", "A4C", (1.0, 1.0), 40.0, ed_frame=0, es_frame=1))
    assert find_doubts(clip_measures(mask, given), default_limits()) == []


def test_one_network_alone_is_not_judged():
    assert with_quality(PatientRow("p"), {}, folds=False).quality == "not judged"
    doubts = {"p_A4C": find_doubts({"frames": 2}, default_limits())}
    assert with_quality(PatientRow("p"), doubts, folds=False).quality == "check"
    warned = PatientRow("p", quality="check", quality_reasons="the spacing")
    assert with_quality(warned, doubts).quality_reasons.startswith("the spacing; p_A4C")


def test_an_empty_mask_is_doubted_without_a_number_that_is_none():
    assert set(words_of(np.zeros((10, 64, 64), bool))) == {"empty_share", "area_share"}


def test_views_that_do_not_fit_are_doubted():
    measurements = [
        measured_clip(heart(contraction=0.35), "A2C", "p_A2C"), measured_clip(heart(contraction=0.08, length=26))
    ]  # fmt: skip
    (row,) = measure_patients(measurements)
    measures = patient_measures(row, ef_fold_sd_percent=6.5)
    assert measures["view_ef_difference_percent"] == pytest.approx(
        abs(measurements[0].ef_percent - measurements[1].ef_percent)
    )
    found = {doubt.measure: doubt for doubt in find_doubts(measures, default_limits())}
    assert set(found) == {"ef_fold_sd_percent", "view_ef_difference_percent", "length_difference_percent"}
    assert found["ef_fold_sd_percent"].to_dict()["value"] == 6.5 and "6.5 points" in found["ef_fold_sd_percent"].words
    alone = measure_patients(measurements[:1])[0]
    assert set(patient_measures(alone).values()) == {None}


def test_cross_validation_says_what_is_ordinary():
    fixed = default_limits()
    values = list(np.linspace(0, 0.5, 39))
    limits = limits_from_crossval({"area_roughness": values, "frames": [2, 3, 12], "edge_share": values})
    assert limits["area_roughness"].value == values[37]  # the 38th of 39: ceil(0.95 x 40)
    assert "39" in limits["area_roughness"].source
    assert limits["frames"].value == 3 and limits["edge_share"] == fixed["edge_share"]
    sure = limits_from_crossval({"certainty": [1 - value for value in values]})
    assert sure["certainty"].value == 1 - values[37] and sure["certainty"].source.startswith("5th percentile of 39")
    (doubt,) = find_doubts({"certainty": 0.5}, sure)
    assert "unlike its training data" in doubt.words and not find_doubts({"certainty": 0.9}, sure)
    assert not find_doubts({"certainty": 0.5}, fixed)  # without cross-validation nobody knows what is usual
    few = limits_from_crossval({"area_roughness": [*values[:18], None, np.nan], "frames": [30, 40]})
    assert few == fixed


def test_the_limit_itself_is_ordinary():
    limits = default_limits() | {"area_roughness": Limit(0.2, "for the test")}
    assert find_doubts({"area_roughness": 0.2, "frames": 5}, limits) == []
    (doubt,) = find_doubts({"area_roughness": 0.21}, limits)
    assert (doubt.limit, doubt.source) == (0.2, "for the test") and "21.0 %" in doubt.words


def test_columns_name_every_reason():
    doubts = find_doubts({"frames": 2}, default_limits())
    row = PatientRow("p")
    assert with_quality(row, {"p_A4C": []}) == replace(row, quality="no warning", quality_reasons="")
    found = with_quality(row, {"": find_doubts({"ef_fold_sd_percent": 9}, default_limits()), "p_A4C": doubts})
    assert found.quality == "check" and "SD of 9.0 points" in found.quality_reasons
    assert "; p_A4C: the clip has 2 frames" in found.quality_reasons
    failed = with_quality(PatientRow("p", failure="no cavity"), {})
    assert (failed.quality, failed.quality_reasons) == ("check", "no cavity")
