"""echoplan_study from end to end on a toy project: the grid, going on, what breaks, other datasets."""

from __future__ import annotations

import csv
import os
import re
import signal
from pathlib import Path

import pytest
import torch

from echoplan.files import read_json
from echoplan.inference.model_selection import trained_models
from echoplan.training.checkpoint import load_checkpoint
from echoplan.training.model_folder import ModelFolder
from echoplan.training.trainer import Trainer

GRID = ("-tr", "UNetTrainer", "UNet2DtTrainer", "--train_sizes", 1, "100%", "--clip_lengths", 2, 3)


@pytest.fixture(scope="module")
def done(toy):
    """The whole grid, tested on the other dataset too."""
    status = toy.run(*GRID, "--test_on", "Other", "--name", "whole")
    return toy.study("whole"), status


def rows(file: Path, kind: str) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if row["row"] == kind]


def model(study: Path, cell: str) -> Path:
    (found,) = (study / "cells" / cell).iterdir()
    return found


def test_every_combination_is_trained_once(done):
    study, status = done
    assert status == 0
    cells = {folder.name for folder in (study / "cells").iterdir()}
    frame = {f"UNetTrainer__n{size}__T1__own__s0" for size in ("1", "100pct")}
    clip = {f"UNet2DtTrainer__n{size}__T{frames}__own__s0" for size in ("1", "100pct") for frames in (2, 3)}
    assert cells == frame | clip == set(read_json(study / "study.json")["cells"])
    trainings = rows(study / "learning_curves.csv", "training")
    assert len(trainings) == 6
    assert {(row["size"], row["patients"], row["clips"]) for row in trainings} == {("1", "1", "2"), ("100%", "4", "8")}
    for row in trainings:
        assert 0 <= float(row["dice_all"]) <= 1 and float(row["hd95_mm_es"]) >= 0 and row["frames_ed"] == "4"


def test_the_clip_length_is_in_the_plan_that_inference_reads(done):
    study, _ = done
    for frames, stride in ((2, 6), (3, 3)):
        trained = ModelFolder.read(model(study, f"UNet2DtTrainer__n1__T{frames}__own__s0"))
        assert (trained.window, trained.stride) == (frames, stride)  # ED and ES are 6 frames apart
        assert trained.plan.decisions["frames"].rule == "asked for by the study"
        assert read_json(trained.path / "fold_0" / "debug.json")["plan"]["decisions"]["frames"]["value"] == frames
        assert (trained.path / "dataset_fingerprint.json").is_file()
    assert ModelFolder.read(model(study, "UNetTrainer__n1__T1__own__s0")).window == 1


def test_few_patients_are_among_the_many_with_all_their_views(done, toy):
    study, _ = done
    train = {
        size: read_json(model(study, f"UNetTrainer__n{size}__T1__own__s0") / "fold_0" / "debug.json")["train"]
        for size in ("1", "100pct")
    }
    assert len(train["1"]) == 2 and len({case[:2] for case in train["1"]}) == 1
    assert set(train["1"]) < set(train["100pct"])
    other = read_json(model(study, "UNet2DtTrainer__n1__T2__own__s0") / "fold_0" / "debug.json")["train"]
    assert other == train["1"]  # every method gets the same patients


def test_a_study_is_no_model_of_the_dataset(done, toy):
    assert trained_models(toy.folders.results / "Dataset001_Toy") == ()


def test_files_are_there_and_the_page_needs_no_network(done):
    study, _ = done
    names = {f"learning_curves.{end}" for end in ("csv", "md", "tex", "png", "svg")}
    names |= {f"cross_dataset.{end}" for end in ("csv", "md", "tex")} | {"report.html"}
    assert names <= {file.name for file in study.iterdir()}
    page = (study / "report.html").read_text()
    assert "http:" not in page and "https:" not in page and "data:image/svg+xml;base64," in page
    for words in ("Slope of Dice", "Across datasets", "UNet2DtTrainer, T 3", "Paired tests"):
        assert words in page
    table = re.sub(" +", " ", (study / "cross_dataset.md").read_text())
    assert "| Toy | Other | ES | UNetTrainer |" in table


def test_other_datasets_are_judged_case_by_case_on_their_own_grid(done):
    study, _ = done
    folder = model(study, "UNetTrainer__n100pct__T1__own__s0") / "fold_0" / "tested" / "Dataset002_Other"
    summary = read_json(folder / "summary.json")
    assert set(summary["per_case"]) == {"q1", "q2", "q3"}  # q0 has no label
    assert summary["labels"] == {"LV": 2} and summary["per_case"]["q1"]["distance_unit"] == "px"
    figures = rows(study / "cross_dataset.csv", "figures")
    assert {(row["trained_on"], row["tested_on"]) for row in figures} == {("Toy", "Toy"), ("Toy", "Other")}
    within = next(row for row in figures if row["method"] == "UNetTrainer" and row["tested_on"] == "Toy")
    validation = read_json(folder.parents[1] / "validation" / "summary.json")["mean"]["LV"]["all"]
    assert float(within["dice_mean"]) == pytest.approx(validation["dice"]["mean"])
    beyond = next(row for row in figures if row["method"] == "UNetTrainer" and row["tested_on"] == "Other")
    assert float(beyond["dice_mean"]) == pytest.approx(summary["mean"]["LV"]["all"]["dice"]["mean"])
    assert float(beyond["hd_px_mean"]) >= float(beyond["hd95_px_mean"]) >= float(beyond["assd_px_mean"]) > 0
    assert not (model(study, "UNetTrainer__n1__T1__own__s0") / "fold_0" / "tested").exists()  # the largest size alone


