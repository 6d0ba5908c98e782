"""EchoNet-Dynamic in small."""

from __future__ import annotations

import csv
import math
from fractions import Fraction

import av
import numpy as np
import pytest

from echoplan.dataset import EchoDataset
from echoplan.datasets.echonet_dynamic import convert_echonet_dynamic, tracing_mask
from echoplan.errors import EchoPlanError

FRAMES, SIDE = 8, 112


def tracing(radius, chords=20, centre=(56.0, 50.0)):
    """The long axis, then the chords of an upright ellipse of half axes 2 * radius (y) and radius (x)."""
    x, y = centre
    rows = [(x, y - 2 * radius, x, y + 2 * radius)]
    for step in np.linspace(-0.98, 0.98, chords):
        half = radius * math.sqrt(1 - step**2)
        rows.append((x - half, y + 2 * radius * step, x + half, y + 2 * radius * step))
    return np.array(rows)


def write_video(path, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=Fraction(50))
        stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, "yuvj420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())


@pytest.fixture
def source(tmp_path):
    """A, B, C: train, val, test; B's lists name the video without .avi, and its smaller tracing comes first."""
    folder = tmp_path / "EchoNet-Dynamic"
    (folder / "Videos").mkdir(parents=True)
    gradient = np.tile(np.arange(SIDE, dtype=np.uint8), (SIDE, 1))
    rows, tracings = [], []
    for name, split, frames in [("0XA", "TRAIN", (2, 6)), ("0XB", "VAL", (6, 1)), ("0XC", "TEST", (0, 7))]:
        write_video(folder / "Videos" / f"{name}.avi", [gradient] * FRAMES)
        rows.append({"FileName": name, "EF": 55.5, "ESV": 40.1, "EDV": 90.2, "FrameHeight": SIDE, "FrameWidth": SIDE,
                     "FPS": 40, "NumberOfFrames": FRAMES, "Split": split})  # fmt: skip
        in_list = f"{name}.avi" if name != "0XB" else name
        for frame, radius in sorted(zip(frames, (15, 10), strict=True)):
            for x1, y1, x2, y2 in tracing(radius):
                tracings.append({"FileName": in_list, "X1": x1, "Y1": y1, "X2": x2, "Y2": y2, "Frame": frame})
    write_list(folder / "FileList.csv", rows)
    write_list(folder / "VolumeTracings.csv", tracings)
    return folder


