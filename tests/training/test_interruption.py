"""Nothing is lost: terminated, killed and crowded trainings go on as if nothing had happened."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from echoplan.errors import EchoPlanError, Terminated
from echoplan.training.checkpoint import load_checkpoint
from echoplan.training.data import Batch
from echoplan.training.fold import FoldSetup
from echoplan.training.methods.unet import UNetMethod
from echoplan.training.metrics import MetricAverager, read_metrics
from echoplan.training.trainer import Trainer

SMALL = {"epochs": 3, "iterations_per_epoch": 4, "base_features": 4, "optimiser": "adamw", "learning_rate": 5e-3}


class Recording(UNetMethod):
    """A method that records something of its own, with a random part."""

    def loss(self, output, batch, *, epoch, record):
        record(noise=float(torch.rand(())))
        return super().loss(output, batch, epoch=epoch, record=record)


def make_trainer(
    setup: FoldSetup, fold: int = 0, *, processes: int = 0, resume: bool = False, **settings: object
) -> Trainer:
    method = Recording().with_settings({**SMALL, **settings})
    return Trainer(method, replace(setup, fold=fold), seed=1, processes=processes, resume=resume)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return load_checkpoint(trainer.setup.folder / "checkpoint_final.pth")["network"]


def history(trainer: Trainer) -> list[dict]:
    timeless = ("epoch", "train_loss", "val_dice", "noise", "learning_rate")
    return [{name: entry[name] for name in timeless} for entry in read_metrics(trainer.setup.folder)]


@pytest.mark.parametrize(("batches", "processes"), [(1, 0), (4, 0), (2, 1)])
def test_a_terminated_training_goes_on_from_its_batch_to_the_bit(
    frame_setup: FoldSetup, batches: int, processes: int
) -> None:
    whole = make_trainer(frame_setup)
    whole.run_training()

    terminated = make_trainer(frame_setup, fold=1, processes=processes)
    step = terminated.train_step

    def terminate_within_the_second_epoch(batch):
        loss = step(batch)
        if terminated.epoch == 1 and terminated.progress.batches == batches - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    terminated.train_step = terminate_within_the_second_epoch
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        terminated.run_training()
    assert signal.getsignal(signal.SIGTERM) == before
    assert multiprocessing.active_children() == []
    again = make_trainer(frame_setup, fold=1, processes=processes, resume=True)
    again.run_training()
    assert multiprocessing.active_children() == []
    assert again.first_epoch == 1 and history(again) == history(whole)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name]), name


def test_a_batch_too_large_for_the_gpu_is_halved_once_and_the_log_says_so(frame_setup: FoldSetup) -> None:
    whole = make_trainer(frame_setup, epochs=1, iterations_per_epoch=1, optimiser="sgd", precision="float32")
    whole.run_training()

    crowded = make_trainer(frame_setup, fold=1, epochs=1, iterations_per_epoch=1, optimiser="sgd", precision="float32")
    loss = crowded.step.loss

    def loss_of_two_at_most(batch: Batch) -> torch.Tensor:
        if len(batch["case"]) > 2:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return loss(batch)

    crowded.step.loss = loss_of_two_at_most
    crowded.run_training()
    assert crowded.step.accumulation == 2
    log = next(crowded.setup.folder.glob("training_log_*.txt")).read_text()
    assert log.count("out of GPU memory with a batch of 4") == 1
    # The same mean loss and gradient, but for rounding.
    assert history(crowded)[0]["train_loss"] == pytest.approx(history(whole)[0]["train_loss"], abs=1e-6)
    gradients = [state["momentum_buffer"] for state in crowded.step.optimizer.state_dict()["state"].values()]
    expected = [state["momentum_buffer"] for state in whole.step.optimizer.state_dict()["state"].values()]
    torch.testing.assert_close(gradients, expected, rtol=1e-3, atol=1e-6)


def test_a_gpu_too_small_for_half_a_batch_says_what_to_do(frame_setup: FoldSetup) -> None:
    trainer = make_trainer(frame_setup)

    def always_too_large(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer.step.loss = always_too_large
    with pytest.raises(EchoPlanError, match=r"too small for 2 sample\(s\).*--gpu_memory_target"):
        trainer.run_training()


def test_a_gpu_too_small_for_the_optimiser_says_what_to_do(
    frame_setup: FoldSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient is there already: to halve the batch would not help, and some weights may have moved."""

    def too_large(_: torch.optim.Optimizer) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", too_large)
    with pytest.raises(EchoPlanError, match=r"network and its optimiser.*--set optimiser=sgd"):
        make_trainer(frame_setup).run_training()


def test_means_of_an_epoch_leave_out_steps_without_a_value() -> None:
    means = MetricAverager()
    means.add(share=0.5, dice=float("nan"))
    means.add(share=1.0)
    again = MetricAverager()
    again.restore(means.state())
    assert again.take() == means.take() == {"share": 0.75, "dice": None}
    assert means.take() == {}


def test_checkpoints_of_a_terminated_training_hold_plain_types_only(frame_setup: FoldSetup, tmp_path: Path) -> None:
    trainer = make_trainer(frame_setup)
    step = trainer.train_step

    def terminate(batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(batch)

    trainer.train_step = terminate
    with pytest.raises(Terminated):
        trainer.run_training()
    state = load_checkpoint(trainer.setup.folder / "checkpoint_latest.pth")  # weights_only
    assert state["epochs"] == 0
    assert state["progress"]["batches"] == len(state["progress"]["losses"]) == 1
