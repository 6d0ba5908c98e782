"""DICOM output: read again by highdicom, checked by dciodvfy where it is installed, and tied to its source."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid

from echoplan.dataset import DatasetDescription
from echoplan.doctor import diagnose
from echoplan.errors import EchoPlanError
from echoplan.evaluation import PatientRow
from echoplan.files import write_text
from echoplan.imageio import Clip, read_mask, write_clip, write_mask
from echoplan.inference import EchoPredictor, find_inputs, predict_folder
from echoplan.inference.dicom_output import require_highdicom, write_dicom
from echoplan.scripts import predict

hd = pytest.importorskip("highdicom")
STUDY = generate_uid()
OFFSET = (20, 16)  # first row and column of the ultrasound region in the file's image


@pytest.fixture
def predictor(folders: Any, make_model: Callable[..., Path]) -> EchoPredictor:
    return EchoPredictor.from_model_folder(make_model(folders.results), device="cpu", trust_code=True)


@pytest.fixture
def save(tmp_path: Path, heart: Any) -> Callable[..., Path]:
    """A function that writes the beating heart as an ultrasound clip in clips/, with a border around its region."""

    def write(name: str, *, study: str = STUDY, spacing_cm: float | None = 0.05, **elements: Any) -> Path:
        frames = np.pad(heart.clip.frames, ((0, 0), (OFFSET[0], 7), (OFFSET[1], 9)))
        header = Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.SOPClassUID, header.SOPInstanceUID = UltrasoundMultiFrameImageStorage, generate_uid()
        header.StudyInstanceUID, header.SeriesInstanceUID = study, generate_uid()
        header.PatientName, header.PatientID, header.PatientSex = "Müller^Jané", "MRN-1", "F"
        header.SpecificCharacterSet = "ISO_IR 100"
        header.PatientBirthDate, header.StudyDate, header.StudyTime = "19600102", "20200304", "101112"
        header.Modality, header.StudyID, header.AccessionNumber, header.ReferringPhysicianName = "US", "7", "A1", ""
        header.NumberOfFrames, header.Rows, header.Columns = frames.shape
        header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation = 1, "MONOCHROME2", 0
        header.BitsAllocated, header.BitsStored, header.HighBit = 8, 8, 7
        header.FrameTime, header.FrameIncrementPointer = "40", 0x00181063
        if spacing_cm is not None:
            region = Dataset()
            region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
            region.RegionLocationMinY0, region.RegionLocationMinX0 = OFFSET
            region.RegionLocationMaxY1 = OFFSET[0] + heart.clip.frame_shape[0] - 1
            region.RegionLocationMaxX1 = OFFSET[1] + heart.clip.frame_shape[1] - 1
            region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
            region.PhysicalDeltaX, region.PhysicalDeltaY = spacing_cm, spacing_cm
            header.SequenceOfUltrasoundRegions = [region]
        header.PixelData = frames.tobytes()
        for keyword, value in elements.items():
            setattr(header, keyword, value)
        path = tmp_path / "clips" / name
        path.parent.mkdir(exist_ok=True)
        header.save_as(path, enforce_file_format=True)
        return path

    return write


def check_with_dciodvfy(*paths: Path) -> None:
    """No error from the validator of dicom3tools, where it is installed."""
    for path in paths if shutil.which("dciodvfy") else ():
        told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        errors = [line for line in (told.stdout + told.stderr).splitlines() if line.startswith("Error")]
        assert errors == [], path.name


def content(report: Any) -> Any:
    """The report's one measurement group."""
    (group,) = report.content.get_image_measurement_groups()
    return group


def values(group: Any) -> dict[str, float]:
    return {item.name.value: item.value for item in group.get_measurements()}


def frames_of(measurement: Any) -> dict[str, list[int]]:
    """SOP instance -> frame numbers, of what a measurement refers to."""
    found = {}
    for item in measurement.referenced_images:
        numbers = item.referenced_frame_numbers
        found[item.referenced_sop_instance_uid] = list(numbers)
    return found


