import json

import numpy as np
import pytest

from echoplan.dataset import Case
from echoplan.experiment_planning import extract_fingerprint
from echoplan.experiment_planning.fingerprint import percentiles, summarise
from echoplan.files import plain
from echoplan.imageio import write_mask
from echoplan.preprocessing.clip import phases_from_labels


def test_a_case_is_measured(tiny_dataset):
    fingerprint = extract_fingerprint(tiny_dataset(patients=1, views=("A4C",)))
    case = fingerprint["cases"]["p0_A4C"]
    assert fingerprint["dataset"] == "Dataset001_TINY" and fingerprint["failed_cases"] == {}
    assert (case["frames"], case["height_px"], case["width_px"]) == (5, 64, 80)
    assert case["spacing_mm"] == pytest.approx([0.5, 0.4], abs=1e-5)
    assert case["frame_rate_hz"] == pytest.approx(50.0, rel=1e-3)
    assert case["labelled_pattern"] == "ed_es" and case["labelled_share"] == pytest.approx(0.4)
    assert (case["ed_frame"], case["es_frame"], case["ed_es_distance_frames"]) == (0, 4, 4)
    assert case["ed_es_distance_ms"] == pytest.approx(80.0, rel=1e-3)
    disc = np.pi * (12**2 + 6**2) / 2
    assert case["target_area_mm2"] == pytest.approx(disc * 0.5 * 0.4, rel=0.05)
    assert case["target_area_share"] == pytest.approx(disc / (64 * 80), rel=0.05)
    assert 100 < case["intensity_mean"] < 140  # drawn evenly from 60 to 200
    assert case["patient"] == "p0" and case["view"] == "A4C" and case["ef_percent"] == 40.0


def test_the_summary_counts_and_takes_medians(tiny_dataset):
    summary = extract_fingerprint(tiny_dataset(patients=3))["summary"]
    assert summary["counts"] == {"cases": 6, "patients": 3, "labelled_cases": 6, "labelled_frames": 12}
    assert summary["views"] == {"A2C": 3, "A4C": 3}
    assert summary["known_share"] == {"spacing": 1.0, "frame_time": 1.0, "phases": 1.0, "ef": 1.0}
    assert summary["whole"]["long_side_px"]["median"] == 80
    assert summary["whole"]["aspect"]["median"] == pytest.approx(64 * 0.5 / (80 * 0.4), rel=1e-4)
    assert summary["ef_percent"]["median"] == 45.0


@pytest.mark.parametrize("labelled, pattern", [((0, 1, 2, 4), "dense"), ((0, 4), "ed_es"), ((2,), "ed_es")])
def test_patterns_of_labelled_frames(tiny_dataset, labelled, pattern):
    fingerprint = extract_fingerprint(tiny_dataset(patients=1, labelled=labelled))
    assert fingerprint["summary"]["labelled_patterns"] == {pattern: 2}


def test_a_broken_case_is_named_and_left_out(tiny_dataset):
    dataset = tiny_dataset(patients=2)
    (dataset.folder / "imagesTr" / "p1_A2C.nii.gz").write_bytes(b"no image")
    fingerprint = extract_fingerprint(dataset)
    assert list(fingerprint["failed_cases"]) == ["p1_A2C"]
    assert len(fingerprint["cases"]) == 3 and fingerprint["summary"]["counts"]["cases"] == 3


def test_test_cases_stay_out(tiny_dataset, change_case):
    dataset = change_case(tiny_dataset(patients=1), "p0_A2C", split="test")
    assert list(extract_fingerprint(dataset)["cases"]) == ["p0_A4C"]


def test_workers_measure_the_same_and_it_is_json(tiny_dataset):
    dataset = tiny_dataset(patients=1)
    here = extract_fingerprint(dataset, processes=0)
    assert json.loads(json.dumps(here, allow_nan=False)) == plain(here)
    assert extract_fingerprint(dataset, processes=2) == here


def test_unknown_things_are_none(tiny_dataset, change_case):
    dataset = tiny_dataset(patients=1, spacing=None, frames=1, labelled=(0,), views=("A4C",))
    dataset = change_case(dataset, "p0_A4C", ed_frame=None, es_frame=None, ef_percent=None)
    case = extract_fingerprint(dataset)["cases"]["p0_A4C"]
    for name in ("spacing_mm", "ed_frame", "ed_es_distance_ms", "ef_percent", "target_area_mm2"):
        assert case[name] is None, name
    assert percentiles([None, None]) is None
    assert summarise({})["counts"]["cases"] == 0


def masks(*areas):
    made = np.full((len(areas), 10, 10), 255, np.uint8)
    for frame, area in enumerate(areas):
        if area is not None:
            made[frame] = 0
            made[frame].reshape(-1)[:area] = 1
    return made


@pytest.mark.parametrize(
    "ed, es, areas, expected",
    [
        (0, 3, (50, None, None, 20), (0, 3)),
        (0, 3, (20, None, None, 50), (3, 0)),  # the areas contradict the table
        (0, 3, (20, None, 50, None), (0, 3)),  # ES is not labelled: the table holds
        (None, None, (30, 50, 20, 25), (1, 2)),
        (None, None, (None, 50, None, None), (None, None)),
        (None, None, (20, 20, None, None), (None, None)),
        (1, None, (30, 50, 20, 25), (1, 2)),
    ],
)
def test_phases_are_told_by_area(ed, es, areas, expected):
    case = Case("c", "p", "x", ed_frame=ed, es_frame=es)
    assert phases_from_labels(case, masks(*areas), 1) == expected
    assert phases_from_labels(case, None, 1) == (ed, es)


def test_frames_that_the_table_does_not_list_are_ignored(tiny_dataset, change_case):
    dataset = change_case(tiny_dataset(patients=1, labelled=range(5)), "p0_A4C", labelled_frames=(0, 2))
    assert extract_fingerprint(dataset)["cases"]["p0_A4C"]["labelled_frames"] == 2


def test_labels_outside_the_sector_are_noticed(tiny_dataset):
    dataset = tiny_dataset(patients=1, views=("A4C",))
    clip = dataset.load_clip(dataset.cases[0])
    mask = np.zeros(clip.frames.shape, np.uint8)
    mask[:, 30:40, 35:45] = 1
    mask[:, :5, :10] = 1  # half as many again, in the black corner
    write_mask(dataset.folder / dataset.cases[0].label, mask, like=clip)
    case = extract_fingerprint(dataset)["cases"]["p0_A4C"]
    assert case["target_outside_sector_share"] == pytest.approx(1 / 3, abs=0.02)
