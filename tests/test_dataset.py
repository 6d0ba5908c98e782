"""dataset.json and cases.csv: written, read back, and every mistake named with file and row."""

from __future__ import annotations

import csv
import json
import logging
from dataclasses import asdict, replace

import numpy as np
import pytest

from echoplan.dataset import COLUMNS, Case, DatasetDescription, EchoDataset, read_cases
from echoplan.errors import EchoPlanError
from echoplan.imageio import Clip, write_clip, write_mask
from echoplan.labels import IGNORE

FULL = Case(
    case="patient0001_4CH", patient="patient0001", image="imagesTr/patient0001_4CH.nii.gz",
    label="labelsTr/patient0001_4CH.nii.gz", view="A4C", split="val", ed_frame=0, es_frame=17, labelled_frames=(0, 17),
    frame_time_ms=20.5, spacing_row_mm=0.154, spacing_col_mm=0.308, ef_percent=61.25, edv_ml=120.0, esv_ml=46.5,
    quality="Good, mostly",
)  # fmt: skip


@pytest.fixture
def dataset(tmp_path):
    """A written dataset of three cases: one with everything known, one with nothing, one of the test split."""
    least = Case(case="b", patient="p2", image="imagesTr/b.avi")
    held_out = replace(FULL, case="c", split="test", labelled_frames=None)
    description = DatasetDescription("CAMUS", {"background": 0, "LV": 1, "MYO": 2}, licence="CC", reference="Leclerc")
    made = EchoDataset(tmp_path, description, (FULL, least, held_out))
    made.write()
    return made


def rewrite(dataset, row, **cells):
    """Change cells of one row (0 is the first case) in cases.csv by hand."""
    path = dataset.folder / "cases.csv"
    with open(path, newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows[row].update(cells)
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def test_round_trip(dataset):
    assert EchoDataset.read(dataset.folder) == dataset
    assert EchoDataset.read(str(dataset.folder)).cases[0] == FULL


def test_every_field_of_a_case_has_its_column():
    assert set(COLUMNS) == set(asdict(FULL)) - {
        "exam",
        "scale_note",
        "reference_note",
    }  # a column where it is known; no column


def test_unknown_is_empty_in_the_file_and_none_in_python(dataset):
    with open(dataset.folder / "cases.csv", newline="") as stream:
        row = list(csv.DictReader(stream))[1]
    assert {name for name, cell in row.items() if cell} == {"case", "patient", "image"}
    case = EchoDataset.read(dataset.folder).case("b")
    assert case.ed_frame is case.ef_percent is case.spacing_mm is case.label is case.labelled_frames is None
    assert case.view == case.split == ""


def test_splits(dataset):
    read = EchoDataset.read(dataset.folder)
    assert [case.case for case in read.training_cases()] == ["patient0001_4CH", "b"]
    assert [case.case for case in read.test_cases()] == ["c"]


def test_a_case_that_is_not_there(dataset):
    with pytest.raises(EchoPlanError, match="no case 'nobody'"):
        dataset.case("nobody")


def test_spacing_needs_both_directions():
    assert FULL.spacing_mm == (0.154, 0.308)
    assert replace(FULL, spacing_col_mm=None).spacing_mm is None


def test_only_three_columns_are_required_and_strange_ones_pass(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("\ufeffpatient,image,case,sex\n p1 ,a.png, a ,F\n", encoding="utf-8")  # as Excel saves it
    assert read_cases(path) == (Case(case="a", patient="p1", image="a.png"),)


def test_columns_and_views_are_read_as_people_spell_them(tmp_path, caplog):
    path = tmp_path / "cases.csv"
    path.write_text(
        "Case ID,Patient,File,View,EF (%),LVEDV [mL],end_diastole,qualty,fps\n"
        "a,p1,a.avi,apical 2-chamber,55,120,3,good,50\nb,p1,b.avi,Apical Four Chamber,,,,,\nc,p2,c.avi,4ch,,,,,\n"
        "d,p2,d.avi,apical 2-chambr,,,,,\ne,p3,e.avi,plax,,,,,\n"
    )
    with caplog.at_level(logging.INFO):
        cases = read_cases(path)
        assert read_cases(path) == cases
    assert [case.view for case in cases] == ["A2C", "A4C", "A4C", "apical 2-chambr", "PLAX"]
    assert (cases[0].case, cases[0].image, cases[0].ef_percent, cases[0].edv_ml, cases[0].ed_frame) == (
        "a", "a.avi", 55, 120, 3,
    )  # fmt: skip
    assert cases[0].quality == ""
    said = [record.message for record in caplog.records]  # each once, however often the table is read
    assert len(said) == 3 and "read Case ID as case, File as image, EF (%) as ef_percent" in said[0]
    assert "columns that are not read: qualty (do you mean quality?), fps" in said[1]
    assert "views that are not known stay as they are: 'apical 2-chambr' (1)" in said[2]


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("case,patient,picture", "required columns are missing: image; columns that are not read: picture"),
        ("case;patient;image", "required columns are missing: case, patient, image; columns that are not read"),
        ("case,patient,image,image", "more than once: image"),
        ("case,patient,image,EF,LVEF", "more than once: EF, LVEF"),
    ],
)
def test_a_header_that_leaves_something_open_is_an_error(tmp_path, header, problem):
    path = tmp_path / "cases.csv"
    path.write_text(f"{header}\n")
    with pytest.raises(EchoPlanError, match=problem):
        read_cases(path)


