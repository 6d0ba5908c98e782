"""Headers as real clips have them cost no DICOM output: real samples, retired classes, values that break the rules."""

from __future__ import annotations

import logging
import random
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.datadict import DicomDictionary, keyword_dict, keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid

from echoplan.dataset import Case, DatasetDescription
from echoplan.errors import EchoPlanError
from echoplan.evaluation import PatientRow
from echoplan.imageio import Clip, probe_clip, write_mask
from echoplan.inference.dicom_header import CARRIED, read_header
from echoplan.inference.dicom_output import write_dicom
from echoplan.inputs import InputClip

from .test_dicom_output import check_with_dciodvfy, content

hd = pytest.importorskip("highdicom")
ROOT = Path(__file__).parents[2]
ROW = PatientRow("p", "x", ef_percent=55.5, edv_ml=100.0, esv_ml=44.5, beats=1, ed_frames="0", es_frames="3")
CANARY = "QZCANARY"
LONG = (b"OB", b"OW", b"UN", b"SQ", b"UT")  # VRs whose length takes 4 bytes
REAL = (
    "JPGLosslessP14SV1_1s_1f_8b.dcm", "OBXXXX1A.dcm", "OBXXXX1A_2frame.dcm", "OBXXXX1A_expb.dcm",
    "OBXXXX1A_expb_2frame.dcm", "OBXXXX1A_rle.dcm", "OBXXXX1A_rle_2frame.dcm", "US1_J2KI.dcm", "US1_J2KR.dcm",
    "US1_UNCI.dcm", "US1_UNCR.dcm", "color-pl.dcm", "color-px.dcm", "color3d_jpeg_baseline.dcm", "gdcm-US-ALOKA-16.dcm",
    "gdcm-US-ALOKA-16_big.dcm", "examples_palette.dcm", "examples_rgb_color.dcm", "examples_ybr_color.dcm",
)  # fmt: skip


def clip(path: Path, **elements: Any) -> Path:
    """A clip of 4 frames with a header as a good scanner writes it, but for `elements`; None takes one away."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SpecificCharacterSet, header.Modality = "ISO_IR 100", "US"
    header.SOPClassUID, header.SOPInstanceUID = UltrasoundMultiFrameImageStorage, generate_uid()
    header.StudyInstanceUID, header.SeriesInstanceUID = generate_uid(), generate_uid()
    header.PatientName, header.PatientID, header.PatientSex = "Müller^Jané", "MRN-1", "F"
    header.PatientBirthDate, header.PatientAge, header.PatientSize = "19600102", "060Y", "1.75"
    header.StudyDate, header.StudyTime, header.StudyID, header.AccessionNumber = "20200304", "101112", "7", "A1"
    header.ReferringPhysicianName = "Arzt^A"
    frames = np.zeros((4, 40, 48), np.uint8)
    header.NumberOfFrames, header.Rows, header.Columns = frames.shape
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation = 1, "MONOCHROME2", 0
    header.BitsAllocated, header.BitsStored, header.HighBit = 8, 8, 7
    header.FrameTime, header.FrameIncrementPointer = "40", 0x00181063
    for keyword, value in elements.items():
        if value is None:
            del header[keyword]
        else:
            setattr(header, keyword, value)
    header.PixelData = frames.tobytes()
    header.save_as(path, enforce_file_format=True)
    return path


def with_bytes(path: Path, **values: bytes) -> Path:
    """The file, with elements' values as no library would write them."""
    replaced = {struct.pack("<HH", *divmod(tag_for_keyword(keyword), 65536)): keyword for keyword in values}
    out = [path.read_bytes()[:132]]
    for tag, kind, value in elements(path.read_bytes()):
        new = values[replaced[tag]] if tag in replaced else value
        out.append(packed(tag, kind, new + b" " * (len(new) % 2)))
    path.write_bytes(b"".join(out))
    return path


