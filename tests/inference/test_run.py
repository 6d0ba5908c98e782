"""A folder of clips, predicted past broken ones, continued, and reported."""

from __future__ import annotations

import csv
import json
import os
import shutil
from importlib import import_module

import numpy as np
import pytest
import SimpleITK as sitk

from echoplan.errors import EchoPlanError
from echoplan.imageio import probe_clip, read_clip, read_mask, write_clip
from echoplan.inference import EchoPredictor, find_inputs, predict_folder
from echoplan.inference.predict_folder import Part
from echoplan.preprocessing.probabilities import load_probabilities
from echoplan.scripts import apply_postprocessing as apply_postprocessing_command
from echoplan.scripts import compare as compare_command
from echoplan.scripts import ensemble
from echoplan.scripts import evaluate_folder as evaluate_folder_command
from echoplan.scripts import report as report_command

from .conftest import make_heart


@pytest.fixture
def predictor(folders, make_model):
    return EchoPredictor.from_model_folder(make_model(folders.results), device="cpu", trust_code=True)


def rows_by_patient(out):
    with open(out / "ef_report.csv", newline="") as stream:
        return {row["patient"]: row for row in csv.DictReader(stream)}


def test_all_clips_are_predicted_past_a_broken_one(tmp_path, clips, predictor, heart):
    out = tmp_path / "out"
    run = predict_folder(clips, out, predictor, keep_probabilities=True)
    assert sorted(run.predicted) == ["p1_2CH", "p1_A4C", "p2_A4C", "p3_pictures"]
    assert list(run.failures) == ["p4_A4C"] and "NIfTI" in run.failures["p4_A4C"]
    for case in run.predicted:
        mask = read_mask(out / f"{case}.nii.gz", frames_shape=heart.mask.shape)
        assert 2 * (mask & heart.mask).sum() / (mask.sum() + heart.mask.sum()) > 0.97
        np.testing.assert_array_equal(load_probabilities(out / f"{case}.npz").labels(), mask)
    assert probe_clip(out / "p1_A4C.nii.gz").spacing_mm == pytest.approx((0.5, 0.5))
    rows = rows_by_patient(out)
    assert rows["p1"]["method"] == "biplane" and float(rows["p1"]["edv_ml"]) > 0
    assert rows["p2"]["method"] == "single_plane_a4c" and rows["p2"]["edv_ml"] == ""  # an AVI has no spacing
    assert float(rows["p2"]["ef_percent"]) == pytest.approx(66, abs=4)
    assert rows["p4"]["failure"] and not rows["p4"]["ef_percent"]
    assert "p3_pictures" in (out / "report.html").read_text()
    record = json.loads((out / "prediction_args.json").read_text())
    assert {item["case"]: item["result"] for item in record["inputs"]}["p4_A4C"] == "failed"
    assert record["model"]["members"][0]["folds"] == [0, 1] and record["failures"].keys() == {"p4_A4C"}


def test_finished_cases_are_kept_when_continuing(tmp_path, clips, predictor):
    out = tmp_path / "out"
    predict_folder(clips, out, predictor)
    with pytest.raises(EchoPlanError, match="--c keeps"):
        predict_folder(clips, out, predictor)
    (out / "p2_A4C.nii.gz").unlink()
    before = (out / "p1_A4C.nii.gz").stat().st_mtime_ns
    run = predict_folder(clips, out, predictor, continue_prediction=True)
    assert run.predicted == ["p2_A4C"] and len(run.kept) == 3
    assert (out / "p1_A4C.nii.gz").stat().st_mtime_ns == before
    assert rows_by_patient(out).keys() == {"p1", "p2", "p3_pictures", "p4"}
    run = predict_folder(clips, out, predictor, overwrite=True)
    assert len(run.predicted) == 4 and (out / "p1_A4C.nii.gz").stat().st_mtime_ns > before


