"""The model that comes with EchoPlan: it predicts where nothing is trained, and trainings start from it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from echoplan import scripts
from echoplan.errors import EchoPlanError
from echoplan.files import read_json
from echoplan.inference import EchoPredictor, choose_models
from echoplan.masks import load_mask
from echoplan.models import card_of, shipped_model
from echoplan.paths import Folders
from echoplan.training.train_fold import FoldJob

LARGEST_MB = 16


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with nothing in it."""
    monkeypatch.setenv("ECHOPLAN_ROOT", str(tmp_path / "root"))
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"echoplan_{name}", raising=False)
    return tmp_path / "root"


def phantom(root: Path, patients: int = 1) -> Path:
    made = [
        "-d",
        "Phantom",
        "--patients",
        str(patients),
        "--size",
        "96",
        "112",
        "--whole_beat",
        "--seed",
        "7",
        "-np",
        "0",
    ]
    assert scripts.make_phantom(made) == 0
    return root / "raw" / "Dataset001_Phantom"


def test_a_clip_is_measured_where_nothing_is_trained(root, tmp_path, capsys):
    raw = phantom(root)
    out = tmp_path / "out"
    assert scripts.predict(["-i", str(raw / "imagesTr"), "-o", str(out), "--device", "cpu", "-np", "0"]) == 0
    said = capsys.readouterr().out
    assert "the model that comes with EchoPlan, for nothing is trained here" in said
    for told in ("trained on CAMUS", "CC BY-NC-SA 4.0", "10.1109/TMI.2019.2900516", str(card_of(shipped_model()))):
        assert told in said
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "trained on CAMUS" in page and "CC BY-NC-SA 4.0" in page
    assert read_json(out / "prediction_args.json")["model"]["licence"] == "CC BY-NC-SA 4.0"
    for file in sorted((raw / "labelsTr").glob("*.nii.gz")):
        true, found = load_mask(file)[0] == 1, load_mask(out / file.name)[0] == 1
        assert 2 * np.count_nonzero(true & found) / (np.count_nonzero(true) + np.count_nonzero(found)) > 0.6
    assert (
        scripts.predict(["-i", str(raw / "imagesTr"), "-o", str(tmp_path / "same"), "-m", "default", "-np", "0"]) == 0
    )
    assert (tmp_path / "same" / "ef_report.csv").read_bytes() == (out / "ef_report.csv").read_bytes()


def test_it_stands_back_for_what_is_named_or_trained(tmp_path):
    folders = Folders(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")
    assert choose_models(folders).members == ((shipped_model(), None),)
    with pytest.raises(EchoPlanError, match="no dataset"):
        choose_models(folders, dataset="CAMUS")
    with pytest.raises(EchoPlanError, match="-m default"):
        choose_models(folders, trainer="UNetTrainer")


def test_its_folder_holds_card_and_licence_and_no_patient():
    model = shipped_model()
    home = model.parent
    card, licence = (home / name for name in ("MODEL_CARD.md", "LICENSE"))
    assert card == card_of(model) and card_of(Path("results/Dataset001_CAMUS/UNetTrainer__EchoPlans__frame")) is None
    assert "CC BY-NC-SA 4.0" in card.read_text(encoding="utf-8")
    assert "Attribution-NonCommercial-ShareAlike 4.0" in licence.read_text(encoding="utf-8")
    assert sum(path.stat().st_size for path in home.rglob("*")) < LARGEST_MB * 2**20
    for path in home.rglob("*"):
        if path.is_file():
            assert not re.search(rb"patient\d{4}", path.read_bytes()), path
    assert read_json(model / "dataset_fingerprint.json")["cases"] == {}
    assert shipped_model("../models/default") is None and shipped_model("nobody") is None


def test_the_one_from_phantoms_has_a_licence_without_strings(root, tmp_path, capsys):
    model = shipped_model("phantom")
    home = model.parent
    assert "Apache License" in (home / "LICENSE").read_text(encoding="utf-8")
    assert "Apache-2.0" in card_of(model).read_text(encoding="utf-8")
    assert sum(path.stat().st_size for path in home.rglob("*")) < LARGEST_MB * 2**20
    for path in home.rglob("*"):
        if path.is_file():
            assert not re.search(rb"patient\d{4}", path.read_bytes()), path
    raw = phantom(root)
    out = tmp_path / "out"
    command = ["-i", str(raw / "imagesTr"), "-o", str(out), "-m", "phantom", "--device", "cpu", "-np", "0"]
    assert scripts.predict(command) == 0
    said = capsys.readouterr().out
    assert str(card_of(model)) in said and "CAMUS" not in said
    for file in sorted((raw / "labelsTr").glob("*.nii.gz")):
        true, found = load_mask(file)[0] == 1, load_mask(out / file.name)[0] == 1
        assert 2 * np.count_nonzero(true & found) / (np.count_nonzero(true) + np.count_nonzero(found)) > 0.8


def test_its_intervals_are_calibrated(capsys):
    predictor = EchoPredictor.from_model_folder(shipped_model(), device="cpu")
    assert predictor.trust.calibration is not None, predictor.trust.why_none
    assert predictor.trust.limits["certainty"].value > 0.5


def test_a_training_starts_from_it_with_its_networks_settings(root, capsys):
    phantom(root, patients=2)
    assert scripts.plan_and_preprocess(["-d", "Phantom", "--size", "64", "-tr", "UNetTrainer", "-np", "0"]) == 0
    train = ["Phantom", "0", "-tr", "UNetTrainer", "-pretrained_weights", "default", "--epochs", "1", "-np", "0"]
    assert scripts.train([*train, "--set", "iterations_per_epoch=1", "--set", "batch_size=2", "--device", "cpu"]) == 0
    (fold,) = root.glob("results/*/*/fold_0")
    start = json.loads((fold / "debug.json").read_text())["started_from"]
    assert (start["kind"], start["dataset"]) == ("checkpoint", "CAMUS")
    assert all("head" in name for name in start["left_new"]), start["left_new"]


def test_settings_that_are_named_win_over_those_of_the_weights():
    file = next(shipped_model().glob("fold_*/checkpoint_final.pth"))
    of_weights = FoldJob("Phantom", 0, weights=file).method().recipe.network
    assert of_weights.base_features == 16
    named = FoldJob("Phantom", 0, weights=file, settings={"base_features": 8}).method().recipe.network
    assert (named.base_features, named.max_features) == (8, of_weights.max_features)
    assert FoldJob("Phantom", 0, trainer="UNet2DtTrainer", weights=file).method().recipe.network.base_features == 32
