"""The user's whole way, typed as a user types it, and what happens when something is wrong on it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echoplan.imageio import read_clip, read_mask

from .running import started, told, wait_until

MODEL = "UNetTrainer__EchoPlans__frame"


def test_what_each_step_leaves(trained: Any) -> None:
    for name in ("dataset_fingerprint.json", "EchoPlans.json", "splits_final.json", "dataset.json"):
        assert (trained.preprocessed / name).is_file(), name
    assert len(list((trained.preprocessed / "gt_segmentations").glob("*.nii.gz"))) == 12
    assert len(list((trained.preprocessed / "EchoPlans_96x96").glob("*_seg.b2nd"))) == 12
    for fold in range(5):
        folder = trained.results / MODEL / f"fold_{fold}"
        for name in ("checkpoint_final.pth", "checkpoint_best.pth", "progress.png", "metrics.jsonl", "debug.json",
                     "validation/summary.json", "validation/ef.csv"):  # fmt: skip
            assert (folder / name).is_file(), f"{fold}: {name}"
    for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        assert (trained.results / MODEL / name).is_file()


def test_no_patient_is_in_two_folds_and_every_case_is_validated_once(trained: Any) -> None:
    splits = json.loads((trained.preprocessed / "splits_final.json").read_text())
    validated: list[str] = []
    for fold, split in enumerate(splits):
        patients = [{case.rsplit("_", 1)[0] for case in split[part]} for part in ("train", "val")]
        assert not patients[0] & patients[1]
        validated += [path.name for path in (trained.results / MODEL / f"fold_{fold}" / "validation").glob("*.nii.gz")]
    assert len(validated) == len(set(validated)) == 12


def test_find_best_predict_evaluate_and_report(trained: Any) -> None:
    trained.run("echoplan_find_best_configuration", "Phantom")
    best = json.loads((trained.root / "results/Dataset001_Phantom/best_configuration.json").read_text())
    assert MODEL in json.dumps(best)
    out = trained.root / "predicted"
    trained.run("echoplan_predict", "-i", trained.raw / "imagesTs", "-o", out, "--save_probabilities")
    names = sorted(path.name for path in out.iterdir())
    assert {"ef_report.csv", "ef_report.json", "report.html", "prediction_args.json"} <= set(names)
    for path in (trained.raw / "imagesTs").glob("*.nii.gz"):
        clip, mask = read_clip(path), read_mask(out / path.name)
        assert mask.shape == clip.frames.shape and set(np.unique(mask)) <= {0, 1}
        assert read_clip(out / path.name).spacing_mm == pytest.approx(clip.spacing_mm, rel=1e-5)
    with open(out / "ef_report.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 and all(row["reference_ef_percent"] for row in rows)

    evaluated = trained.run("echoplan_evaluate_folder", out, trained.raw / "labelsTs", "-d", "Phantom",
                            "-o", trained.root / "summary.json")  # fmt: skip
    assert "Dice" in evaluated.stdout
    summary = json.loads((trained.root / "summary.json").read_text())
    assert summary["frames"] == 8 and summary["missing"] == []
    assert summary["mean"]["LV"]["all"]["dice"]["mean"] > 0.5

    trained.run("echoplan_report", "-i", trained.raw / "imagesTs", "-m", out, "-o", trained.root / "report", "-np", 0)
    assert (trained.root / "report" / "report.html").stat().st_size > 10_000

    ensemble = trained.root / "ensemble"
    trained.run("echoplan_ensemble", "-i", out, out, "-o", ensemble)
    for path in out.glob("*.nii.gz"):  # the mean of a model and itself is the model, before postprocessing
        assert (read_mask(path) == read_mask(ensemble / path.name)).mean() > 0.98
    steps = trained.root / "steps.json"
    steps.write_text('{"steps": ["largest_component", "fill_holes"]}')
    trained.run("echoplan_apply_postprocessing", "-i", ensemble, "-o", trained.root / "mended", "--pp", steps)
    assert len(list((trained.root / "mended").glob("*.nii.gz"))) == 4


def test_doctor(trained: Any) -> None:
    told = trained.run_installed("echoplan_doctor")
    assert str(trained.root) in told and "torch" in told


def test_steps_one_by_one_and_the_other_trainers(trained: Any, project: Any, tmp_path: Path) -> None:
    """Fingerprint, plan and preprocessing apart; the clip trainers for one short epoch each."""
    shutil.copytree(trained.root / "raw", tmp_path / "raw")
    project.run("echoplan_extract_fingerprint", "-d", "1", "-np", 0)
    trainers = ("UNet2DtTrainer", "PKEchoNetR18Trainer")
    planned = project.run("echoplan_plan_experiment", "-d", "Dataset001_Phantom", "--gpu_memory_target", 8,
                          "--size", 64, "-tr", *trainers)  # fmt: skip
    assert "learning rate" in planned.stdout
    project.run("echoplan_preprocess", "-d", "Phantom", "-tr", *trainers, "-np", 0)
    own = tmp_path / "mine.py"
    own.write_text(
        "from echoplan.training.methods.pkechonet import PKEchoNetMethod\n\n"
        "class MyTrainer(PKEchoNetMethod):\n    '''One of a user's own.'''\n"
    )
    small = ["--epochs", 1, "--set", "batch_size=2", "--set", "iterations_per_epoch=2", "-np", 0]
    project.run("echoplan_train", "Phantom", 0, "-tr", "UNet2DtTrainer", *small, "--set", "base_features=4")
    project.run("echoplan_train", "Phantom", 0, "-tr", f"{own}:MyTrainer", *small,
                "--set", "pretrained=false", "--set", "backbone=resnet18")  # fmt: skip
    listed = project.run("echoplan_predict", "-i", project.raw / "imagesTs", "-o", tmp_path / "out", status=1)
    for name in ("UNet2DtTrainer", "MyTrainer"):
        assert name in listed.stdout + listed.stderr
    project.run("echoplan_predict", "-i", project.raw / "imagesTs", "-o", tmp_path / "out", "-tr", "MyTrainer")
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 4


def test_camus_and_echonet_layouts_are_converted(project: Any) -> None:
    sources = {"camus": project.root / "camus", "echonet_dynamic": project.root / "echonet"}
    for layout, source in sources.items():
        project.run("echoplan_make_phantom", "-d", "Phantom", "--patients", 5, "--size", 64, "--layout", layout,
                    "--out", source, "-np", 0)  # fmt: skip
        told = project.run("echoplan_convert_dataset", layout, source, "-d", layout, "-np", 0)
        assert f"{10 if layout == 'camus' else 5} cases" in told.stdout
    names = [path.name for path in sorted((project.root / "raw").iterdir())]
    assert names == ["Dataset001_camus", "Dataset002_echonet_dynamic"]
    refused = project.run("echoplan_convert_dataset", "camus", sources["camus"], "-d", "camus", "-np", 0, status=1)
    assert "--overwrite" in refused.stderr


def test_a_real_dicom_clip_from_end_to_end(trained: Any, tmp_path: Path) -> None:
    data = pytest.importorskip("pydicom.data")
    path = data.get_testdata_file("color3d_jpeg_baseline.dcm", download=False)
    if path is None:
        pytest.skip("the package pydicom-data is not installed")
    clips = tmp_path / "clips"
    clips.mkdir()
    shutil.copy(path, clips / "a4c.dcm")
    model = trained.results / MODEL
    trained.run("echoplan_predict", "-i", clips, "-o", tmp_path / "out", "-m", model, "-f", 0)
    mask = read_mask(tmp_path / "out" / "a4c.nii.gz")
    assert mask.shape == (120, 480, 640)  # the file's own grid, not the region the clip is cropped to
    assert read_clip(tmp_path / "out" / "a4c.nii.gz").spacing_mm == pytest.approx((0.51, 0.51), abs=0.005)
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_broken_clip_is_passed_over_named_and_fails_the_batch(trained: Any, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    shutil.copytree(trained.raw / "imagesTs", clips)
    broken, *_ = sorted(clips.glob("*.nii.gz"))
    broken.write_bytes(broken.read_bytes()[:2000])
    done = trained.run("echoplan_predict", "-i", clips, "-o", tmp_path / "out", "-m", trained.results / MODEL,
                       "-f", 0, status=1)  # fmt: skip
    assert broken.name.removesuffix(".nii.gz") in done.stderr
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3
    with open(tmp_path / "out" / "ef_report.csv", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 2


def test_ctrl_c_keeps_the_finished_epochs_and_c_goes_on(trained: Any) -> None:
    long = [*trained.quick, "--epochs", 50]
    command = ("echoplan_train", "Phantom", 1, "-tr", "UNetTrainer", *long, "--seed", 7)
    fold = trained.results / MODEL / "fold_1"
    finished = trained.root / "fold_1_finished"
    shutil.move(fold, finished)
    try:
        with started(trained, *command) as training:
            latest = fold / "checkpoint_latest.pth"
            wait_until(lambda: finished_epochs(fold) >= 2 and latest.exists(), training)
            os.kill(training.pid, signal.SIGINT)
            assert "run the same command with --c to go on" in told(training, status=130)
        before = finished_epochs(fold)
        assert 2 <= before < 50
        refused = trained.run(*command, status=1)
        assert "--c goes on" in refused.stderr
        other = trained.run("echoplan_train", "Phantom", 1, "-tr", "UNetTrainer", *trained.quick, "--c", status=1)
        assert "other settings" in other.stderr
        assert finished_epochs(fold) >= before  # nothing lost by either refusal
    finally:
        shutil.rmtree(fold)
        shutil.move(finished, fold)


def finished_epochs(fold: Path) -> int:
    path = fold / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["echoplan_train", "Phantom", "7", "-tr", "UNetTrainer"], "the folds are 0 to 4"),
        (["echoplan_train", "Phantom", "one", "-tr", "UNetTrainer"], "give numbers from 0, or all"),
        (["echoplan_train", "Phantom", "0", "-tr", "UnetTrainr"], "did you mean UNetTrainer"),
        (["echoplan_train", "Phantm", "0"], "there are Phantom"),
        (["echoplan_train", "Phantom", "0", "--set", "epoch=3"], "did you mean epochs"),
        (["echoplan_train", "Phantom", "0", "-p", "OtherPlans"], "there is no plan"),
        (["echoplan_predict", "-i", "/nowhere", "-o", "/tmp/x"], "/nowhere"),
        (["echoplan_find_best_configuration", "Nothing"], "Nothing"),
        (["echoplan_preprocess", "-d", "Nothing"], "Nothing"),
    ],
)
def test_mistakes_get_one_clear_message(trained: Any, words: list[str], told: str) -> None:
    status = 2 if told in ("/nowhere", "give numbers from 0, or all") else 1  # 2: the command line itself is wrong
    error = trained.run(*words, status=status).stderr
    assert told in error and "Traceback" not in error


def test_predicting_with_a_trainer_that_trained_nothing_says_what_to_do(trained: Any, project: Any) -> None:
    words = ("-i", trained.raw / "imagesTs", "-o", project.root / "out", "-tr", "UNetTrainer")
    told = project.run("echoplan_predict", *words, status=1)
    assert "echoplan_train" in told.stderr and "-m default" in told.stderr
