"""Networks as ONNX: other runtimes find what PyTorch finds, and what they could not find is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from echoplan.errors import EchoPlanError
from echoplan.inference import EchoPredictor
from echoplan.inference.deployment.exported import ExportedNetwork, hand_over
from echoplan.inference.deployment.graphs import FromGrid, ToGrid, sector_statistics
from echoplan.networks import build_network
from echoplan.networks.sliding_window import segment_clip
from echoplan.preprocessing import preprocess_clip
from echoplan.preprocessing import sector_statistics as statistics_of
from echoplan.preprocessing.geometry import plan_geometry
from echoplan.scripts import export_onnx as export_onnx_command
from echoplan.training.checkpoint import plain_settings
from echoplan.training.methods import find_method

pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


def change_plan(model, **values):
    """Other decisions in a model's plan."""
    text = (model / "plans.json").read_text()
    for name, value in values.items():
        text = re.sub(rf'("{name}": {{\s*"value": )[^,]+', lambda match, value=value: match[1] + value, text)
    (model / "plans.json").write_text(text)


def run_card(folder, frames, monkeypatch):
    """The masks and probabilities that the card's own program finds in a clip's frames."""
    np.save(folder / "clip.npy", frames)
    (program,) = re.findall(r"```python\n(.*?)```", (folder / "model_card.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    found: dict = {}
    exec(program, found)
    return found


@pytest.fixture
def random_model(make_model, save_unet, at, tmp_path, slim_networks):
    """`random_model(trainer, ...)` is a model of four frames with random weights, slim but for what settings say."""

    def make(trainer, *, frames=4, **settings):
        model = make_model(at(tmp_path).results, trainer=trainer, folds=(0,), frames=frames)
        change_plan(model, normalisation='"zscore_sector"')
        method = find_method(trainer).with_settings(settings)
        torch.manual_seed(0)
        save_unet(
            model / "fold_0" / "checkpoint_final.pth",
            trainer=trainer,
            trainer_source=trainer,
            settings=plain_settings(method.recipe.to_dict()),
            network=method.build_network(size=(64, 64), classes=1).state_dict(),
        )
        return model

    return make


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_other_runtimes_predict_what_pytorch_does(backend, unet, heart):
    if backend == "openvino":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
    model = unet(folds=(0,))
    ours, theirs = (EchoPredictor.from_model_folder(model, device="cpu", backend=name) for name in ("torch", backend))
    assert isinstance(theirs.members[0].networks[0], ExportedNetwork)
    assert ours.identity == theirs.identity
    expected, found = ours.predict(heart.clip), theirs.predict(heart.clip)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-4)
    assert 0.01 < expected.mask.mean() < 0.99 and (found.mask != expected.mask).mean() < 1e-4


SIGNALLED = """
import signal, sys
import openvino, torch
from openvino import opset13
from pathlib import Path
from echoplan.inference.deployment.runtimes import OpenVINO

value = opset13.parameter([1, 4], openvino.Type.f32, name="frames")
file = Path(sys.argv[1]) / "model.xml"
openvino.save_model(openvino.Model([opset13.relu(value)], [value]), file)
used = [OpenVINO(file, torch.device("cpu")) for _ in range(3)]
for runtime in used:
    runtime._for_shapes({"frames": (1, 4)}, False)
del runtime
while used:
    del used[0]
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_is_no_crash_once_openvino_is_let_go(tmp_path):
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    words = [sys.executable, "-X", "faulthandler", "-c", SIGNALLED, str(tmp_path)]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "interrupted\n"), ended.stderr


def test_a_file_of_an_earlier_checkpoint_is_made_anew_and_one_that_fits_is_not(unet, save_unet):
    model = unet(folds=(0,))
    fold = model / "fold_0"

    def written():
        EchoPredictor.from_model_folder(model, device="cpu", backend="onnx")
        (file,) = fold.glob("*.onnx")
        return file, file.stat().st_mtime_ns

    first = written()
    assert written() == first
    save_unet(fold / "checkpoint_final.pth", seed=7)
    assert written()[0] != first[0]


def test_the_card_says_how_an_ensemble_is_run_without_echoplan(unet, at, tmp_path, heart, monkeypatch):
    model = unet(at(tmp_path).results)
    change_plan(model, normalisation='"zscore_sector"')
    out = tmp_path / "exported"
    assert export_onnx_command(["Phantom", "-o", str(out)]) == 0
    frames, geometry = preprocess_clip(heart.clip, size=(64, 64))
    found = run_card(out, frames, monkeypatch)
    predictor = EchoPredictor.from_model_folder(model, device="cpu")
    together = predictor.segment(predictor.prepare(heart.clip), keep_probabilities=np.float32).probabilities
    np.testing.assert_allclose(found["probabilities"], together.values, atol=1e-4)
    np.testing.assert_array_equal(found["masks"], found["probabilities"][0] >= 0.5)
    assert found["area"].shape == (12,) and geometry == together.geometry


def test_clips_of_one_size_go_in_as_they_are(unet, at, tmp_path, heart, monkeypatch):
    model = unet(at(tmp_path).results, folds=(0,))
    out = tmp_path / "exported"
    assert export_onnx_command(["Phantom", "-o", str(out), "--frame_size", "64", "80", "--spacing", "1", "1"]) == 0
    found = run_card(out, heart.clip.frames, monkeypatch)
    expected = EchoPredictor.from_model_folder(model, device="cpu").predict(heart.clip)
    np.testing.assert_allclose(found["probabilities"][0], expected.probabilities, atol=1e-4)
    assert (found["masks"] != expected.mask).mean() < 1e-4 and found["masks"].any()


@pytest.mark.parametrize(
    ("shape", "size"), [((100, 80), (64, 64)), ((40, 70), (64, 96)), ((64, 64), (64, 64)), ((200, 150), (64, 64))]
)
def test_resizing_inside_a_file_is_that_of_preprocessing(shape, size):
    geometry = plan_geometry(shape, (1.0, 0.8), None, size)
    frames = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
    on_grid = ToGrid(geometry)(torch.from_numpy(frames).float()).numpy()
    np.testing.assert_array_equal(on_grid, geometry.to_network(frames))
    values = np.random.default_rng(1).random((2, 3, *size), np.float32)
    native = FromGrid(geometry)(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(native, geometry.to_native(values), atol=1e-5)
    measured = sector_statistics(torch.from_numpy(on_grid))
    np.testing.assert_allclose(measured, statistics_of(geometry.to_network(frames)), rtol=1e-6)


@pytest.mark.parametrize(
    ("trainer", "settings"), [("UNet2DtTrainer", {"base_features": 4}), ("PKEchoNetR18Trainer", {"stages": 1})]
)
def test_the_card_of_a_network_of_clips_lays_windows_as_prediction_does(
    trainer, settings, random_model, tmp_path, heart, monkeypatch
):
    model = random_model(trainer, **settings)
    out = tmp_path / "exported"
    assert export_onnx_command(["Phantom", "-o", str(out)]) == 0
    frames, _ = preprocess_clip(heart.clip, size=(64, 64))
    for length in (12, 3, 1):
        clip = replace(heart.clip, frames=heart.clip.frames[:length])
        predictor = EchoPredictor.from_model_folder(model, device="cpu")
        expected = predictor.segment(predictor.prepare(clip), keep_probabilities=np.float32).probabilities.values[0]
        found = run_card(out, frames[:length], monkeypatch)
        probabilities = found["sums"][0] / found["counts"][:, None, None]
        np.testing.assert_allclose(probabilities, expected, atol=min(1e-4, expected.std() / 100))
        assert (found["masks"] != (expected >= 0.5)).mean() < 1e-3


class Wandering(torch.nn.Module):
    """A network whose answer a trace does not hold."""

    def forward(self, clip):
        return clip * len(clip)


def test_a_network_of_several_files_is_exported_alone_and_on_its_grid(random_model, tmp_path, capsys):
    model, out = random_model("SAMTrainer", frames=1, encoder_size=32), str(tmp_path / "exported")
    assert export_onnx_command(["Phantom", "-o", out, "--frame_size", "64", "80"]) == 1
    assert "takes frames on the model's grid alone" in capsys.readouterr().err
    shutil.copytree(model / "fold_0", model / "fold_1")
    assert export_onnx_command(["Phantom", "-o", out]) == 1
    assert "cannot be averaged with others" in capsys.readouterr().err


def test_what_gives_other_answers_is_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint_final.pth"
    checkpoint.write_bytes(b"weights")
    options = {"device": torch.device("cpu"), "size": (64, 64), "framewise": True}
    with pytest.raises(EchoPlanError, match="differ from PyTorch's"):
        hand_over(Wandering().eval(), checkpoint, backend="onnx", **options)
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize(
    ("trainer", "settings"),
    [
        ("EchoForgeTrainer", {"backbone": "resnet18", "channels": 40, "query_layers": 1, "memory": 2}),
        ("SAM2Trainer", {"prompt": "point"}),
    ],
)
def test_the_card_of_a_network_with_a_memory_hands_its_state_on(
    trainer, settings, random_model, tmp_path, heart, monkeypatch
):
    model, out = random_model(trainer, **settings), tmp_path / "exported"
    assert export_onnx_command(["Phantom", "-o", str(out)]) == 0
    frames, _ = preprocess_clip(heart.clip, size=(64, 64))
    predictor = EchoPredictor.from_model_folder(model, device="cpu")
    expected = predictor.segment(predictor.prepare(heart.clip), keep_probabilities=np.float32).probabilities.values[0]
    masks = run_card(out, frames, monkeypatch)["masks"]
    assert masks.shape == frames.shape and 0 < masks.mean() < 1
    assert (masks != (expected >= 0.5)).mean() < 1e-3


@pytest.mark.parametrize(
    ("name", "settings", "runtime"),
    [
        ("echoforge", {"backbone": "resnet18", "channels": 40, "query_layers": 1, "memory": 2}, "onnx"),
        ("e3sam2", {"memory_frames": 3, "prompt": "none"}, "openvino"),
        ("pkechonet", {"stages": 1}, "onnx"),
        ("sam", {"encoder_size": 64}, "onnx"),
    ],
)
def test_networks_find_in_other_runtimes_what_they_find_in_pytorch(name, settings, runtime, tmp_path, slim_networks):
    pytest.importorskip(runtime.replace("onnx", "onnxruntime"))
    torch.manual_seed(0)
    network = build_network(name, size=(64, 64), **settings).eval()
    checkpoint = tmp_path / "checkpoint_final.pth"
    checkpoint.write_bytes(b"weights")
    options = {"device": torch.device("cpu"), "size": (64, 64), "framewise": False}
    exported = hand_over(network, checkpoint, backend=runtime, **options)
    frames = torch.randn(7, 64, 64)
    expected, found = (segment_clip(each, frames, window=4, classes=1) for each in (network, exported))
    np.testing.assert_allclose(found, expected, atol=min(1e-5, expected.std() / 100))