def test_a_mask_that_nifti_cannot_hold_is_found_everywhere(tmp_path, heart, predictor):
    clips, out = tmp_path / "clips", tmp_path / "out"
    clips.mkdir()
    image = sitk.GetImageFromArray(heart.clip.frames)
    image.SetSpacing((0.5, 0.5, 125 / 3))
    image.SetOrigin((123.456789, -345.6789, 12.3456))
    sitk.WriteImage(image, str(clips / "p1_A4C.mha"))
    predict_folder(clips, out, predictor, keep_probabilities=True)
    assert sorted(file.name for file in out.glob("p1_A4C.*")) == ["p1_A4C.mha", "p1_A4C.npz"]
    sitk.Mask(image, sitk.ReadImage(str(out / "p1_A4C.mha")))
    run = predict_folder(clips, out, predictor, continue_prediction=True, overlays=True)
    assert run.kept == ["p1_A4C"] and not run.failures and run.rows[0].ef_percent is not None
    shutil.copy(out / "p1_A4C.mha", out / "p1_A4C.nii.gz")  # of an earlier version, whatever it holds
    assert predict_folder(clips, out, predictor, overwrite=True).predicted == ["p1_A4C"]
    (tmp_path / "pp.json").write_text('{"steps": []}')
    post = ["-i", str(out), "-o", str(tmp_path / "post"), "--pp", str(tmp_path / "pp.json")]
    report = ["-i", str(clips), "-m", str(tmp_path / "ensemble"), "-o", str(tmp_path / "report")]
    assert ensemble(["-i", str(out), str(out), "-o", str(tmp_path / "ensemble")]) == 0
    assert apply_postprocessing_command(post) == report_command(report) == 0
    assert evaluate_folder_command([str(tmp_path / "post"), str(tmp_path / "ensemble")]) == 0
    for folder in ("post", "ensemble"):
        sitk.Mask(image, sitk.ReadImage(str(tmp_path / folder / "p1_A4C.mha")))
    shutil.copy(clips / "p1_A4C.mha", out / "p2_A4C.mha")
    assert [item.name for item in find_inputs(out)] == ["p2_A4C"]
    with pytest.raises(EchoPlanError, match="would overwrite the clips"):
        predict_folder(clips / "p1_A4C.mha", clips, predictor)


def test_results_of_another_model_are_not_kept(tmp_path, folders, clips, make_model, predictor, caplog):
    out = tmp_path / "out"
    predict_folder(clips, out, predictor)
    model = make_model(folders.results, thresholds=(0.3, 0.5))
    elsewhere = shutil.copytree(model, tmp_path / "copy" / model.name)
    other = EchoPredictor.from_model_folder(model, device="cpu", trust_code=True)
    again = EchoPredictor.from_model_folder(elsewhere, device="cpu", trust_code=True)
    run = predict_folder(clips, out, other, continue_prediction=True)
    assert len(run.predicted) == 4 and run.kept == []
    assert "4 results are of another model" in caplog.text
    assert len(predict_folder(clips, out, again, continue_prediction=True).kept) == 4  # the same weights, elsewhere
    one_fold = EchoPredictor.from_model_folder(model, folds=[0], device="cpu", trust_code=True)
    bare = EchoPredictor.from_model_folder(model, device="cpu", postprocessing=["largest_component"], trust_code=True)
    mirrored = EchoPredictor.from_model_folder(model, device="cpu", mirroring=True, trust_code=True)
    assert len({each.identity for each in (predictor, other, one_fold, bare, mirrored)}) == 5


def test_results_of_clips_that_changed_are_not_kept(tmp_path, clips, predictor, caplog):
    out = tmp_path / "out"
    predict_folder(clips, out, predictor)
    write_clip(clips / "p1_A4C.nii.gz", make_heart(frames=9).clip)
    (picture,) = (clips / "p3_pictures").glob("*3.png")
    os.utime(picture, ns=(0, picture.stat().st_mtime_ns + 1))
    run = predict_folder(clips, out, predictor, continue_prediction=True)
    assert run.predicted == ["p1_A4C", "p3_pictures"] and "2 results are of another model, or their" in caplog.text
    assert len(read_mask(out / "p1_A4C.nii.gz")) == 9
    (clips / "cases.csv").write_text("case,patient,image,ed_frame,es_frame\np2_A4C,p2,p2_A4C.avi,1,5\n")
    assert predict_folder(clips, out, predictor, continue_prediction=True).predicted == ["p2_A4C"]


