"""Two processes train as one does."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from echoplan.errors import EchoPlanError, Terminated
from echoplan.files import write_json
from echoplan.scripts import train as train_command
from echoplan.training.checkpoint import TrainingState, load_checkpoint
from echoplan.training.data import Batch, BatchLoader, SampleReader, frame_samples
from echoplan.training.distributed import World, joined, silent
from echoplan.training.fold import FoldSetup
from echoplan.training.methods.unet import UNetMethod
from echoplan.training.metrics import read_metrics
from echoplan.training.resume_check import check_resume
from echoplan.training.trainer import Trainer

from .two_processes import in_two

SETTINGS = (
    "--epochs", "2", "--set", "iterations_per_epoch=3", "--set", "base_features=4", "--set", "batch_size=3",
    "--set", "precision=float32", "--set", "augmentation=light", "-np", "0", "--device", "cpu", "--seed", "5",
)  # fmt: skip


def train(setup: FoldSetup, folder: str) -> tuple[list[str], dict[str, str], Path]:
    """echoplan_train's words, the variables it needs, and the fold's folder."""
    root = setup.preprocessed.parents[1]
    write_json(setup.preprocessed / "splits_final.json", [{"train": setup.train, "val": setup.val}])
    environment = {
        "OMP_NUM_THREADS": "1", "echoplan_preprocessed": str(root / "preprocessed"),
        "echoplan_results": str(root / folder),
    }  # fmt: skip
    fold = root / folder / "Dataset001_Toy" / "UNetTrainer__EchoPlans__frame" / "fold_0"
    return ["Toy", "0", "-tr", "UNetTrainer", *SETTINGS], environment, fold


def train_alone(setup: FoldSetup, monkeypatch: pytest.MonkeyPatch) -> Path:
    words, environment, fold = train(setup, "one")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert train_command(words) == 0
    return fold


def train_under_torchrun(setup: FoldSetup) -> Path:
    words, environment, fold = train(setup, "two")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc_per_node=2"]
    command = [*launcher, str(Path(sys.executable).parent / "echoplan_train"), *words]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("validation Dice") == 1  # only one of the processes speaks
    return fold


def test_two_processes_have_the_losses_and_the_weights_of_one(
    frame_setup: FoldSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = train_alone(frame_setup, monkeypatch), train_under_torchrun(frame_setup)
    for mine, theirs in zip(read_metrics(one), read_metrics(two), strict=True):
        assert theirs["train_loss"] == pytest.approx(mine["train_loss"], rel=1e-5)
        assert theirs["val_dice"] == pytest.approx(mine["val_dice"], abs=1e-4)
    alone, together = (load_checkpoint(folder / "checkpoint_final.pth")["network"] for folder in (one, two))
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-3, atol=1e-5, msg=name)
    assert len(list(two.glob("training_log_*.txt"))) == 1
    # Two processes' training is not resumed by one.
    latest = load_checkpoint(two / "checkpoint_latest.pth")
    assert len(latest["random"]) == 2


# In two processes, forked from this one -----------------------------------------------------------------------------


class Crowded(Trainer):
    """The GPU of the second of two processes is too small for more than `limit` samples, from the second pass on."""

    limit, fails_in, passes = 1, "the forward pass", 0

    def loss(self, batch: Batch) -> torch.Tensor:
        loss = super().loss(batch)
        self.passes += 1
        if self.world.rank == 1 and self.passes > 1 and len(batch["case"]) > self.limit:
            if self.fails_in == "the forward pass":
                out_of_memory(loss)
            loss.register_hook(out_of_memory)
        return loss


def out_of_memory(_: torch.Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def crowded_trainer(setup: FoldSetup, world: World | None = None) -> Crowded:
    settings = {"epochs": 2, "iterations_per_epoch": 2, "base_features": 4, "batch_size": 4, "precision": "float32"}
    return Crowded(UNetMethod().with_settings(settings), setup, seed=5, world=world)


def weights_of(trainer: Trainer) -> str:
    values = b"".join(value.numpy().tobytes() for value in trainer.network.state_dict().values())
    return hashlib.sha256(values).hexdigest()


@pytest.mark.parametrize("fails_in", ["the forward pass", "the backward pass"])
def test_both_halve_their_batches_when_one_runs_out_of_memory(
    frame_setup: FoldSetup, fails_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Crowded, "fails_in", fails_in)
    alone = crowded_trainer(frame_setup)
    alone.run_training()
    setup = replace(frame_setup, fold=1)

    def train_together(world: World) -> list[Any]:
        trainer = crowded_trainer(setup, world)
        trainer.run_training()
        return [trainer.step.accumulation, weights_of(trainer)]

    first, second = in_two(train_together, tmp_path)
    assert first == second and first[0] == 2
    losses = [[entry["train_loss"] for entry in read_metrics(folder)] for folder in (setup.folder, frame_setup.folder)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    ours, theirs = (load_checkpoint(one.folder / "checkpoint_final.pth")["network"] for one in (setup, frame_setup))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-5, msg=name)


def test_both_end_where_half_a_batch_is_too_large_for_one(
    frame_setup: FoldSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Crowded, "limit", 0)
    for said in in_two(lambda world: crowded_trainer(frame_setup, world).run_training(), tmp_path):
        assert said.startswith("the GPU's memory is too small for 1 sample(s) at a time")


def test_two_resume_to_the_bit(frame_setup: FoldSetup, tmp_path: Path) -> None:
    """What they try before they go on leaves no trace, with an optimiser that remembers much."""
    settings = {"epochs": 2, "iterations_per_epoch": 2, "base_features": 4, "batch_size": 4, "optimiser": "adamw"}

    def trainer(fold: int, world: World, *, resume: bool = False) -> Trainer:
        method = UNetMethod().with_settings({**settings, "learning_rate": 1e-3})
        return Trainer(method, replace(frame_setup, fold=fold), seed=5, world=world, resume=resume)

    def train_together(world: World) -> list[str]:
        whole, begun, resumed = trainer(0, world), trainer(1, world), trainer(1, world, resume=True)
        whole.run_training()
        begun.on_epoch_end = lambda dice: stop_after(begun, dice)
        with pytest.raises(Terminated):
            begun.run_training()
        resumed.run_training()
        assert resumed.first_epoch == 1
        return [weights_of(whole), weights_of(resumed)]

    def stop_after(trainer: Trainer, dice: float | None) -> None:
        Trainer.on_epoch_end(trainer, dice)
        dist.barrier()  # the leader has written its checkpoint
        raise Terminated

    first, second = in_two(train_together, tmp_path)
    assert first == second and first[0] == first[1]


class Fills(Trainer):
    """Another program fills the second process's GPU when the second step begins."""

    def loss(self, batch: Batch) -> torch.Tensor:
        if self.world.rank == 1 and self.check_room.largest and self.step.iteration == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().loss(batch)


