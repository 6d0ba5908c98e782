import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from echoplan.errors import EchoPlanError
from echoplan.files import read_json, write_json
from echoplan.imageio import read_clip, read_mask
from echoplan.multi_dataset import MultiDataset
from echoplan.plans import Configuration, Decision
from echoplan.preprocessing import ClipStore, preprocess_clip, sector_statistics
from echoplan.preprocessing.dataset import preprocess_dataset, stores_of_plan
from echoplan.sector import detect_sector


def test_stores_hold_what_prediction_would_see(project, fan_dataset, plan_with):
    plan = plan_with(A=(96, 128), B=(64, 64), C=(96, 128))
    results = preprocess_dataset(project, MultiDataset.of(fan_dataset), plan)
    assert results.done == {"c0": True, "c1": True, "c2": True} and results.failures == {}
    target = project.preprocessed / "Dataset007_FAN"
    assert sorted(path.name for path in target.iterdir()) == ["EchoPlans_64x64", "EchoPlans_96x128", "gt_segmentations"]
    store = ClipStore(target / "EchoPlans_96x128")
    frames, geometry = preprocess_clip(fan_dataset.load_clip(fan_dataset.case("c0")), size=(96, 128))
    stored = store.case("c0")
    assert np.array_equal(store.frames("c0"), frames)
    assert stored.geometry == geometry
    assert (stored.mean, stored.std) == pytest.approx(sector_statistics(frames))
    assert read_json(store.folder / "store.json") == {"size": [96, 128], "protocol": "aspect", "crop": False}


def test_what_is_known_of_a_case(project, fan_dataset, plan_with):
    preprocess_dataset(project, MultiDataset.of(fan_dataset), plan_with(A=(64, 64)))
    store = ClipStore(project.preprocessed / "Dataset007_FAN" / "EchoPlans_64x64")
    stored = store.case("c0")
    assert stored.labelled_frames == (0, 3) and stored.native_frames == 4
    assert (stored.ed_frame, stored.es_frame) == (0, 3)
    assert (stored.patient, stored.view, stored.ef_percent) == ("p0", "A4C", 55.0)
    assert stored.spacing_mm == pytest.approx((0.8, 0.6), abs=1e-5)
    assert stored.frame_time_ms == pytest.approx(25.0, rel=1e-3)
    assert (stored.dataset, stored.crop) == ("FAN", False)
    # c1's table has end-diastole and end-systole the wrong way round; the areas know better.
    assert (store.case("c1").ed_frame, store.case("c1").es_frame) == (0, 3)
    assert store.case("c2").labelled_frames == () and (store.labels("c2") == 255).all()


def test_labels_on_both_grids(project, fan_dataset, plan_with):
    preprocess_dataset(project, MultiDataset.of(fan_dataset), plan_with(A=(128, 128)))
    target = project.preprocessed / "Dataset007_FAN"
    native = fan_dataset.load_mask(fan_dataset.case("c0"))
    copied = target / "gt_segmentations" / "c0.nii.gz"
    assert np.array_equal(read_mask(copied), native)
    assert read_clip(copied).spacing_mm == pytest.approx((0.8, 0.6), abs=1e-5)
    assert not (target / "gt_segmentations" / "c2.nii.gz").exists()
    labels = ClipStore(target / "EchoPlans_128x128").labels("c0")
    assert (labels[[1, 2]] == 255).all()
    # 150 x 200 pixels of 0.8 x 0.6 mm are a square of 120 mm: 128 / 120 pixels a mm.
    wanted = (native[0] == 1).sum() * 0.8 * 0.6 * (128 / 120) ** 2
    assert (labels[0] == 1).sum() == pytest.approx(wanted, rel=0.03)


def test_crop_uses_each_cases_own_box(project, fan_dataset, plan_with):
    preprocess_dataset(project, MultiDataset.of(fan_dataset), plan_with(crop=True, A=(64, 64)))
    store = ClipStore(project.preprocessed / "Dataset007_FAN" / "EchoPlans_64x64")
    box = detect_sector(fan_dataset.load_clip(fan_dataset.case("c1")).frames)
    assert store.case("c1").geometry.crop_box == box != (0, 150, 0, 200)


