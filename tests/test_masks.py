"""Bad masks get the same verdict wherever masks are read; a mask that lies in the same place is turned."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from echoplan.dataset import Case, DatasetDescription, EchoDataset
from echoplan.errors import EchoPlanError
from echoplan.evaluation import evaluate_cases, measure_case
from echoplan.evaluation.report.overlays import write_overlays
from echoplan.experiment_planning.integrity import verify_dataset
from echoplan.files import write_json
from echoplan.imageio import Clip, write_clip, write_mask
from echoplan.inference.cross_validation import Candidate, CrossValidation, load_labelled, score_candidates
from echoplan.inference.dicom_output import write_dicom
from echoplan.inference.foundation.networks import FoundationModel
from echoplan.inference.reporting import write_reports
from echoplan.inference.study.cross import prepare_dataset
from echoplan.inputs import InputClip
from echoplan.masks import without_empty_rest
from echoplan.paths import Folders
from echoplan.plans import Configuration, Decision, Plan
from echoplan.scripts import apply_postprocessing as apply_postprocessing_command
from echoplan.scripts import compare as compare_command
from echoplan.scripts import convert_dataset, extract_fingerprint, preprocess, zero_shot
from echoplan.scripts import evaluate_folder as evaluate_folder_command
from echoplan.scripts import report as report_command

CLIP = Clip(np.random.default_rng(0).integers(1, 200, (4, 40, 48)).astype(np.uint8), (0.3, 0.2), 25.0)
TRUE = np.zeros(CLIP.frames.shape, np.uint8)
TRUE[:2, 8:30, 14:30] = TRUE[2:, 9:28, 16:28] = 1
BORDER = ((0, 0), (5, 3), (6, 8))  # of a DICOM's image around its ultrasound region, which is the clip
DATASET = "Dataset001_A"


def itk(values: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.2, 0.3, 25.0))
    return image


def moved(true: np.ndarray) -> sitk.Image:
    image = itk(true)
    image.SetOrigin((12.5, -3.0, 0.0))
    return image


def mirrored_header(true: np.ndarray) -> sitk.Image:
    image = itk(true)
    image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    return image


def soft(true: np.ndarray) -> sitk.Image:
    values = true * 255
    values[:, 7], values[:, 30], values[:, 20] = values[:, 20] // 3, 1, 130 * true[:, 20]
    return itk(values)


BAD: dict[str, tuple[Callable[[np.ndarray], sitk.Image], str]] = {
    "0/255": (lambda true: itk(true * 255), "none of a structure"),
    "soft": (soft, "value(s)"),
    "other grid": (lambda true: itk(true[:, :-1]), "own grid"),
    "other direction": (mirrored_header, "elsewhere in space"),
    "other origin": (moved, "elsewhere in space"),
    "RGB": (lambda true: sitk.GetImageFromArray(np.stack([true] * 3, -1), isVector=True), "one channel"),
    "float": (lambda true: itk(true * np.float32(0.5)), "whole numbers"),
    "NaN": (lambda true: itk(np.where(true == 1, np.nan, 0).astype(np.float32)), "whole numbers"),
}
GOOD: dict[str, Callable[[np.ndarray], sitk.Image]] = {
    "as it is": itk,
    "whole floats": lambda true: itk(true.astype(np.float32)),
    "empty": lambda true: itk(true * 0),
    "turned in place": lambda true: sitk.Flip(itk(true), (False, True, False)),
    "mirrored in place": lambda true: sitk.Flip(itk(true), (True, False, True)),
    "axes exchanged in place": lambda true: sitk.PermuteAxes(itk(true), (1, 0, 2)),
}
IN_SPACE = ("other direction", "other origin")  # where a DICOM clip says nothing


def write_dicom_clip(path: Path) -> None:
    frames, header, region = np.pad(CLIP.frames, BORDER), Dataset(), Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    header.SOPClassUID, header.SOPInstanceUID = uid.UltrasoundMultiFrameImageStorage, uid.generate_uid()
    header.StudyInstanceUID, header.SeriesInstanceUID, header.Modality = uid.generate_uid(), uid.generate_uid(), "US"
    header.PatientName = header.PatientID = header.StudyID = header.AccessionNumber = header.PatientSex = ""
    header.PatientBirthDate = header.StudyDate = header.StudyTime = header.ReferringPhysicianName = ""
    header.NumberOfFrames, header.Rows, header.Columns = frames.shape
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation = 1, "MONOCHROME2", 0
    header.BitsAllocated, header.BitsStored, header.HighBit = 8, 8, 7
    header.FrameTime, header.FrameIncrementPointer, header.PixelData = "25", 0x00181063, frames.tobytes()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinY0, region.RegionLocationMaxY1 = BORDER[1][0], BORDER[1][0] + CLIP.frame_shape[0] - 1
    region.RegionLocationMinX0, region.RegionLocationMaxX1 = BORDER[2][0], BORDER[2][0] + CLIP.frame_shape[1] - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    header.SequenceOfUltrasoundRegions = [region]
    header.save_as(path, enforce_file_format=True)


class Place:
    """A project whose one mask is good or bad: as labels of a raw dataset, beside a good mask, as a fold's mask."""

    def __init__(self, root: Path, image: sitk.Image, *, dicom: bool = False) -> None:
        self.root, self.raw, self.out = root, root / "raw" / DATASET, root / "out"
        for folder in (self.raw / "clips", self.raw / "masks", root / "good"):
            folder.mkdir(parents=True)
        self.clip, self.mask, self.good = self.raw / "clips/a", self.raw / "masks/a.nii.gz", root / "good/a.nii.gz"
        self.clip = self.clip.with_suffix(".dcm" if dicom else ".nii.gz")
        write_dicom_clip(self.clip) if dicom else write_clip(self.clip, CLIP)
        sitk.WriteImage(image, str(self.mask))
        write_mask(self.good, TRUE, like=CLIP)
        self.case = Case("a", "p", f"clips/{self.clip.name}", "masks/a.nii.gz", ed_frame=0, es_frame=3)
        self.dataset = EchoDataset(self.raw, DatasetDescription("A"), (self.case,))
        self.dataset.write()
        decisions = {"size": Decision([32, 32], ""), "crop": Decision(False, ""), "protocol": Decision("aspect", "")}
        frame = Configuration("frame", decisions)
        plan = Plan(DATASET, "EchoPlans", {"frame": frame}, {"UNetTrainer": Configuration("UNetTrainer", {}, "frame")})
        plan.write(self.preprocessed / "EchoPlans.json")
        write_json(self.preprocessed / "dataset.json", self.dataset.description.to_dict())

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed" / DATASET

    def said(self, command: Callable[[Sequence[str]], int], *words: object) -> str:
        """What a command says that went wrong; nothing where all is well."""
        error = io.StringIO()
        with contextlib.redirect_stderr(error), pytest.MonkeyPatch.context() as patch:
            for name in ("raw", "preprocessed", "results"):
                patch.setenv(f"echoplan_{name}", str(self.root / name))
            status = command([*map(str, words)])
        return error.getvalue() if status else ""