def test_a_column_by_its_own_name_goes_before_another_that_may_mean_it(tmp_path, caplog):
    path = tmp_path / "cases.csv"
    path.write_text("case,patient,image,EF,ef_percent\na,p,a.avi,0.5,50\n")
    assert read_cases(path)[0].ef_percent == 50
    assert "columns that are not read: EF (do you mean ef_percent?)" in caplog.text


def test_frames_as_spreadsheets_write_them(dataset):
    rewrite(dataset, 0, ed_frame="3.0", labelled_frames="3.0; 17")
    case = EchoDataset.read(dataset.folder).cases[0]
    assert case.ed_frame == 3 and isinstance(case.ed_frame, int)
    assert case.labelled_frames == (3, 17)


WRONG_CELLS = [
    ({"case": ""}, "case is empty"),
    ({"patient": " "}, "patient is empty"),
    ({"image": ""}, "image is empty"),
    ({"case": "a/b"}, "'a/b' cannot be a file name"),
    ({"case": ".."}, "cannot be a file name"),
    ({"split": "training"}, "split is 'training'; it must be train, val, test or empty"),
    ({"spacing_row_mm": "nan"}, "spacing_row_mm is 'nan'"),
    ({"spacing_row_mm": "0"}, "spacing_row_mm is '0'"),
    ({"spacing_col_mm": "-0.3"}, "spacing_col_mm is '-0.3'"),
    ({"spacing_col_mm": "inf"}, "spacing_col_mm is 'inf'"),
    ({"spacing_row_mm": "0.3", "spacing_col_mm": ""}, "only one of spacing_row_mm and spacing_col_mm is given"),
    ({"frame_time_ms": "0.0"}, "frame_time_ms is '0.0'"),
    ({"frame_time_ms": "fast"}, "frame_time_ms is 'fast', not a number"),
    ({"ef_percent": "NaN"}, "ef_percent is 'NaN'"),
    ({"edv_ml": "1,5"}, "edv_ml is '1,5', not a number"),
    ({"ed_frame": "-1"}, "ed_frame is '-1'"),
    ({"es_frame": "1.5"}, "es_frame is '1.5'"),
    ({"es_frame": "inf"}, "es_frame is 'inf'; frames count"),
    ({"es_frame": "nan"}, "es_frame is 'nan'; frames count"),
    ({"ed_frame": "ED"}, "ed_frame is 'ED', not a frame number"),
    ({"labelled_frames": "0;x"}, "labelled_frames is 'x'"),
]