def test_only_the_trainers_asked_for(project, fan_dataset, plan_with):
    plan = plan_with(A=(96, 96), B=(64, 64))
    preprocess_dataset(project, MultiDataset.of(fan_dataset), plan, trainers=["B"])
    assert not (project.preprocessed / "Dataset007_FAN" / "EchoPlans_96x96").exists()
    with pytest.raises(EchoPlanError, match="no trainer D"):
        preprocess_dataset(project, MultiDataset.of(fan_dataset), plan, trainers=["D"])


def test_finished_cases_are_kept_until_something_changes(project, fan_dataset, plan_with):
    plan = plan_with(A=(64, 64))

    def worked(**options):
        return [
            case
            for case, done in preprocess_dataset(project, MultiDataset.of(fan_dataset), plan, **options).done.items()
            if done
        ]

    assert worked() == ["c0", "c1", "c2"]
    assert worked() == []
    assert worked(overwrite=True) == ["c0", "c1", "c2"]
    store = ClipStore(project.preprocessed / "Dataset007_FAN" / "EchoPlans_64x64")
    (store.folder / "c2.json").unlink()  # as after an interruption
    assert worked() == ["c2"]
    older = {key: value for key, value in read_json(store.folder / "c1.json").items() if key != "dataset"}
    write_json(store.folder / "c1.json", older)  # as an earlier EchoPlan wrote it
    with pytest.raises(EchoPlanError, match="preprocessed by an earlier EchoPlan"):
        store.case("c1")
    assert worked() == ["c1"] and store.case("c1").dataset == "FAN"
    label = fan_dataset.folder / "labelsTr" / "c0.nii.gz"
    os.utime(label, (time.time(), label.stat().st_mtime + 60))  # a corrected label
    assert worked() == ["c0"]
    fan_dataset = replace(
        fan_dataset,
        cases=tuple(replace(case, ef_percent=44.0) if case.case == "c1" else case for case in fan_dataset.cases),
    )
    assert worked() == ["c1"]
    assert store.case("c1").ef_percent == 44.0
    (project.preprocessed / "Dataset007_FAN" / "gt_segmentations" / "c0.nii.gz").unlink()
    assert worked() == ["c0"]


def test_a_store_of_another_plan_is_not_reused(project, fan_dataset, plan_with):
    preprocess_dataset(project, MultiDataset.of(fan_dataset), plan_with(crop=False, A=(64, 64)))
    results = preprocess_dataset(project, MultiDataset.of(fan_dataset), plan_with(crop=True, A=(64, 64)))
    assert all(results.done.values())
    store = ClipStore(project.preprocessed / "Dataset007_FAN" / "EchoPlans_64x64")
    assert store.case("c0").geometry.crop_box != (0, 150, 0, 200)


def test_goes_on_past_a_broken_case(project, fan_dataset, plan_with):
    (fan_dataset.folder / "imagesTr" / "c0.nii.gz").write_bytes(b"no image")
    (fan_dataset.folder / "labelsTr" / "c1.nii.gz").unlink()
    results = preprocess_dataset(project, MultiDataset.of(fan_dataset), plan_with(A=(64, 64)), processes=2)
    assert list(results.done) == ["c2"]
    assert "c0.nii.gz" in results.failures["c0"] and "c1.nii.gz" in results.failures["c1"]


def test_a_full_disk_stops_with_a_clear_error(project, fan_dataset, plan_with, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(EchoPlanError, match="the disk is full"):
        preprocess_dataset(project, MultiDataset.of(fan_dataset), plan_with(A=(64, 64)))
    assert ClipStore(project.preprocessed / "Dataset007_FAN" / "EchoPlans_64x64").cases() == []


def test_two_trainers_cannot_share_a_store_cropped_differently(plan_with):
    plan = plan_with(A=(64, 64), B=(64, 64))
    own = Configuration(
        "B", {"size": Decision([64, 64], "test"), "crop": Decision(True, "test")}, inherits_from="frame"
    )
    with pytest.raises(EchoPlanError, match="cropped otherwise"):
        stores_of_plan(replace(plan, trainers={**plan.trainers, "B": own}))
