"""What clips may be called, in tables and as files; what tables and terminals are not made to run."""

from __future__ import annotations

import csv
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from echoplan.case_warnings import held_back
from echoplan.cli import command
from echoplan.dataset import Case, EchoDataset, read_cases, write_cases
from echoplan.datasets.folder import convert_folder
from echoplan.errors import EchoPlanError, printable
from echoplan.evaluation.comparison.scores import read_ef_table, write_parts
from echoplan.files import as_cell, from_cell, read_json, write_csv, write_json, write_text
from echoplan.imageio import Clip, write_clip, write_mask
from echoplan.names import check_cases, name_of_file, shortened
from echoplan.options.parser import parser
from echoplan.parallel_map import run_cases

CLIP = Clip(np.random.default_rng(0).integers(0, 255, (4, 20, 24), dtype=np.uint8), (0.5, 0.5), 30.0)
TOO_LONG = "n" * 241
FORMULAS = ('=HYPERLINK("http://x")', "+cmd|' /C calc'!A0", "@SUM(1)", "-2+3+cmd", "'=x", "'", "＝1", "=1")
PLAIN = ("-5", "-3.25;12;", "+4", "x=1", "it's", "'quoted'", "p-1", "")


def table(path: Path, *rows: str, columns: str = "case,patient,image") -> Path:
    path.write_text("\n".join([columns, *rows]), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a,p,/etc/passwd.avi", "leads out"),
        ("a,p,../x.avi", "leads out"),
        ("a,p,imagesTr/../../x.avi", "leads out"),
        (f"a,p,{'i' * 300}", "too long"),
        (f"a,p,{'i/' * 2000}", "too long"),
        ("a,p,a\0.avi", "control characters"),
        ("a\0,p,a.avi", "control characters"),
        ("a,p\x1b[2J,a.avi", "control characters"),
        ("a\u202eb,p,a.avi", "control characters"),
        (f"{TOO_LONG},p,a.avi", "241 bytes"),
        (".a,p,a.avi", "cannot be a file name"),
    ],
)
def test_a_row_that_no_clip_can_have_is_an_error_in_words(tmp_path, row, words):
    with pytest.raises(EchoPlanError, match=words) as caught:
        read_cases(table(tmp_path / "cases.csv", "good,p,x.avi", row))
    assert "row 3" in str(caught.value) and str(tmp_path) in str(caught.value)
    assert printable(str(caught.value)) == str(caught.value) and len(str(caught.value)) < 600
    with pytest.raises(EchoPlanError, match=words):
        convert_folder(tmp_path, tmp_path / "raw" / "Dataset001_X", name="X")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a", "a_seg"), "the labels of case a and the clip of case a_seg"),
        (("A", "a_seg"), "labels of case A"),
        (("Case", "case"), "one file's name"),
        (("M\u00fcller", "Mu\u0308ller"), r"one file's name"),
        (("store",), "a file of every store"),
        (("STORE",), "a file of every store"),
        (("a", "a"), "must be unique"),
    ],
)
def test_cases_that_would_take_each_others_files(tmp_path, names, words):
    rows = [f"{name},p,{number}.nii.gz" for number, name in enumerate(names)]
    path = table(tmp_path / "cases.csv", *rows)
    for number in range(len(names)):
        write_clip(tmp_path / f"{number}.nii.gz", CLIP)
    with pytest.raises(EchoPlanError, match=words):
        read_cases(path)
    with pytest.raises(EchoPlanError, match=words):
        convert_folder(tmp_path, tmp_path / "raw" / "Dataset001_X", name="X")
    assert not (tmp_path / "raw").exists()


def test_ordinary_names_pass():
    check_cases(["a", "b_seg", "a-seg", "store2", "0X1A2C", "Jürgen", "\u05d0", "a b", "a;b", "n" * 240])


def test_links_in_the_folder_are_followed(tmp_path):
    write_clip(tmp_path / "elsewhere" / "x.nii.gz", CLIP)
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.nii.gz").symlink_to(tmp_path / "elsewhere" / "x.nii.gz")
    table(source / "cases.csv", "a,p,a.nii.gz")
    dataset = convert_folder(source, tmp_path / "raw" / "Dataset001_X", name="X")
    assert np.array_equal(dataset.load_clip(dataset.cases[0]).frames, CLIP.frames)


def test_names_of_files():
    assert name_of_file(Path(os.fsdecode(b"M\xfcller.nii.gz"))) == "M%FCller"
    assert name_of_file(Path("a\nb\x1b.MHD")) == "a%0Ab%1B"
    assert name_of_file(Path("1.2.840")) == "1.2.840"
    long, other = shortened("ü" * 200), shortened("ü" * 201)
    assert long != other and len(long.encode()) <= 240 and shortened(long) == long


