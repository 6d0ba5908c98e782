"""Phantom datasets on disk: the raw format and the two release layouts, read back."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import SimpleITK as sitk
from skimage.draw import polygon

from echoplan.dataset import EchoDataset
from echoplan.datasets.phantom import PhantomSettings, make_patient, make_phantom_dataset, volume_tracing
from echoplan.errors import EchoPlanError
from echoplan.imageio import read_clip
from echoplan.scripts import make_phantom

SMALL = PhantomSettings(size=(80, 96), frames=6)


def patient_of(seed: int, number: int, settings: PhantomSettings = SMALL):
    return make_patient(np.random.default_rng([seed, number]), settings)


def test_raw_dataset_reads_back(tmp_path):
    folder = tmp_path / "Dataset007_PHANTOM"
    results = make_phantom_dataset(
        folder, patients=2, test_patients=1, seed=5, labels="ed_es", structures="all", settings=SMALL
    )
    assert len(results.done) == 3 and not results.failures
    dataset = EchoDataset.read(folder)
    assert dataset.description.name == "PHANTOM"
    assert dataset.description.labels == {"background": 0, "LV": 1, "MYO": 2, "LA": 3}
    assert [case.view for case in dataset.cases] == ["A2C", "A4C"] * 3
    assert [case.patient for case in dataset.test_cases()] == ["patient0003"] * 2
    assert all(case.image.startswith("imagesTs/") for case in dataset.test_cases())

    patient, case = patient_of(5, 2), dataset.case("patient0002_4CH")
    truth, clip, mask = patient.clip("A4C"), dataset.load_clip(case), dataset.load_mask(case)
    assert np.array_equal(clip.frames, truth.frames)
    assert clip.spacing_mm == pytest.approx(truth.spacing_mm)
    assert clip.frame_time_ms == pytest.approx(truth.frame_time_ms)
    truths = (patient.edv_ml, patient.esv_ml, patient.ef_percent)
    assert (case.edv_ml, case.esv_ml, case.ef_percent) == pytest.approx(truths)
    assert case.labelled_frames == (0, 5)
    assert np.all(mask[1:5] == 255)
    assert np.array_equal(mask[[0, 5]], truth.labels[[0, 5]])


def test_dense_labels_of_the_cavity_alone(tmp_path):
    folder = tmp_path / "Dataset001_P"
    make_phantom_dataset(folder, patients=1, settings=SMALL)
    dataset = EchoDataset.read(folder)
    mask = dataset.load_mask(dataset.cases[0])
    assert np.array_equal(mask, patient_of(0, 1).clips[0].labels == 1)
    assert dataset.cases[0].labelled_frames == tuple(range(6))


def test_patients_do_not_depend_on_how_many_there_are_nor_on_processes(tmp_path):
    make_phantom_dataset(tmp_path / "a", patients=2, settings=SMALL, processes=2)
    make_phantom_dataset(tmp_path / "b", patients=1, test_patients=1, settings=SMALL)
    for name, other in (("imagesTr/patient0001_2CH", "imagesTr/patient0001_2CH"),
                        ("imagesTr/patient0002_4CH", "imagesTs/patient0002_4CH")):  # fmt: skip
        first, second = read_clip(tmp_path / "a" / f"{name}.nii.gz"), read_clip(tmp_path / "b" / f"{other}.nii.gz")
        assert np.array_equal(first.frames, second.frames)


def test_camus_layout(tmp_path):
    make_phantom_dataset(tmp_path, patients=1, layout="camus", settings=SMALL)
    patient, folder = patient_of(0, 1), tmp_path / "patient0001"
    assert len(list(folder.iterdir())) == 2 * 7
    for view, ours in (("2CH", "A2C"), ("4CH", "A4C")):
        info = dict(line.split(": ") for line in (folder / f"Info_{view}.cfg").read_text().splitlines())
        assert (info["ED"], info["ES"], info["NbFrame"]) == ("1", "6", "6")
        assert float(info["EF"]) == pytest.approx(patient.ef_percent, abs=0.5)
        assert float(info["FrameRate"]) == pytest.approx(patient.frame_rate_hz, abs=0.05)
        assert info["ImageQuality"] in ("Good", "Medium", "Poor")
        clip = patient.clip(ours)
        for suffix, frames in (("half_sequence", slice(None)), ("ED", slice(0, 1)), ("ES", slice(5, 6))):
            image = sitk.ReadImage(str(folder / f"patient0001_{view}_{suffix}.nii.gz"))
            labels = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"patient0001_{view}_{suffix}_gt.nii.gz")))
            assert image.GetSpacing()[:2] == pytest.approx(clip.spacing_mm)
            assert np.array_equal(sitk.GetArrayFromImage(image), clip.frames[frames])
            assert np.array_equal(labels, clip.labels[frames])


def test_camus_layout_of_a_whole_beat_is_the_half_sequence(tmp_path):
    settings = PhantomSettings(size=(80, 80), frames=12, whole_beat=True)
    make_phantom_dataset(tmp_path, patients=1, layout="camus", labels="ed_es", settings=settings)
    clip = patient_of(0, 1, settings).clip("A2C")
    half = read_clip(tmp_path / "patient0001" / "patient0001_2CH_half_sequence.nii.gz")
    assert np.array_equal(half.frames, clip.frames[clip.ed_frame : clip.es_frame + 1])
    assert not list(tmp_path.rglob("*half_sequence_gt*"))


def test_echonet_layout(tmp_path):
    make_phantom_dataset(
        tmp_path, patients=5, test_patients=1, layout="echonet_dynamic", settings=PhantomSettings(frames=12)
    )
    with open(tmp_path / "FileList.csv", newline="") as stream:
        files = list(csv.DictReader(stream))
    with open(tmp_path / "VolumeTracings.csv", newline="") as stream:
        tracings = list(csv.DictReader(stream))
    assert [row["Split"] for row in files] == ["TRAIN"] * 4 + ["VAL", "TEST"]
    settings = PhantomSettings(size=(112, 112), whole_beat=True, views=("A4C",), frames=12)
    patient = patient_of(0, 3, settings)
    clip, row = patient.clips[0], files[2]
    assert float(row["EF"]) == pytest.approx(patient.ef_percent)
    assert float(row["EDV"]) == pytest.approx(patient.edv_ml) and float(row["ESV"]) == pytest.approx(patient.esv_ml)
    video = read_clip(tmp_path / "Videos" / f"{row['FileName']}.avi")
    assert np.array_equal(video.frames, clip.frames) and video.frames.shape == (12, 112, 112)
    own = [line for line in tracings if line["FileName"] == f"{row['FileName']}.avi"]
    assert [int(line["Frame"]) for line in own] == [clip.ed_frame] * 21 + [clip.es_frame] * 21


def test_tracing_gives_the_mask_back_the_way_echonet_reads_it():
    """EchoNet-Dynamic's own reader: drop the long axis, join both sides to a polygon."""
    settings = PhantomSettings(size=(112, 112), whole_beat=True, views=("A4C",), frames=12)
    for seed in range(3):
        clip = patient_of(seed, 1, settings).clips[0]
        for frame in (clip.ed_frame, clip.es_frame):
            x1, y1, x2, y2 = volume_tracing(clip, frame)[1:].T
            rows, columns = polygon(
                np.rint(np.concatenate([y1, y2[::-1]])), np.rint(np.concatenate([x1, x2[::-1]])), (112, 112)
            )
            mask = np.zeros((112, 112), bool)
            mask[rows, columns] = True
            truth = clip.labels[frame] == 1
            assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.96


def test_wrong_options_are_named():
    for wrong in ({"layout": "dicom"}, {"labels": "all"}, {"structures": "rv"}, {"patients": 0}):
        with pytest.raises(EchoPlanError):
            make_phantom_dataset("nowhere", **{"patients": 1, **wrong})


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("echoplan_raw", str(tmp_path / "raw"))
    common = ["-d", "TINY", "--patients", "1", "--size", "72", "-np", "0"]
    assert make_phantom([*common, "--test_patients", "1", "--labels", "ed_es"]) == 0
    dataset = EchoDataset.read(tmp_path / "raw" / "Dataset001_TINY")
    assert len(dataset.cases) == 4 and dataset.load_clip(dataset.cases[0]).frame_shape == (72, 72)
    assert make_phantom([*common, "--layout", "camus"]) == 1  # where to is not said
    assert "-o FOLDER" in capsys.readouterr().err
    assert make_phantom([*common, "--layout", "camus", "--out", str(tmp_path / "camus")]) == 0
    assert (tmp_path / "camus" / "patient0001").is_dir()
