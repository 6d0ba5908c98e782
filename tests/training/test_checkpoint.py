"""Checkpoints on a disk that is full, and the random state that they keep."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from echoplan.errors import EchoPlanError
from echoplan.training.checkpoint import load_checkpoint, random_state, restore_random_state, save_checkpoint
from echoplan.training.recipe import Recipe
from echoplan.training.step import TrainStep


def test_a_full_disk_keeps_the_checkpoint_that_was_there(tmp_path, monkeypatch):
    file = tmp_path / "checkpoint_latest.pth"
    save_checkpoint(file, {"network": {"w": torch.ones(3)}})

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(EchoPlanError, match="the disk is full") as caught:
        save_checkpoint(file, {"network": {"w": torch.zeros(3)}})
    assert caught.value.fatal and list(tmp_path.iterdir()) == [file]
    assert torch.equal(load_checkpoint(file)["network"]["w"], torch.ones(3))


def test_the_random_state_of_apples_gpus_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    own, put_back = torch.tensor([1], dtype=torch.uint8), []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: own)
    monkeypatch.setattr(torch.mps, "set_rng_state", put_back.append)
    restore_random_state(random_state())
    assert put_back == [own]


def test_a_process_keeps_the_random_state_of_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    own, all_of_them = torch.tensor([1], dtype=torch.uint8), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: own)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: all_of_them.append([state]))
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", all_of_them.append)
    state = random_state()
    restore_random_state(state)
    assert all_of_them == [[own]]
    restore_random_state({**state, "cuda": [own, own]})  # as earlier checkpoints of machines with two have it
    assert all_of_them[1] == [own, own]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"", "empty"),
        (b"cos\nsystem\n(S'true'\ntR.", "more than tensors"),
    ],
)
def test_what_is_no_checkpoint_is_named_and_pytorchs_advice_is_not_passed_on(
    tmp_path: Path, content: bytes, words: str
) -> None:
    file = tmp_path / "checkpoint_final.pth"
    file.write_bytes(content)
    with pytest.raises(EchoPlanError, match=words) as told:
        load_checkpoint(file)
    assert "weights_only" not in str(told.value)


def test_a_format_that_is_no_number_is_another_format(tmp_path: Path) -> None:
    torch.save({"format": True}, tmp_path / "checkpoint_final.pth")
    with pytest.raises(EchoPlanError, match="another format"):
        load_checkpoint(tmp_path / "checkpoint_final.pth")


@pytest.mark.parametrize(("before", "now"), [("bfloat16", "float16"), ("float16", "bfloat16"), ("float16", "float16")])
def test_a_training_goes_on_in_the_precision_of_another_device(before: str, now: str) -> None:
    """A scaler belongs to float16 alone; what no scaler has left, none can take up."""
    said: list[str] = []

    def step_in(precision: str) -> TrainStep:
        recipe = replace(Recipe(), precision=precision)
        network = torch.nn.Linear(2, 1)
        made = TrainStep(
            network,
            recipe,
            lambda batch: network(batch["x"]).square().mean(),
            learning_rate=0.1,
            iterations=9,
            device=torch.device("cpu"),
            say=said.append,
        )
        made({"case": ["a"], "x": torch.ones(1, 2)})
        return made

    first, second = step_in(before), step_in(now)
    if first.scaler.is_enabled():
        first.scaler.update(1024.0)
    scale = 1024.0 if before == now else second.scaler.get_scale()
    second.restore(**first.state())
    assert second.iteration == 1 and second.scaler.get_scale() == scale
    assert [line.startswith(f"warning: trained in torch.{before} so far") for line in said] == [True] * (before != now)
    second.restore(**{name: value for name, value in first.state().items() if name != "precision"})  # of old
    second({"case": ["a"], "x": torch.ones(1, 2)})
