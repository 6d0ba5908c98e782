from dataclasses import replace

import numpy as np
import pytest

from echoplan.dataset import EchoDataset
from echoplan.experiment_planning import commands, verify_dataset
from echoplan.experiment_planning.integrity import _check_clip
from echoplan.files import read_json
from echoplan.imageio import write_mask
from echoplan.imageio.clip import Clip


def rewrite_mask(dataset, name, change):
    case = dataset.case(name)
    clip = dataset.load_clip(case)
    mask = dataset.load_mask(case).copy()
    write_mask(dataset.folder / case.label, change(mask), like=clip)


def empty(value):
    return lambda mask: np.full_like(mask, value)


def test_a_good_dataset_has_no_findings(tiny_dataset):
    dataset = tiny_dataset()
    for processes in (0, 2):
        findings = verify_dataset(EchoDataset.read(dataset.folder), processes=processes)
        assert findings.problems == () and findings.warnings == ()


def test_all_problems_at_once_each_with_its_case(tiny_dataset, change_case):
    dataset = tiny_dataset(patients=4)
    (dataset.folder / "imagesTr" / "p0_A2C.nii.gz").unlink()
    rewrite_mask(dataset, "p0_A4C", empty(255))
    rewrite_mask(dataset, "p1_A2C", empty(7))
    dataset = change_case(dataset, "p1_A4C", es_frame=5)
    dataset = change_case(dataset, "p2_A2C", label=None)
    dataset = change_case(dataset, "p2_A4C", labelled_frames=(0, 9))
    dataset = change_case(dataset, "p3_A2C", split="test")
    problems = verify_dataset(dataset).problems
    expected = {
        "p0_A2C": "p0_A2C.nii.gz",
        "p0_A4C": "no frame is labelled",
        "p1_A2C": "[7]",
        "p1_A4C": "es_frame is 5, but the clip has 5 frames",
        "p2_A2C": "without a label file",
        "p2_A4C": "[9]",
        "patient p3": "in training and in test",
    }
    assert len(problems) == len(expected)
    for start, text in expected.items():
        assert any(line.startswith(start) and text in line for line in problems), (start, problems)


def test_labels_on_another_grid(tiny_dataset, tmp_path):
    dataset = tiny_dataset(patients=1)
    case = dataset.cases[0]
    small = Clip(np.zeros((5, 32, 40), np.uint8), (1.0, 0.8), 20.0)
    write_mask(dataset.folder / case.label, np.zeros((5, 32, 40), np.uint8), like=small)
    (problem,) = verify_dataset(dataset).problems
    assert problem.startswith(case.case) and "32" in problem and "64" in problem


def test_warnings(tiny_dataset, change_case):
    dataset = tiny_dataset(patients=1, frames=1, labelled=(0,))
    rewrite_mask(dataset, "p0_A2C", empty(0))
    findings = verify_dataset(dataset)
    assert findings.problems == ()
    assert any("p0_A2C: no labelled frame shows LV" in line for line in findings.warnings)
    assert sum("single frame" in line for line in findings.warnings) == 2
    assert sum("same frame (0)" in line for line in findings.warnings) == 2


@pytest.mark.parametrize(
    "clip, problem, warning",
    [
        ({"spacing_mm": (0.0, 0.5)}, "spacing is 0 x 0.5 mm", None),
        ({"spacing_mm": (float("nan"), 0.5)}, "spacing is nan", None),
        ({"spacing_mm": (30.0, 30.0)}, None, "unusual for echocardiography"),
        ({"frame_time_ms": -1.0}, "frame time is -1 ms", None),
        ({"frame_time_ms": 0.02}, None, "in seconds"),
        ({"frames": np.full((2, 4, 4), np.nan, np.float32)}, "NaN", None),
        ({"frames": np.zeros((2, 4, 4), np.uint8)}, None, "same value"),
    ],
)
def test_odd_clips(clip, problem, warning):
    frames = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    problems, warnings = _check_clip(replace(Clip(frames, (0.3, 0.3), 20.0), **clip))
    assert [problem in line for line in problems] == ([True] if problem else [])
    assert [warning in line for line in warnings] == ([True] if warning else [])


def test_nothing_to_train_on(tiny_dataset, change_case):
    dataset = tiny_dataset(patients=1, views=("A4C",))
    assert "no training case" in verify_dataset(change_case(dataset, "p0_A4C", split="test")).problems[0]


def test_a_warning_of_many_cases_is_one_line_and_a_list(tiny_dataset, tmp_path, change_case, capsys):
    dataset = tiny_dataset(patients=3)
    for number, case in enumerate(dataset.cases):
        dataset = change_case(dataset, case.case, frame_time_ms=0.02 + number / 1000)
    commands._verify(dataset, tmp_path / "home", 0)
    first, where = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: 6 of 6 cases (p0_A2C, p0_A4C, p1_A2C and 3 more): the frame time of 0.02 ms is")
    listed = read_json(tmp_path / "home" / "integrity.json")["warnings"]
    assert len(listed) == 6 and str(tmp_path / "home") in where
