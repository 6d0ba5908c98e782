from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from echoplan.errors import EchoPlanError
from echoplan.plans import Decision, ResolvedPlan
from echoplan.training.data.sampling import (
    Sample,
    batches,
    clip_samples,
    epoch_order,
    frame_samples,
    planned_samples,
    uniform_frames,
    visible_frames,
    window_samples,
)

from .conftest import stored_case

BOTH = {"labelled_frames": (0, 17), "ed_frame": 0, "es_frame": 17}


@pytest.mark.parametrize(("first", "last", "count"), [(0, 17, 10), (3, 40, 10), (0, 9, 10), (5, 5, 3)])
def test_uniform_frames_keep_both_ends_and_go_evenly(first: int, last: int, count: int) -> None:
    frames = uniform_frames(first, last, count)
    assert len(frames) == count and frames[0] == first and frames[-1] == last
    steps = np.diff(frames)
    assert steps.min() >= (last - first) // (count - 1) and steps.max() <= -(-(last - first) // (count - 1))


def test_a_short_span_repeats_frames() -> None:
    assert uniform_frames(0, 1, 4) == (0, 0, 1, 1)


def test_frame_samples_are_the_labelled_frames() -> None:
    samples = frame_samples([stored_case(**BOTH), stored_case("b", **{**BOTH, "labelled_frames": ()})])
    assert [(sample.case, sample.frames) for sample in samples] == [("a", (0,)), ("a", (17,))]


def test_a_clip_from_end_systole_to_end_diastole_runs_forward_in_time() -> None:
    (sample,) = clip_samples([stored_case(labelled_frames=(2, 12), ed_frame=12, es_frame=2)], 6)
    assert sample.frames == (2, 4, 6, 8, 10, 12)


def test_unknown_phases_fall_back_to_the_labelled_span_and_unlabelled_cases_are_left_out() -> None:
    (sample,) = clip_samples([stored_case(labelled_frames=(4, 8)), stored_case("b")], 3)
    assert sample.case == "a" and sample.frames == (4, 6, 8)


def plan_with(sampling: str, **datasets: str) -> ResolvedPlan:
    """Clips of four frames, three apart, by one sampling, or by each dataset's own."""
    values = {"frames": 4, "frame_stride": 3, "sampling": sampling}
    own = {name: {"sampling": Decision(value, "its own")} for name, value in datasets.items()}
    return ResolvedPlan("Toy", "P", "clip", {name: Decision(value, "") for name, value in values.items()}, own)


def test_a_clip_with_one_labelled_frame_and_no_phases_is_seen_in_windows_around_it() -> None:
    lone = stored_case(labelled_frames=(10,), native_frames=40)
    for sampling in ("windows", "uniform_ed_es"):
        samples = planned_samples([lone], plan_with(sampling))
        assert [sample.frames.index(10) for sample in samples] == [0, 1, 2, 3]
        assert all(len(set(sample.frames)) == 4 and set(np.diff(sample.frames)) == {3} for sample in samples)
        assert planned_samples([lone], plan_with(sampling), every_place=False) == [Sample("a", (4, 7, 10, 13))]


def test_the_plans_sampling_is_obeyed_case_by_case() -> None:
    known = stored_case("known", labelled_frames=(2, 11), ed_frame=2, es_frame=11, native_frames=40)
    unknown = stored_case("unknown", labelled_frames=(20, 29), native_frames=40)
    cases = [known, unknown, stored_case("unlabelled", native_frames=40)]
    uniform = [Sample("known", (2, 5, 8, 11)), Sample("unknown", (20, 23, 26, 29))]
    assert planned_samples(cases, plan_with("uniform_ed_es")) == uniform == clip_samples(cases, 4)
    windows = planned_samples(cases, plan_with("windows"))
    assert windows == [uniform[0], *window_samples(unknown, 4, stride=3)] and len(windows) == 9
    assert planned_samples(cases, plan_with("labelled_frames")) == frame_samples(cases)
    with pytest.raises(EchoPlanError, match=r"samples by .best.*uniform_ed_es"):
        planned_samples(cases, plan_with("best"))


def test_each_dataset_is_sampled_by_its_own_decision() -> None:
    cases = [stored_case(name, dataset=name, labelled_frames=(4, 7), native_frames=40) for name in "AB"]
    samples = planned_samples(cases, plan_with("windows", A="uniform_ed_es", B="windows"))
    assert Counter(sample.case for sample in samples) == {"A": 1, "B": 8}


def test_the_order_is_a_function_of_seed_and_epoch_and_sees_all_samples() -> None:
    order = epoch_order(7, 7, seed=1, epoch=3)
    assert sorted(order) == list(range(7))
    assert order == epoch_order(7, 7, seed=1, epoch=3)
    assert order != epoch_order(7, 7, seed=1, epoch=4) and order != epoch_order(7, 7, seed=2, epoch=3)
    longer = epoch_order(7, 17, seed=1, epoch=3)
    assert len(longer) == 17 and sorted(longer[7:14]) == list(range(7))


def test_batches_keep_the_remainder() -> None:
    assert batches([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]


def test_windows_show_a_labelled_frame_at_every_place_and_reflect_at_the_ends() -> None:
    samples = window_samples(stored_case(labelled_frames=(0, 7), native_frames=8), 4, stride=2)
    assert [sample.frames.index(0) for sample in samples[:4]] == [0, 1, 2, 3]
    assert [sample.frames[place] for place, sample in enumerate(samples[4:])] == [7, 7, 7, 7]
    assert samples[2].frames == (4, 2, 0, 2)  # two frames before the clip's start, reflected
    assert samples[4].frames == (7, 5, 3, 1)
    still = stored_case(labelled_frames=(0,), native_frames=1)
    assert window_samples(still, 3, stride=1)[1].frames == (0, 0, 0)


def test_the_semi_supervised_protocol_hides_what_is_between_the_phases():
    case = stored_case(labelled_frames=(0, 1, 2, 3), ed_frame=0, es_frame=3)
    assert visible_frames(case, "all") == (0, 1, 2, 3)
    assert visible_frames(case, "ed_es") == (0, 3)
    assert visible_frames(replace(case, es_frame=None), "ed_es") == (0, 1, 2, 3)