@pytest.mark.parametrize(("cells", "problem"), WRONG_CELLS, ids=[str(cells) for cells, _ in WRONG_CELLS])
def test_a_wrong_cell_is_named_with_file_and_row(dataset, cells, problem):
    rewrite(dataset, 2, **cells)
    with pytest.raises(EchoPlanError) as caught:
        EchoDataset.read(dataset.folder)
    assert caught.value.file == str(dataset.folder / "cases.csv")
    assert caught.value.problem.startswith(f"row 4 ({cells.get('case', 'c').strip()})")  # the header is row 1
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    ("cells", "unknown"),
    [
        ({"ef_percent": "0.55"}, ["ef_percent"]),
        ({"ef_percent": "-5"}, ["ef_percent"]),
        ({"ef_percent": "550"}, ["ef_percent"]),
        ({"edv_ml": "20", "esv_ml": "60"}, ["edv_ml", "esv_ml"]),
        ({"esv_ml": "0"}, ["esv_ml"]),
    ],
)
def test_references_that_no_heart_has_count_as_unknown(dataset, caplog, cells, unknown):
    rewrite(dataset, 0, **cells)
    case = EchoDataset.read(dataset.folder).cases[0]
    assert case == replace(FULL, **dict.fromkeys(unknown), reference_note=case.reference_note)
    assert all(f"{name} " in case.reference_note for name in unknown[:1])
    assert case.reference_note in caplog.text


