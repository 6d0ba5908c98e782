"""Two processes train as one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from echoplan.errors import EchoPlanError
from echoplan.files import write_json
from echoplan.training.checkpoint import load_checkpoint
from echoplan.training.data import BatchLoader, SampleReader, frame_samples
from echoplan.training.fold import FoldSetup
from echoplan.training.log import read_metrics
from echoplan.training.parallel import World, joined
from echoplan.training.state import restore_training
from echoplan.training.trainers.unet import UNetTrainer

SETTINGS = (
    "--epochs", "2", "--set", "iterations_per_epoch=3", "--set", "base_features=4", "--set", "batch_size=3",
    "--set", "precision=float32", "--set", "augmentation=light", "-np", "0", "--device", "cpu", "--seed", "5",
)  # fmt: skip


def train(setup: FoldSetup, folder: str, *, processes: int, more: tuple[str, ...] = ()) -> Path:
    """echoplan_train, alone or under torchrun; the fold's folder."""
    root = setup.preprocessed.parents[1]
    write_json(setup.preprocessed / "splits_final.json", [{"train": setup.train, "val": setup.val}])
    bin_folder = Path(sys.executable).parent
    command = [str(bin_folder / "echoplan_train"), "Toy", "0", "-tr", "UNetTrainer", *SETTINGS, *more]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
        command = [*launcher, f"--nproc_per_node={processes}", *command]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "echoplan_preprocessed": str(root / "preprocessed"),
        "echoplan_results": str(root / folder),
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("validation Dice") == 1  # only one of the processes speaks
    return root / folder / "Dataset001_Toy" / "UNetTrainer__EchoPlans__frame" / "fold_0"


def test_two_processes_have_the_losses_and_the_weights_of_one(frame_setup: FoldSetup) -> None:
    one = train(frame_setup, "one", processes=1)
    two = train(frame_setup, "two", processes=2)
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


def test_processes_share_each_batch_without_rest(frame_setup: FoldSetup) -> None:
    properties = frame_setup.properties(frame_setup.train)
    reader = SampleReader(frame_setup.store, frame_setup.plan, 1)
    samples = frame_samples(properties)  # 6

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
        assert world == World(0, 1) and world.leads and own == device
    assert World().total(1.5, 2.0, device=device) == [1.5, 2.0]
    assert World().gather("x") == ["x"] and World().from_leader("x") == "x"


def test_more_processes_than_gpus_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    with pytest.raises(EchoPlanError, match=r"1 GPU.*--nproc_per_node"), joined(environment, torch.device("cuda")):
        pass


def test_resuming_with_other_processes_is_refused(frame_setup: FoldSetup) -> None:
    recipe = UNetTrainer.recipe_class().with_settings({"epochs": 1, "iterations_per_epoch": 1, "base_features": 4})
    trainer = UNetTrainer(frame_setup, recipe)
    trainer.run_training()
    state = load_checkpoint(trainer.setup.folder / "checkpoint_latest.pth")
    again = UNetTrainer(frame_setup, recipe, world=World(0, 2))
    with pytest.raises(EchoPlanError, match="number of processes"):
        restore_training(again, state)
