"""echoplan_stress: what each change does to a clip, and what becomes of a model under it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from echoplan import scripts
from echoplan.dataset import Case, DatasetDescription, EchoDataset
from echoplan.errors import EchoPlanError
from echoplan.evaluation import measure_case
from echoplan.imageio import write_clip, write_mask
from echoplan.inference import EchoPredictor
from echoplan.inference.stress import CHANGES, LabelledClip
from echoplan.inference.stress.changes import changes_called


@pytest.fixture
def item(heart):
    case = Case("p1_A4C", "p1", view="A4C", ed_frame=heart.ed_frame, es_frame=heart.es_frame)
    return LabelledClip(heart.clip, heart.mask, case.with_header(heart.clip))


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_every_level_changes_the_clip_and_keeps_its_form(item, name):
    before, unmarked = item.clip.frames.copy(), item.labels.copy()
    for level in CHANGES[name].levels:
        made = CHANGES[name].apply(item, level)
        if name == "frame_rate" and made is None:
            continue
        assert made.clip.frames.dtype == np.uint8 and made.clip.frames.shape[1:] == before.shape[1:]
        assert made.labels.shape == made.clip.frames.shape and made.labels.dtype == np.uint8
        assert made.clip.frames.shape != before.shape or (made.clip.frames != before).any()
    assert (item.clip.frames == before).all() and (item.labels == unmarked).all()


@pytest.mark.parametrize("name", ["gain", "haze", "attenuation", "resolution"])
def test_grey_levels_change_and_labels_do_not(item, name):
    assert (CHANGES[name].apply(item, CHANGES[name].levels[-1]).labels == item.labels).all()


def test_a_heart_that_is_moved_stays_as_large(item):
    true = measure_case(item.case, item.labels)
    for name, level in (("depth", 0.75), ("rotation", 10.0), ("mirrored", 1.0)):
        made = CHANGES[name].apply(item, level)
        measured = measure_case(made.case, made.labels)
        assert measured.edv_ml == pytest.approx(true.edv_ml, rel=0.06), name
        assert measured.ef_percent == pytest.approx(true.ef_percent, abs=3), name
        assert ((made.clip.frames > 120) == (made.labels == 1)).mean() > 0.98  # pixels and labels move together
    assert (CHANGES["mirrored"].apply(item, 1.0).labels == item.labels[:, :, ::-1]).all()


def test_fewer_frames_begin_at_end_diastole_and_their_phases_are_found(item):
    case = replace(item.case, ed_frame=1)
    made = CHANGES["frame_rate"].apply(replace(item, case=case), 2.0)
    assert (made.clip.frames == item.clip.frames[1::2]).all() and made.clip.frame_time_ms == 2 * 1000 / 12
    assert made.case.frame_time_ms == made.clip.frame_time_ms
    assert made.case.ed_frame is None and made.case.es_frame is None
    assert CHANGES["frame_rate"].apply(item, 4.0) is None  # three frames show no curve


def test_a_change_that_is_not_there_is_named():
    with pytest.raises(EchoPlanError, match="'fog'"):
        changes_called(("fog",))
    assert len(changes_called(())) == len(CHANGES)


@pytest.fixture
def dataset(at, tmp_path, heart):
    """A raw dataset of two patients, one of them with two views, and a model of another dataset."""
    folders = at(tmp_path / "root")
    folder = folders.raw / "Dataset007_Other"
    cases = []
    for patient, view in (("p1", "A2C"), ("p1", "A4C"), ("p2", "A4C")):
        name = f"{patient}_{view}"
        write_clip(folder / "imagesTr" / f"{name}.nii.gz", heart.clip)
        write_mask(folder / "labelsTr" / f"{name}.nii.gz", heart.mask, like=heart.clip)
        cases.append(Case(name, patient, f"imagesTr/{name}.nii.gz", f"labelsTr/{name}.nii.gz", view=view))
    EchoDataset(folder, DatasetDescription("Other"), tuple(cases)).write()
    return folders


def test_the_table_tells_what_harms_a_model_and_goes_on_where_it_stopped(
    dataset, make_model, tmp_path, capsys, monkeypatch
):
    model = make_model(dataset.results)  # what is brighter than half of white is the ventricle
    out = tmp_path / "stress"
    changes = ["gain", "mirrored", "frame_rate"]
    words = [str(model), "-d", "Other", "-o", str(out), "--changes", *changes, "--device", "cpu"]
    assert scripts.stress(words) == 0
    said = capsys.readouterr().out
    assert "2 patients, unchanged: Dice 99." in said and "mirrored: 99." in said
    rows = pd.read_csv(out / "stress.csv").set_index(["change", "level"])
    assert rows.index[0][0] == "unchanged" and (rows["patients"] == 2).all()
    assert rows.loc[("gain", 0.35), "dice_percent"] == 0 and rows.loc[("gain", 0.35), "check_percent"] == 100
    assert rows.loc[("gain", 0.35), "ef_measured"] == 0
    assert rows.loc[("frame_rate", 2.0), "ef_mae"] < 5 and ("frame_rate", 4.0) not in rows.index
    assert "| gain" in (out / "stress.md").read_text() and (out / "stress.png").stat().st_size > 1000
    with monkeypatch.context() as patch:
        patch.setattr(EchoPredictor, "segment", None)
        before = (out / "stress.csv").read_bytes()
        assert scripts.stress(words) == 0 and (out / "stress.csv").read_bytes() == before
        label = next((dataset.raw / "Dataset007_Other" / "labelsTr").glob("p2*"))
        label.touch()  # what has changed is not taken for what was judged
        with pytest.raises(TypeError):
            scripts.stress(words)
    assert scripts.stress([*words, "-f", "1"]) == 0  # another model


def test_what_a_model_learned_from_is_left_out(dataset, make_model, tmp_path, capsys):
    model = make_model(dataset.results, dataset="Dataset007_Other", folds=(0,))
    debug = model / "fold_0" / "debug.json"
    debug.write_text('{"train": ["p1_A2C"], "val": ["p2_A4C"]}')
    words = [str(model), "-d", "Other", "-o", str(tmp_path / "out"), "--changes", "mirrored"]
    assert scripts.stress(words) == 0
    assert "2 of 3 clips are of patients that the model learned from" in capsys.readouterr().out
    debug.write_text('{"train": ["p1_A2C", "p2_A4C"]}')
    assert scripts.stress(words) == 1
    assert "learned from all of these cases" in capsys.readouterr().err


def test_labels_of_other_structures_are_refused(dataset, make_model, tmp_path, capsys):
    model = make_model(dataset.results, labels={"background": 0, "LA": 1})
    description = model / "dataset.json"
    description.write_text(description.read_text().replace('"target": "LV"', '"target": "LA"'))
    assert scripts.stress([str(model), "-d", "Other", "-o", str(tmp_path / "out")]) == 1
    assert "does not label LA" in capsys.readouterr().err