def test_blank_lines_count_as_rows(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("case,patient,image,split\na,p,a.png,\n\n\nb,p,b.png,wrong\n")
    with pytest.raises(EchoPlanError, match=r"row 5 \(b\)"):
        read_cases(path)


def test_a_case_name_twice(dataset):
    rewrite(dataset, 2, case="b")
    with pytest.raises(EchoPlanError, match="must be unique; more than one row has: b") as caught:
        EchoDataset.read(dataset.folder)
    assert caught.value.file == str(dataset.folder / "cases.csv")


def test_a_column_twice(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("case,patient,image,split,split\na,b,c.avi,train,4\n")
    with pytest.raises(EchoPlanError, match="columns are there more than once: split") as caught:
        read_cases(path)
    assert caught.value.file == str(path)


def test_missing_columns(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("case;patient;image\na;b;c\n")
    with pytest.raises(EchoPlanError, match="required columns are missing: case, patient, image") as caught:
        read_cases(path)
    assert caught.value.file == str(path)
    path.write_text("")
    with pytest.raises(EchoPlanError, match="required columns are missing"):
        read_cases(path)


def test_missing_files(dataset):
    (dataset.folder / "cases.csv").unlink()
    with pytest.raises(EchoPlanError, match=r"cases\.csv is missing"):
        EchoDataset.read(dataset.folder)
    (dataset.folder / "dataset.json").unlink()
    with pytest.raises(EchoPlanError, match=r"dataset\.json is missing.*conversion again"):
        EchoDataset.read(dataset.folder)


def test_a_csv_in_another_encoding(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_bytes("case,patient,image\na,Müller,a.png\n".encode("latin-1"))
    with pytest.raises(EchoPlanError, match="not a CSV file in UTF-8") as caught:
        read_cases(path)
    assert caught.value.file == str(path)


WRONG_DESCRIPTIONS = [
    ({"labels": {"LV": 1}}, '"background": 0'),
    ({"labels": {"background": 1, "LV": 0}}, '"background": 0'),
    ({"labels": {"background": 0, "LV": 2}}, "without gaps"),
    ({"labels": {"background": 0, "LV": 1, "MYO": 1}}, "without gaps"),
    ({"labels": {"background": 0, "LV": True}}, "without gaps"),
    ({"labels": {"background": 0, "LV": 1.0}}, "without gaps"),
    ({"labels": {"background": 0, "LV": "1"}}, "dataset.json"),
    ({"labels": {"background": 0}}, "names no structure"),
    ({"labels": ["background", "LV"]}, "dataset.json"),
    ({"target": "RV"}, "'RV', which \"labels\" does not name"),
    ({"target": "background"}, "'background', which"),
    ({"ignore_label": 3}, '"ignore_label" must be 255'),
]


@pytest.mark.parametrize(
    ("change", "problem"), WRONG_DESCRIPTIONS, ids=[str(change) for change, _ in WRONG_DESCRIPTIONS]
)
def test_a_wrong_description_is_named_with_its_file(dataset, change, problem):
    path = dataset.folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(EchoPlanError) as caught:
        EchoDataset.read(dataset.folder)
    assert caught.value.file == str(path)
    assert problem in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "{}", '"CAMUS"', "null"])
def test_a_description_that_is_none(dataset, content):
    path = dataset.folder / "dataset.json"
    path.write_text(content)
    with pytest.raises(EchoPlanError) as caught:
        EchoDataset.read(dataset.folder)
    assert caught.value.file == str(path)


def test_structures_and_channels():
    assert DatasetDescription("a").classes == 1
    three = DatasetDescription("a", {"background": 0, "LV": 1, "MYO": 2})
    assert three.classes == 3 and three.structures == {"LV": 1, "MYO": 2}
    assert DatasetDescription.from_dict({"name": "a", "made_by": "hand"}) == DatasetDescription("a")


@pytest.fixture
def with_files(tmp_path):
    """A dataset of one clip on disk, spacing (0.5, 0.25) and 40 ms in its header; frames 0 and 2 of 3 labelled."""
    frames = np.random.default_rng(0).integers(0, 255, (3, 12, 16), dtype=np.uint8)
    clip = Clip(frames, spacing_mm=(0.5, 0.25), frame_time_ms=40.0)
    mask = np.zeros(frames.shape, np.uint8)
    mask[:, 4:8, 5:9] = 1
    mask[1] = IGNORE
    case = Case("a", "p", "imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    write_clip(tmp_path / case.image, clip)
    write_mask(tmp_path / case.label, mask, like=clip)
    dataset = EchoDataset(tmp_path, DatasetDescription("TINY"), (case,))
    dataset.write()
    return dataset, clip, mask


def test_clip_and_mask_of_a_case(with_files):
    dataset, clip, mask = with_files
    case = EchoDataset.read(dataset.folder).case("a")
    loaded = dataset.load_clip(case)
    np.testing.assert_array_equal(loaded.frames, clip.frames)
    assert loaded.spacing_mm == pytest.approx((0.5, 0.25))
    assert loaded.frame_time_ms == pytest.approx(40)
    labels = dataset.load_mask(case, clip=loaded)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, mask)


def test_what_cases_csv_says_wins_over_the_file(with_files):
    dataset, _, _ = with_files
    case = replace(dataset.cases[0], spacing_row_mm=0.7, spacing_col_mm=0.6, frame_time_ms=25.0)
    clip = dataset.load_clip(case)
    assert clip.spacing_mm == (0.7, 0.6) and clip.frame_time_ms == 25.0


def test_a_label_value_without_a_name(with_files):
    dataset, clip, mask = with_files
    mask[0, 0, 0] = 7
    write_mask(dataset.folder / "labelsTr/a.nii.gz", mask, like=clip)
    with pytest.raises(EchoPlanError, match=r"value\(s\) \[7\], which dataset.json does not name") as caught:
        dataset.load_mask(dataset.cases[0])
    assert caught.value.file == str(dataset.folder / "labelsTr/a.nii.gz")


@pytest.mark.parametrize("part", [np.s_[:2], np.s_[:, 1:], np.s_[:, :, 1:]])
def test_a_label_on_another_grid(with_files, part):
    dataset, clip, mask = with_files
    write_mask(dataset.folder / "labelsTr/a.nii.gz", mask[part], like=replace(clip, frames=clip.frames[part]))
    with pytest.raises(EchoPlanError, match="own grid") as caught:
        dataset.load_mask(dataset.cases[0], clip=dataset.load_clip(dataset.cases[0]))
    assert caught.value.file == str(dataset.folder / "labelsTr/a.nii.gz")
    assert str(mask[part].shape) in str(caught.value)


def test_a_case_without_labels(with_files):
    dataset, _, _ = with_files
    with pytest.raises(EchoPlanError, match="case a has no label file"):
        dataset.load_mask(replace(dataset.cases[0], label=None))


def test_an_image_that_is_gone(with_files):
    dataset, _, _ = with_files
    (dataset.folder / "imagesTr/a.nii.gz").unlink()
    with pytest.raises(EchoPlanError) as caught:
        dataset.load_clip(dataset.cases[0])
    assert caught.value.file == str(dataset.folder / "imagesTr/a.nii.gz")
