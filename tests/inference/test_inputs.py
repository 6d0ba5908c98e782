"""Clips found in files and folders."""

from __future__ import annotations

import logging
import os

import pytest

from echoplan.errors import EchoPlanError
from echoplan.imageio import Clip, write_clip, write_mask
from echoplan.inference.ensemble_folders import postprocess_folder
from echoplan.inputs import find_inputs, patient_and_view


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("patient0001_4CH", ("patient0001", "A4C")),
        ("patient0001_2CH_half_sequence", ("patient0001", "A2C")),
        ("patient0001_A4C", ("patient0001", "A4C")),
        ("17_a2c", ("17", "A2C")),
        ("17-AP4", ("17", "A4C")),
        ("A4C_17", ("17", "A4C")),
        ("study 4_4C", ("study 4", "A4C")),
        ("0X1A2C4F", ("0X1A2C4F", "")),  # letters of a longer word are no view
        ("patient0001", ("patient0001", "")),
        ("echo_A2C_001", ("echo_001", "A2C")),  # what stands behind the view belongs to the name
        ("echo_A4C_002", ("echo_002", "A4C")),
        ("p1_4CH_ED", ("p1", "A4C")),
        ("p1_4CH_ED_2", ("p1_ED_2", "A4C")),
        ("study_A2", ("study_A2", "")),  # subjects are called so
        ("17_AP2", ("17", "A2C")),
        ("17_apical_2-chamber", ("17", "A2C")),
        ("p1_PLAX", ("p1", "PLAX")),  # of the same patient, and no apical view
        ("p1_3CH", ("p1", "A3C")),
        ("p1_5C", ("p1_5C", "")),  # as probes and subjects are called
        ("A4C", ("A4C", "A4C")),
    ],
)
def test_patient_and_view_from_names(name, expected):
    assert patient_and_view(name) == expected


def test_a_folder_is_searched_for_every_readable_format(clips):
    found = {item.name: item for item in find_inputs(clips)}
    assert sorted(found) == ["p1_2CH", "p1_A4C", "p2_A4C", "p3_pictures", "p4_A4C"]
    assert (found["p1_2CH"].case.patient, found["p1_2CH"].case.view) == ("p1", "A2C")
    assert found["p3_pictures"].read().frames.shape == (12, 64, 80)
    assert found["p1_A4C"].read().spacing_mm == pytest.approx((0.5, 0.5))


def test_one_file_and_one_folder_of_pictures(clips):
    assert [item.name for item in find_inputs(clips / "p2_A4C.avi")] == ["p2_A4C"]
    assert [item.name for item in find_inputs(clips / "p3_pictures")] == ["p3_pictures"]


