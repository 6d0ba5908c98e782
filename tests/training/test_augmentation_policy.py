"""The policy of a training: named on the command line, kept in its checkpoints, the same wherever samples are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from echoplan.files import write_json
from echoplan.labels import IGNORE
from echoplan.plans import Configuration, Plan
from echoplan.scripts import train
from echoplan.training.augmentation import Augmentation, CineSpeed, FrameDrop, Rotation
from echoplan.training.checkpoint import load_checkpoint
from echoplan.training.data import BatchLoader, Sample, SampleReader, build_augmentation, clip_samples
from echoplan.training.fold import FoldSetup

from .conftest import FRAMES, make_setup

EVERYTHING = "ultrasound+time_gain+field_of_view+cine_speed+frame_drop"


def loader(setup: FoldSetup, processes: int) -> BatchLoader:
    augmentation = build_augmentation(EVERYTHING, rotation_degrees=20, mirror=True)
    reader = SampleReader(setup.store, setup.plan, 1, {"Toy": augmentation})
    samples = clip_samples(setup.stored_cases(setup.train), setup.plan.frames)
    return BatchLoader(samples, reader, batch_size=2, batches_per_epoch=6, processes=processes, seed=3)


def test_workers_and_a_resumed_epoch_give_the_same_batches(clip_setup: FoldSetup) -> None:
    whole = list(loader(clip_setup, 0).epoch(4))
    for others in (list(loader(clip_setup, 2).epoch(4)), [*whole[:2], *loader(clip_setup, 0).epoch(4, start=2)]):
        for mine, theirs in zip(whole, others, strict=True):
            assert mine["case"] == theirs["case"]
            assert torch.equal(mine["clip"], theirs["clip"]) and torch.equal(mine["labels"], theirs["labels"])
    assert any(
        not torch.equal(a["clip"], b["clip"]) for a, b in zip(whole, loader(clip_setup, 0).epoch(5), strict=True)
    )


def test_labels_of_chosen_frames_come_with_them_and_hidden_ones_stay_hidden(tmp_path: Path) -> None:
    setup = make_setup(tmp_path, frames=4, dense=True)
    case = setup.train[0]
    timing = [CineSpeed(speed=(0.5, 2), probability=1.0), FrameDrop(share=(0.5, 0.5), probability=1.0)]
    reader = SampleReader(setup.store, setup.plan, 1, {"Toy": Augmentation(None, (), timing)}, supervision="ed_es")
    truth, stored = setup.store.labels(case), setup.store.case(case)
    grey = setup.store.frames(case).astype(np.float32)
    orders = set()
    for seed in range(12):
        read = reader.read(Sample(case, (0, 2, 3, 5)), (seed,))
        frames = np.rint(read["clip"][:, 0] * stored.std + stored.mean)
        order = [int(np.abs(grey - frame).sum(axis=(1, 2)).argmin()) for frame in frames]
        orders.add(tuple(order))
        for place, number in enumerate(order):
            shown, other = ("labels", "hidden") if number in (0, FRAMES - 1) else ("hidden", "labels")
            np.testing.assert_array_equal(read[shown][place], truth[number])
            assert (read[other][place] == IGNORE).all()
    assert len(orders) > 4


def test_artefacts_come_before_normalisation_and_the_surroundings_stay_black(tmp_path: Path) -> None:
    setup = make_setup(tmp_path, frames=4)
    case = setup.train[0]
    frames = setup.store.frames(case)
    frames[:, :, :9] = 0
    stored = setup.store.case(case)
    setup.store.write(stored, frames, setup.store.labels(case))
    augmentation = build_augmentation("haze+speckle", rotation_degrees=0, mirror=False)
    plain = SampleReader(setup.store, setup.plan, 1).read(Sample(case, (0, 1, 2, 3)), (0,))["clip"]
    reader = SampleReader(setup.store, setup.plan, 1, {"Toy": augmentation})
    changed = 0
    for seed in range(10):
        clip = reader.read(Sample(case, (0, 1, 2, 3)), (seed,))["clip"]
        np.testing.assert_allclose(clip[..., :9], -stored.mean / stored.std, atol=1e-6)
        changed += bool((clip != plain).any())
    assert 2 <= changed <= 9


def test_rotation_stays_within_what_suits_the_views(clip_setup: FoldSetup) -> None:
    (rotation,) = build_augmentation("rotation", rotation_degrees=8, mirror=True).transforms
    assert rotation == Rotation(degrees=8)
    (rotation,) = build_augmentation("rotation", rotation_degrees=30, mirror=True).transforms
    assert rotation == Rotation(degrees=15)


def test_the_command_trains_with_a_policy_and_keeps_its_name(
    frame_setup: FoldSetup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = frame_setup.preprocessed.parents[1]
    write_json(frame_setup.preprocessed / "splits_final.json", [{"train": frame_setup.train, "val": frame_setup.val}])
    plan = Plan.read(frame_setup.preprocessed / "EchoPlans.json")
    own = {"UNetTrainer": Configuration("UNetTrainer", {}, inherits_from="frame")}
    replace(plan, trainers=own).write(frame_setup.preprocessed / "EchoPlans.json")
    monkeypatch.setenv("ECHOPLAN_ROOT", str(root))
    words = ["Toy", "0", "--epochs", "1", "--set", "iterations_per_epoch=1", "--set", "base_features=4", "-np", "0",
             "--device", "cpu"]  # fmt: skip
    assert train([*words, "--augmentation", "ultrasound"]) == 0
    latest = next((root / "results").rglob("checkpoint_latest.pth"))
    assert load_checkpoint(latest)["settings"]["augmentation"] == "ultrasound"
    (latest.parent / "checkpoint_final.pth").unlink()
    assert train([*words, "--augmentation", "generic", "--c"]) == 1
    assert "other settings: augmentation" in capsys.readouterr().err
    assert train([*words, "--augmentation", "ultrasound", "--c"]) == 0
    assert train([*words, "--augmentation", "ultrasonic", "--overwrite"]) == 1
    assert "no augmentation 'ultrasonic'" in capsys.readouterr().err
    assert train([*words, "--augmentation", "generic", "--overwrite"]) == 0
    assert load_checkpoint(latest)["settings"]["augmentation"] == "strong"
