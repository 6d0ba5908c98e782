"""What each fold found alone, and where the cavity meets the edge of the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from echoplan.dataset import Case
from echoplan.errors import EchoPlanError
from echoplan.evaluation import measure_case, measure_patients
from echoplan.imageio import write_clip
from echoplan.inference import EchoPredictor, predict_folder
from echoplan.inference.clip_labels import ClipLabels
from echoplan.inference.ensemble import FrameProbabilities
from echoplan.inference.uncertainty import (
    ClipEvidence,
    Opinion,
    edge_share,
    fold_sd,
    grid_spacing,
    image_sector,
    measure_folds,
)
from echoplan.preprocessing import plan_geometry
from echoplan.preprocessing.probabilities import native_geometry


@pytest.fixture
def fuzzy(heart):
    """A clip whose border is a ramp, so that networks with other thresholds draw other borders."""
    from scipy.ndimage import gaussian_filter

    large = np.kron(heart.clip.frames, np.ones((1, 2, 2)))
    frames = np.stack([gaussian_filter(frame, 3.0) for frame in large])
    return frames.astype(np.uint8)


def test_each_folds_own_measurement_is_that_of_its_network_alone(folders, make_model, fuzzy):
    model = make_model(folders.results, thresholds=(0.35, 0.65), size=(128, 160))  # the clip's own grid
    together = EchoPredictor.from_model_folder(model, device="cpu", trust_code=True)
    alone = [
        EchoPredictor.from_model_folder(model, [fold], device="cpu", trust_code=True).predict(fuzzy, (1, 1), 80)
        for fold in (0, 1)
    ]
    evidence = together.segment(together.prepare(make_clip(fuzzy))).evidence
    prediction = together.predict(make_clip(fuzzy))
    case = Case("", "", "", spacing_row_mm=1, spacing_col_mm=1, frame_time_ms=80)
    (row,) = measure_patients([measure_case(case, prediction.mask)])
    found = measure_folds(row, [(case, evidence)], method="simpson")
    for fold in (0, 1):
        assert found[fold]["ef_percent"] == pytest.approx(alone[fold].ef_percent)
        own = measure_case(case, alone[fold].mask)
        assert found[fold]["edv_ml"] == pytest.approx(own.edv_ml)
    assert found[0]["edv_ml"] > 1.1 * found[1]["edv_ml"]
    assert prediction.ef_fold_sd_percent == pytest.approx(fold_sd(found)) and fold_sd(found) > 0.1


def make_clip(frames):
    from echoplan.imageio import Clip

    return Clip(frames, (1.0, 1.0), 80.0, "test")


def test_networks_run_once_and_one_fold_has_no_spread(folders, make_model, heart, monkeypatch):
    import echoplan.inference.ensemble as module

    predictor = EchoPredictor.from_model_folder(make_model(folders.results), device="cpu", trust_code=True)
    calls = []
    original = module.segment_parts
    monkeypatch.setattr(module, "segment_parts", lambda *a, **k: calls.append(1) or original(*a, **k))
    assert sorted(evidence_of(predictor, heart).by_fold) == [0, 1] and len(calls) == 2
    single = EchoPredictor.from_model_folder(predictor.members[0].model.path, [0], device="cpu", trust_code=True)
    assert single.predict(heart.clip).ef_fold_sd_percent is None
    own, together = (evidence_of(single, heart).by_fold[0], evidence_of(single, heart).average)
    np.testing.assert_array_equal(own.beats, together.beats)


def test_a_row_of_one_fold_is_not_assessed_and_one_of_two_folds_is(folders, make_model, heart):
    model = make_model(folders.results)
    for folds, expected in (([0], "not judged"), ([0, 1], "no warning")):
        predictor = EchoPredictor.from_model_folder(model, folds, device="cpu", trust_code=True)
        assert predictor.predict(heart.clip).quality == expected


def test_slips_in_cases_csv_and_arrays_count_as_unknown(folders, make_model, tmp_path, heart):
    """EF 1.74 instead of 63.9, EDV 62,680 mL with the quality "good"."""
    predictor = EchoPredictor.from_model_folder(make_model(folders.results), device="cpu", trust_code=True)
    write_clip(tmp_path / "in" / "a.nii.gz", heart.clip)
    (right,) = predict_folder(tmp_path / "in", tmp_path / "right", predictor).rows
    for number, (cells, words) in enumerate((("0.0232,,", "0.0232 ms"), (",14.1,14.1", "14.1 x 14.1 mm"))):
        table = f"case,patient,image,frame_time_ms,spacing_row_mm,spacing_col_mm\na,p,a.nii.gz,{cells}\n"
        (tmp_path / "in" / "cases.csv").write_text(table)
        (row,) = predict_folder(tmp_path / "in", tmp_path / str(number), predictor).rows
        assert row.ef_percent == pytest.approx(right.ef_percent, abs=1) and row.quality == "check"
        assert words in row.note and words in row.quality_reasons and (row.edv_ml is None) == (number == 1)
    found = predictor.predict(heart.clip.frames, (14.1, 14.1), 0.08)
    assert found.area_mm2 is None and found.quality == "check" and "14.1 x 14.1 mm" in found.quality_reasons[0]


def test_ensembles_of_other_folds_say_nothing_of_folds(folders, make_model, heart):
    one, two = make_model(folders.results), make_model(folders.results, trainer="DimTrainer")
    same = EchoPredictor.from_model_folders([(one, None), (two, None)], device="cpu", trust_code=True)
    assert same.folds == (0, 1) and sorted(evidence_of(same, heart).by_fold) == [0, 1]
    other = EchoPredictor.from_model_folders([(one, None), (two, (0,))], device="cpu", trust_code=True)
    assert other.folds == () and evidence_of(other, heart).by_fold == {}
    assert other.predict(heart.clip).ef_fold_sd_percent is None


def evidence_of(predictor, heart):
    return predictor.segment(predictor.prepare(heart.clip)).evidence


def test_an_opinion_has_its_own_phases_unless_they_are_given(heart):
    cavity = heart.mask > 0
    found = Opinion.of(cavity)
    assert len(found) == 1
    np.testing.assert_array_equal(found.beats, cavity[[heart.ed_frame, heart.es_frame]])
    np.testing.assert_array_equal(Opinion.of(cavity, phases=(1, 4)).beats, cavity[[1, 4]])
    assert len(Opinion.of(np.zeros_like(cavity))) == 0


def test_each_folds_certainty_is_its_mean_probability_of_what_it_finds():
    shape, grid = (2, 4, 4), native_geometry((4, 4), None)
    found = ClipLabels(shape, 3, 2, None)
    for fold, sure in ((0, 0.9), (1, 0.7), (None, 0.8)):
        values = torch.zeros(3, 2, 4, 4)
        values[0], values[2, :, :2], values[0, :, :2] = 1, sure, 1 - sure
        found.add(FrameProbabilities(0, fold, np.arange(2), values, grid))
    assert found.certainty == pytest.approx(0.8)  # of the folds'
    assert ClipLabels(shape, 3, 2, None).certainty is None
    single = ClipLabels(shape, 1, 1, None)
    single.add(FrameProbabilities(0, None, np.arange(2), torch.full((1, 2, 4, 4), 0.4), grid))
    assert single.certainty is None  # there is no cavity to be sure of


def test_evidence_survives_the_disk(tmp_path, heart):
    cavity = heart.mask > 0
    kept = ClipEvidence((0.5, 0.25), Opinion.of(cavity), {3: Opinion.of(cavity, phases=(1, 4)), 1: Opinion(cavity[:0])})
    kept.certainty = 0.75
    kept.write(tmp_path / "a.npz")
    again = ClipEvidence.read(tmp_path / "a.npz")
    assert (
        again.spacing == (0.5, 0.25)
        and again.edge_share is None
        and again.certainty == 0.75
        and list(again.by_fold) == [3, 1]
    )
    np.testing.assert_array_equal(again.average.beats, kept.average.beats)
    np.testing.assert_array_equal(again.by_fold[3].beats, cavity[[1, 4]])
    assert len(again.by_fold[1]) == 0
    (tmp_path / "b.npz").write_bytes(b"nothing")
    for name in ("b", "c"):
        with pytest.raises(EchoPlanError, match="predict again"):
            ClipEvidence.read(tmp_path / f"{name}.npz")


def test_a_fold_without_a_cavity_measures_nothing(heart):
    cavity = heart.mask > 0
    case = Case("a", "", "", spacing_row_mm=1, spacing_col_mm=1)
    (row,) = measure_patients([measure_case(case, cavity)])
    empty = Opinion(cavity[:0])
    speck = Opinion.of(cavity & (np.arange(80) == 40))
    evidence = ClipEvidence((1, 1), Opinion.of(cavity), {0: Opinion.of(cavity), 1: empty, 2: speck})
    found = measure_folds(row, [(case, evidence)], method="simpson")
    assert found[0]["ef_percent"] == pytest.approx(row.ef_percent)
    assert set(found[1].values()) == set(found[2].values()) == {None} and fold_sd(found) is None
    assert measure_folds(row, [(case, ClipEvidence((1, 1)))], method="simpson") == {}


def test_the_grids_spacing_is_in_mm_or_in_the_clips_pixels():
    known = plan_geometry((64, 64), (0.5, 0.5), None, (32, 32))
    assert grid_spacing(known) == pytest.approx((1.0, 1.0))
    unknown = plan_geometry((64, 128), None, None, (32, 32), "stretch")
    assert grid_spacing(unknown) == pytest.approx((2.0, 4.0))


def sector(shape=(120, 120)):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    depth = np.hypot(rows - 4, columns - 60)
    return (depth < 105) & (np.abs(columns - 60) < 0.8 * (rows - 4))


def test_a_cavity_that_leaves_the_sector_is_noticed():
    image = np.where(sector(), 90, 0).astype(np.uint8)
    frames = np.stack([image, np.where(image > 0, image + 20, 0).astype(np.uint8)])
    rows, columns = np.mgrid[:120, :120]

    def cavity(column):
        return np.stack([((rows - 60) / 24) ** 2 + ((columns - column) / 14) ** 2 < 1] * 2)

    seen = image_sector(frames)
    assert edge_share(seen, cavity(60)) == 0.0
    assert 0.15 < edge_share(seen, cavity(60 + 36)) < 0.9
    assert edge_share(seen, np.zeros_like(cavity(60))) is None
    black = image_sector(np.zeros_like(frames))
    assert edge_share(black, cavity(60)) == 0.0  # nothing stands out: the frame is the sector
    assert edge_share(black, cavity(8)) > 0.1
