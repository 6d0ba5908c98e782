"""Whatever the method: a training that is killed and resumed leaves the weights of one that nobody disturbed.

And two processes train together.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from echoplan.errors import Terminated
from echoplan.training.checkpoint import load_checkpoint
from echoplan.training.data import Batch
from echoplan.training.distributed import World
from echoplan.training.fold import FoldSetup
from echoplan.training.losses import dice_ce_loss
from echoplan.training.methods import method_registry
from echoplan.training.metrics import read_metrics
from echoplan.training.trainer import Trainer

from .two_processes import in_two

EPOCHS, ITERATIONS, KILLED_IN = 3, 2, 1
# What keeps the networks quick beside `slim_networks`. Of the training nothing is changed: every method has its own
# optimiser, whose memory is resumed too.
QUICK: dict[str, dict[str, Any]] = {
    "UNetTrainer": {"base_features": 4},
    "UNet2DtTrainer": {"base_features": 4},
    "SAMTrainer": {"encoder_size": 32, "precision": "float32"},
    "LiteMedSAMTrainer": {"encoder_size": 32, "precision": "float32"},
    # On toy frames its coarsest map is one pixel, which batch normalisation takes of two frames at least.
    "ResUNetTrainer": {"precision": "float32", "batch_size": 2},
    "EchoNetTrainer": {"precision": "float32", "loss_scale": 1},  # a sum over pixels would not live through 8 steps
    "EchoForgeTrainer": {"channels": 32, "query_layers": 2},
}


# One a method: the other names are settings of the same.
NAMES = sorted({type(method): name for name, method in reversed(list(method_registry().items()))}.values())


def make_trainer(
    name: str, setup: FoldSetup, *, resume: bool = False, world: World | None = None, **settings: Any
) -> Trainer:
    method = method_registry()[name]
    common = {"epochs": EPOCHS, "iterations_per_epoch": ITERATIONS, "batch_size": 1}
    unlearned = {"pretrained": False} if hasattr(method.recipe, "pretrained") else {}
    method = method.with_settings({**common, **unlearned, **QUICK.get(name, {}), **settings})
    return Trainer(method, setup, seed=3, resume=resume, world=world)


def train_until_killed(name: str, setup: FoldSetup) -> None:
    """In a process of its own: train, and end as by `kill -9` in the middle of the second epoch."""
    torch.set_num_threads(1)
    trainer = make_trainer(name, setup)
    step = trainer.train_step

    def step_and_die(batch: Batch) -> float:
        loss = step(batch)
        if trainer.epoch == KILLED_IN:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    trainer.train_step = step_and_die
    trainer.run_training()


def history(trainer: Trainer) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock."""
    metrics = read_metrics(trainer.setup.folder)
    return [{name: value for name, value in entry.items() if "seconds" not in name} for entry in metrics]


def assert_same(one: Trainer, other: Trainer) -> None:
    for kind in ("latest", "best", "final"):
        states = [load_checkpoint(trainer.setup.folder / f"checkpoint_{kind}.pth") for trainer in (one, other)]
        assert states[0]["epochs"] == states[1]["epochs"]
        for name, value in states[0]["network"].items():
            assert torch.equal(value, states[1]["network"][name]), f"{kind}: {name}"
    assert history(one) == history(other)
    mine, theirs = (trainer.step.optimizer.state_dict() for trainer in (one, other))
    assert mine["param_groups"] == theirs["param_groups"]
    for parameter, remembered in mine["state"].items():
        for name, value in remembered.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs["state"][parameter][name])), name


