"""Nothing of a DICOM header but spacing and times reaches any output, save the DICOM output that was asked for."""

from __future__ import annotations

import base64
import gzip
import io
import logging
import re
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import blosc2
import numpy as np
import pytest
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage

from echoplan import scripts
from echoplan.imageio import Clip, read_clip, write_mask
from echoplan.training.methods import find_method

MODEL = "UNetTrainer__EchoPlans__frame"
FRAMES, REGION = 8, (64, 80)  # frames; rows and columns of the ultrasound region
ABOVE, BESIDE = 24, 16  # rows and columns of the screen around the region, where text is burnt in
PLANTED = {
    "PatientName": "Qzwöllner^Xaviéra^Jx", "PatientID": "QZ-4711-XK", "OtherPatientIDs": "QZALT-998",
    "PatientBirthDate": "19310207", "PatientAddress": "Qzgasse 12 Xberg", "PatientComments": "Qzcomment of the ward",
    "PatientTelephoneNumbers": "+49 555 0199321", "StudyDate": "19830519", "StudyTime": "172319",
    "SeriesDate": "19830520", "ContentDate": "19830521", "AcquisitionDateTime": "19830522172320",
    "AccessionNumber": "QZACC-60391", "StudyID": "QZSTUDY-3", "StudyDescription": "Qzstudy text",
    "SeriesDescription": "Qzseries text", "ProtocolName": "Qzprotocol", "InstitutionName": "Qzklinik Xburg",
    "InstitutionAddress": "Qzweg 5", "StationName": "QZSTATION", "DeviceSerialNumber": "QZSERIAL-71",
    "ReferringPhysicianName": "Qzarzt^Xtof", "PerformingPhysicianName": "Qzperformer^A", "OperatorsName": "Qzop^B",
    "PhysiciansOfRecord": "Qzrecord^C", "NameOfPhysiciansReadingStudy": "Qzreader^D", "ImageComments": "Qzimage words",
    "AdditionalPatientHistory": "Qzhistory", "StudyInstanceUID": "1.2.826.0.1.40960.4711.1",
    "SeriesInstanceUID": "1.2.826.0.1.40960.4711.2", "SOPInstanceUID": "1.2.826.0.1.40960.4711.3",
}  # fmt: skip
PRIVATE = "Qzprivate words"
ENCODINGS = ("latin-1", "utf-8", "utf-16-le", "utf-16-be", "utf-32-le")  # the last: NumPy's texts
SEPARATORS = re.compile(r"[\^ ]")


def planted_forms() -> dict[bytes, str]:
    """Every planted value, its parts, and dates as people write them, in small letters and in all encodings."""
    words = set()
    for keyword, value in {**PLANTED, "private": PRIVATE}.items():
        words |= {value} | {part for part in SEPARATORS.split(value) if "z" in part.lower()}
        if "Date" in keyword:
            year, month, day = value[:4], value[4:6], value[6:8]
            words |= {
                f"{year}-{month}-{day}",
                f"{year}/{month}/{day}",
                f"{day}.{month}.{year}",
                f"{month}/{day}/{year}",
            }
    spelled = {form for word in words for form in (word.lower(), word.lower().replace("^", " "))}
    return {word.encode(code): word for word in spelled for code in ENCODINGS}


def unpacked(name: str, content: bytes) -> Iterator[bytes]:
    """A file's bytes, and those of what is packed in it: gzip, zip (.npz, .pth), PNG text, pictures in pages."""
    yield content
    if content[:2] == b"\x1f\x8b":
        yield gzip.decompress(content)
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            yield archive.comment
            for item in archive.infolist():
                yield from unpacked(item.filename, archive.read(item))
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        yield repr(Image.open(io.BytesIO(content)).info).encode()
    if name.endswith((".html", ".svg", ".js")):
        yield re.sub(rb"&#(\d+);", lambda match: chr(int(match[1])).encode(), content)
        for packed in re.findall(rb"[A-Za-z0-9+/]{64,}={0,2}", content):
            inner = base64.b64decode(packed + b"=" * (-len(packed) % 4))
            yield from unpacked("", inner)


def found_in(folder: Path) -> dict[str, str]:
    """ "file: planted value" of everything that can be found under a folder."""
    forms = planted_forms()
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        texts = list(unpacked(path.name, path.read_bytes()))
        if path.suffix == ".b2nd":
            array = blosc2.open(str(path))
            texts += [
                array[:].tobytes(),
                repr(dict(array.schunk.vlmeta)).encode(),
                repr(dict(array.schunk.meta)).encode(),
            ]
        for text in map(bytes.lower, texts):
            found |= {f"{path.relative_to(folder)}: {word}": word for form, word in forms.items() if form in text}
    return found


