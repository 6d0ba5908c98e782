"""From cross-validation to intervals in the report."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from echoplan.errors import EchoPlanError
from echoplan.evaluation import PatientRow
from echoplan.evaluation.quality import default_limits
from echoplan.files import read_json, write_json
from echoplan.inference import EchoPredictor, choose_models, find_best_configuration, predict_folder
from echoplan.inference.conformal import Calibration, Group, with_intervals
from echoplan.inference.trained_weights import weights_of
from echoplan.inference.uncertainty import TrustSettings
from echoplan.scripts import predict


def shrunken(case, values):
    """Smaller at end-systole by more for every further patient."""
    number = int(case[7])
    values[:, 6, : 18 + number] *= 0.1
    return values


def calibration_of(model):
    return Calibration.read(model / "crossval_results" / "calibration.json")


def only(calibration, **wanted):
    (group,) = [g for g in calibration.groups if all(getattr(g, key) == value for key, value in wanted.items())]
    return group


FOUND = {"method": "single_plane_a4c", "volume_rule": "simpson", "phases": "found"}


def test_errors_are_those_of_the_fold_that_validates(folders, make_crossval):
    model = make_crossval(spoil=shrunken)
    find_best_configuration(folders, "Phantom")
    group = only(calibration_of(model), quantity="ef_percent", **FOUND)
    # The dataset says 50 for all of them, its masks 66: another quantity.
    assert group.reference == "masks" and "differs from the dataset's by +1" in group.reason
    assert group.folds == (0, 0, 0, 1, 1, 1) and group.least == group.largest
    with open(model / "crossval_results" / "ef.csv", newline="") as stream:
        predicted = [float(row["ef_percent"]) for row in csv.DictReader(stream)]
    truth = predicted[0] + group.least[0]  # all six have one reference mask
    assert [truth - value for value in predicted] == pytest.approx(group.least, abs=0.2)
    assert len(set(group.least)) > 3 and max(group.least) < 0
    volume = only(calibration_of(model), quantity="edv_ml", **FOUND)
    assert volume.reference == "masks" and np.allclose(volume.least, 0, atol=0.05)
    methods = {group.method for group in calibration_of(model).groups}
    assert methods == {"single_plane_a4c", "single_plane"}  # the latter for clips whose view is not known


def test_the_datasets_own_value_is_the_reference_where_the_masks_agree(folders, make_crossval):
    model = make_crossval()
    store = folders.preprocessed / "Dataset001_Phantom" / "EchoPlans_64x64"
    for file in store.glob("patient*.json"):
        about = read_json(file)
        write_json(file, about | {"ef_percent": 66.0, "source": {"row": {"edv_ml": 20.0}}})
    find_best_configuration(folders, "Phantom")
    group = only(calibration_of(model), quantity="ef_percent", **FOUND)
    assert group.reference == "dataset" and group.least == pytest.approx([66 - 65.5] * 6, abs=1.5)
    assert only(calibration_of(model), quantity="edv_ml", **FOUND).reference == "masks"  # 20 mL it is not
    assert only(calibration_of(model), quantity="esv_ml", **FOUND).reason.startswith("the dataset gives no value")
    camus = only(calibration_of(model), quantity="ef_percent", **FOUND | {"volume_rule": "camus"})
    assert camus.reference == "masks"  # that rule's EF is another quantity


def test_patients_with_two_views_are_measured_in_every_way_a_new_one_may_be(folders, make_crossval):
    model = make_crossval(spoil=shrunken)
    file = folders.preprocessed / "Dataset001_Phantom" / "EchoPlans_64x64" / "patient4_A4C.json"
    write_json(file, read_json(file) | {"patient": "patient5", "view": "A2C"})
    find_best_configuration(folders, "Phantom")
    ways = [g for g in calibration_of(model).groups if (g.volume_rule, g.phases) == ("simpson", "given")]
    groups = {group.method: group for group in ways if group.quantity == "ef_percent"}
    assert {method: len(group.folds) for method, group in groups.items()} == {
        "biplane": 1, "single_plane_a2c": 1, "single_plane_a4c": 5, "single_plane": 5,
    }  # fmt: skip
    assert groups["biplane"].folds == (1,)
    both = [groups[f"single_plane_{view}"].least[-1] for view in ("a2c", "a4c")]
    pooled = groups["single_plane"].errors[-1]
    assert pooled == (1, min(both), max(both)) and pooled[1] < pooled[2]
    camus = only(calibration_of(model), quantity="edv_ml", method="biplane", volume_rule="camus", phases="given")
    assert len(camus.folds) == 1


def test_the_command_line_takes_the_coverage(tmp_path, folders, make_crossval, clips, capsys, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"echoplan_{name}", str(getattr(folders, name)))
    make_crossval(spoil=shrunken)
    clip = str(clips / "p2_A4C.avi")
    assert predict(["-i", clip, "-o", str(tmp_path / "a"), "--device", "cpu", "-np", "0"]) == 0
    assert "no intervals of EF and volumes: no calibration" in capsys.readouterr().out
    find_best_configuration(folders, "Phantom")
    assert predict(["-i", clip, "-o", str(tmp_path / "b"), "--coverage", "0.8", "--device", "cpu", "-np", "0"]) == 0
    assert "no intervals" not in capsys.readouterr().out
    (row,) = read_json(tmp_path / "b" / "ef_report.json")["rows"]
    assert row["interval_coverage_percent"] == 80
    assert read_json(tmp_path / "b" / "prediction_args.json")["model"]["calibration"].endswith("calibration.json")
    for wrong in ("1.5", "most"):
        with pytest.raises(SystemExit):
            predict(["-i", clip, "-o", str(tmp_path / "c"), "--coverage", wrong])
        assert "not a share between 0 and 1" in capsys.readouterr().err


def test_without_usable_masks_the_datasets_value_is_all_there_is(folders, make_crossval):
    from echoplan.imageio import read_clip, read_mask, write_mask

    model = make_crossval()
    truths = folders.preprocessed / "Dataset001_Phantom" / "gt_segmentations"
    for file in truths.glob("*.nii.gz"):
        mask = read_mask(file)
        mask[6] = 255  # end-systole is not labelled
        write_mask(file, mask, like=replace(read_clip(file), frames=mask))
    find_best_configuration(folders, "Phantom")
    group = only(calibration_of(model), quantity="ef_percent", **FOUND)
    assert (group.reference, group.reason) == ("dataset", "no reference mask can be measured")
    assert group.least == pytest.approx([50 - 66] * 6, abs=4)
    assert not [g for g in calibration_of(model).groups if g.quantity == "edv_ml"]  # there is no reference at all


def predictor_of(choice):
    return EchoPredictor.from_model_folders(
        choice.members,
        device="cpu",
        postprocessing=choice.postprocessing,
        calibration=choice.calibration,
        coverage=0.8,
        trust_code=True,
    )


def test_the_report_holds_intervals(tmp_path, folders, make_crossval, clips):
    make_crossval(spoil=shrunken)
    find_best_configuration(folders, "Phantom")
    predictor = predictor_of(choose_models(folders))
    predict_folder(clips, tmp_path / "out", predictor)
    with open(tmp_path / "out" / "ef_report.csv", newline="") as stream:
        rows = {row["patient"]: row for row in csv.DictReader(stream)}
    single = rows["p2"]  # an AVI without spacing: no volumes
    assert float(single["ef_low_percent"]) <= float(single["ef_percent"]) <= float(single["ef_high_percent"]) <= 100
    assert single["interval_coverage_percent"] == "80.0" and single["edv_low_ml"] == ""
    assert float(single["ef_fold_sd_percent"]) == 0.0  # both folds are one network here
    assert rows["p1"]["method"] == "biplane" and rows["p1"]["ef_low_percent"] == ""
    assert rows["p4"]["quality"] == "check" and "NIfTI" in rows["p4"]["quality_reasons"]
    trust = read_json(tmp_path / "out" / "ef_report.json")["details"]["trust"]
    assert trust["coverage_percent"] == 80 and trust["calibration"].endswith("calibration.json")
    assert "no cross-validated patient was measured that way" in trust["patients"]["p1"]["no_interval"]["ef_percent"]
    assert trust["patients"]["p2"]["no_interval"]["edv_ml"] == "not measured"
    assert "ef_percent" not in trust["patients"]["p2"]["no_interval"] and trust["limits"]["frames"]["value"] == 5
    # Six patients carry no 90 % interval.
    strict = replace(predictor.trust, coverage=0.9)
    predictor.trust = strict
    found = predictor.predict(clip_frames(clips))
    assert found.ef_low_percent is None and "6 cross-validated patients are too few" in found.interval_note


def clip_frames(clips):
    from echoplan.imageio import read_clip

    return read_clip(clips / "p2_A4C.avi").frames


def test_the_python_interface_gives_the_interval_too(folders, make_crossval, heart):
    model = make_crossval(spoil=shrunken)
    plain = EchoPredictor.from_model_folder(model, device="cpu", trust_code=True).predict(heart.clip)
    assert plain.ef_low_percent is None and "echoplan_find_best_configuration" in plain.interval_note
    assert plain.quality == "no warning", plain.quality_reasons
    find_best_configuration(folders, "Phantom")
    found = EchoPredictor.from_model_folder(model, device="cpu", coverage=0.8, trust_code=True).predict(heart.clip)
    assert found.interval_coverage_percent == 80 and found.interval_note == ""
    assert found.ef_low_percent < found.ef_percent <= found.ef_high_percent
    one_fold = EchoPredictor.from_model_folder(model, [0], device="cpu", coverage=0.8, trust_code=True).predict(
        heart.clip
    )
    assert "3 cross-validated patients are too few" in one_fold.interval_note
    short = EchoPredictor.from_model_folder(model, device="cpu", trust_code=True).predict(heart.clip.frames[[0, 3, 6]])
    assert short.quality == "check" and "3 frames" in short.quality_reasons[0]


def test_finished_cases_keep_what_their_folds_found(tmp_path, folders, make_crossval, clips):
    model = make_crossval()
    predictor = EchoPredictor.from_model_folder(model, device="cpu", trust_code=True)
    out = tmp_path / "out"
    before = predict_folder(clips, out, predictor).rows
    after = predict_folder(clips, out, predictor, continue_prediction=True).rows
    assert [row.ef_fold_sd_percent for row in after] == [row.ef_fold_sd_percent for row in before]
    (out / "evidence" / "p2_A4C.npz").unlink()
    run = predict_folder(clips, out, predictor, continue_prediction=True)  # nothing says what that mask was made by
    assert run.predicted == ["p2_A4C"] and run.rows == before


def test_a_calibration_holds_for_its_own_model_alone(folders, make_crossval):
    model, other = make_crossval(), make_crossval("DimTrainer")
    find_best_configuration(folders, "Phantom")
    file = model / "crossval_results" / "calibration.json"
    weights = {folder.name: weights_of([folder])[folder.name] for folder in (model, other)}
    same = {"file": None, "postprocessing": (), "checkpoint": "final", "coverage": 0.9}
    assert TrustSettings.find([model], weights={model.name: weights[model.name]}, **same).calibration is not None
    for models, changes, reason in (
        ([other], {"file": file}, "is that of BrightTrainer"),
        ([model], {"checkpoint": "best"}, "final checkpoints"),
        ([model], {"postprocessing": ({"name": "fill_holes"},)}, "other postprocessing"),
        ([model, other], {}, "not the best configuration"),
    ):
        own = {folder.name: weights[folder.name] for folder in models}
        found = TrustSettings.find(models, weights=own, **same | changes)
        assert found.calibration is None and reason in found.why_none
    with pytest.raises(EchoPlanError, match="coverage"):
        TrustSettings.find([model], weights=weights, **same | {"coverage": 1.5})
    file.write_text(json.dumps({"groups": [{}]}))
    with pytest.raises(EchoPlanError, match="no calibration"):
        TrustSettings.find([model], weights=weights, **same)


def test_an_ensembles_calibration_is_found_through_the_best_configuration(folders, make_crossval, heart):
    def upper_half_missing(case, values):
        values[:, :, :32] *= 0.4
        return values

    def lower_half_missing(case, values):
        values[:, :, 32:] *= 0.4
        return values

    make_crossval(spoil=upper_half_missing)
    make_crossval("DimTrainer", spoil=lower_half_missing)
    found = find_best_configuration(folders, "Phantom")
    choice = choose_models(folders)
    assert len(choice.members) == 2 and choice.calibration.is_file() and found.best.name in str(choice.calibration)
    assert predictor_of(choice).predict(heart.clip).ef_low_percent is not None


def test_a_calibration_survives_the_disk(tmp_path):
    group = Group("edv_ml", "biplane", "simpson", "given", "masks", "for the test", (0, 1), (-0.1, 0.0), (0.1, 0.2))
    made = Calibration(("a",), ({"name": "fill_holes"},), (group,), default_limits(), {"a": {0: "x", 1: "y"}})
    made.write(tmp_path / "calibration.json")
    assert Calibration.read(tmp_path / "calibration.json") == made
    assert group.errors == [(0, -0.1, 0.1), (1, 0.0, 0.2)]


def test_given_and_found_phases_have_errors_of_their_own():
    def group(phases, error):
        return Group("ef_percent", "biplane", "simpson", phases, "masks", "", (0,) * 9, (error,) * 9, (error,) * 9)

    calibration = Calibration(("a",), (), (group("found", 4.0), group("given", 1.0)), default_limits())
    row = PatientRow("p", ef_percent=50.0, esv_ml=60.0, method="biplane")
    by_fold = {0: {"ef_percent": 50.0, "edv_ml": None, "esv_ml": 60.0}}
    for phases, width in (("found;found", 8), ("given;found", 8), ("given;given", 2)):
        measured, _, reasons = with_intervals(replace(row, phases=phases), by_fold, calibration, 0.9)
        assert measured.ef_high_percent - measured.ef_low_percent == width
        assert set(reasons) == {"edv_ml", "esv_ml"} and measured.esv_low_ml is None
    measured, _, reasons = with_intervals(replace(row, phases="found;found"), {}, calibration, 0.9)
    assert measured.interval_coverage_percent is None and "--overwrite" in reasons["ef_percent"]
