"""A choice and a calibration hold for the weights they were made with, here and wherever a model is installed."""

from __future__ import annotations

import logging

import pytest
import torch

from echoplan import scripts
from echoplan.errors import EchoPlanError
from echoplan.files import read_json, write_json
from echoplan.inference import EchoPredictor, choose_models, find_best_configuration
from echoplan.inference.archive import install_model
from echoplan.inference.trained_weights import read_weights, trained_again, weights_of
from echoplan.training.checkpoint import load_checkpoint, save_checkpoint
from echoplan.training.model_folder import ModelFolder

BEST = "the best configuration that cross-validation found"
RETRAINED = "fold 1 of BrightTrainer__EchoPlans__frame was trained again since"


def predict(clip, out, *more):
    arguments = ["-i", str(clip), "-o", str(out), "--coverage", "0.8", "--device", "cpu", "-np", "0", *more]
    assert scripts.predict(arguments) == 0
    return read_json(out / "ef_report.json")


def retrain(model, fold=1, threshold=0.4):
    file = model / f"fold_{fold}" / "checkpoint_final.pth"
    save_checkpoint(file, load_checkpoint(file) | {"network": {"threshold": torch.tensor(threshold)}})


def without_weights(results):
    """As an earlier EchoPlan wrote its files."""
    for file in results.rglob("c*.json"):
        write_json(file, {key: value for key, value in read_json(file).items() if key != "weights"})
    file = results / "Dataset001_Phantom" / "best_configuration.json"
    best = read_json(file)
    members = [{key: member[key] for key in ("model", "folds")} for member in best["members"]]
    write_json(file, best | {"members": members})


@pytest.fixture
def model(folders, at, make_crossval):
    """A model of two folds, chosen and calibrated."""
    made = make_crossval()
    find_best_configuration(folders, "Phantom")
    return made


@pytest.fixture
def clip(clips):
    return clips / "p2_A4C.avi"


def test_a_fold_trained_again_is_no_best_configuration_and_has_no_intervals(
    tmp_path, folders, model, clip, capsys, caplog
):
    report = predict(clip, tmp_path / "a")
    said = capsys.readouterr()
    assert f"predicting with {BEST}" in said.out and "trained again" not in said.err + said.out
    assert report["rows"][0]["ef_low_percent"] is not None
    retrain(model)
    report = predict(clip, tmp_path / "b")
    said = capsys.readouterr()
    assert BEST not in said.out and f"of which {RETRAINED} it was written" in said.out
    assert f"no intervals of EF and volumes: the calibration is that of other weights: {RETRAINED}" in said.out
    assert "run echoplan_find_best_configuration Phantom again" in caplog.text
    assert report["rows"][0]["ef_low_percent"] is None and RETRAINED in report["details"]["trust"]["why_none"]
    assert RETRAINED in read_json(tmp_path / "b" / "prediction_args.json")["settings"]["models_chosen"]
    # The other fold is what it was, and so is what is said of it.
    predict(clip, tmp_path / "c", "-f", "0", "--coverage", "0.7")
    assert BEST in capsys.readouterr().out
    assert choose_models(folders, folds=[0]).reason.startswith(BEST)
    find_best_configuration(folders, "Phantom")
    assert predict(clip, tmp_path / "d")["rows"][0]["ef_low_percent"] is not None


def test_a_models_own_calibration_is_compared_too(model, heart):
    found = EchoPredictor.from_model_folder(model, device="cpu", coverage=0.8, trust_code=True).predict(heart.clip)
    assert found.ef_low_percent is not None
    retrain(model)
    found = EchoPredictor.from_model_folder(model, device="cpu", coverage=0.8, trust_code=True).predict(heart.clip)
    assert found.ef_low_percent is None and RETRAINED in found.interval_note


def test_files_of_an_earlier_echoplan_work_and_one_line_says_what_cannot_be_checked(
    tmp_path, folders, model, clip, capsys, caplog
):
    without_weights(folders.results)
    retrain(model)
    assert predict(clip, tmp_path / "a")["rows"][0]["ef_low_percent"] is not None
    said = capsys.readouterr().out
    assert BEST in said and (said + caplog.text).count("nothing tells whether a fold was trained again") == 1
    (model / "crossval_results" / "calibration.json").unlink()
    with caplog.at_level(logging.WARNING):
        choose_models(folders)
    assert "best_configuration.json does not say of which weights it is" in caplog.text


def test_an_archive_takes_the_digests_along(tmp_path, model, clip, at, capsys, caplog):
    archives = {name: tmp_path / f"{name}.zip" for name in ("same", "retrained", "best")}
    for fold in (0, 1):
        file = model / f"fold_{fold}" / "checkpoint_final.pth"
        state = load_checkpoint(file) | {"network": {"threshold": torch.tensor(0.45)}}
        save_checkpoint(file.with_name("checkpoint_best.pth"), state)
    assert scripts.export_model(["Phantom", "-o", str(archives["same"])]) == 0
    assert scripts.export_model(["Phantom", "-o", str(archives["best"]), "--checkpoint", "best"]) == 0
    assert BEST in capsys.readouterr().out
    retrain(model)
    assert scripts.export_model(["Phantom", "-o", str(archives["retrained"])]) == 0
    assert BEST not in capsys.readouterr().out
    assert "without intervals of EF and volumes: the calibration is that of other" in caplog.text
    for name, best, intervals in (("same", True, True), ("retrained", False, False), ("best", True, False)):
        install_model(archives[name], at(tmp_path / name), trust_code=True)
        report = predict(clip, tmp_path / name / "out")
        assert (BEST in capsys.readouterr().out) is best
        assert (report["rows"][0]["ef_low_percent"] is not None) is intervals


def test_a_digest_is_that_of_the_network(model):
    predictor = EchoPredictor.from_model_folder(model, device="cpu", trust_code=True)
    assert predictor.members[0].weights == weights_of([model])[model.name]
    before = ModelFolder.read(model).weights_digest(0)
    state = load_checkpoint(model / "fold_0" / "checkpoint_final.pth")
    save_checkpoint(model / "fold_0" / "checkpoint_final.pth", state | {"epochs": 7})  # the file is another
    assert ModelFolder.read(model).weights_digest(0) == before
    retrain(model, fold=0)
    assert ModelFolder.read(model).weights_digest(0) != before


def test_what_is_compared():
    now = {"A": {0: "a", 1: "x", 2: "y"}}
    assert trained_again({"A": {0: "a", 1: "b", 2: "c"}, "B": {0: "d"}}, now) == (
        "folds 1, 2 of A were trained again since"
    )
    assert trained_again({}, now) == trained_again(now, {}) == ""
    assert read_weights({"A": {"10": "z"}}) == {"A": {10: "z"}}


def test_a_choice_with_broken_weights_is_none(folders, model):
    file = model.parent / "best_configuration.json"
    best = read_json(file)
    for broken in ("abc", {"first": "abc"}, [1]):
        write_json(file, best | {"members": [best["members"][0] | {"weights": broken}]})
        with pytest.raises(EchoPlanError, match="no best configuration"):
            choose_models(folders)
