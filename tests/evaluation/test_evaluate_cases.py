from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from echoplan.dataset import Case
from echoplan.errors import EchoPlanError
from echoplan.evaluation import evaluate_cases, measure_case, segmentation_metrics
from echoplan.evaluation.comparison.scores import frame_scores, read_ef_table
from echoplan.evaluation.evaluate_cases import cases_in
from echoplan.imageio import Clip, write_clip, write_mask
from echoplan.scripts import evaluate_folder as evaluate_folder_command
from echoplan.scripts import report as report_command

SPACING = (0.8, 0.5)


def judged(predictions, references, known=(), **more):
    return evaluate_cases(cases_in(references, known), predictions, references, **more)


def square(top, left, size=20, shape=(60, 80)):
    mask = np.zeros(shape, np.uint8)
    mask[top : top + size, left : left + size] = 1
    return mask


@pytest.fixture
def masks(tmp_path):
    """Write masks {case: (T, H, W)} into a folder of this name; the folder."""

    def write(name, cases, spacing=SPACING):
        folder = tmp_path / name
        folder.mkdir()
        for case, mask in cases.items():
            clip = Clip(np.zeros(mask.shape, np.uint8), spacing, 25.0)
            write_mask(folder / f"{case}.nii.gz", mask, like=clip)
        return folder

    return write


@pytest.fixture
def two_folders(masks):
    nobody = np.full((60, 80), 255, np.uint8)
    truth = {
        "a": np.stack([square(10, 10), nobody, square(12, 14)]),
        "b": np.stack([square(20, 30)]),
        "gone": np.stack([square(20, 30)]),
    }
    guess = {"a": np.stack([square(10, 12), square(0, 0), square(12, 14)]), "b": np.zeros((1, 60, 80), np.uint8)}
    return masks("predictions", guess), masks("references", truth)


def test_means_over_labelled_frames(two_folders, tmp_path):
    known = [Case("a", "p", "", ed_frame=2, es_frame=0)]
    summary = judged(*two_folders, known, labels={"background": 0, "LV": 1}).write(tmp_path)
    first = segmentation_metrics(square(10, 12), square(10, 10), SPACING)
    dice = [first["dice"], 1.0, 0.0]
    overall = summary["mean"]["LV"]["all"]
    assert overall["dice"] == pytest.approx({"mean": np.mean(dice), "sd": np.std(dice, ddof=1)})
    diagonal = np.hypot(60 * 0.8, 80 * 0.5)
    assert overall["hd95_mm"]["mean"] == pytest.approx((first["hd95"] + 0 + diagonal) / 3)
    assert (overall["frames"], overall["empty_predictions"], summary["frames"], summary["cases"]) == (3, 1, 3, 2)
    assert summary["mean"]["LV"]["end_diastole"]["dice"] == {"mean": 1.0, "sd": None}
    assert summary["mean"]["LV"]["end_systole"]["dice"]["mean"] == pytest.approx(first["dice"])
    assert summary["missing"] == ["gone"]
    assert [frame["frame"] for frame in summary["per_case"]["a"]["frames"]] == [0, 2]
    assert json.loads((tmp_path / "summary.json").read_text())["mean"] == summary["mean"]


def test_ignored_pixels_count_neither_way(masks):
    truth = square(10, 10)
    truth[:, 40:] = 255
    guess = np.maximum(square(10, 10), square(10, 50))
    summary = judged(masks("p", {"a": guess[None]}), masks("r", {"a": truth[None]}), labels={"LV": 1}).summary()
    assert summary["mean"]["LV"]["all"]["dice"]["mean"] == 1.0
    assert summary["mean"]["LV"]["all"]["hd95_mm"]["mean"] == 0.0


def test_every_label_has_its_own_figures(masks):
    truth = square(10, 10) + 2 * square(10, 45)
    guess = square(10, 10) + 2 * square(14, 45)
    folders = masks("p", {"a": guess[None]}), masks("r", {"a": truth[None]})
    summary = judged(*folders, labels={"LV": 1, "LA": 2}).summary()
    assert summary["mean"]["LV"]["all"]["dice"]["mean"] == 1.0
    assert summary["mean"]["LA"]["all"]["dice"]["mean"] == pytest.approx(16 / 20)


def test_broken_cases_do_not_stop_the_rest(two_folders):
    predictions, references = two_folders
    (predictions / "b.nii.gz").write_bytes(b"no image")
    summary = judged(predictions, references, labels={"LV": 1}).summary()
    assert list(summary["failures"]) == ["b"]
    assert summary["cases"] == 1


def test_other_grids_are_failures(masks):
    predictions = masks("p", {"a": square(1, 1, shape=(60, 60))[None]})
    summary = judged(predictions, masks("r", {"a": square(1, 1)[None]}), labels={"LV": 1}).summary()
    assert "(1, 60, 60)" in summary["failures"]["a"]
    assert summary["mean"]["LV"] == {}


