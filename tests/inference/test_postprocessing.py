"""Postprocessing steps, and their choice by cross-validation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from echoplan.errors import EchoPlanError
from echoplan.files import write_json
from echoplan.inference.postprocessing import (
    STEP_NAMES,
    LabelledPrediction,
    apply_postprocessing,
    determine_postprocessing,
    fill_holes,
    largest_component,
    mean_structure_dice,
    read_postprocessing,
    temporal_smoothing,
)

LV = {"background": 0, "LV": 1}
TWO = {"background": 0, "LV": 1, "MYO": 2}


def square(size: int = 20, first: int = 5, end: int = 15, frames: int = 3) -> np.ndarray:
    mask = np.zeros((frames, size, size), np.uint8)
    mask[:, first:end, first:end] = 1
    return mask


def test_largest_component_works_frame_by_frame_and_label_by_label():
    mask = square()
    mask[0, 0:2, 0:2] = 1  # small island of LV
    mask[1, 17:19, 0:9] = 2
    mask[1, 0, 0] = 2
    expected = mask.copy()
    expected[0, 0:2, 0:2] = 0
    expected[1, 0, 0] = 0
    np.testing.assert_array_equal(largest_component(mask, TWO), expected)


def test_largest_component_does_not_join_frames_but_joins_diagonals():
    mask = np.zeros((2, 8, 8), np.uint8)
    mask[0, 1, 1] = mask[0, 2, 2] = mask[0, 3, 3] = 1  # one 8-connected part of three
    mask[0, 6, 6] = 1
    mask[1, 6, 6] = 1  # touches the island in time only
    got = largest_component(mask, LV)
    assert got[0].sum() == 3 and got[0, 6, 6] == 0 and got[1, 6, 6] == 1


def test_fill_holes_keeps_other_structures():
    mask = square()
    mask[0, 8, 8] = 0
    mask[0, 10, 10] = 2
    mask[1, 5, 5] = 0  # open corner: no hole
    got = fill_holes(mask, TWO)
    assert got[0, 8, 8] == 1 and got[0, 10, 10] == 2 and got[1, 5, 5] == 0


def test_temporal_smoothing_removes_a_flicker_and_knows_time():
    mask = square(frames=9)
    mask[4] = 0
    smooth = temporal_smoothing(mask, LV, window_ms=60, frame_time_ms=20)
    np.testing.assert_array_equal(smooth, square(frames=9))
    slow = temporal_smoothing(mask, LV, window_ms=60, frame_time_ms=50)  # one frame is nearly the window: nothing to do
    np.testing.assert_array_equal(slow, mask)
    np.testing.assert_array_equal(temporal_smoothing(mask, LV), square(frames=9))  # three frames where time is unknown


def test_temporal_smoothing_is_a_majority_for_several_labels():
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, (12, 6, 7)).astype(np.uint8)
    got = temporal_smoothing(mask, TWO, window_ms=100, frame_time_ms=20)  # five frames
    padded = np.pad(mask, ((2, 2), (0, 0), (0, 0)), mode="edge")
    for t in range(12):
        counts = np.stack([(padded[t : t + 5] == value).sum(0) for value in range(3)])
        at_most = counts.max(0)
        chosen = np.take_along_axis(counts, got[t][None].astype(int), 0)[0]
        np.testing.assert_array_equal(chosen, at_most)
        own = np.take_along_axis(counts, mask[t][None].astype(int), 0)[0]
        np.testing.assert_array_equal(got[t][own == at_most], mask[t][own == at_most])


def test_two_frames_stay_as_they_are():
    mask = np.concatenate([square(frames=1), square(first=7, end=12, frames=1)])
    np.testing.assert_array_equal(temporal_smoothing(mask, LV, window_ms=60, frame_time_ms=20), mask)


@pytest.mark.parametrize("steps", [[], *([name] for name in STEP_NAMES), STEP_NAMES], ids=str)
@pytest.mark.parametrize("frame_time_ms", [None, 11.0, 50.0])
def test_in_place_is_the_same_and_otherwise_the_mask_stays(steps, frame_time_ms):
    mask = np.kron(np.random.default_rng(0).integers(0, 3, (14, 6, 7)), np.ones((1, 3, 3))).astype(np.uint8)
    before = mask.copy()
    expected = apply_postprocessing(mask, steps, TWO, frame_time_ms=frame_time_ms)
    np.testing.assert_array_equal(mask, before)
    got = apply_postprocessing(mask, steps, TWO, frame_time_ms=frame_time_ms, in_place=True)
    assert got is mask
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("step", ["smooth", {"name": "fill_holes", "size": 3}, {}])
def test_unknown_steps_and_settings_are_named(step):
    with pytest.raises(EchoPlanError):
        apply_postprocessing(square(), [step], LV)


def load_case(prediction: np.ndarray, reference: np.ndarray) -> LabelledPrediction:
    return LabelledPrediction(prediction, reference, frame_time_ms=20.0)


def test_only_steps_that_help_are_chosen():
    reference = square(frames=5)
    reference[1:4] = 255
    reference[0, 10, 10] = 0  # truth has holes, so that filling them hurts
    reference[4, 10, 10] = 0
    with_islands = reference.copy()
    with_islands[reference == 255] = 0
    with_islands[:, 0:3, 0:3] = 1
    cases = {f"case{i}": (with_islands, reference) for i in range(3)}
    chosen = determine_postprocessing(
        load_case, cases, LV, candidates=["fill_holes", "largest_component"], minimal_gain=1e-6
    )
    assert [step["name"] for step in chosen["steps"]] == ["largest_component"]
    evidence = chosen["evidence"]
    size = int((reference[0] == 1).sum())
    assert evidence["mean_dice_before"] == pytest.approx(2 * size / (2 * size + 9))
    assert evidence["mean_dice_after"] == 1.0
    first, second = evidence["rounds"]
    assert {item["step"]["name"]: item["kept"] for item in first} == {"fill_holes": False, "largest_component": True}
    assert len(second) == 1 and second[0]["gain"] < 0


def test_nothing_is_chosen_where_nothing_helps(tmp_path):
    chosen = determine_postprocessing(load_case, {"a": (square(), square())}, LV)
    assert chosen["steps"] == [] and chosen["evidence"]["mean_dice_before"] == 1.0
    write_json(tmp_path / "postprocessing.json", chosen)
    assert read_postprocessing(tmp_path / "postprocessing.json") == ()


def test_ignored_pixels_and_frames_do_not_count():
    reference = square()
    reference[:, :, 12:] = 255
    prediction = square()
    prediction[:, :, 12:] = 1
    chosen = determine_postprocessing(load_case, {"a": (prediction, reference)}, LV, candidates=[])
    assert chosen["evidence"]["mean_dice_before"] == 1.0
    with pytest.raises(EchoPlanError, match="labelled"):
        determine_postprocessing(load_case, {"a": (prediction, np.full_like(prediction, 255))}, LV)


def test_mean_dice_of_structures():
    prediction, reference = np.array([1, 1, 2, 0]), np.array([1, 0, 2, 2])
    assert mean_structure_dice(prediction, reference, TWO) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert mean_structure_dice(prediction, reference, TWO | {"LA": 3}) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_a_postprocessing_file_must_have_steps(tmp_path):
    path = tmp_path / "postprocessing.json"
    path.write_text(json.dumps({"steps": ["no_such_step"]}))
    with pytest.raises(EchoPlanError, match=r"no_such_step.*postprocessing\.json"):
        read_postprocessing(path)
    path.write_text("[]")
    with pytest.raises(EchoPlanError, match="no postprocessing file"):
        read_postprocessing(path)