def screen(case: int, *, words: str) -> tuple[np.ndarray, np.ndarray]:
    """(frames, mask) of a screen with a beating heart in its region and words burnt in around it."""
    rows, columns = np.mgrid[: REGION[0], : REGION[1]]
    speckle = np.random.default_rng(case).integers(30, 60, (FRAMES, *REGION), dtype=np.uint8)
    scale = 0.8 + 0.2 * np.cos(2 * np.pi * np.arange(FRAMES) / FRAMES)[:, None, None]
    mask = (((rows - 34) / (20 + case % 3)) ** 2 + ((columns - 40) / 12) ** 2) < scale**2
    region = np.where(mask & (rows < 34 + 14 * scale), 180, speckle).astype(np.uint8)
    picture = Image.new("L", (REGION[1] + 2 * BESIDE, REGION[0] + ABOVE + 8), 8)
    ImageDraw.Draw(picture).text((2, 2), words, fill=250)
    frames = np.repeat(np.asarray(picture)[None], FRAMES, axis=0)
    place = (slice(None), slice(ABOVE, ABOVE + REGION[0]), slice(BESIDE, BESIDE + REGION[1]))
    frames[place] = region
    whole = np.zeros_like(frames)
    whole[place] = mask & (rows < 34 + 14 * scale)
    return frames, whole