def test_cases_are_measured_where_a_target_is_named_and_some_can_be_chosen(two_folders, tmp_path):
    predictions, references = two_folders
    known = [Case(name, name, "", ef_percent=50.0) for name in ("b", "a")]
    evaluation = evaluate_cases(known, predictions, references, labels={"LV": 1}, target="LV")
    assert [row.patient for row in evaluation.rows()] == ["b", "a"]  # in the order of the cases
    assert [row.reference_ef_percent for row in evaluation.rows()] == [50.0, 50.0]
    one = evaluation.only({"a"})
    assert list(one.summary()["per_case"]) == ["a"]
    one.write(tmp_path)
    with open(tmp_path / "ef.csv", newline="") as stream:
        assert [row["patient"] for row in csv.DictReader(stream)] == ["a"]
    without = evaluate_cases(known, {"a": predictions / "a.nii.gz"}, labels={"LV": 1}, target="LV")
    assert (without.summary()["cases"], without.missing, len(without.rows())) == (0, (), 1)


def cavity(length, width=20):
    rows, columns = np.mgrid[:100, :100]
    inside = ((rows - 70) / length) ** 2 + ((columns - 50) / width) ** 2 < 1
    return (inside & (rows < 70)).astype(np.uint8)


def test_ef_of_predictions_and_references_by_every_rule(tmp_path):
    """The dataset's table says 50 %; the reference masks say what the rule makes of them."""
    nobody = np.full((100, 100), 255, np.uint8)
    truth = {"a": np.stack([cavity(60), nobody, cavity(45, 16)])}
    guess = {"a": np.stack([cavity(58), cavity(52), cavity(46, 15)])}
    case = Case("a", "p", "", view="A4C", ed_frame=0, es_frame=2, ef_percent=50.0)
    case = replace(case, spacing_row_mm=1.0, spacing_col_mm=1.0)
    evaluation = evaluate_cases([case], guess, truth, labels={"LV": 1}, target="LV")
    evaluation.write(tmp_path)
    for rule, file in {"simpson": "ef.csv", "camus": "ef_camus.csv", "folland": "ef_folland.csv"}.items():
        with open(tmp_path / file, newline="") as stream:
            (row,) = csv.DictReader(stream)
        for name, masks in {"ef_percent": guess, "reference_mask_ef_percent": truth}.items():
            alone = measure_case(case, masks["a"] == 1, method=rule).ef_percent
            assert float(row[name]) == pytest.approx(alone)
        assert (row["volume_rule"], float(row["reference_ef_percent"])) == (rule, 50)
        found = read_ef_table(tmp_path, rule)
        assert found["reference_ef_percent"].item() == pytest.approx(float(row["reference_mask_ef_percent"]))
        assert found["reference"].item() == "masks"
        assert read_ef_table(tmp_path, rule, "table")["reference_ef_percent"].item() == 50
    assert [line.split(":")[0] for line in evaluation.ef_lines("camus")] == [
        "EF by camus against the reference masks'", "EF by camus against the table's",
    ]  # fmt: skip
    (tmp_path / "ef_camus.csv").unlink()
    with pytest.raises(EchoPlanError, match="no EF by the rule camus"):
        read_ef_table(tmp_path, "camus")
    unknown = replace(case, ed_frame=None)  # then nobody knows in which frames the references should be measured
    (row,) = evaluate_cases([unknown], guess, truth, labels={"LV": 1}, target="LV").rows()
    assert row.reference_mask_ef_percent is None


def test_ed_and_es_are_pooled_where_there_are_other_frames(two_folders, masks):
    known = [Case("a", "p", "", ed_frame=2, es_frame=0)]
    mean = judged(*two_folders, known, labels={"LV": 1}).summary()["mean"]["LV"]
    assert (mean["all"]["frames"], mean["ed_es"]["frames"]) == (3, 2)  # the frame of b has no phase
    assert mean["ed_es"]["dice"]["mean"] == pytest.approx(
        (mean["end_diastole"]["dice"]["mean"] + mean["end_systole"]["dice"]["mean"]) / 2
    )
    assert mean["all"]["hd_mm"]["mean"] >= mean["all"]["hd95_mm"]["mean"] > 0
    scores = frame_scores(judged(*two_folders, known, labels={"LV": 1}).per_case)
    assert (scores[scores["metric"] == "dice"]["phase"] == "ed_es").sum() == 2


def test_nothing_to_evaluate_is_named(two_folders, tmp_path):
    with pytest.raises(EchoPlanError):
        judged(two_folders[0], tmp_path / "nowhere", labels={"LV": 1})
    (tmp_path / "empty").mkdir()
    with pytest.raises(EchoPlanError):
        judged(two_folders[0], tmp_path / "empty", labels={"LV": 1})
    with pytest.raises(EchoPlanError):
        judged(*two_folders, labels={"background": 0})


def test_the_command_evaluates_and_names_what_is_missing(two_folders, capsys):
    predictions, references = (str(folder) for folder in two_folders)
    assert evaluate_folder_command([predictions, references, "--labels", "LV=1", "-np", "0"]) == 1
    out = capsys.readouterr()
    assert "gone: there is no prediction" in out.err
    assert "3 frames, 1 predicted empty, Dice 6" in out.out
    assert (two_folders[0] / "summary.json").is_file()
    with pytest.raises(SystemExit):
        evaluate_folder_command([predictions, references, "--labels", "LV=one"])