def test_memory_that_becomes_too_small_later_is_an_error_with_a_way_on(frame_setup: FoldSetup, tmp_path: Path) -> None:
    def train_together(world: World) -> str:
        settings = {"epochs": 1, "iterations_per_epoch": 3, "base_features": 4, "batch_size": 4}
        try:
            Fills(UNetMethod().with_settings(settings), frame_setup, world=world).run_training()
        except RuntimeError as error:  # the first one waits until the second has ended
            return type(error).__name__
        return "trained"

    first, second = in_two(train_together, tmp_path)
    assert first == "RuntimeError"
    assert "large enough for 2 samples when the training began" in second and "--c" in second


def test_gradients_are_averaged_but_for_silent_passes(tmp_path: Path) -> None:
    """And on CPUs batch normalisation is each process's own, but what it remembers is both's."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1, momentum=1.0, affine=False)
            self.both, self.mine, self.nobodys = (nn.Parameter(torch.ones(2)) for _ in range(3))

        def forward(self, values: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
            used = (self.both * (rank + 1)).sum() + (self.mine.sum() if rank else 0)
            return self.norm(values), used

    def exchange(world: World) -> list[Any]:
        network = Three()
        nn.init.constant_(network.both, 1 + world.rank)
        model = world.wrap(network, torch.device("cpu"))
        start = network.both.tolist()
        values = torch.tensor([[0.0], [2.0]]) + 10 * world.rank
        with silent(model):
            model(values, world.rank)[1].backward()
        alone = network.both.grad.tolist()
        own, used = model(values, world.rank)
        used.backward()
        world.mean_statistics(network)
        parameters = (network.both, network.mine, network.nobodys)
        gradients = [item.grad if item.grad is None else item.grad.tolist() for item in parameters]
        return [start, alone, own.flatten().tolist(), network.norm.running_mean.item(), gradients]

    for rank, (start, alone, own, mean, gradients) in enumerate(in_two(exchange, tmp_path)):
        assert start == [1.0, 1.0]  # the leader's
        assert alone == [rank + 1.0] * 2
        assert own == pytest.approx([-1.0, 1.0], abs=1e-4)  # of all four, they would lie on one side of zero
        assert mean == 6.0  # of 1 and 11
        assert gradients == [[3.0, 3.0], [1.0, 1.0], None]  # the mean of two passes


def test_with_batch_normalisation_over_gpus_a_batch_too_large_is_an_error(frame_setup: FoldSetup) -> None:
    """The others wait within their passes: there is no agreeing with them."""
    trainer = crowded_trainer(frame_setup)
    trainer.network.train().add_module("synchronised", nn.SyncBatchNorm(1))
    trainer.world = trainer.step.world = World(1, 2)
    trainer.passes, trainer.check_room.largest = 1, 4
    with pytest.raises(EchoPlanError, match=r"2 samples at a time.*--overwrite --set batch_size=2"):
        trainer.step(
            {"clip": torch.zeros(2, 1, 1, 32, 32), "labels": torch.zeros(2, 1, 32, 32), "case": ["a", "b"]}, 0.5
        )


@pytest.mark.parametrize("error", [None, Terminated(), EchoPlanError("broken")])
def test_processes_wait_for_hours_and_part_in_order_unless_one_fails(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """The leader validates for hours; and who failed must not wait for the others, who wait for it."""
    told: list[Any] = []
    monkeypatch.setattr(dist, "init_process_group", lambda *_, timeout: told.append(timeout))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: told.append("parted"))
    try:
        with joined({"RANK": "0", "WORLD_SIZE": "2"}, torch.device("cpu")):
            if error is not None:
                raise error
    except (Terminated, EchoPlanError) as raised:
        assert raised is error
    assert told[0] >= timedelta(hours=12)
    assert told[1:] == ([] if isinstance(error, EchoPlanError) else ["parted"])


# Alone --------------------------------------------------------------------------------------------------------------


def test_processes_share_each_batch_without_rest(frame_setup: FoldSetup) -> None:
    reader = SampleReader(frame_setup.store, frame_setup.plan, 1)
    samples = frame_samples(frame_setup.stored_cases(frame_setup.train))  # 6

    def loader(rank: int, ranks: int) -> BatchLoader:
        return BatchLoader(samples, reader, batch_size=4, seed=1, rank=rank, ranks=ranks)

    whole = [batch["case"] for batch in loader(0, 1).epoch(0)]
    shares = [[batch["case"] for batch in loader(rank, 3).epoch(0)] for rank in range(3)]
    assert [len(batch) for batch in whole] == [4, 2]
    assert sorted(case for part in shares for case in part[0]) == sorted(whole[0])
    assert [loader(rank, 3).share(0) for rank in range(3)] == [0.5, 0.25, 0.25]
    # The second batch has two samples for three processes: the third takes part with one that does not count.
    assert [loader(rank, 3).share(1) for rank in range(3)] == [0.5, 0.5, 0.0]
    assert [len(part[1]) for part in shares] == [1, 1, 1]


def test_without_torchrun_a_training_is_alone() -> None:
    device = torch.device("cpu")
    with joined({}, device) as (world, own):
        assert world == World(0, 1) and world.is_main and own == device
    assert World().all_reduce(1.5, 2.0, device=device) == [1.5, 2.0]
    assert World().gather("x") == ["x"] and World().broadcast("x") == "x"


def test_more_processes_than_gpus_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    with pytest.raises(EchoPlanError, match=r"1 GPU.*--nproc_per_node"), joined(environment, torch.device("cuda")):
        pass


def test_resuming_with_other_processes_is_refused(frame_setup: FoldSetup) -> None:
    method = UNetMethod().with_settings({"epochs": 1, "iterations_per_epoch": 1, "base_features": 4})
    Trainer(method, frame_setup).run_training()
    state, recipe = TrainingState.read(frame_setup.folder / "checkpoint_latest.pth"), method.recipe
    check_resume(state, frame_setup, recipe, defaults=recipe, seed=0, processes=1)
    with pytest.raises(EchoPlanError, match="number of processes"):
        check_resume(state, frame_setup, recipe, defaults=recipe, seed=0, processes=2)