@pytest.fixture(scope="module")
def place_of(tmp_path_factory) -> Callable[..., Place]:
    """`place_of(kind, dicom)`: made once for all who read it."""
    made: dict[tuple[str, bool], Place] = {}

    def find(kind: str, dicom: bool = False) -> Place:
        if (kind, dicom) not in made:
            make = BAD[kind][0] if kind in BAD else GOOD[kind]
            image = make(np.pad(TRUE, BORDER) if dicom else TRUE)
            made[kind, dicom] = Place(tmp_path_factory.mktemp("place"), image, dicom=dicom)
        return made[kind, dicom]

    return find


def failed(function: Callable[..., object], *arguments: object, **options: object) -> str:
    try:
        function(*arguments, **options)
    except EchoPlanError as error:
        return str(error)
    return ""


def convert(place: Place) -> str:
    return place.said(convert_dataset, "folder", place.raw, "-d", "B", "--overwrite", "-np", 0)


def verify(place: Place) -> str:
    # A training set whose only mask is empty is another finding.
    problems = verify_dataset(place.dataset).problems
    return "; ".join(problem for problem in problems if "no label of a training case" not in problem)


def fingerprint(place: Place) -> str:
    return place.said(extract_fingerprint, "-d", "A", "-np", 0)


def preprocess_raw(place: Place) -> str:
    return place.said(preprocess, "-d", "A", "--overwrite", "-np", 0)


def zero_shot_labels(place: Place) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FoundationModel, "load", lambda *_: None)
        patch.setattr(FoundationModel, "segment", lambda _, network, frames, *__: np.zeros(frames.shape, bool))
        return place.said(zero_shot, "A", "-m", "sam", "--overwrite", "--device", "cpu", "-np", 0)


def study_of_another(place: Place) -> str:
    folders, study = Folders(place.root / "raw", place.root, place.root), SimpleNamespace(folder=place.out / "study")
    shutil.rmtree(study.folder, ignore_errors=True)
    return str(prepare_dataset(folders, "A", study)[1].get("a", ""))


def report(place: Place) -> str:
    failures = place.out / "report" / "failures.json"  # an empty mask is read, and has no EF
    failures.unlink(missing_ok=True)
    words = "-i", place.clip.parent, "-m", place.mask.parent, "-o", failures.parent, "-d", "A", "-np", 0
    said = place.said(report_command, *words)
    return said if failures.exists() else ""


def overlays(place: Place) -> str:
    measured = measure_case(place.case, TRUE)
    return str(write_overlays(place.out, {"a": (place.clip, place.mask, measured)}, 1).failures.get("a", ""))


def report_of_prediction(place: Place) -> str:
    failures: dict[str, str] = {}
    place.out.mkdir(exist_ok=True)
    write_reports(place.out, [InputClip(place.clip, place.case)], {"a": place.mask}, failures, target=1)
    return "; ".join(failures.values())


def dicom_of_prediction(place: Place) -> str:
    failures: dict[str, str] = {}
    item, description = InputClip(place.clip, place.case), DatasetDescription("A")
    write_dicom(place.out / "dicom", [item], {"a": place.mask}, [], failures, description, "model")
    return "; ".join(failures.values())