@pytest.mark.usefixtures("slim_networks")
@pytest.mark.parametrize("name", NAMES)
def test_a_killed_training_goes_on_to_the_bit(name: str, request: pytest.FixtureRequest) -> None:
    frames = method_registry()[name].requirements.frames
    setup: FoldSetup = request.getfixturevalue("frame_setup" if frames == 1 else "clip_setup")
    whole = make_trainer(name, setup)
    own = whole.method.defaults
    for setting in ("optimiser", "momentum", "nesterov", "weight_decay", "gradient_clip"):
        assert getattr(whole.recipe, setting) == getattr(own, setting)
    whole.run_training()
    assert len(history(whole)) == EPOCHS
    remembered = whole.step.optimizer.state_dict()["state"]
    assert {"adam": "exp_avg_sq", "adamw": "exp_avg_sq", "sgd": "momentum_buffer"}[own.optimiser] in remembered[0]

    killed_setup = replace(setup, fold=1)
    # Forked, because starting anew would import everything again; this process computes on one thread.
    child = multiprocessing.get_context("fork").Process(target=train_until_killed, args=(name, killed_setup))
    child.start()
    child.join(500)
    assert child.exitcode == -signal.SIGKILL
    again = make_trainer(name, killed_setup, resume=True)
    again.run_training()
    assert again.first_epoch == KILLED_IN
    assert_same(whole, again)
    shutil.rmtree(setup.model_folder)  # pytest would keep hundreds of megabytes a method


@pytest.mark.usefixtures("slim_networks")
def test_a_method_that_remembers_its_last_epoch_is_resumed_within_one_to_the_bit(clip_setup: FoldSetup) -> None:
    small = {"epochs": 2, "fusion_layers": 0, "query_layers": 0}
    settings = {**small, "pseudo_labels": "previous_epoch", "flame_rise": False, "last_threshold": 0.5}
    whole = make_trainer("EchoForgeTrainer", clip_setup, **settings)
    whole.run_training()
    setup = replace(clip_setup, fold=1)
    signalled(make_trainer("EchoForgeTrainer", setup, **settings), "train_step", 3, signal.SIGTERM)
    state = load_checkpoint(setup.folder / "checkpoint_latest.pth")
    assert state["progress"]["batches"] == 1 and state["method"]["previous"]
    again = make_trainer("EchoForgeTrainer", setup, resume=True, **settings)
    again.run_training()
    assert_same(whole, again)
    state = load_checkpoint(setup.folder / "checkpoint_latest.pth")
    assert not state["method"]  # between two epochs it is the network itself