def test_swapped_folders_are_refused_and_nothing_is_written(tmp_path, capsys):
    mask = np.zeros((3, 20, 20), np.uint8)
    mask[:, 5:15, 5:15] = 1
    truth = mask.copy()
    truth[1] = 255  # as labels of end-diastole and end-systole are kept
    folders = {"predicted": mask, "labels": truth}
    for folder, values in folders.items():
        for case in "ab":
            write_mask(tmp_path / folder / f"{case}.nii.gz", values, like=Clip(mask, SPACING))
    predicted, labels = (str(tmp_path / folder) for folder in folders)
    for swapped in ([labels, predicted], ["-pred", labels, "-ref", predicted]):
        assert evaluate_folder_command([*swapped, "-np", "0"]) == 1
        said = capsys.readouterr().err
        assert (
            "2 of 2 predictions hold 255" in said and "are the folders of predictions and references swapped?" in said
        )
    assert not list(tmp_path.rglob("*.json"))
    for right in ([predicted, labels], ["-ref", labels, "-pred", predicted]):
        assert evaluate_folder_command([*right, "-np", "0"]) == 0
        assert "4 frames, Dice 100.00 %" in capsys.readouterr().out


def test_two_folders_are_needed_by_place_or_by_name(two_folders, capsys):
    predictions, references = (str(folder) for folder in two_folders)
    for wrong in ([], [predictions], [predictions, references, predictions], ["-pred", predictions],
                  [predictions, references, "-ref", references]):  # fmt: skip
        with pytest.raises(SystemExit):
            evaluate_folder_command(wrong)
        assert "give two folders" in capsys.readouterr().err


@pytest.fixture
def clips_and_masks(tmp_path, half_ellipsoid):
    clips, masks = tmp_path / "clips", tmp_path / "masks"
    clips.mkdir()
    masks.mkdir()
    random = np.random.default_rng(0)
    for name, width in (("p1_A2C", 44), ("p1_A4C", 50), ("p2_A4C", 48)):
        sizes = [(80, width), (72, 0.85 * width), (66, 0.7 * width)]
        mask = np.stack([half_ellipsoid(*size, SPACING, shape=(150, 240))[0] for size in sizes])
        frames = (random.integers(0, 60, mask.shape) + 120 * (1 - mask)).astype(np.uint8)
        clip = Clip(frames, SPACING, 40.0)
        write_clip(clips / f"{name}.nii.gz", clip)
        write_mask(masks / f"{name}.nii.gz", mask, like=clip)
    with open(clips / "cases.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "patient", "image", "view", "ef_percent"])
        for name in ("p1_A2C", "p1_A4C", "p2_A4C"):
            writer.writerow([name, name[:2], f"{name}.nii.gz", name[3:], 58])
    return clips, masks


@pytest.mark.parametrize("table", ["with the clips", "beside them", "none"])
def test_the_report_command_knows_what_prediction_knew(clips_and_masks, table, tmp_path, capsys):
    clips, masks = clips_and_masks
    if table == "beside them":
        rows = (clips / "cases.csv").read_text().replace("p2,p2_A4C.nii.gz", "p2,clips/p2_A4C.nii.gz")
        (tmp_path / "cases.csv").write_text(re.sub(r"p1,(p1_A\dC)", r"p1,clips/\1", rows))
    if table != "with the clips":
        (clips / "cases.csv").unlink()
    (masks / "p2_A4C.nii.gz").unlink()
    out = tmp_path / "out"
    assert report_command(["-i", str(clips), "-m", str(masks), "-o", str(out), "-np", "0"]) == 0
    assert "1 clips have no mask and are left out: p2_A4C" in capsys.readouterr().out
    (row,) = json.loads((out / "ef_report.json").read_text())["rows"]
    assert (row["patient"], row["method"]) == ("p1", "biplane")
    assert row["reference_ef_percent"] == (None if table == "none" else 58)


def test_the_report_command(clips_and_masks, tmp_path, capsys):
    clips, masks = clips_and_masks
    (masks / "lost.nii.gz").write_bytes((masks / "p1_A2C.nii.gz").read_bytes())
    out = tmp_path / "out"
    assert report_command(["-i", str(clips), "-m", str(masks), "-o", str(out), "-np", "0"]) == 1
    said = capsys.readouterr()
    assert "lost: there is no clip" in said.err
    stored = json.loads((out / "ef_report.json").read_text())
    assert "1 of 2 patients is measured in one plane: no A2C clip" in said.out
    assert {row["quality"] for row in stored["rows"]} <= {"check", "not judged"}
    assert [row["method"] for row in stored["rows"]] == ["biplane", "single_plane_a4c"]
    assert stored["rows"][0]["ef_percent"] == pytest.approx(100 * (1 - 0.825 * 0.49), abs=1)
    assert stored["rows"][0]["reference_ef_percent"] == 58
    page = (out / "report.html").read_text()
    assert len(re.findall(r"data:image/webp;base64,[\w+/]{100}", page)) == 6
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
