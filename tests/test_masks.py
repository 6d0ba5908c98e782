"""Bad masks get the same verdict wherever masks are read; a mask that lies in the same place is turned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from echoplan.dataset import Case, DatasetDescription, EchoDataset
from echoplan.datasets.folder import convert_folder
from echoplan.errors import EchoPlanError
from echoplan.evaluation import evaluate_cases
from echoplan.evaluation.commands import compare_command, report_command
from echoplan.experiment_planning.integrity import verify_dataset
from echoplan.imageio import Clip, read_clip, read_mask, write_clip, write_mask
from echoplan.inference.cross_validation import load_labelled
from echoplan.inference.ensemble_folders import postprocess_folder
from echoplan.masks import without_empty_rest

CLIP = Clip(np.random.default_rng(0).integers(1, 200, (4, 40, 48)).astype(np.uint8), (0.3, 0.2), 25.0)
TRUE = np.zeros(CLIP.frames.shape, np.uint8)
TRUE[:, 8:30, 14:30] = 1


def itk(values: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.2, 0.3, 25.0))
    return image


def moved() -> sitk.Image:
    image = itk(TRUE)
    image.SetOrigin((12.5, -3.0, 0.0))
    return image


def mirrored_header() -> sitk.Image:
    image = itk(TRUE)
    image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    return image


def soft() -> np.ndarray:
    values = TRUE * 255
    values[:, 7], values[:, 30], values[:, 8] = values[:, 8] // 3, 1, 130 * TRUE[:, 8]
    return values


NAN = np.where(TRUE == 1, np.nan, 0).astype(np.float32)
BAD = {
    "0/255": (itk(TRUE * 255), "none of a structure"),
    "soft": (itk(soft()), r"value\(s\)"),
    "other grid": (itk(TRUE[:, :-1]), "own grid"),
    "other direction": (mirrored_header(), "elsewhere in space"),
    "other origin": (moved(), "elsewhere in space"),
    "RGB": (sitk.GetImageFromArray(np.stack([TRUE] * 3, -1), isVector=True), "one channel"),
    "float": (itk(TRUE * np.float32(0.5)), "whole numbers"),
    "NaN": (itk(NAN), "whole numbers"),
}
GOOD = {
    "as it is": itk(TRUE),
    "whole floats": itk(TRUE.astype(np.float32)),
    "empty": itk(TRUE * 0),
    "turned in place": sitk.Flip(itk(TRUE), (False, True, False)),
    "mirrored in place": sitk.Flip(itk(TRUE), (True, False, True)),
    "axes exchanged in place": sitk.PermuteAxes(itk(TRUE), (1, 0, 2)),
}


def prepared(folder: Path, image: sitk.Image) -> None:
    for name in ("clips", "masks", "good"):
        (folder / name).mkdir(parents=True)
    write_clip(folder / "clips/a.nii.gz", CLIP)
    sitk.WriteImage(image, str(folder / "masks/a.nii.gz"))
    write_mask(folder / "good/a.nii.gz", TRUE, like=CLIP)


def case(**known) -> Case:
    return Case("a", "p", "clips/a.nii.gz", "masks/a.nii.gz", **known)


def converted(folder: Path) -> str:
    (folder / "cases.csv").write_text("case,patient,image,label\na,p,clips/a.nii.gz,masks/a.nii.gz\n")
    try:
        convert_folder(folder, folder.parent / "Dataset001_A", name="A")
    except EchoPlanError as error:
        return str(error)
    return ""


def verified(folder: Path) -> str:
    return "; ".join(verify_dataset(EchoDataset(folder, DatasetDescription("A"), (case(),))).problems)


def loaded(folder: Path) -> str:
    dataset = EchoDataset(folder, DatasetDescription("A"), (case(),))
    try:
        dataset.load_mask(case(), clip=dataset.load_clip(case()))
    except EchoPlanError as error:
        return str(error)
    return ""


def as_prediction(folder: Path) -> str:
    return str(evaluate_cases([case()], folder / "masks", folder / "good", labels={"LV": 1}).failures.get("a", ""))


def as_reference(folder: Path) -> str:
    return str(evaluate_cases([case()], folder / "good", folder / "masks", labels={"LV": 1}).failures.get("a", ""))


def cross_validated(folder: Path) -> str:
    try:
        load_labelled((folder / "masks/a.nii.gz",), folder / "good/a.nii.gz")
    except EchoPlanError as error:
        return str(error)
    return ""


READERS = (converted, verified, loaded, as_prediction, as_reference, cross_validated)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", BAD)
def test_a_bad_mask_gets_one_verdict_everywhere(tmp_path, read, name):
    image, verdict = BAD[name]
    prepared(tmp_path / "x", image)
    with pytest.raises(AssertionError, match=verdict):
        raise AssertionError(read(tmp_path / "x"))


@pytest.mark.parametrize("read", [converted, loaded, as_prediction, as_reference, cross_validated])
@pytest.mark.parametrize("name", GOOD)
def test_a_good_mask_is_taken_everywhere(tmp_path, read, name):
    prepared(tmp_path / "x", GOOD[name])
    assert read(tmp_path / "x") == ""


@pytest.mark.parametrize("name", [name for name in GOOD if name != "empty"])
def test_a_mask_in_the_same_place_is_turned(tmp_path, name):
    prepared(tmp_path / "x", GOOD[name])
    dataset = EchoDataset(tmp_path / "x", DatasetDescription("A"), (case(),))
    assert np.array_equal(dataset.load_mask(case(), clip=dataset.load_clip(case())), TRUE)
    judged = evaluate_cases([case()], tmp_path / "x/masks", tmp_path / "x/good", labels={"LV": 1})
    assert judged.summary()["mean"]["LV"]["all"]["dice"]["mean"] == 1


@pytest.mark.parametrize("name", ["0/255", "soft", "other grid", "other direction", "RGB", "NaN"])
def test_report_compare_and_postprocessing(tmp_path, name, capsys):
    image, verdict = BAD[name]
    prepared(tmp_path, image)
    report = ["-i", str(tmp_path / "clips"), "-m", str(tmp_path / "masks"), "-o", str(tmp_path / "out")]
    assert report_command(report) == 1
    both = [f"{key}={tmp_path / 'good'}" for key in ("x", "y")]
    assert compare_command(["--predictions", *both, "--references", str(tmp_path / "masks")]) == 1
    error = capsys.readouterr().err
    assert error.replace("\n", " ").count(verdict.replace("\\", "")) >= 2
    if name in ("0/255", "RGB", "NaN"):
        assert postprocess_folder(tmp_path / "masks", tmp_path / "p", ()).failures


@pytest.mark.parametrize("ending", ["nii.gz", "mha", "nrrd"])
@pytest.mark.parametrize("form", ["turned", "flat", "over time"])
def test_masks_lie_on_their_clips_grid(tmp_path, ending, form):
    if form == "over time":
        image = sitk.GetImageFromArray(CLIP.frames[:, None], isVector=False)
        image.SetSpacing((0.25, 0.5, 1.0, 0.025))
        image.SetOrigin((10.0, -20.5, 5.0, 0.0))
    else:
        image = itk(CLIP.frames if form == "turned" else CLIP.frames[:1])
        image.SetDirection((0, -1, 0, -1, 0, 0, 0, 0, 1))
        image.SetOrigin((10.0, -20.5, 5.0))
    if form == "over time" and ending == "nrrd":
        pytest.skip("SimpleITK writes no 4D NRRD that it reads as such")
    file = tmp_path / f"clip.{ending}"
    sitk.WriteImage(image, str(file))
    clip = read_clip(file)
    write_mask(tmp_path / "mask.nii.gz", clip.frames > 100, like=clip)
    image, mask = sitk.ReadImage(str(file)), sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    assert image.GetSize() == mask.GetSize()
    if form == "over time":
        image, mask = image[..., 1], mask[..., 1]
    kept = sitk.GetArrayFromImage(sitk.Mask(image, mask))
    frames = CLIP.frames[:1] if form == "flat" else CLIP.frames[1:2] if form == "over time" else CLIP.frames
    assert np.array_equal(kept.reshape(frames.shape), np.where(frames > 100, frames, 0))
    assert read_mask(tmp_path / "mask.nii.gz").shape == clip.frames.shape


def test_labels_of_two_frames_among_zeros(tmp_path, caplog):
    clip = Clip(np.random.default_rng(1).integers(0, 99, (17, 40, 48)).astype(np.uint8), (0.3, 0.2), 25.0)
    mask = np.zeros(clip.frames.shape, np.uint8)
    mask[[0, 16], 8:30, 14:30] = 1
    taken, note = without_empty_rest(mask)
    assert "0, 16 of 17" in note and (taken[1:16] == 255).all() and np.array_equal(taken[[0, 16]], mask[[0, 16]])
    for name, values in (("references", mask), ("predictions", mask * 0)):
        (tmp_path / name).mkdir()
        write_mask(tmp_path / name / "a.nii.gz", values, like=clip)
    known = Case("a", "p", ed_frame=0, es_frame=16)
    found = evaluate_cases([known], tmp_path / "predictions", tmp_path / "references", labels={"LV": 1})
    assert found.summary()["mean"]["LV"]["all"]["dice"]["mean"] == 0 and found.summary()["frames"] == 2


@pytest.mark.parametrize("shown", [range(17), range(3, 9), range(0)])
def test_other_labels_are_dense(shown):
    mask = np.zeros((17, 8, 8), np.uint8)
    mask[list(shown), 2:5] = 1
    assert without_empty_rest(mask) == (mask, "") or np.array_equal(without_empty_rest(mask)[0], mask)


def test_frames_that_are_empty_in_both_are_counted_apart():
    mask = np.zeros((6, 20, 20), np.uint8)
    mask[:3, 5:15, 5:15] = 1
    found = evaluate_cases([Case("a", "p")], {"a": mask * 0}, {"a": mask}, labels={"LV": 1})
    means = found.summary()["mean"]["LV"]["all"]
    assert means["both_empty"] == 3 and means["dice"]["mean"] == 0.5 and means["dice_of_others"]["mean"] == 0


def verify_rows(folder: Path, *cases: Case, mask: np.ndarray = TRUE) -> str:
    prepared(folder, itk(mask))
    return "; ".join(verify_dataset(EchoDataset(folder, DatasetDescription("A"), cases)).problems)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"ef_percent": 0.55}, "a share of 1"),
        ({"ef_percent": -5.0}, "ef_percent is -5"),
        ({"ef_percent": 550.0}, "ef_percent is 550"),
        ({"edv_ml": 40.0, "esv_ml": 100.0}, "exchanged"),
    ],
)
def test_measurements_that_no_heart_has(tmp_path, known, words):
    assert words in verify_rows(tmp_path / "x", case(**known))


def test_one_clip_of_three_patients(tmp_path):
    cases = [Case(name, f"p{name}", "clips/a.nii.gz", "masks/a.nii.gz") for name in "abc"]
    assert "under the patients pa, pb, pc" in verify_rows(tmp_path / "x", *cases)


def test_a_training_set_without_a_ventricle(tmp_path):
    assert "no label of a training case shows LV" in verify_rows(tmp_path / "x", case(), mask=TRUE * 0)