def test_both_views_of_a_study(tmp_path, save, predictor, heart, capsys):
    sources = [pydicom.dcmread(save(f"p1_{view}.dcm"), stop_before_pixels=True) for view in ("A2C", "A4C")]
    run = predict_folder(tmp_path / "clips", tmp_path / "out", predictor, dicom=True)
    out = tmp_path / "out" / "dicom"
    names = ["p1_A2C_seg.dcm", "p1_A4C_seg.dcm", "p1_A2C+p1_A4C_sr.dcm"]
    assert run.failures == {} and run.dicom_files == [out / name for name in names]
    check_with_dciodvfy(*run.dicom_files)

    segmentation = hd.seg.segread(out / names[0])
    assert {(item.segment_number, item.segmented_property_type.value) for item in segmentation.SegmentSequence} == {
        (1, "87878005")
    }
    assert segmentation.SegmentSequence[0].algorithm_identification.name == "EchoPlan"
    pixels = segmentation.get_pixels_by_source_frame(sources[0].SOPInstanceUID, range(1, 13))[..., 0]
    mask = read_mask(tmp_path / "out" / "p1_A2C.nii.gz")
    assert pixels.shape == (12, 91, 105) and np.array_equal(pixels, mask)
    inside = pixels[:, OFFSET[0] : -7, OFFSET[1] : -9]
    assert inside.sum() == pixels.sum() and 2 * (inside & heart.mask).sum() / (pixels.sum() + heart.mask.sum()) > 0.97

    report = hd.sr.srread(out / names[2])
    (row,) = run.rows
    group = content(report)
    expected = {"18026-5": row.edv_ml, "18148-7": row.esv_ml, "18043-0": row.ef_percent}
    assert values(group) == pytest.approx(expected, abs=0.005)
    edv, esv, ef = group.get_measurements()
    assert [item.unit.value for item in (edv, esv, ef)] == ["mL", "mL", "%"]
    assert {item.method.value for item in (edv, esv, ef)} == {"125207"}  # biplane method of disks
    uids = [source.SOPInstanceUID for source in sources]
    for item, frames in ((edv, [1]), (esv, [7]), (ef, [1, 7])):
        assert frames_of(item) == {uid: frames for uid in uids}
    assert [site.value.value for site in group.finding_sites] == ["87878005"]
    assert group.tracking_uid == segmentation.SegmentSequence[0].tracking_uid
    assert report.VerificationFlag == "UNVERIFIED" and report.PreliminaryFlag == "PRELIMINARY"


def test_patient_and_study_are_the_sources_and_the_instances_new(tmp_path, save, predictor):
    source = pydicom.dcmread(save("p1_A4C.dcm", PatientComments="none"), stop_before_pixels=True)
    runs = [predict_folder(tmp_path / "clips", tmp_path / str(n), predictor, dicom=True) for n in range(2)]
    made = [pydicom.dcmread(path) for run in runs for path in run.dicom_files]
    assert [item.Modality for item in made] == ["SEG", "SR"] * 2
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyDate", "AccessionNumber"):
        assert {str(item.get(keyword)) for item in made} == {str(source.get(keyword))}
    assert {str(item.PatientName) for item in made} == {"Müller^Jané"}
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert len({item.get(keyword) for item in [*made, source]}) == 5


@pytest.mark.parametrize(("name", "view"), [("p1_2CH.dcm", "399232001"), ("p1_A4C.dcm", "399214001"), ("x.dcm", None)])
def test_one_plane(tmp_path, save, predictor, name, view):
    run = predict_folder(save(name), tmp_path / "out", predictor, dicom=True, ef_method="camus")
    check_with_dciodvfy(*run.dicom_files)
    group = content(hd.sr.srread(run.dicom_files[1]))
    for item in group.get_measurements():
        assert item.method.value == "125208"  # single plane
        views = [part.value.value for part in item[0].ContentSequence if part.name.value == "111031"]
        assert views == ([view] if view else [])
    told = [part.value for part in group[0].ContentSequence if part.name.meaning == "Algorithm Parameters"]
    assert told[0] == "model: BrightTrainer__EchoPlans__frame" and "camus" in told[1]


