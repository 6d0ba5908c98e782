"""The commands, as a user types them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from echoplan.imageio import probe_clip, read_mask, write_clip, write_mask
from echoplan.preprocessing.probabilities import load_probabilities
from echoplan.scripts import apply_postprocessing as apply_postprocessing_command
from echoplan.scripts import ensemble, predict
from echoplan.scripts import find_best_configuration as find_best_configuration_command


@pytest.fixture(autouse=True)
def environment(monkeypatch, folders):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"echoplan_{name}", str(getattr(folders, name)))


def test_predict_with_nothing_but_in_and_out(tmp_path, folders, make_model, clips, capsys):
    make_model(folders.results)
    assert predict(["-i", str(clips), "-o", str(tmp_path / "out"), "--device", "cpu", "-np", "0"]) == 1  # one is broken
    shown = capsys.readouterr()
    assert "4 clips predicted" in shown.out and "p4_A4C" in shown.err and "NIfTI" in shown.err
    (clips / "p4_A4C.nii.gz").unlink()
    arguments = ["-i", str(clips), "-o", str(tmp_path / "out"), "--continue_prediction", "--device", "cpu", "-np", "0"]
    assert predict(arguments) == 0
    assert "4 were finished before" in capsys.readouterr().out


def test_patients_without_an_ejection_fraction_are_counted(tmp_path, folders, make_model, heart, capsys):
    make_model(folders.results)
    write_clip(tmp_path / "still.nii.gz", replace(heart.clip, frames=heart.clip.frames[:1]))
    arguments = ["-i", str(tmp_path / "still.nii.gz"), "-o", str(tmp_path / "out"), "--device", "cpu", "-np", "0"]
    assert predict(arguments) == 0  # its mask is made all the same
    assert "1 of 1 patients have no EF" in capsys.readouterr().out


def test_predict_with_a_trainer_that_trained_nothing_says_what_to_do(tmp_path, clips, capsys):
    assert predict(["-i", str(clips), "-o", str(tmp_path / "out"), "-tr", "UNetTrainer"]) == 1
    assert "echoplan_train" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--devices", "cpu"], ["-f", "all", "1"], ["-f", "x"], ["--ef_method", "guess"]])
def test_wrong_options_are_errors(tmp_path, clips, more):
    with pytest.raises(SystemExit) as stop:
        predict(["-i", str(clips), "-o", str(tmp_path / "out"), *more])
    assert stop.value.code == 2


def test_a_part_is_predicted_and_says_how_to_go_on(tmp_path, folders, make_model, clips, capsys):
    make_model(folders.results)
    arguments = ["-i", str(clips), "-o", str(tmp_path / "out"), "--device", "cpu", "-np", "0"]
    assert predict([*arguments, "--num_parts", "2", "--part_id", "1"]) == 0
    shown = capsys.readouterr().out
    assert "part 1 of 2: 2 clips predicted" in shown and "--c instead of" in shown
    assert predict([*arguments, "--num_parts", "2", "--part_id", "0"]) == 1  # one is broken
    assert "p4_A4C" in capsys.readouterr().err
    assert not (tmp_path / "out" / "ef_report.csv").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--num_parts", "4", "--part_id", "4"], "there is no part 4 of 4"),
        (["--num_parts", "4"], "belong together"),
        (["--num_parts", "4", "--part_id", "0", "--overlays"], "--dicom and --overlays belong to"),
        (["--address", "auto"], "add --engine ray"),
        (["--actors", "2"], "add --engine ray"),
    ],
)
def test_options_that_do_not_fit_each_other_are_errors(tmp_path, clips, more, words, capsys):
    assert predict(["-i", str(clips), "-o", str(tmp_path / "out"), *more]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("error:") == 1


def test_without_ray_the_engine_says_how_to_install_it(tmp_path, clips, monkeypatch, capsys):
    monkeypatch.setattr("echoplan.cluster.importlib.util.find_spec", lambda name: None)
    assert predict(["-i", str(clips), "-o", str(tmp_path / "out"), "--engine", "ray"]) == 1
    assert "pip install '.[ray]'" in capsys.readouterr().err


def test_the_best_configuration_is_found_and_predicted_with(tmp_path, make_crossval, clips, capsys):
    model = make_crossval()
    make_crossval("DimTrainer", spoil=lambda case, values: values * 0.6)
    assert find_best_configuration_command(["Phantom", "-np", "0"]) == 0
    shown = capsys.readouterr().out
    assert "Dice" in shown and f"best: {model.name}" in shown and "echoplan_predict -i IN -o OUT -d Phantom" in shown
    clip = str(clips / "p1_A4C.nii.gz")
    assert predict(["-i", clip, "-o", str(tmp_path / "out"), "-f", "0", "--device", "cpu", "-np", "0"]) == 0
    record = json.loads((tmp_path / "out" / "prediction_args.json").read_text())
    assert [item["folds"] for item in record["model"]["members"]] == [[0]]
    assert "best configuration" in capsys.readouterr().out


def test_ensemble_averages_saved_probabilities(tmp_path, folders, make_model, clips, capsys):
    (clips / "p4_A4C.nii.gz").unlink()
    outs = []
    for trainer, threshold in (("BrightTrainer", 0.2), ("DimTrainer", 0.7)):
        make_model(folders.results, trainer=trainer, thresholds=(threshold, threshold))
        outs.append(str(tmp_path / trainer))
        arguments = ["-i", str(clips), "-o", outs[-1], "-tr", trainer, "--save_probabilities", "--device", "cpu"]
        assert predict([*arguments, "-np", "0"]) == 0
    (tmp_path / "DimTrainer" / "p2_A4C.npz").unlink()
    assert ensemble(["-i", *outs, "-o", str(tmp_path / "both"), "-np", "0"]) == 1
    assert "p2_A4C: not in" in capsys.readouterr().err
    saved = [load_probabilities(tmp_path / name / "p1_A4C.npz") for name in ("BrightTrainer", "DimTrainer")]
    values = [item.values.astype(np.float32) for item in saved]
    assert not np.array_equal(*values)
    expected = saved[0].geometry.to_native((values[0] + values[1]) / 2)[0] >= 0.5
    np.testing.assert_array_equal(read_mask(tmp_path / "both" / "p1_A4C.nii.gz"), expected)
    info = probe_clip(tmp_path / "both" / "p1_A4C.nii.gz")
    assert info.spacing_mm == pytest.approx((0.5, 0.5)) and info.frame_time_ms == pytest.approx(1000 / 12, abs=0.01)


def test_apply_postprocessing_to_a_folder(tmp_path, heart, capsys):
    mask = heart.mask.copy()
    mask[:, :3, :3] = 1
    write_mask(tmp_path / "masks" / "a.nii.gz", mask, like=heart.clip)
    steps = tmp_path / "postprocessing.json"
    steps.write_text('{"steps": [{"name": "largest_component"}]}')
    arguments = ["-i", str(tmp_path / "masks"), "--pp", str(steps), "-np", "0"]
    assert apply_postprocessing_command([*arguments, "-o", str(tmp_path / "new")]) == 0
    np.testing.assert_array_equal(read_mask(tmp_path / "new" / "a.nii.gz"), heart.mask)
    assert apply_postprocessing_command([*arguments, "-o", str(tmp_path / "masks")]) == 1
    assert "overwrite" in capsys.readouterr().err