def evaluate_prediction(place: Place) -> str:
    return place.said(evaluate_folder_command, place.mask.parent, place.good.parent, "-o", place.out / "a.json")


def evaluate_reference(place: Place) -> str:
    return place.said(evaluate_folder_command, place.good.parent, place.mask.parent, "-o", place.out / "a.json")


def compare_reference(place: Place) -> str:
    both = [f"{name}={place.good.parent}" for name in ("x", "y")]
    return place.said(compare_command, "--predictions", *both, "--references", place.mask.parent)


def compare_prediction(place: Place) -> str:
    both = [f"x={place.good.parent}", f"y={place.mask.parent}"]
    return place.said(compare_command, "--predictions", *both, "--references", place.good.parent)


def best_configuration(place: Place) -> str:
    model, preprocessed = place.out / "model", place.out / "preprocessed"
    for source, folder in ((place.mask, model / "fold_0/validation"), (place.good, preprocessed / "gt_segmentations")):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder)
    crossval = CrossValidation(place.out, preprocessed, {0: ("a",)})
    return failed(score_candidates, crossval, [Candidate((model,))], {"LV": 1})


def calibrate(place: Place) -> str:
    return failed(load_labelled, (place.mask,), place.good)


def postprocess(place: Place) -> str:
    write_json(place.out / "pp.json", {"steps": []})
    return place.said(
        apply_postprocessing_command, "-i", place.mask.parent, "-o", place.out / "pp", "--pp", place.out / "pp.json"
    )


QUICK = (convert, verify, fingerprint, preprocess_raw, zero_shot_labels, study_of_another)
DRAWING = (report, report_of_prediction, overlays)
OF_MASKS = (evaluate_prediction, evaluate_reference, best_configuration, calibrate)
COMPARING = (compare_prediction, compare_reference)


@pytest.mark.parametrize("read", [*QUICK, *DRAWING, *OF_MASKS, *COMPARING])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_mask_gets_one_verdict_everywhere(place_of, kind, read):
    check_verdict(kind, read(place_of(kind)))


@pytest.mark.parametrize("read", [*QUICK, *DRAWING, dicom_of_prediction])
@pytest.mark.parametrize("kind", [kind for kind in (*BAD, "empty") if kind not in IN_SPACE])
def test_and_beside_a_dicom_clip(place_of, kind, read):
    if read is dicom_of_prediction:
        pytest.importorskip("highdicom")
    check_verdict(kind, read(place_of(kind, dicom=True)))


@pytest.mark.parametrize("kind", ["0/255", "soft", "RGB", "float", "NaN", *GOOD])
def test_and_where_there_is_nothing_beside_it(place_of, kind):
    check_verdict(kind, postprocess(place_of(kind)))


@pytest.mark.parametrize("read", [*QUICK, *OF_MASKS])
@pytest.mark.parametrize("kind", GOOD)
def test_a_good_mask_is_taken_everywhere(place_of, kind, read):
    check_verdict(kind, read(place_of(kind)))


@pytest.mark.parametrize("read", [*DRAWING, *COMPARING])
@pytest.mark.parametrize("kind", ["empty", "axes exchanged in place"])
def test_so_it_is_for_reports_and_comparisons(place_of, kind, read):
    check_verdict(kind, read(place_of(kind)))


def check_verdict(kind: str, said: str) -> None:
    if kind in GOOD:
        assert said == ""
    else:
        assert BAD[kind][1] in said.replace("\n", " ")


@pytest.mark.parametrize("kind", [kind for kind in GOOD if kind != "empty"])
def test_a_mask_in_the_same_place_is_turned(place_of, kind):
    place = place_of(kind)
    assert np.array_equal(place.dataset.load_mask(place.case, clip=place.dataset.load_clip(place.case)), TRUE)
    judged = evaluate_cases([place.case], place.mask.parent, place.good.parent, labels={"LV": 1})
    assert judged.summary()["mean"]["LV"]["all"]["dice"]["mean"] == 1


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


def verify_rows(place: Place, *cases: Case) -> str:
    return "; ".join(verify_dataset(replace(place.dataset, cases=cases)).problems)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"ef_percent": 0.55}, "a share of 1"),
        ({"ef_percent": -5.0}, "ef_percent is -5"),
        ({"ef_percent": 550.0}, "ef_percent is 550"),
        ({"edv_ml": 40.0, "esv_ml": 100.0}, "exchanged"),
    ],
)
def test_measurements_that_no_heart_has(place_of, known, words):
    place = place_of("as it is")
    assert words in verify_rows(place, replace(place.case, **known))


def test_one_clip_of_three_patients(place_of):
    place = place_of("as it is")
    cases = [replace(place.case, case=name, patient=f"p{name}") for name in "abc"]
    assert "under the patients pa, pb, pc" in verify_rows(place, *cases)


def test_a_training_set_without_a_ventricle(place_of):
    place = place_of("empty")
    assert "no label of a training case shows LV" in verify_rows(place, place.case)