def test_without_spacing_the_report_has_the_ejection_fraction_alone_and_says_why(tmp_path, save, predictor):
    run = predict_folder(save("p1_A4C.dcm", spacing_cm=None), tmp_path / "out", predictor, dicom=True)
    check_with_dciodvfy(*run.dicom_files)
    group = content(hd.sr.srread(run.dicom_files[1]))
    assert values(group).keys() == {"18043-0"}
    (comment,) = [part.value for part in group[0].ContentSequence if part.name.value == "121106"]
    assert "spacing is unknown" in comment


def test_several_beats_are_a_mean_and_several_structures_have_codes_each(tmp_path, save, folders, make_model, heart):
    labels = {"background": 0, "LV": 1, "MYO": 2, "Τρικλώχιν": 3}
    model = make_model(folders.results, labels=labels)
    predictor = EchoPredictor.from_model_folder(model, device="cpu", trust_code=True)
    twice = np.pad(np.tile(heart.clip.frames, (2, 1, 1)), ((0, 0), (OFFSET[0], 7), (OFFSET[1], 9)))
    path = save("p1_A4C.dcm", NumberOfFrames=24, PixelData=twice.tobytes())
    run = predict_folder(path, tmp_path / "out", predictor, dicom=True)
    check_with_dciodvfy(*run.dicom_files)
    segmentation = hd.seg.segread(run.dicom_files[0])
    codes = [item.segmented_property_type for item in segmentation.SegmentSequence]
    assert [(code.value, code.scheme_designator) for code in codes] == [
        ("87878005", "SCT"), ("49848007", "SCT"), ("LABEL3", "99ECHOPLAN")
    ]  # fmt: skip
    assert codes[2].meaning == "Τρικλώχιν"
    source = pydicom.dcmread(path, stop_before_pixels=True)
    pixels = segmentation.get_pixels_by_source_frame(source.SOPInstanceUID, range(1, 25))
    mask = read_mask(tmp_path / "out" / "p1_A4C.nii.gz")
    assert all(np.array_equal(pixels[..., value - 1], mask == value) for value in (1, 2, 3))
    assert run.rows[0].beats == 2
    assert {item.derivation.value for item in content(hd.sr.srread(run.dicom_files[1])).get_measurements()} == {
        "373098007"
    }


def test_a_still_image_gets_a_segmentation_and_no_report(tmp_path, save, predictor, heart):
    still = np.pad(heart.clip.frames[0], ((OFFSET[0], 7), (OFFSET[1], 9)))
    path = save("p1_A4C.dcm", NumberOfFrames=1, PixelData=still.tobytes() + b"\0")
    run = predict_folder(path, tmp_path / "out", predictor, dicom=True)
    (made,) = run.dicom_files
    check_with_dciodvfy(made)
    source = pydicom.dcmread(path, stop_before_pixels=True)
    pixels = hd.seg.segread(made).get_pixels_by_source_instance([source.SOPInstanceUID])
    assert pixels.any() and np.array_equal(pixels[..., 0], read_mask(tmp_path / "out" / "p1_A4C.nii.gz"))


