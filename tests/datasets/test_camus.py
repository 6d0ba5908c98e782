"""CAMUS: both releases in small, and the real ones where they are."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import SimpleITK as sitk

from echoplan.dataset import EchoDataset
from echoplan.datasets.camus import convert_camus
from echoplan.errors import EchoPlanError
from echoplan.files import read_json
from echoplan.imageio import read_mask

from ..real_data import REAL_DATA

OLD = REAL_DATA / "camus_mhd"
FRAMES, ROWS, COLUMNS = 6, 20, 16
ED, ES = 1, 4  # from 0


def save(path, array):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.308, 0.154, 1.54)[: array.ndim])
    sitk.WriteImage(image, str(path))


def labels_of(frame):
    """A ventricle that shrinks, in a ring of myocardium, above an atrium."""
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    distance = np.hypot(rows - 8, columns - 8)
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[distance < 7] = 2
    mask[distance < 5 - 0.4 * frame] = 1
    mask[16:, 4:12] = 3
    return mask


def add_patient(root, number, *, views=("2CH", "4CH"), ending=".nii.gz", info=None):
    """A patient with a dense sequence and the four ED/ES files a view; returns the folder and the sequence's frames."""
    folder = root / f"patient{number:04d}"
    folder.mkdir(parents=True)
    frames = np.random.default_rng(number).integers(0, 256, (FRAMES, ROWS, COLUMNS), dtype=np.uint8)
    masks = np.stack([labels_of(frame) for frame in range(FRAMES)])
    sequence = "sequence" if ending == ".mhd" else "half_sequence"
    for view in views:
        stem = f"{folder.name}_{view}"
        save(folder / f"{stem}_{sequence}{ending}", frames)
        if ending != ".mhd":
            save(folder / f"{stem}_{sequence}_gt{ending}", masks)
        for phase, frame in (("ED", ED), ("ES", ES)):
            one = slice(frame, frame + 1) if ending == ".mhd" else frame
            save(folder / f"{stem}_{phase}{ending}", frames[one])
            save(folder / f"{stem}_{phase}_gt{ending}", masks[one])
        values = {
            "ED": ED + 1,
            "ES": ES + 1,
            "NbFrame": FRAMES,
            "Sex": "F",
            "ImageQuality": "Good",
            "EF": 54,
            "FrameRate": 50,
        }
        values |= info or {}
        text = "".join(f"{key}: {value}\n" for key, value in values.items() if value is not None)
        (folder / f"Info_{view}.cfg").write_text(text)
    return folder, frames, masks


def converted(tmp_path, **settings):
    return convert_camus(tmp_path / "source", tmp_path / "raw" / "Dataset001_CAMUS", name="CAMUS", **settings)


def test_a_dense_release(tmp_path):
    _, frames, masks = add_patient(tmp_path / "source" / "database_nifti", 1)
    add_patient(tmp_path / "source" / "database_nifti", 2)
    add_patient(tmp_path / "source" / "database_nifti", 3)
    splits = tmp_path / "source" / "database_split"
    splits.mkdir()
    for name, patient in [("training", 1), ("validation", 2), ("testing", 3)]:
        (splits / f"subgroup_{name}.txt").write_text(f"patient{patient:04d}\n")
    converted(tmp_path)
    dataset = EchoDataset.read(tmp_path / "raw" / "Dataset001_CAMUS")  # what is on disk, not what was returned
    assert [case.case for case in dataset.cases] == [
        f"patient000{n}_{view}" for n in (1, 2, 3) for view in ("2CH", "4CH")
    ]
    assert [case.split for case in dataset.cases[::2]] == ["train", "val", "test"]
    assert dataset.case("patient0003_4CH").image == "imagesTs/patient0003_4CH.nii.gz"
    case = dataset.case("patient0001_2CH")
    assert (case.patient, case.view, case.ed_frame, case.es_frame) == ("patient0001", "A2C", ED, ES)
    assert (case.ef_percent, case.edv_ml, case.quality, case.frame_time_ms) == (54, None, "Good", 20)
    assert dataset.case("patient0001_4CH").view == "A4C"
    clip = dataset.load_clip(case)
    assert np.array_equal(clip.frames, frames)
    assert clip.spacing_mm == pytest.approx((0.154, 0.308)) and clip.frame_time_ms == pytest.approx(20)
    assert np.array_equal(dataset.load_mask(case), masks == 1)  # LV alone
    assert dataset.description.labels == {"background": 0, "LV": 1}
    assert (
        dataset.description.licence == "CC BY-NC-SA 4.0" and "10.1109/TMI.2019.2900516" in dataset.description.reference
    )


def test_the_folder_of_patients_itself_finds_the_splits_too(tmp_path):
    add_patient(tmp_path / "database_nifti", 1)
    (tmp_path / "database_split").mkdir()
    (tmp_path / "database_split" / "subgroup_testing.txt").write_text("patient0001")
    dataset = convert_camus(tmp_path / "database_nifti", tmp_path / "out")
    assert {case.split for case in dataset.cases} == {"test"}