def test_no_old_mask_is_left_beside_evidence_of_another_model(tmp_path, folders, clips, make_model, predictor):
    """A process that dies between the two files leaves a clip that is not finished."""
    out = tmp_path / "out"
    predict_folder(clips / "p1_A4C.nii.gz", out, predictor)
    other = EchoPredictor.from_model_folder(
        make_model(folders.results, thresholds=(0.3, 0.5)), device="cpu", trust_code=True
    )
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            import_module("echoplan.inference.pipeline"),
            "save_mask",
            lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        predict_folder(clips / "p1_A4C.nii.gz", out, other, overwrite=True)
    run = predict_folder(clips / "p1_A4C.nii.gz", out, other, continue_prediction=True)
    assert run.predicted == ["p1_A4C"]


def test_a_file_where_results_should_go_is_named_at_once(tmp_path, clips, predictor):
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below" / "it"):
        with pytest.raises(EchoPlanError, match="a file lies where the results should go") as caught:
            predict_folder(clips, out, predictor)
        assert caught.value.file == str(file)
    assert file.read_text() == "mine"


def test_clips_are_never_overwritten(clips, predictor):
    before = (clips / "p1_A4C.nii.gz").read_bytes()
    with pytest.raises(EchoPlanError, match="among the clips"):
        predict_folder(clips, clips, predictor, overwrite=True)
    with pytest.raises(EchoPlanError, match="overwrite the clips"):
        predict_folder(clips / "p1_A4C.nii.gz", clips, predictor, overwrite=True)
    assert (clips / "p1_A4C.nii.gz").read_bytes() == before


def test_cases_csv_gives_phases_spacing_and_references(tmp_path, clips, predictor):
    (clips / "cases.csv").write_text(
        "case,patient,image,view,ed_frame,es_frame,spacing_row_mm,spacing_col_mm,ef_percent\n"
        "p2_A4C,p2,p2_A4C.avi,A4C,1,5,0.5,0.5,60\n"
    )
    predict_folder(clips / "p2_A4C.avi", tmp_path / "out", predictor, ef_method="camus")
    row = rows_by_patient(tmp_path / "out")["p2"]
    assert (row["ed_frames"], row["es_frames"], row["reference_ef_percent"]) == ("1", "5", "60.0")
    assert row["volume_rule"] == "camus" and float(row["edv_ml"]) > 0


def test_the_frame_time_reaches_the_mask(tmp_path, clips, predictor):
    predict_folder(clips / "p1_A4C.nii.gz", tmp_path / "out", predictor)
    assert read_clip(tmp_path / "out" / "p1_A4C.nii.gz").frame_time_ms == pytest.approx(1000 / 12, abs=0.01)


def test_overlays_are_written_past_a_broken_clip(tmp_path, clips, predictor, heart):
    run = predict_folder(clips, tmp_path / "out", predictor, overlays=True)
    assert list(run.failures) == ["p4_A4C"]
    folder = tmp_path / "out" / "overlays"
    assert sorted(file.stem for file in folder.iterdir()) == sorted(run.predicted)
    video = read_clip(folder / "p1_A4C.mp4")
    assert len(video.frames) == len(heart.mask)
    assert video.frame_time_ms == pytest.approx(1000 / 12, abs=0.01)


def test_parts_predicted_apart_and_merged_equal_the_whole(tmp_path, clips, predictor):
    whole, out = tmp_path / "whole", tmp_path / "out"
    plain = predict_folder(clips, whole, predictor, keep_probabilities=True)
    runs = [
        predict_folder(clips, out, predictor, part=Part(number, 3), keep_probabilities=True) for number in (2, 0, 1)
    ]
    names = sorted(case for run in runs for case in [*run.predicted, *run.failures])
    assert names == sorted([*plain.predicted, *plain.failures])  # each clip in one part
    assert max(len(run.predicted) + len(run.failures) for run in runs) == 2
    assert not (out / "ef_report.csv").exists()
    records = [json.loads((out / f"prediction_args.part_{number}_of_3.json").read_text()) for number in range(3)]
    assert sorted(item["case"] for record in records for item in record["inputs"]) == names
    with pytest.raises(EchoPlanError, match="--c keeps"):
        predict_folder(clips, out, predictor, part=Part(0, 3))
    merged = predict_folder(clips, out, predictor, keep_probabilities=True, continue_prediction=True)
    assert merged.kept == plain.predicted and merged.predicted == [] and merged.failures == plain.failures
    for file in whole.rglob("*"):
        if file.is_file() and file.name not in ("prediction_args.json", "report.html"):
            assert (out / file.relative_to(whole)).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize(("number", "count"), [(3, 3), (-1, 3), (0, 0)])