def test_a_real_lossy_clip(tmp_path, heart):
    data = pytest.importorskip("pydicom.data")
    path = data.get_testdata_file("color3d_jpeg_baseline.dcm", download=False)
    if path is None:
        pytest.skip("the package pydicom-data is not installed")
    (item,) = find_inputs(path)
    mask = np.zeros((120, 480, 640), np.uint8)
    mask[:, 100:200, 250:350] = 1
    mask[119, 0, 0] = 1
    write_mask(tmp_path / "mask.nii.gz", mask, like=replace(heart.clip, frames=mask))
    row = PatientRow(
        "p", item.name, ef_percent=51.234, edv_ml=100.0, esv_ml=48.766, beats=1, ed_frames="119", es_frames="0"
    )
    about = {"description": DatasetDescription("Phantom"), "model": "a model"}
    made = write_dicom(tmp_path, [item], {item.name: tmp_path / "mask.nii.gz"}, [row], failures := {}, **about)
    assert failures == {}
    check_with_dciodvfy(*made)
    segmentation, report = hd.seg.segread(made[0]), hd.sr.srread(made[1])
    assert (segmentation.LossyImageCompression, segmentation.LossyImageCompressionRatio) == ("01", 19)
    source = pydicom.dcmread(path, stop_before_pixels=True)
    pixels = segmentation.get_pixels_by_source_frame(source.SOPInstanceUID, [1, 120])
    assert np.array_equal(pixels[..., 0], mask[[0, 119]])
    assert frames_of(content(report).get_measurements()[2]) == {source.SOPInstanceUID: [1, 120]}


def test_other_formats_are_named_and_passed_over(tmp_path, save, predictor, heart, caplog):
    save("p1_A2C.dcm")
    for name in ("p1_A4C", "p2_A4C"):
        write_clip(tmp_path / "clips" / f"{name}.nii.gz", replace(heart.clip, spacing_mm=(0.5, 0.5)))
    run = predict_folder(tmp_path / "clips", tmp_path / "out", predictor, dicom=True)
    assert [path.name for path in run.dicom_files] == ["p1_A2C_seg.dcm"] and run.failures == {}
    assert "2 clips are no DICOM, so they get no DICOM output: p1_A4C, p2_A4C" in caplog.text
    assert "1 patients without DICOM report, as not all clips of the ejection fraction are DICOM: p1\n" in caplog.text


def test_no_report_on_two_patients(tmp_path, save, predictor):
    save("p1_A2C.dcm")
    save("p1_A4C.dcm", PatientID="MRN-2")
    run = predict_folder(tmp_path / "clips", tmp_path / "out", predictor, dicom=True)
    assert [path.name for path in run.dicom_files] == ["p1_A2C_seg.dcm", "p1_A4C_seg.dcm"]
    assert list(run.failures) == ["DICOM report of p1"]
    assert "different patients or studies" in run.failures["DICOM report of p1"]
    assert "MRN" not in str(run.failures)


def test_two_studies_of_a_patient_are_two_rows_and_two_reports(tmp_path, save, predictor):
    table = "case,patient,image,view\n"
    for name, view, study in (("a", "A2C", STUDY), ("b", "A4C", STUDY), ("c", "A4C", generate_uid())):
        save(f"{name}.dcm", study=study)
        table += f"{name},p1,{name}.dcm,{view}\n"
    write_text(tmp_path / "clips" / "cases.csv", table)
    run = predict_folder(tmp_path / "clips", tmp_path / "out", predictor, dicom=True)
    assert sorted((row.patient, row.method, row.cases) for row in run.rows) == [
        ("p1", "biplane", "a;b"), ("p1", "single_plane_a4c", "c")
    ]  # fmt: skip
    assert len({row.exam for row in run.rows}) == 2 and STUDY not in str(run.rows)
    reports = [path.name for path in run.dicom_files if path.name.endswith("_sr.dcm")]
    assert sorted(reports) == ["a+b_sr.dcm", "c_sr.dcm"] and run.failures == {}