def test_all_structures(tmp_path):
    _, _, masks = add_patient(tmp_path / "source", 1)
    dataset = converted(tmp_path, structures="all")
    assert dataset.description.labels == {"background": 0, "LV": 1, "MYO": 2, "LA": 3}
    assert np.array_equal(dataset.load_mask(dataset.cases[0]), masks)
    with pytest.raises(EchoPlanError, match="choose one of: lv, all"):
        converted(tmp_path, structures="some", overwrite=True)


def test_a_sequence_with_labels_of_ed_and_es_alone(tmp_path):
    folder, frames, masks = add_patient(tmp_path / "source", 1, views=("4CH",))
    (folder / "patient0001_4CH_half_sequence_gt.nii.gz").unlink()
    dataset = converted(tmp_path)
    case = dataset.cases[0]
    mask = dataset.load_mask(case)
    assert case.labelled_frames == (ED, ES) and mask.shape == frames.shape
    for frame in range(FRAMES):
        assert np.array_equal(mask[frame], masks[frame] == 1) if frame in (ED, ES) else (mask[frame] == 255).all()


def test_a_damaged_dense_label_file(tmp_path, caplog):
    folder, _, _ = add_patient(tmp_path / "source", 1, views=("4CH",))
    path = folder / "patient0001_4CH_half_sequence_gt.nii.gz"
    path.write_bytes(path.read_bytes()[:-30])
    case = converted(tmp_path).cases[0]
    assert case.labelled_frames == (ED, ES)
    assert "labels of ED and ES alone" in caplog.text and "truncated" in caplog.text


@pytest.mark.parametrize("damage", ["missing", "truncated", "frames outside"])
def test_without_a_sequence_the_two_frames_are_the_clip(tmp_path, caplog, damage):
    caplog.set_level(logging.WARNING)
    info = {"ES": 99} if damage == "frames outside" else None
    folder, frames, masks = add_patient(tmp_path / "source", 1, info=info)
    for view in ("2CH", "4CH") if damage != "frames outside" else ():
        path = folder / f"patient0001_{view}_half_sequence.nii.gz"
        path.write_bytes(path.read_bytes()[:-100])
        if damage == "missing":
            path.unlink()
    dataset = converted(tmp_path)
    case = dataset.cases[0]
    assert (case.ed_frame, case.es_frame, case.labelled_frames, case.frame_time_ms) == (0, 1, (0, 1), None)
    clip = dataset.load_clip(case)
    assert np.array_equal(clip.frames, frames[[ED, ES]]) and clip.frame_time_ms is None
    assert clip.spacing_mm == pytest.approx((0.154, 0.308))
    assert np.array_equal(dataset.load_mask(case), masks[[ED, ES]] == 1)
    warnings = [record.getMessage() for record in caplog.records]
    (line,) = [warning for warning in warnings if "only ED and ES can be used" in warning]  # of both
    assert line.startswith("2 of 2 cases (patient0001_2CH, patient0001_4CH): only ED")
    listed = tmp_path / "raw" / "Dataset001_CAMUS" / "warnings.json"
    assert [len(said) for said in read_json(listed).values()] == [1, 1] and str(listed) in warnings[-1]


def test_one_phase_without_labels(tmp_path):
    folder, _, masks = add_patient(tmp_path / "source", 1, views=("4CH",))
    for name in ("half_sequence", "half_sequence_gt", "ES_gt"):
        (folder / f"patient0001_4CH_{name}.nii.gz").unlink()
    dataset = converted(tmp_path)
    mask = dataset.load_mask(dataset.cases[0])
    assert np.array_equal(mask[0], masks[ED] == 1) and (mask[1] == 255).all()
    assert dataset.cases[0].labelled_frames == (0,)


def test_without_any_labels(tmp_path):
    folder, _, _ = add_patient(tmp_path / "source", 1, views=("4CH",))
    for path in folder.glob("*_gt.nii.gz"):
        path.unlink()
    assert converted(tmp_path).cases[0].label is None


def test_end_systole_first(tmp_path):
    add_patient(tmp_path / "source", 1, info={"ED": ES + 1, "ES": ED + 1})
    case = converted(tmp_path).cases[0]
    assert (case.ed_frame, case.es_frame) == (ES, ED)


def test_without_info(tmp_path):
    folder, frames, _ = add_patient(tmp_path / "source", 1, views=("4CH",))
    (folder / "Info_4CH.cfg").unlink()
    dataset = converted(tmp_path)  # the dense labels need no Info
    case = dataset.cases[0]
    assert (case.ed_frame, case.ef_percent, case.frame_time_ms) == (None, None, None)
    assert dataset.load_clip(case).frames.shape == frames.shape
    (folder / "patient0001_4CH_half_sequence_gt.nii.gz").unlink()
    case = converted(tmp_path, overwrite=True).cases[0]  # those of ED and ES do: without it they have no place
    assert (case.ed_frame, case.labelled_frames) == (0, (0, 1))