def elements(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(tag, VR, value) of a file of explicit VR."""
    place = 132
    while place < len(data):
        kind = data[place + 4 : place + 6]
        length, start = (4, place + 12) if kind in LONG else (2, place + 8)
        size = int.from_bytes(data[start - length : start], "little")
        yield data[place : place + 4], kind, data[start : start + size]
        place = start + size


def packed(tag: bytes, kind: bytes, value: bytes, wrong_by: int = 0) -> bytes:
    """An element, whose length may be wrong."""
    length = max(0, len(value) + wrong_by)
    return tag + kind + (b"\0\0" + struct.pack("<I", length) if kind in LONG else struct.pack("<H", length)) + value


def written(path: Path, row: PatientRow = ROW) -> tuple[list[Path], dict[str, str]]:
    """DICOM output of a clip with a square for a heart: the files, and what failed."""
    info = probe_clip(path)
    shape = (info.shape[0], *(info.crop.file_shape if info.crop else info.shape[1:]))
    mask = np.zeros(shape, np.uint8)
    mask[:, shape[1] // 4 : shape[1] // 2, shape[2] // 4 : shape[2] // 2] = 1
    out = path.parent / "out"
    out.mkdir(exist_ok=True)
    write_mask(out / "mask.nii.gz", mask, like=Clip(mask))
    item, failures = InputClip(path, Case("x", "p")), {}
    row = replace(row, es_frames=str(shape[0] - 1))
    about = {"description": DatasetDescription("Phantom"), "model": "a model"}
    made = write_dicom(out, [item], {"x": out / "mask.nii.gz"}, [row], failures, **about)
    for file in made:
        if file.name.endswith("_seg.dcm"):
            assert np.array_equal(hd.seg.segread(file).pixel_array.reshape(shape), mask)
    return made, failures


def both(path: Path) -> tuple[Dataset, Dataset]:
    """The segmentation and the report of a clip, valid as far as dciodvfy knows."""
    made, failures = written(path)
    assert failures == {} and len(made) == 2
    check_with_dciodvfy(*made)
    return pydicom.dcmread(made[0]), hd.sr.srread(made[1])


def comments(report: Any) -> list[str]:
    return [part.value for part in content(report)[0].ContentSequence if part.name.value == "121106"]


@pytest.mark.parametrize("name", REAL)
def test_real_samples(tmp_path, name):
    from pydicom.data import get_testdata_file

    source = get_testdata_file(name, download=False)
    if source is None:
        pytest.skip("the package pydicom-data is not installed")
    path = tmp_path / name
    path.write_bytes(Path(source).read_bytes())
    made, failures = written(path)
    assert failures == {} and [file.name for file in made] == ["x_seg.dcm", "x_sr.dcm"]
    if not name.startswith("color-p"):  # their own UIDs begin with 999
        check_with_dciodvfy(*made)


@pytest.mark.parametrize(
    "kind",
    ["1.2.840.10008.5.1.4.1.1.3", "1.2.840.10008.5.1.4.1.1.6", "1.2.840.113543.6.6.1.3.10002", "1.2.3.4"],
    ids=["multi-frame, retired", "single-frame, retired", "private", "unknown"],
)
def test_retired_and_private_classes(tmp_path, kind):
    files, failures = written(clip(tmp_path / "a.dcm", SOPClassUID=kind))
    assert failures == {} and len(files) == 2
    for file in files:
        made = pydicom.dcmread(file)
        assert (str(made.PatientName), made.PatientID, made.PatientAge) == ("Müller^Jané", "MRN-1", "060Y")


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("StudyTime", b"11:25:01"), ("StudyTime", b"REMOVED"), ("StudyTime", b"250000"), ("StudyTime", b"1125-1126"),
        ("StudyDate", b"00000000"), ("StudyDate", b"REMOVED"), ("StudyDate", b"20200231"), ("StudyDate", b"2020.03.04"),
        ("PatientBirthDate", b"ANON"), ("PatientSex", b"ANON"), ("PatientSex", b"female"), ("PatientID", b"1" * 65),
        ("AccessionNumber", b"A\\B"), ("StudyID", b"7\x1b[31m"), ("PatientName", b"A=B=C=D"),
        ("ReferringPhysicianName", b"x" * 65), ("PatientAge", b"60"), ("PatientSize", b"tall"),
    ],
)  # fmt: skip
def test_what_is_not_valid_is_empty_and_named(tmp_path, caplog, keyword, value):
    seg, report = both(with_bytes(clip(tmp_path / "a.dcm"), **{keyword: value}))
    for made in (seg, report):
        assert not made.get(keyword)
        assert (keyword in made) == (keyword not in ("PatientAge", "PatientSize"))
        assert made.StudyInstanceUID and (keyword == "PatientID" or made.PatientID == "MRN-1")
    assert any(keyword in text for text in comments(report))
    assert f"not valid in the header, so not in the DICOM output: {keyword}" in caplog.text
    assert value.decode() not in caplog.text and value.decode() not in str(comments(report))


def test_what_is_missing_costs_nothing(tmp_path, caplog):
    wanted = {keyword for keyword in CARRIED if keyword != "StudyInstanceUID"}
    path = clip(tmp_path / "a.dcm")
    path.write_bytes(
        path.read_bytes()[:132]
        + b"".join(
            packed(*element)
            for element in elements(path.read_bytes())
            if keyword_for_tag(struct.unpack("<HH", element[0])) not in wanted
        )
    )
    seg, report = both(path)
    assert not any(made.get(keyword) for keyword in wanted for made in (seg, report))
    assert comments(report) == [] and "not valid" not in caplog.text


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"])
@pytest.mark.parametrize("value", [b"", b"ANON", b"1" * 66])
def test_no_reference_no_output_and_the_reason(tmp_path, keyword, value):
    path = with_bytes(clip(tmp_path / "a.dcm"), **{keyword: value})
    made, failures = written(path)
    assert made == [] and list(failures) == ["DICOM segmentation of x", "DICOM report of p"]
    assert all(f"lacks {keyword}" in reason and str(path) in reason for reason in failures.values())


@pytest.mark.parametrize(
    ("declared", "raw", "name"),
    [
        ("ISO_IR 100", "Müller^Jané".encode("latin-1"), "Müller^Jané"),
        ("ISO_IR 192", "Τάδε^山田".encode(), "Τάδε^山田"),
        (None, "Müller^Jané".encode("latin-1"), "Müller^Jané"),
        (None, "Müller^Jané".encode(), "Müller^Jané"),
        ("NONE OF THESE", "Müller^Jané".encode(), "Müller^Jané"),
        (["", "ISO 2022 IR 87"], b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 192", b"M\xfcller", ""),
        (None, b"\x93M\xfcller\x94", ""),
    ],
)
def test_character_sets(tmp_path, declared, raw, name):
    path = clip(tmp_path / "a.dcm", SpecificCharacterSet=declared, PatientName="x", ReferringPhysicianName="x")
    seg, report = both(with_bytes(path, PatientName=raw))
    assert str(seg.PatientName) == str(report.PatientName) == name
    assert bool(comments(report)) == (name == "")


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The file with a few elements changed, emptied, of another VR, cut, doubled, away or private."""
    values = [
        b"", b"\0\0", b"REMOVED ", b"00000000", CANARY.encode(), CANARY.encode() + b"\xff\xfe", b"M\xc3\xbcller ",
        b"\x1b$B;3ED\x1b(B", b"1" * 70, b"1e400 ", b"999Y", b"a=b=c=d ", b"\r\nQZCANARY", b"01", b"1.2.QZCANARY",
        b"\\" * 40, b"ISO 2022 IR 87\\FOO", b"246060", b"\xff" * 10,
    ]  # fmt: skip
    kinds = [b"LO", b"PN", b"UN", b"OB", b"SQ", b"US", b"FD", b"??", b"\0\0"]
    parts = list(elements(data))
    changed = {chance.randrange(6, len(parts) - 1) for _ in range(chance.choice((1, 2, 4, 8)))}
    out = [data[:132]]
    for number, (tag, kind, value) in enumerate(parts):
        way = chance.random() if number in changed else None
        if way is None:
            out.append(packed(tag, kind, value))
        elif way < 0.6:
            out.append(packed(tag, kind, chance.choice(values)))
        elif way < 0.7:
            out.append(packed(tag, kind, value, wrong_by=chance.choice((-2, 1, 100))))
        elif way < 0.8:
            out.append(packed(tag, chance.choice(kinds), value))
        elif way < 0.9:
            out.append(
                packed(b"\x09\0\x01\x10", chance.choice(kinds), chance.choice(values))
            )  # private, for the element
    return b"".join(out)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_headers(tmp_path, caplog, recwarn, seed):
    """Both files, or the reason; and nothing of the header in what is said."""
    caplog.set_level(logging.DEBUG)
    path = clip(tmp_path / "a.dcm")
    path.write_bytes(mutated(path.read_bytes(), random.Random(seed)))
    try:
        info = probe_clip(path)
    except EchoPlanError as error:
        made, failures = [], {"reading": str(error)}
    else:
        if info.shape[0] * info.shape[1] * info.shape[2] > 10**6:
            return
        made, failures = written(path)
        assert len(made) == 2 or all("lacks" in reason for reason in failures.values())
    said = caplog.text + str(failures) + "".join(str(item.message) for item in recwarn)
    assert CANARY not in said and "Müller" not in said and "MRN" not in said


def listed_in_docs() -> set[str]:
    rows = re.findall(
        r"^\| [^|]+ \| ([^|]+) \|$", (ROOT / "docs" / "dicom.md").read_text().split("## ")[1], re.MULTILINE
    )
    return {word for row in rows for word in re.findall(r"\w+", row) if word in keyword_dict}


def values_in(dataset: Dataset) -> Iterator[str]:
    for element in dataset.iterall():
        if element.VR != "SQ":
            yield from map(str, element.value if element.VM > 1 else [element.value])


def test_docs_list_what_is_carried_over(tmp_path):
    """Every element that can be is given a value of its own; those found in the output are those of docs/dicom.md."""
    makers: dict[str, Callable[[int], str]] = {
        "DA": lambda n: (date(1901, 1, 1) + timedelta(days=n)).strftime("%Y%m%d"),
        "TM": lambda n: f"{n // 3600:02}{n // 60 % 60:02}{n % 60:02}.5",
        "AS": lambda n: f"{n % 1000:03}Y",
        "DS": lambda n: f"{n}.125",
        "UI": lambda n: f"1.2.826.0.1.{n}",
    } | dict.fromkeys(("LO", "SH", "PN", "ST", "LT", "UT", "UC", "CS"), lambda n: f"QZ{n}")
    path = clip(tmp_path / "a.dcm", LossyImageCompressionMethod="QZ0")
    header, planted = pydicom.dcmread(path), {}
    for number, (tag, (kind, _, _, _, keyword)) in enumerate(sorted(DicomDictionary.items()), start=1):
        group = tag >> 16
        if (
            kind in makers
            and keyword
            and group > 2
            and group not in (0x0028, 0x0004)
            and keyword != "SpecificCharacterSet"
        ):
            planted[keyword] = makers[kind](number)
            header.add_new(tag, kind, planted[keyword])
    planted |= {"PatientSex": "F", "Modality": "US", "SOPClassUID": UltrasoundMultiFrameImageStorage}
    planted |= {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": "33.5",
        "LossyImageCompressionMethod": "QZM",
    }
    for keyword, value in planted.items():
        setattr(header, keyword, value)
    header.FrameTime = "40"
    header.save_as(path)
    outputs = both(path)
    values = {value for made in outputs for value in values_in(made)}
    assert {keyword for keyword, value in planted.items() if value in values} == listed_in_docs()
    assert set(CARRIED) <= listed_in_docs()
    assert read_header(path)[1] == []