def test_long_names_are_written(tmp_path):
    path = tmp_path / ("ü" * 115 + "_seg.nii.gz")
    write_mask(path, np.zeros((2, 8, 8), np.uint8), like=Clip(np.zeros((2, 8, 8), np.uint8)))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_in_tables_are_shown_and_not_run(tmp_path, text):
    write_csv(tmp_path / "a.csv", [{"note": text}], ("note",))
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as stream:
        cell = list(csv.reader(stream))[1][0]
    assert cell[:1] not in "=+-@＝" and from_cell(cell) == text


@pytest.mark.parametrize("value", [*PLAIN, -5.5, 3, None])
def test_what_runs_nowhere_stays(value):
    assert as_cell(value) == value and (not isinstance(value, str) or from_cell(value) == value)


def test_cases_come_back_as_they_were_written(tmp_path):
    cases = tuple(Case(f"c{n}", text, "a.avi", view=text) for n, text in enumerate(FORMULAS))
    write_cases(tmp_path / "cases.csv", cases)
    assert read_cases(tmp_path / "cases.csv") == cases


def test_paths_that_are_no_utf8_are_written_and_read_back(tmp_path):
    path = os.fsdecode(b"/data/M\xfcller.avi")
    write_json(tmp_path / "a.json", {"path": path})
    assert read_json(tmp_path / "a.json") == {"path": path}
    write_text(tmp_path / "a.html", path)
    write_csv(tmp_path / "a.csv", [{"path": path}], ("path",))
    assert all("udcfc" in (tmp_path / name).read_text(encoding="utf-8") for name in ("a.html", "a.csv"))


def test_names_do_not_steer_the_terminal(tmp_path, capsys):
    def fail(chosen):
        print(os.fsdecode(b"M\xfcller"))
        raise EchoPlanError("this is \x1b[2J no clip", file=os.fsdecode(b"M\xfc\x9b\nller.avi"), remedy="a\n  b")

    assert command(lambda: parser("echoplan_any", "", examples=[]), fail)([]) == 1
    said = capsys.readouterr()
    assert "%1B[2J no clip (M%FC" in said.err and "\x1b" not in said.err and "a\n  b" in said.err
    assert said.out == "M\\udcfcller\n"


def _warn(number):
    logging.getLogger("echoplan.imageio.dicom").warning("%s.dcm: the spacing %s is no length", number, number)
    if number == 0:
        logging.getLogger("echoplan.imageio.dicom").warning("another kind")
    print(sys.stdout is None)
    return number


@pytest.mark.parametrize("processes", [0, 2])
def test_a_warning_of_many_cases_is_one_line(caplog, processes):
    cases = {f"c{number}": (number,) for number in range(8)}
    results = run_cases(_warn, cases, processes=processes, trial=False)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and "c0: another kind" in lines
    (line,) = [line for line in lines if "no length" in line]
    assert line.startswith("8 of 8 cases (") and " and 5 more): " in line
    assert len(results.done) == len(results.warnings) == 8
    assert logging.getLogger("echoplan").propagate and not logging.getLogger("echoplan").handlers


def test_what_is_held_back_is_the_warnings_of_the_own_thread(caplog):
    caplog.set_level(logging.INFO)
    with held_back() as kept:
        logging.getLogger("echoplan.a").info("passes")
        logging.getLogger("echoplan.a").warning("kept")
        with held_back() as inner:
            logging.getLogger("echoplan.b").warning("inner")
    assert [record.getMessage() for record in kept] == ["kept"]
    assert [record.getMessage() for record in inner] == ["inner"]
    assert [record.getMessage() for record in caplog.records] == ["passes"]


@pytest.mark.parametrize("frame", [4, 99])
def test_a_raw_dataset_that_names_frames_it_has_not(tmp_path, frame):
    write_clip(tmp_path / "imagesTr" / "a.nii.gz", CLIP)
    dataset = EchoDataset(tmp_path, None, (Case("a", "p", "imagesTr/a.nii.gz", es_frame=frame),))
    with pytest.raises(EchoPlanError, match=f"es_frame is {frame}, but the clip has 4 frames"):
        dataset.load_clip(dataset.cases[0])


def test_comparisons_are_written_by_the_same_rule(tmp_path):
    parts = {"segmentation": pd.DataFrame({"method": ["=1+1", "unet"], "frames": [3, 4], "dice": [0.5, np.nan]})}
    write_parts(tmp_path / "c.csv", "table", parts)
    assert (tmp_path / "c.csv").read_bytes() == (
        b"table,method,frames,dice\r\nsegmentation,'=1+1,3,0.5\r\nsegmentation,unet,4,\r\n"
    )


def test_ef_tables_are_read_back(tmp_path):
    rows = [{"patient": "=p", "cases": "@a", "ef_percent": 50.5, "reference_ef_percent": None}]
    write_csv(tmp_path / "ef.csv", rows, list(rows[0]))
    table = read_ef_table(tmp_path)
    assert (table["patient"][0], table["cases"][0], table["ef_percent"][0]) == ("=p", "@a", 50.5)