def write_list(path, rows):
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def read_list(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_mask_is_the_polygon_of_the_chords():
    mask = tracing_mask(tracing(15), (SIDE, SIDE))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    ellipse = ((rows - 50) / 30) ** 2 + ((columns - 56) / 15) ** 2 <= 1
    assert 2 * (mask & ellipse).sum() / (mask.sum() + ellipse.sum()) > 0.97
    # The long axis as one more chord would cut through the middle and add the two poles.
    assert mask[20, 56] == 0 and mask[50].sum() == pytest.approx(31, abs=1)


def test_a_conversion(source, tmp_path):
    convert_echonet_dynamic(source, tmp_path / "out", name="EchoNet")
    dataset = EchoDataset.read(tmp_path / "out")
    assert [(case.case, case.patient, case.split) for case in dataset.cases] == [
        ("0XA", "0XA", "train"), ("0XB", "0XB", "val"), ("0XC", "0XC", "test")]  # fmt: skip
    a, b, c = dataset.cases
    assert (a.ed_frame, a.es_frame, a.labelled_frames) == (2, 6, (2, 6))
    assert (b.ed_frame, b.es_frame, b.labelled_frames) == (6, 1, (1, 6))  # the larger one, not the first
    assert (a.ef_percent, a.edv_ml, a.esv_ml, a.frame_time_ms, a.view) == (55.5, 90.2, 40.1, 25, "A4C")
    assert a.image == "imagesTr/0XA.avi" and c.image == "imagesTs/0XC.avi"
    assert (tmp_path / "out" / a.image).read_bytes() == (source / "Videos" / "0XA.avi").read_bytes()
    clip = dataset.load_clip(a)
    assert clip.frames.shape == (FRAMES, SIDE, SIDE) and clip.spacing_mm is None and clip.frame_time_ms == 25
    mask = dataset.load_mask(a, clip=clip)
    assert np.array_equal(mask[2], tracing_mask(tracing(15), (SIDE, SIDE)))
    assert np.array_equal(mask[6], tracing_mask(tracing(10), (SIDE, SIDE)))
    assert (np.delete(mask, [2, 6], axis=0) == 255).all()
    assert dataset.description.image_ending == ".avi"


def test_videos_are_copied_where_links_are_impossible(source, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    convert_echonet_dynamic(source, tmp_path / "out")
    assert (tmp_path / "out" / "imagesTr" / "0XA.avi").stat().st_nlink == 1


def test_overwriting_leaves_the_source_alone(source, tmp_path):
    before = {path.name: path.read_bytes() for path in (source / "Videos").iterdir()}
    for overwrite in (False, True):
        convert_echonet_dynamic(source, tmp_path / "out", overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in (source / "Videos").iterdir()} == before
    with pytest.raises(EchoPlanError, match="--overwrite"):
        convert_echonet_dynamic(source, tmp_path / "out")


def test_broken_cases(source, tmp_path):
    content = (source / "Videos" / "0XA.avi").read_bytes()
    (source / "Videos" / "0XA.avi").write_bytes(content[: len(content) // 2])
    (source / "Videos" / "0XB.avi").unlink()
    failures: dict[str, str] = {}
    dataset = convert_echonet_dynamic(source, tmp_path / "out", failures=failures)
    assert [case.case for case in dataset.cases] == ["0XC"]
    assert "truncated" in failures["0XA"] and "video is missing" in failures["0XB"]


def test_tracings_that_do_not_fit(source, tmp_path, caplog):
    rows = read_list(source / "VolumeTracings.csv")
    rows = [row for row in rows if row["FileName"] != "0XC.avi"]
    for row in rows:
        if row["FileName"] == "0XA.avi" and row["Frame"] == "6":
            row["Frame"] = "60"
        if row["FileName"] == "0XB" and row["Frame"] == "1":
            row["X2"], row["Y2"] = row["X1"], row["Y1"] = 300, 300
    write_list(source / "VolumeTracings.csv", rows)
    failures: dict[str, str] = {}
    dataset = convert_echonet_dynamic(source, tmp_path / "out", failures=failures)
    assert "no frame 60 in a clip of 8" in failures["0XA"]
    assert "frame 1 encloses nothing" in failures["0XB"]
    assert not tracing_mask(tracing(10)[:1], (SIDE, SIDE)).any()  # the long axis alone
    case = dataset.cases[0]  # a video nobody traced has an EF all the same
    assert (case.case, case.label, case.ed_frame, case.ef_percent) == ("0XC", None, None, 55.5)
    assert "0XC: 0 of its frames are traced" in caplog.text


def test_broken_lists(source, tmp_path):
    rows = read_list(source / "FileList.csv")
    write_list(source / "FileList.csv", [*rows, rows[0]])
    with pytest.raises(EchoPlanError, match="0XA more than once"):
        convert_echonet_dynamic(source, tmp_path / "out")
    write_list(source / "FileList.csv", [{"FileName": "0XA", "EF": 1}])
    with pytest.raises(EchoPlanError, match="columns are missing: FPS, Split"):
        convert_echonet_dynamic(source, tmp_path / "out")
    write_list(source / "FileList.csv", rows)
    tracings = read_list(source / "VolumeTracings.csv")
    tracings[3]["X1"] = "wide"
    write_list(source / "VolumeTracings.csv", tracings)
    with pytest.raises(EchoPlanError, match=r"row 5 is wrong.*wide"):
        convert_echonet_dynamic(source, tmp_path / "out")
    (source / "VolumeTracings.csv").unlink()
    with pytest.raises(EchoPlanError, match=r"VolumeTracings\.csv is missing"):
        convert_echonet_dynamic(source, tmp_path / "out")