@pytest.mark.usefixtures("slim_networks")
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_together(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    frames = method_registry()[name].requirements.frames
    setup: FoldSetup = request.getfixturevalue("frame_setup" if frames == 1 else "clip_setup")

    def train(world: World) -> list[Any]:
        batch = 2 * QUICK.get(name, {}).get("batch_size", 1)
        settings = {"epochs": 1, "batch_size": batch, "augmentation": "none", "keep_epoch": "lowest_loss"}
        trainer = make_trainer(name, setup, world=world, **settings)
        trainer.run_training()
        assert isinstance(trainer.model, DistributedDataParallel)
        weights = torch.cat([item.detach().flatten() for item in trainer.network.parameters()])
        return [hashlib.sha256(weights.numpy().tobytes()).hexdigest(), history(trainer)]

    (first, metrics), (second, _) = in_two(train, tmp_path)
    assert first == second
    assert len(metrics) == 1 and np.isfinite([metrics[0]["train_loss"], metrics[0]["val_loss"]]).all()


def rising_unet(setup: FoldSetup, *, resume: bool = False, **settings: Any) -> Trainer:
    """Two epochs of a U-Net, of which the second always is the better one."""
    trainer = make_trainer("UNetTrainer", setup, resume=resume, epochs=2, **settings)
    trainer.validate_epoch = lambda: 0.5 + 0.1 * trainer.epoch
    return trainer


def signalled(trainer: Trainer, hook: str, number: int, sent: signal.Signals) -> None:
    """Train, and get a signal just before the `number`th call of a method."""
    own, calls = getattr(trainer, hook), []

    def with_signal(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == number:
            signal.raise_signal(sent)
        return own(*arguments)

    setattr(trainer, hook, with_signal)
    with pytest.raises(KeyboardInterrupt if sent == signal.SIGINT else Terminated):
        trainer.run_training()


@pytest.mark.parametrize(
    ("number", "keep_epoch"), [(1, "last"), (2, "best_dice"), (3, "last"), (4, "last"), (5, "best_dice")]
)
def test_a_training_stopped_between_any_two_of_its_files_goes_on_to_the_bit(
    frame_setup: FoldSetup, number: int, keep_epoch: str
) -> None:
    """The checkpoints are "best" and "latest" of two epochs, then "final": none may promise another that is missing."""
    whole = rising_unet(frame_setup, keep_epoch=keep_epoch)
    whole.run_training()
    setup = replace(frame_setup, fold=1)
    signalled(rising_unet(setup, keep_epoch=keep_epoch), "save", number, signal.SIGINT)
    again = rising_unet(setup, resume=(setup.folder / "checkpoint_latest.pth").exists(), keep_epoch=keep_epoch)
    again.run_training()
    assert_same(whole, again)


@pytest.mark.parametrize(("keep_epoch", "kept"), [("last", 3), ("best_dice", 2), ("lowest_loss", 1)])
def test_the_fold_ends_with_the_epoch_that_is_asked_for(frame_setup: FoldSetup, keep_epoch: str, kept: int) -> None:
    """Epoch 1 has the lowest loss, epoch 2 the highest Dice; an interruption after it changes nothing."""

    def watched(fold: int, *, resume: bool = False) -> Trainer:
        made = make_trainer(
            "UNetTrainer", replace(frame_setup, fold=fold), resume=resume, keep_epoch=keep_epoch, epochs=4
        )
        made.method.validation_loss = lambda *_: torch.tensor((0.9, 0.4, 0.6, 0.5)[made.epoch])
        measure = made.validate_epoch

        def validate() -> float:
            measure()
            return (0.5, 0.6, 0.9, 0.7)[made.epoch]

        made.validate_epoch = validate
        return made

    whole = watched(0)
    weights: list[dict[str, torch.Tensor]] = []
    ended = whole.on_epoch_end
    whole.on_epoch_end = lambda dice: (
        weights.append({name: value.clone() for name, value in whole.network.state_dict().items()}),
        ended(dice),
    )
    whole.run_training()
    final = load_checkpoint(whole.setup.folder / "checkpoint_final.pth")
    assert final["epochs"] == kept + 1
    assert all(torch.equal(value, final["network"][name]) for name, value in weights[kept].items())
    assert [entry.get("val_loss") for entry in history(whole)] == (
        [pytest.approx(loss) for loss in (0.9, 0.4, 0.6, 0.5)] if keep_epoch == "lowest_loss" else [None] * 4
    )
    stopped = watched(1)
    signalled(stopped, "train_epoch", 4, signal.SIGINT)
    again = watched(1, resume=True)
    again.run_training()
    assert again.first_epoch == 3
    assert_same(whole, again)


def test_the_validation_loss_is_that_of_the_kept_network(frame_setup: FoldSetup) -> None:
    trainer = make_trainer("UNetTrainer", frame_setup, keep_epoch="lowest_loss", precision="float32")
    trainer.run_training()
    losses = [entry["val_loss"] for entry in history(trainer)]
    state = load_checkpoint(trainer.setup.folder / "checkpoint_final.pth")
    assert state["epochs"] == losses.index(min(losses)) + 1
    trainer.network.load_state_dict(state["network"])
    network = trainer.network.eval()
    with torch.inference_mode():
        again = [dice_ce_loss(network(batch["clip"]), batch["labels"]) for batch in trainer.validation_batches.epoch(0)]
    assert float(sum(again)) / len(again) == pytest.approx(min(losses), rel=1e-4)


def test_a_training_terminated_while_it_validates_saves_at_once(frame_setup: FoldSetup) -> None:
    whole = make_trainer("UNetTrainer", frame_setup, epochs=2)
    whole.run_training()
    setup = replace(frame_setup, fold=1)
    trainer = make_trainer("UNetTrainer", setup, epochs=2)
    signalled(trainer, "validate_epoch", 1, signal.SIGTERM)
    assert history(trainer) == []  # the epoch is not over
    state = load_checkpoint(setup.folder / "checkpoint_latest.pth")
    assert state["epochs"] == 0 and state["progress"]["batches"] == ITERATIONS
    again = make_trainer("UNetTrainer", setup, resume=True, epochs=2)
    again.run_training()
    assert_same(whole, again)


def test_a_training_terminated_at_its_very_end_is_whole_and_still_says_so(frame_setup: FoldSetup) -> None:
    trainer = make_trainer("UNetTrainer", frame_setup, epochs=2)
    signalled(trainer, "on_epoch_end", 2, signal.SIGTERM)
    assert load_checkpoint(trainer.setup.folder / "checkpoint_final.pth")["epochs"] == 2