def test_a_part_that_does_not_exist_is_an_error(number, count):
    with pytest.raises(EchoPlanError, match=f"no part {number} of {count}"):
        Part(number, count)


def test_a_name_that_is_no_utf8_passes_through_every_command(tmp_path, predictor, heart, capsys):
    clips, out = tmp_path / "clips", tmp_path / "out"
    for name in (b"M\xfcller_A2C.nii.gz", b"M\xfcller_A4C.nii.gz", b"\x1b[2J.nii.gz"):
        write_clip(clips / os.fsdecode(name), heart.clip)
    run = predict_folder(clips, out, predictor, overlays=True)
    assert sorted(run.predicted) == ["%1B[2J", "M%FCller_A2C", "M%FCller_A4C"] and not run.failures
    assert rows_by_patient(out)["M%FCller"]["method"] == "biplane"
    again = predict_folder(clips, out, predictor, continue_prediction=True)
    assert len(again.kept) == 3 and "M%FCller" in (out / "report.html").read_text(encoding="utf-8")
    recorded = json.loads((out / "prediction_args.json").read_text(encoding="utf-8"))["inputs"]
    assert all(os.path.exists(item["path"]) for item in recorded)
    report = ["-i", str(clips), "-m", str(out), "-o", str(tmp_path / "again"), "-np", "0"]
    assert report_command(report) == 0
    first, anew = rows_by_patient(out), rows_by_patient(tmp_path / "again")
    assert [(name, row["method"], row["ef_percent"]) for name, row in first.items()] == [
        (name, row["method"], row["ef_percent"]) for name, row in anew.items()
    ]
    odd = out.with_name(os.fsdecode(b"o\xfct"))
    shutil.copytree(out, odd)
    (odd / "M%FCller_A2C.nii.gz").rename(odd / os.fsdecode(b"M\xfcller_A2C.nii.gz"))
    assert evaluate_folder_command([str(odd), str(out), "-np", "0"]) == 0
    methods = ["--predictions", f"a={odd}", f"b={out}", "--references", str(out), "-o", str(tmp_path / "c"), "-np", "0"]
    assert compare_command(methods) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err


@pytest.mark.parametrize(("phases", "note"), [("0,12", "es_frame is 12"), ("3,3", "both 3"), ("0,6", "")])
def test_phases_that_the_clip_has_not_are_found_and_named(tmp_path, predictor, heart, phases, note):
    write_clip(tmp_path / "clips" / "a.nii.gz", heart.clip)
    (tmp_path / "clips" / "cases.csv").write_text(
        f"case,patient,image,ed_frame,es_frame,spacing_row_mm,spacing_col_mm\na,p,a.nii.gz,{phases},1,1\n"
    )
    run = predict_folder(tmp_path / "clips", tmp_path / "out", predictor)
    row = rows_by_patient(tmp_path / "out")["p"]
    assert run.predicted == ["a"] and row["phases"] == ("found" if note else "given") and note in row["note"]
    assert float(row["ef_percent"]) == pytest.approx(66, abs=4)


@pytest.mark.parametrize("phases", ["-1,5", "x,5"])
def test_phases_that_are_no_frames_are_an_error_before_anything_runs(tmp_path, predictor, heart, phases):
    write_clip(tmp_path / "clips" / "a.nii.gz", heart.clip)
    (tmp_path / "clips" / "cases.csv").write_text(f"case,patient,image,ed_frame,es_frame\na,p,a.nii.gz,{phases}\n")
    with pytest.raises(EchoPlanError, match=r"row 2 \(a\): ed_frame"):
        predict_folder(tmp_path / "clips", tmp_path / "out", predictor)
    assert not (tmp_path / "out").exists()