def test_nested_dicom_without_endings(tmp_path):
    for name in ("s1/A4C", "s1/DICOMDIR", "s2/A4C"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0" * 128 + b"DICM")
    found = {item.name: item.case for item in find_inputs(tmp_path)}
    assert sorted(found) == ["s1_A4C", "s2_A4C"]
    assert (found["s2_A4C"].patient, found["s2_A4C"].view) == ("s2", "A4C")


def test_the_layout_of_camus(tmp_path, heart):
    for name in ("patient0001_2CH_half_sequence", "patient0001_2CH_half_sequence_gt", "10_4CH"):
        write_clip(tmp_path / "patient0001" / f"{name}.nii.gz", heart.clip)
    (tmp_path / "patient0001" / "Info_2CH.cfg").write_text("ED: 1")
    found = find_inputs(tmp_path)
    assert [item.name for item in found] == ["patient0001_10_4CH", "patient0001_2CH_half_sequence"]
    assert (found[1].case.patient, found[1].case.view) == ("patient0001", "A2C")
    assert [item.name for item in find_inputs(tmp_path / "patient0001" / "10_4CH.nii.gz")] == ["10_4CH"]


def test_names_are_made_unique_by_the_ending(tmp_path, heart):
    for name in ("a.avi", "a.nii.gz", "b.avi"):
        write_clip(tmp_path / name, heart.clip)
    assert [item.name for item in find_inputs(tmp_path)] == ["a_avi", "a_nii_gz", "b"]


@pytest.mark.parametrize("beside", [True, False])
def test_cases_csv_in_or_beside_the_folder(tmp_path, heart, beside):
    images = tmp_path / "imagesTs"
    for name in ("x.nii.gz", "y.nii.gz"):
        write_clip(images / name, heart.clip)
    write_clip(tmp_path / "imagesTr" / "z.nii.gz", heart.clip)
    prefix, table = ("imagesTs/", tmp_path) if beside else ("", images)
    (table / "cases.csv").write_text(
        "case,patient,image,view,ed_frame,spacing_row_mm,spacing_col_mm,ef_percent\n"
        f"caseX,anna,{prefix}x.nii.gz,A2C,3,0.2,0.3,55\n" + ("caseZ,otto,imagesTr/z.nii.gz,,,,,\n" if beside else "")
    )
    found = find_inputs(images)
    assert [item.name for item in found] == ["caseX", "y"]
    assert found[0].case.ef_percent == 55 and found[0].case.ed_frame == 3
    assert found[0].read().spacing_mm == (0.2, 0.3)
    assert found[1].case.patient == "y"


def test_the_output_folder_is_not_an_input(clips, heart):
    write_clip(clips / "out" / "p1_A4C.nii.gz", heart.clip)
    assert "out_p1_A4C" not in [item.name for item in find_inputs(clips, leave_out=clips / "out")]


def test_nothing_to_predict_is_said(tmp_path):
    with pytest.raises(EchoPlanError, match="no such"):
        find_inputs(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("no clip")
    with pytest.raises(EchoPlanError, match="no clip here"):
        find_inputs(tmp_path)


def test_tiny_frames_are_refused(tmp_path, heart):
    write_clip(tmp_path / "a.nii.gz", Clip(heart.clip.frames[:, :8, :8]))
    with pytest.raises(EchoPlanError, match="too small"):
        find_inputs(tmp_path)[0].read()


def test_folders_that_lead_back_to_themselves_end(tmp_path, heart, caplog):
    """With 20 links of every folder to every other there are more paths than can be gone through."""
    for number in range(20):
        write_clip(tmp_path / f"f{number}" / "a.nii", heart.clip)
        for other in range(20):
            (tmp_path / f"f{number}" / f"link{other}").symlink_to(tmp_path / f"f{other}")
        (tmp_path / f"f{number}" / "up").symlink_to("..")
    (tmp_path / "loop").symlink_to("loop")
    assert [item.name for item in find_inputs(tmp_path)] == sorted(f"f{number}_a" for number in range(20))
    assert "1 files are of no format that is read: loop" in caplog.text


def test_a_link_that_leads_nowhere_is_named_when_it_is_read(tmp_path, heart):
    for name, target in (("gone_A4C.nii.gz", "nowhere"), ("loop_A4C.nii.gz", "loop_A4C.nii.gz")):
        (tmp_path / name).symlink_to(target)
    found = find_inputs(tmp_path)
    for item, words in zip(found, ("no such file", "leads to itself"), strict=True):
        with pytest.raises(EchoPlanError, match=rf"{words}.*{item.path.name}"):
            item.read()
        with pytest.raises(EchoPlanError, match="the clip is gone"):
            item.content()


def test_what_is_passed_over_is_said(tmp_path, heart, caplog):
    for name in ("a.nii.gz", "b.mkv.part", "c.flv", "d.xyz", "e_gt.nii.gz", "notes.txt", "f.raw"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    for number in range(9):
        (tmp_path / "sub" / f"x{number}.heic").write_bytes(b"x")
    assert [item.name for item in find_inputs(tmp_path)] == ["a"]
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1 and "12 files are of no format that is read: x0.heic" in said[0] and "and 9 more" in said[0]


@pytest.mark.parametrize("ending", [".wmv", ".mpg", ".mkv", ".gif", ".nrrd", ".nhdr", ".tif", ".webm", ".mhd"])
def test_all_that_is_read_is_found(tmp_path, ending):
    (tmp_path / f"a_A4C{ending}").write_bytes(b"x")
    (item,) = find_inputs(tmp_path)
    assert item.name == "a_A4C" and item.case.view == "A4C"


def test_a_folder_of_bmp_pictures_is_one_clip(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.bmp").write_bytes(b"x")
    assert [item.path for item in find_inputs(tmp_path)] == [tmp_path]


def test_results_of_an_earlier_run_are_no_clips(tmp_path, heart):
    for name in ("a", "b"):
        write_clip(tmp_path / f"{name}.nii.gz", heart.clip)
    for marker in ("prediction_args.json", "prediction_args.part_0_of_2.json", "ef_report.json", "evidence/a.npz"):
        out = tmp_path / f"out_{marker.replace('/', '_')}"
        write_clip(out / "a.nii.gz", heart.clip)
        write_clip(out / "overlays" / "a.mp4", heart.clip)
        (out / marker).parent.mkdir(exist_ok=True)
        (out / marker).write_bytes(b"{}")
    assert [item.name for item in find_inputs(tmp_path)] == ["a", "b"]
    for source in (out, out / "a.nii.gz", out / "overlays"):  # asked for by name they are none, either
        with pytest.raises(EchoPlanError, match="no clip here"):
            find_inputs(source)


def test_masks_of_postprocessing_are_no_clips(tmp_path, heart):
    write_clip(tmp_path / "clips/a.nii.gz", heart.clip)
    write_mask(tmp_path / "masks/a.nii.gz", heart.mask, like=heart.clip)
    assert postprocess_folder(tmp_path / "masks", tmp_path / "clips/out", ()).done.keys() == {"a"}
    assert [item.name for item in find_inputs(tmp_path / "clips")] == ["a"]


def test_clips_beside_results_are_clips(tmp_path, heart):
    for name in ("a.avi", "a.nii.gz", "b.nii.gz"):  # echoplan_predict -i a.avi -o . made a.nii.gz
        write_clip(tmp_path / name, heart.clip)
    (tmp_path / "prediction_args.json").write_text("{}")
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / "a.npz").write_bytes(b"")
    assert [item.path.name for item in find_inputs(tmp_path)] == ["a.avi", "b.nii.gz"]


def test_labels_of_cases_csv_are_no_clips_and_links_are_followed(tmp_path, heart):
    write_clip(tmp_path / "elsewhere" / "x.nii.gz", heart.clip)
    raw = tmp_path / "raw"
    write_clip(raw / "labelsTr" / "a.nii.gz", heart.clip)
    (raw / "imagesTr").mkdir()
    (raw / "imagesTr" / "a.nii.gz").symlink_to(tmp_path / "elsewhere" / "x.nii.gz")
    (raw / "cases.csv").write_text("case,patient,image,label\nkees,p,imagesTr/a.nii.gz,labelsTr/a.nii.gz\n")
    for source in (raw, raw / "imagesTr"):
        assert [(item.name, item.case.patient) for item in find_inputs(source)] == [("kees", "p")]


@pytest.mark.parametrize("twins", [("Case.avi", "case.avi"), ("M\u00fc.avi", "Mu\u0308.avi")])
def test_clips_whose_results_many_disks_take_for_one(tmp_path, heart, twins):
    for name in twins:
        write_clip(tmp_path / name, heart.clip)
    with pytest.raises(EchoPlanError, match="several clips would be named"):
        find_inputs(tmp_path)


def test_names_of_any_bytes_and_length(tmp_path, heart):
    study = tmp_path / ("1.2.840." + "1" * 90) / ("1.2.840." + "2" * 90)
    write_clip(study / "1.2.840.3_A4C.avi", heart.clip)
    write_clip(study / ("a" * 245 + ".avi"), heart.clip)
    write_clip(tmp_path / os.fsdecode(b"M\xfcller_A2C.avi"), heart.clip)
    write_clip(tmp_path / "new\nline.avi", heart.clip)
    found = find_inputs(tmp_path)
    assert {"M%FCller_A2C", "new%0Aline"} <= {item.name for item in found}
    assert all(len(item.name.encode()) <= 240 for item in found) and len({item.name for item in found}) == 4


def test_references_are_named_in_one_line(tmp_path, heart, caplog):
    caplog.set_level(logging.INFO)
    for number in range(6):
        write_clip(tmp_path / f"p{number}_4CH.nii.gz", heart.clip)
        write_clip(tmp_path / f"p{number}_4CH_gt.nii.gz", heart.clip)
    assert len(find_inputs(tmp_path)) == 6
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("6 files are taken for reference masks") and line.endswith("and 3 more")