def test_the_same_command_changes_nothing_and_a_longer_one_keeps_what_is_finished(done, toy, capsys):
    study, _ = done
    before = {file: file.stat().st_mtime_ns for file in study.rglob("*") if file.suffix in (".pth", ".gz")}
    assert toy.run(*GRID, "--test_on", "Other", "--name", "whole") == 0
    assert "0 trained, 6 were finished before" in capsys.readouterr().out
    assert toy.run("-tr", "UNetTrainer", "--train_sizes", 1, 2, "--name", "whole") == 0
    assert "1 trained, 1 were finished before" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert len(rows(study / "learning_curves.csv", "training")) == 7  # those of the longer list too


def test_a_terminated_study_goes_on_within_the_training(done, toy, monkeypatch):
    study, _ = done
    step, steps = Trainer.train_step, []

    def terminated(self, batch):
        steps.append(self.setup.model_folder)
        if len(steps) == 3:  # in the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    words = ("-tr", "UNetTrainer", "--train_sizes", 1, "100%", "--name", "again")
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", terminated)
        assert toy.run(*words) == 75
    signal.signal(signal.SIGTERM, before)
    assert len(steps) == 3
    assert toy.run(*words) == 0
    cell = "UNetTrainer__n1__T1__own__s0"
    first, second = (
        load_checkpoint(model(folder, cell) / "fold_0" / "checkpoint_final.pth")["network"]
        for folder in (study, toy.study("again"))
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_broken_training_does_not_stop_the_others(toy, monkeypatch, capsys):
    step = Trainer.train_step

    def broken(self, batch):
        if self.seed == 0:
            raise ValueError("out of luck")
        return step(self, batch)

    words = ("-tr", "UNetTrainer", "--train_sizes", 1, "--seeds", 0, 1, "--augmentation", "none", "--name", "broken",
             "--grid", "momentum=0.9")  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", broken)
        assert toy.run(*words) == 1
    shown = capsys.readouterr()
    assert "UNetTrainer__n1__T1__none__s0__momentum-0.9 fold 0: ValueError: out of luck" in shown.err
    assert "1 trained" in shown.out
    assert "out of luck" in (toy.study("broken") / "report.html").read_text()
    assert toy.run(*words) == 0
    assert "out of luck" not in (toy.study("broken") / "report.html").read_text()
    point = rows(toy.study("broken") / "learning_curves.csv", "point")[0]
    assert point["method"] == "UNetTrainer momentum=0.9"
    assert point["seeds"] == "2" and float(point["dice_all_seed_sd"]) >= 0


def test_dry_run_writes_nothing(toy, capsys):
    assert toy.run(*GRID, "--folds", 0, 1, "--seeds", 0, 1, "--train_sizes", 1, 2, "--name", "dry", "--dry_run") == 0
    shown = capsys.readouterr().out
    assert (
        "24 trainings, 24 to do, about" in shown and "UNet2DtTrainer__n2__T3__own__s1: 2 fold(s), 2 patients" in shown
    )
    assert not toy.study("dry").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--train_sizes", 5), "fold 0 has 4 patients to train on, and 5 are asked for"),
        (("--train_sizes", 4, "100%"), "are the same 4 patients of fold 0"),
        (("--train_sizes", "some"), "'some' is no training size"),
        (("--train_sizes", "120%"), "'120%' is no training size"),
        (("--clip_lengths", 1), "shows no motion"),
        (("--seeds", 3, 3), "a seed is named twice: 3"),
        (("--augmentation", "lots"), "lots"),
        (("--folds", 7), "there is no fold 7"),
        (("--grid", "base_features"), "--grid takes KEY=A,B, each key once, not 'base_features'"),
        (("--grid", "base_featrues=2,4"), "base_features"),
        (("--set", "UNetTrainr:epochs=2"), "a trainer that the study does not train: UNetTrainr"),
        (("--set", "augmentation=none"), "--augmentation POLICY"),
        (("--name", "../elsewhere"), "cannot name a study"),
        (("--name", "whole", "--set", "learning_rate=0.5"), "was begun with another settings"),
        (("--name", "new", "--test_on", "Nowhere"), "there is no dataset 'Nowhere'"),
    ],
)
def test_what_cannot_be_studied_is_said_in_one_line(done, toy, capsys, words, problem):
    assert toy.run("-tr", "UNetTrainer", *words) == 1
    shown = capsys.readouterr().err
    assert problem in shown and "Traceback" not in shown