def test_a_report_carries_quality_and_interval(tmp_path, save):
    row = PatientRow(
        "p1", "p1_A4C", "single_plane_a4c", ef_percent=51.0, edv_ml=100.0, esv_ml=49.0, ef_low_percent=44.5,
        ef_high_percent=60.25, edv_low_ml=90.0, edv_high_ml=115.0, interval_coverage_percent=90.0, quality="no warning",
        ed_frames="0", es_frames="6",
    )  # fmt: skip
    (item,) = find_inputs(save("p1_A4C.dcm"))
    mask = np.zeros((12, 91, 105), np.uint8)
    write_mask(tmp_path / "mask.nii.gz", mask, like=Clip(mask))
    what = [item], {"p1_A4C": tmp_path / "mask.nii.gz"}
    about = {"description": DatasetDescription("Phantom"), "model": "a model"}
    _, report = write_dicom(tmp_path, *what, [row], {}, **about)
    check_with_dciodvfy(report)
    group = content(hd.sr.srread(report))
    assert [item.value.value for item in group.get_qualitative_evaluations()] == ["NO_WARNING"]
    told = {
        measurement.name.value: {part.name.value: float(part.value) for part in measurement[0].ContentSequence
                                 if part.name.value in ("371885007", "371886008", "COVERAGE")}
        for measurement in group.get_measurements()
    }  # fmt: skip
    assert told["18043-0"] == {"371885007": 6.5, "371886008": 9.25, "COVERAGE": 90.0}
    assert told["18026-5"] == {"371885007": 10.0, "371886008": 15.0, "COVERAGE": 90.0} and told["18148-7"] == {}
    alone = write_dicom(tmp_path / "2", *what, [replace(row, quality="not judged")], {}, **about)
    check_with_dciodvfy(*alone)
    group = content(hd.sr.srread(alone[1]))
    assert [item.value.value for item in group.get_qualitative_evaluations()] == ["NOT_JUDGED"]


def test_a_row_to_check_gets_no_report_unless_asked_for(tmp_path, save, predictor, caplog):
    save("p1_A4C.dcm", FrameTime="0.0232")
    run = predict_folder(tmp_path / "clips", tmp_path / "out", predictor, dicom=True)
    assert [row.quality for row in run.rows] == ["check"] and "0.0232 ms" in run.rows[0].note
    assert [path.name for path in run.dicom_files] == ["p1_A4C_seg.dcm"] and run.failures == {}
    assert "without DICOM report, as their quality is check (--dicom_doubtful reports" in caplog.text
    asked = predict_folder(tmp_path / "clips", tmp_path / "2", predictor, dicom=True, dicom_doubtful=True)
    check_with_dciodvfy(*asked.dicom_files)
    group = content(hd.sr.srread(asked.dicom_files[1]))
    assert [item.value.value for item in group.get_qualitative_evaluations()] == ["CHECK"]
    comments = [part.value for part in group[0].ContentSequence if part.name.value == "121106"]
    assert any(comment.startswith("to check: p1_A4C: the frame time") for comment in comments)


@pytest.mark.parametrize("spacing_cm", [1.41, 0.000141])
def test_a_region_with_a_spacing_of_no_echocardiogram_gives_no_volume(tmp_path, save, predictor, spacing_cm):
    run = predict_folder(save("p1_A4C.dcm", spacing_cm=spacing_cm), tmp_path / "out", predictor, dicom=True)
    (row,) = run.rows
    assert row.edv_ml is None and row.quality == "check" and "counts as unknown" in row.quality_reasons


def test_headers_that_cannot_be_referred_to(tmp_path, save, predictor, caplog, recwarn):
    save("a.dcm", StudyInstanceUID="")
    save("b.dcm", PatientSex="Jane", PatientName="Doe")  # highdicom would quote both
    caplog.clear()
    recwarn.clear()
    caplog.set_level(logging.DEBUG)
    run = predict_folder(tmp_path / "clips", tmp_path / "out", predictor, dicom=True)
    assert [path.name for path in run.dicom_files] == ["b_seg.dcm", "b_sr.dcm"]
    assert list(run.failures) == ["DICOM segmentation of a", "DICOM report of a"]
    assert all("lacks StudyInstanceUID" in reason for reason in run.failures.values())
    said = str(run.failures) + caplog.text + "".join(str(item.message) for item in recwarn)
    assert "PatientSex" in said and "Jane" not in said and "Doe" not in said


