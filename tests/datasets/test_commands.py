"""echoplan_convert_dataset."""

from __future__ import annotations

import numpy as np
import pytest

from echoplan.dataset import EchoDataset
from echoplan.imageio import Clip, write_clip, write_mask
from echoplan.scripts import convert_dataset


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder with a good case and a broken one; the raw folder is below tmp_path too."""
    monkeypatch.setenv("echoplan_raw", str(tmp_path / "raw"))
    folder = tmp_path / "source"
    clip = Clip(np.random.default_rng(0).integers(0, 256, (3, 8, 10), dtype=np.uint8), (0.2, 0.3), 20.0)
    mask = np.zeros_like(clip.frames)
    mask[:, 2:5, 2:5], mask[:, 6, 6] = 1, 2
    write_clip(folder / "good.mha", clip)
    write_mask(folder / "mask.mha", mask, like=clip)
    (folder / "bad.mha").write_bytes((folder / "good.mha").read_bytes()[:-50])
    (folder / "good.csv").write_text("case,patient,image,label\ngood,p1,good.mha,mask.mha\n")
    (folder / "both.csv").write_text("case,patient,image,label\ngood,p1,good.mha,mask.mha\nbad,p2,bad.mha,\n")
    return folder


def test_a_good_dataset(source, tmp_path, capsys):
    assert convert_dataset(["folder", str(source), "-d", "Mine", "--csv", "good.csv", "-np", "0"]) == 0
    assert len(EchoDataset.read(tmp_path / "raw" / "Dataset001_Mine").cases) == 1
    assert "1 cases in" in capsys.readouterr().out
    again = ["folder", str(source), "-d", "Mine", "--csv", "good.csv", "-np", "0"]
    assert convert_dataset(again) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert convert_dataset([*again, "--overwrite"]) == 0
    assert convert_dataset(["folder", str(source), "-d", "Other", "--id", "7", "--csv", "good.csv", "-np", "0"]) == 0
    assert (tmp_path / "raw" / "Dataset007_Other" / "cases.csv").is_file()


@pytest.mark.parametrize("processes", ["0", "2"])
def test_broken_cases_are_named_and_the_status_is_1(source, tmp_path, capsys, processes):
    assert convert_dataset(["folder", str(source), "-d", "Mine", "--csv", "both.csv", "-np", processes]) == 1
    error = capsys.readouterr().err
    assert "bad: the MetaImage is truncated" in error and "bad.mha" in error
    dataset = EchoDataset.read(tmp_path / "raw" / "Dataset001_Mine")
    assert [case.case for case in dataset.cases] == ["good"]


def test_structures(source, tmp_path):
    arguments = ["folder", str(source), "-d", "Mine", "--csv", "good.csv", "-np", "0", "--structures", "all"]
    assert convert_dataset([*arguments, "--labels", "LV", "RV"]) == 0
    dataset = EchoDataset.read(tmp_path / "raw" / "Dataset001_Mine")
    assert dataset.description.labels == {"background": 0, "LV": 1, "RV": 2}
    assert set(np.unique(dataset.load_mask(dataset.cases[0]))) == {0, 1, 2}


def test_options_that_do_not_belong(source, capsys):
    for arguments in (
        ["camus", str(source), "-d", "Mine", "--csv", "good.csv"],
        ["folder", str(source), "-d", "Mine", "--structures", "all", "--labels", "LV=1", "MYO=3"],
        ["camus", str(source), "-d", "A", "--overwrit"],
        ["nifti", str(source), "-d", "A"],
        ["camus", "/nowhere", "-d", "A"],
    ):
        with pytest.raises(SystemExit) as stop:
            convert_dataset(arguments)
        assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "belong to the layout folder" in said and "here the values are 1, 2, 3" in said


def test_nothing_could_be_converted(source, capsys):
    (source / "cases.csv").write_text("case,patient,image\nbad,p2,bad.mha\n")
    assert convert_dataset(["folder", str(source), "-d", "Mine", "-np", "0"]) == 1
    error = capsys.readouterr().err
    assert "1 not done" in error and "no case could be converted" in error
