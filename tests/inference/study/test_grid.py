"""Which patients a training gets, and which trainings there are."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from echoplan.errors import EchoPlanError
from echoplan.inference.study import StudyRequest, drawn_patients, patients_asked
from echoplan.inference.study.grid import Cell, make_cells, with_clip_length
from echoplan.plans import Decision, ResolvedPlan

PATIENTS = [f"p{number:02}" for number in range(40)]


@pytest.mark.parametrize("fold", [0, 3])
@pytest.mark.parametrize("seed", [0, 7])
def test_smaller_draws_are_part_of_larger_ones(fold, seed):
    draws = [drawn_patients(PATIENTS, count, fold=fold, seed=seed) for count in (1, 10, 25, 40)]
    for few, many in pairwise(draws):
        assert many[: len(few)] == few
    assert sorted(draws[-1]) == PATIENTS
    # The order in which the cases come, and how many views a patient has, do not matter.
    assert drawn_patients([*PATIENTS[::-1], *PATIENTS], 10, fold=fold, seed=seed) == draws[1]


def test_folds_and_seeds_draw_other_patients_and_every_patient_alike():
    draws = {tuple(drawn_patients(PATIENTS, 10, fold=fold, seed=seed)) for fold in range(3) for seed in range(3)}
    assert len(draws) == 9
    counts = dict.fromkeys(PATIENTS, 0)
    for seed in range(400):
        for patient in drawn_patients(PATIENTS, 10, fold=0, seed=seed):
            counts[patient] += 1
    assert np.mean(list(counts.values())) == 100
    # Binomial, SD 8.7: beyond 5 SD in one of 40 patients would be a biased draw.
    assert max(abs(count - 100) for count in counts.values()) < 43


@pytest.mark.parametrize(("size", "count"), [("3", 3), ("100%", 40), ("50%", 20), ("12.5%", 5), ("1%", 1)])
def test_sizes_are_numbers_or_shares(size, count):
    assert patients_asked(size, 40) == count


@pytest.mark.parametrize("size", ["0", "-3", "0%", "101%", "", "ten", "3.5", "50 %"])
def test_other_sizes_are_refused(size):
    with pytest.raises(EchoPlanError, match="no training size"):
        patients_asked(size, 40)


def test_the_grid_is_the_product_without_repeating_frame_trainers():
    request = StudyRequest(
        "Toy", ("UNetTrainer", "UNet2DtTrainer", "own/file.py:Mine"), sizes=("10", "100%"), clip_lengths=(2, 5),
        augmentations=("none", "ultrasound"), seeds=(0, 1, 2),
    )  # fmt: skip
    cells = make_cells(request, {"UNetTrainer": 1, "UNet2DtTrainer": 10, "own/file.py:Mine": 8})
    assert len(cells) == len({cell.name for cell in cells}) == (1 + 2 + 2) * 2 * 2 * 3
    assert {cell.frames for cell in cells if cell.method == "UNetTrainer"} == {1}
    assert "Mine__n100pct__T5__ultrasound__s2" in {cell.name for cell in cells}
    planned = make_cells(StudyRequest("Toy", ("UNet2DtTrainer",)), {"UNet2DtTrainer": 10})
    assert [cell.name for cell in planned] == ["UNet2DtTrainer__n100%__T10__own__s0".replace("%", "pct")]


def test_settings_of_one_trainer_are_its_own():
    request = StudyRequest(
        "Toy", ("A", "file.py:B"), settings={"epochs": 2}, trainer_settings={"B": {"epochs": 3, "batch_size": 1}}
    )
    assert request.settings_of(Cell("A", "3", 1, "none", 0)) == {"epochs": 2, "augmentation": "none"}
    assert request.settings_of(Cell("file.py:B", "3", 1, "own", 0)) == {"epochs": 3, "batch_size": 1}


def test_a_grid_of_settings_multiplies_and_gives_each_a_folder():
    request = StudyRequest(
        "Toy", ("A", "file.py:B"), grid={"depth": ("1", "2"), "B:window": ("[8,4]", "[4,2]")}, seeds=(0, 1)
    )
    cells = make_cells(request, {"A": 1, "file.py:B": 1})
    assert len(cells) == len({cell.name for cell in cells}) == (2 + 4) * 2
    last = cells[-1]
    assert (last.label, last.seed) == ("B depth=2, window=[4,2]", 1)
    assert last.name == "B__n100pct__T1__own__s1__depth-2__window-4-2-"
    assert request.settings_of(last) == {"depth": 2, "window": [4, 2]}
    with pytest.raises(EchoPlanError, match="does not train: C"):
        replace(request, grid={"C:depth": ("1",)}).check()
    with pytest.raises(EchoPlanError, match="value of depth is named twice: 2"):
        replace(request, grid={"depth": ("2", "2")}).check()


@pytest.mark.parametrize(("frames", "stride"), [(2, 18), (5, 4), (10, 2), (40, 1)])
def test_a_window_of_another_length_spans_the_same_time(frames, stride):
    evidence = {"ed_es_distance_frames": {"median": 18.0}, "frames": 10}
    decisions = {"frames": Decision(10, "the papers'"), "frame_stride": Decision(2, "spans it", evidence)}
    changed = with_clip_length(ResolvedPlan("Toy", "EchoPlans", "clip", decisions), frames)
    assert (changed.frames, changed.frame_stride) == (frames, stride)
    assert changed.decisions["frames"].kind == "fixed" and changed.decisions["frames"].evidence["planned"] == 10
    assert changed.decisions["frame_stride"].evidence["frames"] == frames


def test_an_unknown_distance_keeps_the_stride_and_a_joint_changes_every_dataset_s():
    plain = {"frames": Decision(10, ""), "frame_stride": Decision(3, "", {"ed_es_distance_frames": None})}
    assert with_clip_length(ResolvedPlan("Toy", "EchoPlans", "clip", plain), 5).frame_stride == 3
    datasets = {
        name: {"frame_stride": Decision(1, "", {"ed_es_distance_frames": {"median": median}})}
        for name, median in (("A", 8.0), ("B", 24.0))
    }
    joint = ResolvedPlan("A+B", "EchoPlans", "clip", {"frames": Decision(10, "")}, datasets)
    changed = with_clip_length(joint, 5)
    assert [changed.of(name).frame_stride for name in ("A", "B")] == [2, 6]