def test_a_name_with_a_semicolon(tmp_path, save, predictor):
    for name in ("a;b_A2C.dcm", "a;b_A4C.dcm", "c;d.dcm"):
        save(name)
    run = predict_folder(tmp_path / "clips", tmp_path / "out", predictor, dicom=True)
    assert run.failures == {}
    assert [path.name for path in run.dicom_files if "_sr" in path.name] == ["a;b_A2C+a;b_A4C_sr.dcm", "c;d_sr.dcm"]


def test_no_report_takes_the_name_of_another(tmp_path, save, predictor):
    long = "l" * 150
    for name in ("A_2CH", "A_4CH", "A_2CH+A_4CH", f"{long}_2CH", f"{long}_4CH"):
        save(f"{name}.dcm")
    run = predict_folder(tmp_path / "clips", tmp_path / "out", predictor, dicom=True)
    reports = [path for path in run.dicom_files if path.name.endswith("_sr.dcm")]
    assert run.failures == {} and len(run.dicom_files) == len({*run.dicom_files}) == 8 and len(reports) == 3
    check_with_dciodvfy(*reports)
    assert {len(content(hd.sr.srread(path)).get_measurements()) for path in reports} == {3}
    assert all(path.is_file() for path in reports)


def test_a_report_of_an_earlier_run_does_not_stay(tmp_path, save, predictor, caplog):
    path = save("a.dcm")
    first = predict_folder(path, tmp_path / "out", predictor, dicom=True)
    assert all(file.is_file() for file in first.dicom_files) and len(first.dicom_files) == 2
    (item,) = find_inputs(path)
    masks = {"a": tmp_path / "out" / "a.nii.gz"}
    row = replace(first.rows[0], ef_percent=None, failure="no cavity")
    about = {"description": DatasetDescription("Phantom"), "model": "a model"}
    made = write_dicom(tmp_path / "out" / "dicom", [item], masks, [row], failures := {}, **about)
    assert made == first.dicom_files[:1] and failures == {} and "as there is no ejection fraction: a" in caplog.text
    assert [file.is_file() for file in first.dicom_files] == [True, False]
    path.unlink()
    assert write_dicom(tmp_path / "out" / "dicom", [item], masks, first.rows, failures, **about) == []
    assert list(failures) == ["DICOM segmentation of a", "DICOM report of a"]
    assert list((tmp_path / "out" / "dicom").iterdir()) == []


def test_the_command(tmp_path, folders, make_model, save, monkeypatch, capsys):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"echoplan_{name}", str(getattr(folders, name)))
    make_model(folders.results)
    arguments = ["-i", str(save("p1_A4C.dcm")), "-o", str(tmp_path / "out"), "--device", "cpu", "-np", "0"]
    assert predict(arguments) == 0
    assert not (tmp_path / "out" / "dicom").exists() and "DICOM" not in capsys.readouterr().out
    assert predict([*arguments, "--continue_prediction", "--dicom"]) == 0
    assert re.search(r"2 DICOM files, which name the patients, are in .*out/dicom", capsys.readouterr().out)
    assert len(list((tmp_path / "out" / "dicom").iterdir())) == 2


def test_without_highdicom_nothing_is_begun(tmp_path, save, predictor, monkeypatch, capsys):
    monkeypatch.setattr("echoplan.inference.dicom_output.find_spec", lambda name: None)
    path = save("p1_A4C.dcm")
    with pytest.raises(EchoPlanError, match=r"pip install '\.\[dicom\]'"):
        predict_folder(path, tmp_path / "out", predictor, dicom=True)
    assert predict(["-i", str(path), "-o", str(tmp_path / "out"), "--dicom"]) == 1
    assert "highdicom, which is not installed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    require_highdicom()


def test_the_doctor_names_it_as_optional(monkeypatch, tmp_path):
    def version(name: str) -> str:
        if name == "highdicom":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("echoplan.doctor.importlib.metadata.version", version)
    lines, problems = diagnose({"ECHOPLAN_ROOT": str(tmp_path)})
    assert any("highdicom" in line and "pip install '.[dicom]'" in line for line in lines)
    assert not any("highdicom" in problem for problem in problems)
