"""Clips in worker processes on their way to the networks and back."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest

from echoplan.dataset import Case
from echoplan.imageio import write_clip
from echoplan.inference import EchoPredictor, find_inputs, predict_folder
from echoplan.inference.pipeline import find_in_clips

from .conftest import make_heart

DEADLY = """
import os, signal
from echoplan.inputs import InputClip

class DeadlyClip(InputClip):
    def read(self):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def predictor(folders, make_model):
    return EchoPredictor.from_model_folder(make_model(folders.results), device="cpu", trust_code=True)


@pytest.fixture
def deadly(tmp_path, monkeypatch):
    """A kind of clip whose reading kills the process, importable in workers."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "deadly_clips.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    yield import_module("deadly_clips").DeadlyClip
    del sys.modules["deadly_clips"]


def test_a_clip_that_kills_its_reader_is_named_and_the_others_are_as_without_workers(
    tmp_path, clips, predictor, deadly, monkeypatch, caplog
):
    whole, out = tmp_path / "whole", tmp_path / "out"
    alone = predict_folder(clips, whole, predictor, keep_probabilities=True, overlays=True)
    inputs = find_inputs(clips)
    killer = deadly(inputs[1].path, Case("p1_killer", "p9", image=str(inputs[1].path)))
    module = import_module("echoplan.inference.predict_folder")
    monkeypatch.setattr(module, "find_inputs", lambda *_, **__: (*inputs[:2], killer, *inputs[2:]))
    run = predict_folder(clips, out, predictor, keep_probabilities=True, overlays=True, processes=1)
    assert run.predicted == alone.predicted and list(run.failures) == ["p1_killer", "p4_A4C"]
    assert "a worker process died while working on p1_killer: Killed. What to do:" in run.failures["p1_killer"]
    assert "died while working on p1_killer" in caplog.text
    assert [row for row in run.rows if row.patient != "p9"] == alone.rows
    reports = ("prediction_args.json", "report.html", "ef_report.csv", "ef_report.json")
    files = {file.relative_to(whole) for file in whole.rglob("*") if file.is_file() and file.name not in reports}
    assert files == {file.relative_to(out) for file in out.rglob("*") if file.is_file() and file.name not in reports}
    for file in files:
        assert (out / file).read_bytes() == (whole / file).read_bytes(), file


def test_short_clips_share_batches_and_a_broken_one_costs_itself_alone(tmp_path, predictor, monkeypatch):
    for name in "abcd":
        write_clip(tmp_path / "clips" / f"{name}.nii.gz", make_heart(frames=3).clip)
    together = []

    def find(inputs, *rest):
        together.append("".join(item.name for item, _ in inputs))
        if any(item.name == "b" for item, _ in inputs):
            raise ValueError("not this one")
        return find_in_clips(inputs, *rest)

    monkeypatch.setattr(import_module("echoplan.inference.pipeline"), "find_in_clips", find)
    run = predict_folder(tmp_path / "clips", tmp_path / "out", predictor)
    assert run.predicted == ["a", "c", "d"] and run.failures == {"b": "ValueError: not this one"}
    assert together == ["abcd", "a", "b", "c", "d"]
    monkeypatch.setattr("echoplan.networks.batches.PIXELS_AT_ONCE", 8 * 4 * 64 * 64)  # more than one clip, here
    together.clear()
    predict_folder(tmp_path / "clips", tmp_path / "two", predictor)
    assert together == ["ab", "a", "b", "cd"]