def test_the_challenges_layout(tmp_path):
    info = {"EF": None, "FrameRate": None, "LVedv": 94.0, "LVesv": 34.6, "LVef": 63.2}
    _, frames, masks = add_patient(tmp_path / "source" / "training", 1, ending=".mhd", info=info)
    add_patient(tmp_path / "source" / "testing", 2, ending=".mhd", info=info)
    dataset = converted(tmp_path)
    case = dataset.case("patient0001_4CH")
    assert (case.edv_ml, case.esv_ml, case.ef_percent) == (94.0, 34.6, 63.2)
    assert case.split == "" and dataset.case("patient0002_4CH").split == "test"
    assert np.array_equal(dataset.load_clip(case).frames, frames) and case.frame_time_ms is None
    assert np.array_equal(dataset.load_mask(case)[ES], masks[ES] == 1)


def test_broken_cases_are_named_and_the_good_ones_kept(tmp_path, caplog):
    add_patient(tmp_path / "source", 1)
    folder, _, _ = add_patient(tmp_path / "source", 2, views=("4CH",))
    for name in ("half_sequence", "ES"):
        (folder / f"patient0002_4CH_{name}.nii.gz").unlink()
    folder, _, _ = add_patient(tmp_path / "source", 3, views=("4CH",))
    (folder / "patient0003_4CH_half_sequence.nii.gz").unlink()
    save(folder / "patient0003_4CH_ES.nii.gz", np.zeros((ROWS, COLUMNS + 1), np.uint8))
    (tmp_path / "source" / "patient0004").mkdir()
    failures: dict[str, str] = {}
    dataset = converted(tmp_path, failures=failures)
    assert [case.case for case in dataset.cases] == ["patient0001_2CH", "patient0001_4CH"]
    assert sorted(failures) == ["patient0002_4CH", "patient0003_4CH", "patient0004_2CH", "patient0004_4CH"]
    assert "ED or ES is missing" in failures["patient0002_4CH"]
    assert "(1, 20, 17)" in failures["patient0003_4CH"]
    converted(tmp_path, overwrite=True)
    line = "4 of 6 cases (patient0002_4CH, patient0003_4CH, patient0004_2CH and 1 more): left out"
    assert line in caplog.text  # nobody asked for the failures: the log has them


def test_errors_about_the_whole(tmp_path):
    (tmp_path / "source").mkdir()
    with pytest.raises(EchoPlanError, match="no patient folders"):
        converted(tmp_path)
    add_patient(tmp_path / "source", 1)
    converted(tmp_path)
    with pytest.raises(EchoPlanError, match=r"exists already.*--overwrite"):
        converted(tmp_path)
    stale = tmp_path / "raw" / "Dataset001_CAMUS" / "imagesTr" / "patient0009_4CH.nii.gz"
    stale.touch()
    converted(tmp_path, overwrite=True)
    assert not stale.exists()
    add_patient(tmp_path / "source" / "more", 1)
    with pytest.raises(EchoPlanError, match="patient0001 lies here and in"):
        converted(tmp_path, overwrite=True)


def test_no_good_case_at_all(tmp_path):
    (tmp_path / "source" / "patient0001").mkdir(parents=True)
    with pytest.raises(EchoPlanError, match=r"no case could be converted.*ED or ES is missing"):
        converted(tmp_path)
    assert not (tmp_path / "raw" / "Dataset001_CAMUS" / "dataset.json").exists()


def test_nothing_outside_a_dataset_is_removed(tmp_path):
    add_patient(tmp_path / "source", 1)
    mine = tmp_path / "raw" / "Dataset001_CAMUS" / "imagesTr" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("not from a conversion")
    converted(tmp_path, overwrite=True)
    assert mine.exists()
    with pytest.raises(EchoPlanError, match="into itself"):
        convert_camus(tmp_path / "source", tmp_path, overwrite=True)


@pytest.mark.skipif(not OLD.is_dir(), reason="CAMUS is not here")
def test_the_real_challenge_files(tmp_path, caplog):
    dataset = convert_camus(OLD, tmp_path / "out", name="CAMUS", structures="all")
    assert len(dataset.cases) == 6 and "6 of 6 cases" in caplog.text  # their sequences have headers, but no pixels
    case = dataset.case("patient0001_4CH")
    assert (case.ef_percent, case.edv_ml, case.esv_ml) == (63.2, 94.0, 34.6)
    original = read_mask(OLD / "patient0001" / "patient0001_4CH_ES_gt.mhd")
    assert np.array_equal(dataset.load_mask(case)[1], original[0])
    assert dataset.load_clip(case).spacing_mm == pytest.approx((0.154, 0.308))
