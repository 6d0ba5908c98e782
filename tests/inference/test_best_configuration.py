"""The best model, ensemble and postprocessing by cross-validation."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from echoplan.errors import EchoPlanError
from echoplan.imageio import read_mask
from echoplan.inference import EchoPredictor, choose_models, find_best_configuration
from echoplan.training.checkpoint import load_checkpoint, save_checkpoint


def upper_half_missing(case, values):
    values[:, :, :32] *= 0.4
    return values


def lower_half_missing(case, values):
    values[:, :, 32:] *= 0.4
    return values


def with_islands(case, values):
    values[:, :, 10:14, 4:10] = 1
    return values


def recorded(path):
    return json.loads(path.read_text())


def test_the_better_model_wins_and_is_predicted_with(folders, make_crossval, heart):
    good = make_crossval()
    make_crossval("DimTrainer", spoil=upper_half_missing)
    found = find_best_configuration(folders, "Phantom")
    assert [model.name for model in found.best.models] == [good.name]
    assert found.scores[0].name == good.name and len(found.scores) == 3
    dice = {score.name: score.mean_dice for score in found.scores}
    reference = read_mask(folders.preprocessed / "Dataset001_Phantom" / "gt_segmentations" / "patient0_A4C.nii.gz")
    mask = read_mask(good / "fold_0" / "validation" / "patient0_A4C.nii.gz")
    own = [2 * (mask[t] * (reference[t] == 1)).sum() / (mask[t].sum() + (reference[t] == 1).sum()) for t in (0, 6)]
    rows = recorded(good / "crossval_results" / "summary.json")["per_frame"]
    assert [row["dice"] for row in rows if row["case"] == "patient0_A4C"] == pytest.approx(own)
    assert dice[good.name] == pytest.approx(np.mean([row["dice"] for row in rows])) and len(rows) == 12
    content = recorded(found.file)
    (member,) = content["members"]
    assert (member["model"], member["folds"], [*member["weights"]]) == (good.name, [0, 1], ["0", "1"])
    assert len(content["scores"]) == 3
    choice = choose_models(folders)
    prediction = EchoPredictor.from_model_folders(
        choice.members, device="cpu", postprocessing=choice.postprocessing, trust_code=True
    ).predict(heart.clip.frames)
    assert (prediction.mask == heart.mask).mean() > 0.99


def test_two_models_that_complete_each_other_make_an_ensemble(folders, make_crossval):
    # Each misses one half at probability 0.4; the mean, 0.7, has both.
    make_crossval(spoil=upper_half_missing)
    make_crossval("DimTrainer", spoil=lower_half_missing)
    found = find_best_configuration(folders, "1")
    assert len(found.best.models) == 2 and found.scores[0].name == found.best.name
    home = folders.results / "Dataset001_Phantom" / "ensembles" / found.best.name
    assert (home / "postprocessing.json").is_file() and (home / "crossval_results" / "patient5_A4C.nii.gz").is_file()
    with pytest.raises(EchoPlanError, match=f"{found.best.name} would take no part"):
        find_best_configuration(folders, "1", ensembles=False)
    single = find_best_configuration(folders, "1", ensembles=False, overwrite=True)
    assert len(single.best.models) == 1 and len(single.scores) == 2


def test_postprocessing_is_determined_and_applied(folders, make_crossval):
    model = make_crossval(spoil=with_islands)
    found = find_best_configuration(folders, "Phantom")
    assert [step["name"] for step in found.postprocessing["steps"]] == ["largest_component"]
    evidence = recorded(model / "postprocessing.json")["evidence"]
    assert evidence["mean_dice_after"] > evidence["mean_dice_before"] + 0.01
    assert read_mask(model / "fold_0" / "validation" / "patient0_A4C.nii.gz")[:, :12, :20].any()
    assert not read_mask(model / "crossval_results" / "patient0_A4C.nii.gz")[:, :12, :20].any()
    with open(model / "crossval_results" / "ef.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["patient"] for row in rows] == [f"patient{i}" for i in range(6)]
    assert float(rows[0]["ef_percent"]) == pytest.approx(66, abs=4) and rows[0]["reference_ef_percent"] == "50.0"


def test_each_case_is_judged_by_the_fold_that_did_not_train_on_it(folders, make_crossval):
    model = make_crossval()
    # Fold 1 trained on patient0: whatever it left for it must not be looked at.
    wrong = model / "fold_1" / "validation" / "patient0_A4C.nii.gz"
    wrong.write_bytes(b"not even a mask")
    before = find_best_configuration(folders, "Phantom").scores[0].mean_dice
    assert before > 0.97
    splits = folders.preprocessed / "Dataset001_Phantom" / "splits_final.json"
    content = recorded(splits)
    content[0]["train"].append("patient0_A4C")
    splits.write_text(json.dumps(content))
    with pytest.raises(EchoPlanError, match="trains on a case that it validates on"):
        find_best_configuration(folders, "Phantom")


def test_missing_folds_are_named_with_the_commands(folders, make_crossval):
    make_crossval(folds=(0,))
    with pytest.raises(EchoPlanError) as error:
        find_best_configuration(folders, "Phantom")
    assert "fold 1: no training" in str(error.value)
    assert "echoplan_train Phantom 1 -tr BrightTrainer" in str(error.value)
    found = find_best_configuration(folders, "Phantom", folds=[0])
    assert found.scores[0].cases == 3 and recorded(found.file)["members"][0]["folds"] == [0]


def test_incomplete_models_are_left_out_unless_asked_for(folders, make_crossval):
    make_crossval()
    dim = make_crossval("DimTrainer")
    (dim / "fold_1" / "validation" / "patient4_A4C.nii.gz").unlink()
    found = find_best_configuration(folders, "Phantom")
    assert found.left_out == {dim.name: "fold 1: no validation"} and len(found.scores) == 1
    with pytest.raises(EchoPlanError, match=r"echoplan_train Phantom 1 -tr DimTrainer --val"):
        find_best_configuration(folders, "Phantom", trainers=["BrightTrainer", "DimTrainer"])
    with pytest.raises(EchoPlanError, match=r"NoTrainer: not trained.*\n.*echoplan_train Phantom all -tr NoTrainer"):
        find_best_configuration(folders, "Phantom", trainers=["BrightTrainer", "NoTrainer"])


def test_folds_of_two_plans_are_no_model(folders, make_crossval):
    make_crossval()
    dim = make_crossval("DimTrainer")
    file = dim / "fold_1" / "checkpoint_final.pth"
    save_checkpoint(file, load_checkpoint(file) | {"size": [32, 32]})
    found = find_best_configuration(folders, "Phantom")
    assert found.left_out[dim.name].startswith("fold 1: trained on another plan, the input size (H, W) ([32, 32] then")
    with pytest.raises(EchoPlanError, match=r"echoplan_train Phantom 1 -tr DimTrainer --overwrite"):
        find_best_configuration(folders, "Phantom", trainers=["BrightTrainer", "DimTrainer"])
    narrow = find_best_configuration(folders, "Phantom", trainers=["DimTrainer"], folds=[0], overwrite=True)
    assert narrow.left_out == {}


def test_a_choice_among_all_is_not_lost_to_one_among_some(folders, make_crossval):
    bright = make_crossval()
    file = find_best_configuration(folders, "Phantom").file
    make_crossval("DimTrainer")
    before = {path: path.read_bytes() for path in folders.results.rglob("*") if path.is_file()}
    for narrow, lacking in (({"folds": [0]}, "fold 1"), ({"trainers": ["DimTrainer"]}, bright.name)):
        with pytest.raises(EchoPlanError, match=f"chosen among more: {lacking} would take no part now.*--overwrite"):
            find_best_configuration(folders, "Phantom", **narrow)
    assert {path: path.read_bytes() for path in folders.results.rglob("*") if path.is_file()} == before
    assert len(find_best_configuration(folders, "Phantom", trainers=["BrightTrainer"]).scores) == 1  # as before
    find_best_configuration(folders, "Phantom", folds=[0], overwrite=True)
    assert recorded(file)["members"][0]["folds"] == [0]
    assert len(find_best_configuration(folders, "Phantom").scores) == 3  # more never asks


def test_models_without_probabilities_join_no_ensemble(folders, make_crossval):
    make_crossval()
    dim = make_crossval("DimTrainer")
    (dim / "fold_0" / "validation" / "patient0_A4C.npz").unlink()
    found = find_best_configuration(folders, "Phantom")
    assert len(found.scores) == 2 and "1 cases" in found.left_out[f"ensembles with {dim.name}"]


def test_models_with_other_labels_are_not_compared(folders, make_crossval):
    make_crossval()
    dim = make_crossval("DimTrainer")
    description = recorded(dim / "dataset.json") | {"labels": {"background": 0, "LV": 1, "MYO": 2}}
    (dim / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(EchoPlanError, match="same labels"):
        find_best_configuration(folders, "Phantom")


def test_a_fold_that_does_not_exist(folders, make_crossval):
    make_crossval()
    with pytest.raises(EchoPlanError, match="no fold 7"):
        find_best_configuration(folders, "Phantom", folds=[7])
