"""The Python interface: a clip in, mask and measurements out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from echoplan.errors import EchoPlanError
from echoplan.imageio import read_mask, write_clip
from echoplan.inference import EchoPredictor
from echoplan.inputs import clip_from_array
from echoplan.preprocessing import ClipStore, plan_geometry
from echoplan.preprocessing.probabilities import (
    ClipProbabilities,
    average,
    load_probabilities,
    native_geometry,
    save_probabilities,
)
from echoplan.training.checkpoint import ModelState, load_checkpoint, save_checkpoint
from echoplan.training.fold import FoldSetup
from echoplan.training.model_folder import ModelFolder
from echoplan.training.validation import predict_cases


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("frames", [1, 5])
def test_a_clip_is_segmented_and_measured(folders, make_model, heart, frames):
    predictor = EchoPredictor.from_model_folder(
        make_model(folders.results, frames=frames), device="cpu", trust_code=True
    )
    found = predictor.predict(heart.clip.frames, spacing_mm=(0.5, 0.4), frame_time_ms=1000 / 12)
    assert found.mask.shape == heart.mask.shape and found.mask.dtype == np.uint8
    assert found.probabilities.shape == heart.mask.shape and found.probabilities.dtype == np.float32
    assert dice(found.mask == 1, heart.mask == 1) > 0.97
    np.testing.assert_allclose(found.area_mm2, (found.mask == 1).sum((1, 2)) * 0.5 * 0.4)
    assert (found.ed_frame, found.es_frame) == (heart.ed_frame, heart.es_frame)
    assert found.ef_percent == pytest.approx(100 * (1 - 0.7**3), abs=4)  # every length shrinks to 0.7


def test_a_path_a_clip_and_an_array_are_predicted_alike(folders, make_model, heart, tmp_path):
    predictor = EchoPredictor.from_model_folder(make_model(folders.results), device="cpu", trust_code=True)
    write_clip(tmp_path / "a.nii.gz", heart.clip)
    spacing, time = heart.clip.spacing_mm, heart.clip.frame_time_ms
    from_array = predictor.predict(heart.clip.frames, spacing, time)
    for given in (heart.clip, tmp_path / "a.nii.gz", str(tmp_path / "a.nii.gz")):
        found = predictor.predict(given)
        np.testing.assert_array_equal(found.mask, from_array.mask)
        assert (found.edv_ml, found.esv_ml) == pytest.approx((from_array.edv_ml, from_array.esv_ml), rel=1e-5)
        twice = predictor.predict(given, spacing_mm=(2 * spacing[0], 2 * spacing[1]))
        assert twice.edv_ml == pytest.approx(8 * found.edv_ml, rel=0.05)  # on a coarser grid of the network
        assert twice.clip.frame_time_ms == pytest.approx(time)
    odd = predictor.predict(heart.clip, frame_time_ms=0.08)
    assert odd.clip.frame_time_ms is None and "0.08 ms" in odd.note
    with pytest.raises(EchoPlanError, match=r"nowhere\.avi"):
        predictor.predict(tmp_path / "nowhere.avi")


def test_a_prediction_is_a_line_to_print_and_a_picture_in_a_notebook(folders, make_model, heart):
    predictor = EchoPredictor.from_model_folder(make_model(folders.results), device="cpu", trust_code=True)
    found = predictor.predict(heart.clip)
    line = str(found)
    assert "\n" not in line
    for words in (f"EF {found.ef_percent:.1f} %", f"EDV {found.edv_ml:.1f} mL, ESV {found.esv_ml:.1f} mL",
                  "ED frame 0 and ES frame 6 of 12", "no warning"):  # fmt: skip
        assert words in line
    page = found._repr_html_()
    assert page.count("<img src=") == 2 and page.count('class="outline" d="M') == 2
    assert line.removeprefix("<Prediction: ").removesuffix(">") in page
    assert 'aria-label="area over time' in page and "<script" not in page
    empty = predictor.predict(np.zeros((5, 64, 64), np.uint8), spacing_mm=(1, 1))
    assert str(empty).startswith("<Prediction: no EF: ") and "<img" not in empty._repr_html_()
    doubtful = predictor.predict(heart.clip.frames, (14.1, 14.1))
    assert str(doubtful).endswith("check, see quality_reasons>")
    assert f"<li>{doubtful.quality_reasons[0]}</li>" in doubtful._repr_html_()


def test_a_datasets_model_is_found_as_the_command_finds_it(folders, make_model, heart, at, tmp_path):
    at(tmp_path)
    model = make_model(folders.results)
    predictor = EchoPredictor.from_dataset("Phantom", device="cpu")
    assert [member.model.path for member in predictor.members] == [model] and predictor.folds == (0, 1)
    assert EchoPredictor.from_dataset("Phantom", folds=[1], folders=folders, device="cpu").folds == (1,)
    make_model(folders.results, trainer="DimTrainer")
    with pytest.raises(EchoPlanError, match="2 trained models"):
        EchoPredictor.from_dataset("Phantom")
    named = EchoPredictor.from_dataset(
        "Phantom", trainer="DimTrainer", device="cpu", postprocessing=["largest_component"]
    )
    assert "DimTrainer" in named.name and [step["name"] for step in named.postprocessing] == ["largest_component"]
    with pytest.raises(EchoPlanError, match="no dataset 'CAMUS'"):
        EchoPredictor.from_dataset("CAMUS")


def test_without_spacing_there_is_no_area_but_an_ef(folders, make_model, heart):
    found = EchoPredictor.from_model_folder(make_model(folders.results), device="cpu", trust_code=True).predict(
        heart.clip.frames
    )
    assert found.area_mm2 is None and found.ef_percent == pytest.approx(66, abs=4)
    assert "spacing" in found.note


def test_one_frame_colour_and_other_number_types(folders, make_model, heart):
    predictor = EchoPredictor.from_model_folder(make_model(folders.results), device="cpu", trust_code=True)
    reference = predictor.predict(heart.clip.frames).mask
    single = predictor.predict(heart.clip.frames[0])
    np.testing.assert_array_equal(single.mask, reference[:1])
    assert single.ef_percent is None and single.note
    colour = np.repeat(heart.clip.frames[..., None], 3, axis=-1)
    np.testing.assert_array_equal(predictor.predict(colour).mask, reference)
    for dtype in (np.uint16, np.int64, np.float64):
        assert dice(predictor.predict(heart.clip.frames.astype(dtype)).mask, reference) > 0.95
    np.testing.assert_array_equal(predictor.predict(torch.from_numpy(heart.clip.frames)).mask, reference)


def test_an_empty_prediction_has_a_reason(folders, make_model):
    predictor = EchoPredictor.from_model_folder(make_model(folders.results), device="cpu", trust_code=True)
    found = predictor.predict(np.zeros((5, 64, 64), np.uint8), spacing_mm=(1, 1))
    assert not found.mask.any() and found.ef_percent is None and found.ed_frame is None
    assert "cavity" in found.note and (found.area_mm2 == 0).all()


@pytest.mark.parametrize(
    "arguments",
    [
        {"frames": np.zeros((5, 64), np.uint8)},  # a frame that is too small to be one
        {"frames": np.zeros((0, 64, 64), np.uint8)},
        {"frames": np.zeros((64, 64, 3), np.uint8)},
        {"frames": np.zeros((5, 64, 64, 4), np.uint8)},
        {"frames": np.zeros((5, 64, 64), complex)},
        {"frames": np.full((5, 64, 64), np.nan)},
        {"frames": np.zeros((5, 64, 64), np.uint8), "spacing_mm": (0.0, 1.0)},
        {"frames": np.zeros((5, 64, 64), np.uint8), "spacing_mm": (1.0, 1.0, 1.0)},
        {"frames": np.zeros((5, 64, 64), np.uint8), "frame_time_ms": -1},
    ],
)
def test_what_is_no_clip_is_refused(arguments):
    with pytest.raises(EchoPlanError):
        clip_from_array(**arguments)


def test_folds_are_averaged(folders, make_model, heart):
    model = make_model(folders.results, thresholds=(0.3, 0.7))
    both = (
        EchoPredictor.from_model_folder(model, device="cpu", trust_code=True).predict(heart.clip.frames).probabilities
    )
    each = [
        EchoPredictor.from_model_folder(model, [f], device="cpu", trust_code=True).predict(heart.clip.frames)
        for f in (0, 1)
    ]
    assert not np.allclose(each[0].probabilities, each[1].probabilities)
    np.testing.assert_allclose(both, (each[0].probabilities + each[1].probabilities) / 2, atol=1e-5)


def test_an_ensemble_of_models_on_different_grids(folders, make_model, heart):
    one = make_model(folders.results, thresholds=(0.3, 0.3))
    two = make_model(folders.results, trainer="DimTrainer", thresholds=(0.6, 0.6), size=(96, 96))
    members = [
        EchoPredictor.from_model_folder(m, device="cpu", trust_code=True).predict(heart.clip.frames) for m in (one, two)
    ]
    ensemble = EchoPredictor.from_model_folders([(one, None), (two, (0,))], device="cpu", trust_code=True).predict(
        heart.clip.frames
    )
    expected = (members[0].probabilities + members[1].probabilities) / 2
    np.testing.assert_allclose(ensemble.probabilities, expected, atol=1e-5)
    np.testing.assert_array_equal(ensemble.mask, expected >= 0.5)


def test_models_with_other_labels_make_no_ensemble(folders, make_model):
    one = make_model(folders.results)
    two = make_model(folders.results, trainer="DimTrainer", labels={"background": 0, "LV": 1, "MYO": 2})
    with pytest.raises(EchoPlanError, match="different labels"):
        EchoPredictor.from_model_folders([(one, None), (two, None)], device="cpu", trust_code=True)


def test_several_structures_and_nothing_outside(folders, make_model, heart):
    model = make_model(folders.results, labels={"background": 0, "MYO": 1, "LV": 2})
    found = EchoPredictor.from_model_folder(model, device="cpu", trust_code=True).predict(heart.clip.frames)
    assert set(np.unique(found.mask)) == {0, 1}  # the network calls the bright pixels label 1
    assert found.probabilities.max() < 1e-3 and found.ef_percent is None  # the target is label 2


def test_mirroring_changes_nothing_for_a_pixelwise_network(folders, make_model, heart):
    model = make_model(folders.results)
    plain, mirrored = (
        EchoPredictor.from_model_folder(model, device="cpu", mirroring=m, trust_code=True)
        .predict(heart.clip.frames)
        .probabilities
        for m in (False, True)
    )
    np.testing.assert_allclose(plain, mirrored, atol=1e-5)


def test_the_models_own_postprocessing_is_used_unless_told_otherwise(folders, make_model, heart):
    model = make_model(folders.results)
    frames = heart.clip.frames.copy()
    frames[:, 2:6, 2:6] = 200  # a bright island
    with_island = EchoPredictor.from_model_folder(model, device="cpu", trust_code=True).predict(frames).mask
    (model / "postprocessing.json").write_text('{"steps": [{"name": "largest_component"}]}')
    without = EchoPredictor.from_model_folder(model, device="cpu", trust_code=True).predict(frames).mask
    told = EchoPredictor.from_model_folder(model, device="cpu", postprocessing=(), trust_code=True).predict(frames).mask
    assert with_island[:, :8, :8].any() and not without[:, :8, :8].any()
    np.testing.assert_array_equal(told, with_island)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"classes": 10**9}, "1000000000 classes, and the labels beside it make 1"),
        ({"network": {"threshold": torch.tensor(torch.nan)}}, "1 of its 1 tensors hold NaN or infinite weights"),
        ({"network": {"threshold": torch.tensor(-torch.inf)}}, "infinite weights, threshold first"),
        ({"network": {"bn.running_var": torch.tensor([torch.inf, torch.nan])}}, "infinite weights, bn.running_var"),
        ({"network": {"threshold": 1.0}}, "'network' is not what"),
        ({"settings": 1}, "'settings' is not what"),
        ({"size": 64}, "not what a training writes"),
        ({"size": [64, 10**9, 3]}, "'size' is not what"),
    ],
)
def test_a_checkpoint_that_no_training_left_is_refused(folders, make_model, wrong, words):
    model = make_model(folders.results)
    file = model / "fold_1" / "checkpoint_final.pth"
    save_checkpoint(file, {**load_checkpoint(file), **wrong})
    with pytest.raises(EchoPlanError, match=rf"{words}.*fold_1/checkpoint_final.*train"):
        EchoPredictor.from_model_folder(model, device="cpu", trust_code=True)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"base_features": 10**9}, "base_features must be from 1 to 1024, not 1000000000"),
        ({"base_features": "many"}, "base_features must be int"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        (
            {"base_features": 1024, "max_features": 4096},
            "do not fit the network of UNetTrainer: network.encoder.0.0.weight",
        ),
    ],
)
def test_a_networks_settings_are_checked_before_it_is_built(folders, unet, wrong, words, monkeypatch):
    file = unet() / "fold_1" / "checkpoint_final.pth"
    state = load_checkpoint(file)
    save_checkpoint(file, {**state, "settings": {**state["settings"], **wrong}})
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_: pytest.fail("it was built"))
    with pytest.raises(EchoPlanError, match=rf"{words}.*fold_1/checkpoint_final.*train"):
        ModelFolder.read(file.parent.parent).load_network(1)


def test_an_infinite_variance_of_an_earlier_checkpoint_is_told_of(folders, make_model, caplog):
    model = make_model(folders.results)
    file = model / "fold_1" / "checkpoint_final.pth"
    state = ModelState.read(file)
    state.network["bn.running_var"] = torch.tensor([1.0, torch.inf])
    state.check(ModelFolder.read(model).description, file)
    assert "fold_1/checkpoint_final.pth: infinite variances in bn.running_var silence" in caplog.text


@pytest.mark.parametrize(("folds", "word"), [((4,), "fold 4"), ((), "no fold")])
def test_a_missing_fold_is_named_with_the_command(folders, make_model, folds, word):
    model = make_model(folders.results)
    with pytest.raises(EchoPlanError, match=rf"{word}.*echoplan_train"):
        EchoPredictor.from_model_folder(model, folds, device="cpu", trust_code=True)


def test_a_prediction_equals_the_validation_of_the_same_clip(folders, make_model, make_crossval, heart, tmp_path):
    make_crossval()
    model = make_model(folders.results, frames=5)
    preprocessed = folders.preprocessed / "Dataset001_Phantom"
    loaded = ModelFolder.read(model)
    setup = FoldSetup(
        fold=0,
        plan=loaded.plan,
        description=loaded.description,
        store=ClipStore(preprocessed / loaded.plan.store),
        train=(),
        val=("patient0_A4C",),
        model_folder=model,
        preprocessed=preprocessed,
    )
    network = loaded.load_network(0, trust_code=True)
    predict_cases(network, setup, setup.val, save_to=tmp_path / "val")
    mask = read_mask(tmp_path / "val" / "patient0_A4C.nii.gz")
    predicted = EchoPredictor.from_model_folder(model, [0], device="cpu", trust_code=True).predict(
        heart.clip.frames, (1.0, 1.0)
    )
    np.testing.assert_array_equal(predicted.mask, mask)
    saved = load_probabilities(tmp_path / "val" / "patient0_A4C.npz")
    np.testing.assert_allclose(saved.native()[0], predicted.probabilities, atol=1e-3)


def test_probabilities_survive_the_disk_and_know_their_spacing(tmp_path):
    geometry = plan_geometry((60, 100), (0.3, 0.6), (10, 50, 20, 90), (32, 48))
    values = np.random.default_rng(0).random((2, 3, 32, 48)).astype(np.float16)
    save_probabilities(tmp_path / "a.npz", ClipProbabilities(values, geometry))
    again = load_probabilities(tmp_path / "a.npz")
    np.testing.assert_array_equal(again.values, values)
    assert again.geometry == geometry and again.geometry.native_spacing_mm == pytest.approx((0.3, 0.6))
    np.testing.assert_allclose(again.native(np.array([2])), geometry.to_native(values)[:, 2:], atol=1e-6)
    (tmp_path / "b.npz").write_bytes(b"nothing")
    with pytest.raises(EchoPlanError, match=r"b\.npz"):
        load_probabilities(tmp_path / "b.npz")


def test_averages_are_on_the_common_grid_or_the_native_one():
    geometry = native_geometry((20, 20), (1.0, 2.0))
    one, two = (ClipProbabilities(np.full((1, 2, 20, 20), v, np.float16), geometry) for v in (0.25, 0.75))
    assert average([one, two]).geometry == geometry
    np.testing.assert_allclose(average([one, two]).values, 0.5)
    np.testing.assert_allclose(one.values, 0.25)  # the members stay as they are
    coarse = plan_geometry((20, 20), (1.0, 2.0), None, (10, 20))
    mixed = average([one, ClipProbabilities(np.full((1, 2, 10, 20), 0.75, np.float32), coarse)])
    assert mixed.values.shape == (1, 2, 20, 20) and mixed.geometry.native_spacing_mm == pytest.approx((1.0, 2.0))
    np.testing.assert_allclose(mixed.values, 0.5, atol=1e-6)
    with pytest.raises(EchoPlanError, match="shapes"):
        average([one, ClipProbabilities(np.zeros((3, 2, 20, 20)), geometry)])