def save(path: Path, frames: np.ndarray, *, region: bool = True) -> Path:
    """An ultrasound clip whose header holds everything planted."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SpecificCharacterSet = "ISO_IR 100"
    header.SOPClassUID = UltrasoundMultiFrameImageStorage
    for keyword, value in PLANTED.items():
        setattr(header, keyword, value)
    header.PatientSex, header.Modality, header.FrameTime, header.FrameIncrementPointer = "F", "US", "40", 0x00181063
    header.private_block(0x0019, "QZMAKER", create=True).add_new(0x01, "LO", PRIVATE)
    header.NumberOfFrames, header.Rows, header.Columns = frames.shape
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation = 1, "MONOCHROME2", 0
    header.BitsAllocated, header.BitsStored, header.HighBit = 8, 8, 7
    if region:
        item = Dataset()
        item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = 1, 1, 0
        item.RegionLocationMinY0, item.RegionLocationMinX0 = ABOVE, BESIDE
        item.RegionLocationMaxY1, item.RegionLocationMaxX1 = ABOVE + REGION[0] - 1, BESIDE + REGION[1] - 1
        item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
        item.PhysicalDeltaX = item.PhysicalDeltaY = 0.05
        header.SequenceOfUltrasoundRegions = [item]
    header.PixelData = frames.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


def make_source(folder: Path, *, words: str, patients: int = 6) -> Path:
    """A folder as users have it: DICOM clips, masks, a table, and one clip that was cut short."""
    rows = ["case,patient,image,label,view,ed_frame,es_frame,ef_percent"]
    for case in range(patients):
        frames, mask = screen(case, words=words)
        save(folder / f"p{case}_A4C.dcm", frames)
        write_mask(folder / f"p{case}_A4C_gt.nii.gz", mask.astype(np.uint8), like=Clip(frames))
        rows.append(f"p{case}_A4C,p{case},p{case}_A4C.dcm,p{case}_A4C_gt.nii.gz,A4C,0,{FRAMES // 2},50")
    cut = (folder / "p0_A4C.dcm").read_bytes()[:-9000]
    (folder / "p9_A4C.dcm").write_bytes(cut)
    rows.append("p9_A4C,p9,p9_A4C.dcm,,A4C,,,")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root of all results, which the commands work in."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"echoplan_{name}", raising=False)
    monkeypatch.setenv("ECHOPLAN_ROOT", str(tmp_path / "root"))
    only = {"UNetTrainer": find_method("UNetTrainer")}  # planning measures every trainer's memory, which takes long
    monkeypatch.setattr("echoplan.experiment_planning.commands.method_registry", lambda: only)
    return tmp_path / "root"


def way_of_a_user(source: Path, root: Path) -> Path:
    """Convert, plan, preprocess and train; returns the model folder."""
    quick = ["--epochs", "1", "--set", "iterations_per_epoch=4", "--set", "batch_size=2", "--set", "base_features=4"]
    where = ["-np", "0"]
    assert scripts.convert_dataset(["folder", str(source), "-d", "Mine", *where]) == 1  # one clip is cut short
    assert scripts.plan_and_preprocess(["-d", "Mine", "--verify_dataset_integrity", *where]) == 0
    assert scripts.train(["Mine", "0", "-tr", "UNetTrainer", *quick, "--device", "cpu", *where]) == 0
    assert scripts.find_best_configuration(["Mine", "-f", "0", *where]) == 0
    return root / "results" / "Dataset001_Mine" / "UNetTrainer__EchoPlans__frame"


def test_nothing_of_the_header_reaches_any_output(tmp_path, root, caplog, recwarn, capfd):
    source = make_source(tmp_path / "source", words="QZ ON SCREEN")
    new = make_source(tmp_path / "new", words="QZ ON SCREEN", patients=1)
    caplog.clear()
    recwarn.clear()
    caplog.set_level(logging.DEBUG)
    model = way_of_a_user(source, root)
    arguments = ["-i", str(new), "-o", str(root / "out"), "-m", str(model), "--device", "cpu", "-np", "0"]
    assert scripts.predict([*arguments, "--save_probabilities", "--overlays"]) == 1  # the clip that is cut short
    assert scripts.report(["-i", str(new), "-m", str(root / "out"), "-o", str(root / "report"), "-np", "0"]) == 0
    references = str(root / "preprocessed" / "Dataset001_Mine" / "gt_segmentations")
    judged = str(model / "fold_0" / "validation")
    assert scripts.evaluate_folder([judged, references, "-d", "Mine", "-np", "0"]) == 1  # other folds' are missing
    pair = ["--predictions", f"A={judged}", f"B={judged}", "--references", references, "-d", "Mine"]
    assert scripts.compare([*pair, "-o", str(root / "comparison"), "-np", "0"]) == 1  # here, too
    assert scripts.export_model(["Mine", "-o", str(root / "model.zip")]) == 0
    said = capfd.readouterr()
    told = caplog.text + said.out + said.err + "".join(str(item.message) for item in recwarn)
    (root / "said").write_text(told)
    assert "p9_A4C" in told
    endings = {"".join(path.suffixes[-2:]) for path in root.rglob("*") if path.is_file()}
    assert {".nii.gz", ".b2nd", ".pth", ".html", ".json", ".csv", ".npz", ".png", ".mp4"} <= endings
    assert found_in(root) == {}
    if find_spec("highdicom") is None:
        return
    assert scripts.predict([*arguments, "--continue_prediction", "--dicom"]) == 1
    (root / "said").write_text(capfd.readouterr().err)
    found = found_in(root)
    assert {PLANTED["PatientName"].lower(), PLANTED["PatientID"].lower()} <= set(found.values())
    assert {name.split(": ")[0].rpartition("/")[0] for name in found} == {"out/dicom"}
    assert PRIVATE.lower() not in found.values() and PLANTED["PatientAddress"].lower() not in found.values()


def test_the_search_finds_what_is_hidden(tmp_path):
    source = make_source(tmp_path / "dicom", words="", patients=1)
    expected = {value.lower() for value in (*PLANTED.values(), PRIVATE)}
    assert expected <= set(found_in(source).values())
    name = PLANTED["PatientName"].split("^")[0]
    stream = io.BytesIO()
    text = PngInfo()
    text.add_text("Comment", name, zip=True)
    Image.new("L", (4, 4)).save(stream, "PNG", pnginfo=text)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "a.csv").write_text("born,1931-02-07")
    (hidden / "b.nii.gz").write_bytes(gzip.compress(name.encode("latin-1")))
    (hidden / "c.json").write_text(name, encoding="utf-16")
    (hidden / "d.png").write_bytes(stream.getvalue())
    (hidden / "e.html").write_text(f"<img src='data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}'>")
    np.savez_compressed(hidden / "f.npz", words=np.array(name))
    packed = np.frombuffer(name.encode(), np.uint8)
    blosc2.asarray(packed, urlpath=str(hidden / "g.b2nd"), mode="w")
    blosc2.asarray(packed[::-1].copy(), urlpath=str(hidden / "h.b2nd"), meta={"who": name.encode()}, mode="w")
    assert {found.split(": ")[0] for found in found_in(hidden)} == {path.name for path in hidden.iterdir()}


def pictures(page: Path) -> list[str]:
    """The pictures of a report, as the page holds them."""
    return re.findall(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", page.read_text())


def test_words_outside_the_ultrasound_region_change_nothing(tmp_path, trained):
    """What lies outside the region that the header names is not even read: pictures and masks are the same without."""
    pages, clips = [], []
    for words in ("QZ ON SCREEN", ""):
        frames, _ = screen(0, words=words)
        assert (frames.max() > 200) == bool(words)
        path = save(tmp_path / (words[:2] or "none") / "p0_A4C.dcm", frames)
        out = path.parent / "out"
        arguments = ["-i", str(path), "-o", str(out), "-m", str(trained.results / MODEL), "-f", "0"]
        assert scripts.predict([*arguments, "--device", "cpu", "-np", "0"]) == 0
        pages.append(pictures(out / "report.html"))
        clips.append(read_clip(path).frames)
    assert pages[0] and pages[0] == pages[1]
    assert clips[0].shape[1:] == REGION and np.array_equal(*clips) and clips[0].max() <= 200
