"""Balanced sampling: as many samples of each dataset of a joint, whatever their sizes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from echoplan.errors import EchoPlanError
from echoplan.plans import Decision
from echoplan.training.checkpoint import load_checkpoint
from echoplan.training.data import BatchLoader, Sample, SampleReader, build_augmentation
from echoplan.training.data.sampling import balanced_order
from echoplan.training.methods.unet import UNetMethod
from echoplan.training.metrics import OnlineDice, read_metrics
from echoplan.training.recipe import Recipe
from echoplan.training.trainer import Trainer

from .conftest import make_setup

GROUPS = ["small"] * 3 + ["large"] * 10


def drawn(epochs: int, wanted: int, batch_size: int = 4, seed: int = 1, groups=GROUPS) -> list[list[int]]:
    return [balanced_order(groups, wanted, batch_size, seed=seed, epoch=epoch) for epoch in range(epochs)]


def test_every_epoch_and_every_batch_has_as_many_samples_of_each() -> None:
    for order in drawn(4, 12):
        assert Counter(GROUPS[index] for index in order) == {"small": 6, "large": 6}
        for start in range(0, 12, 4):
            assert Counter(GROUPS[index] for index in order[start : start + 4]) == {"small": 2, "large": 2}


def test_what_cannot_be_divided_goes_to_each_in_turn() -> None:
    counts = [Counter(GROUPS[index] for index in order) for order in drawn(2, 7)]
    assert [count["large"] for count in counts] == [4, 3] and sum(counts, Counter()) == {"large": 7, "small": 7}


def test_no_sample_comes_again_before_all_of_its_dataset_came() -> None:
    sequence = [index for order in drawn(10, 12) for index in order]
    for name, size in (("small", 3), ("large", 10)):
        own = Counter(index for index in sequence if GROUPS[index] == name)
        assert len(own) == size and set(own.values()) == {60 // size}
    over_epochs = [index for order in drawn(2, 10, batch_size=10) for index in order if GROUPS[index] == "large"]
    assert sorted(over_epochs) == list(range(3, 13))  # five in each of two epochs: one pass


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    assert drawn(3, 12) == drawn(3, 12)
    assert drawn(3, 12) != drawn(3, 12, seed=2)
    first, second, _ = drawn(3, 12)
    assert first != second
    assert len({tuple(GROUPS[index] for index in order) for order in drawn(6, 12)}) > 1  # not always the same turn


def joint_setup(folder):
    """The toy dataset, its first two cases of a dataset A that is flipped, the others of B that is not."""
    setup = make_setup(folder, frames=1)
    store, names = setup.store, []
    for number, case in enumerate((*setup.train, *setup.val)):
        dataset = "A" if number < 2 else "B"
        stored = replace(store.case(case), case=f"{dataset}__{case}", dataset=dataset)
        store.write(stored, store.frames(case), store.labels(case))
        names.append(stored.case)
    own = {
        name: {"mirror_axes": Decision(mirror, "its own rule"), "rotation_degrees": Decision(0.0, "its own rule")}
        for name, mirror in (("A", ["horizontal"]), ("B", []))
    }
    kept = {key: value for key, value in setup.plan.decisions.items() if key not in own["A"]}
    plan = replace(setup.plan, decisions=kept, datasets=own)
    return replace(setup, plan=plan, train=(names[0], *names[2:]), val=tuple(names[1:3]))


def test_the_loader_balances_resumes_within_an_epoch_and_shares_between_processes(tmp_path) -> None:
    setup = joint_setup(tmp_path)
    samples = [Sample(case, (0,)) for case in setup.train]
    reader = SampleReader(setup.store, setup.plan, 1)

    def loader(**options):
        groups = setup.datasets_of(samples)
        return BatchLoader(samples, reader, batch_size=4, batches_per_epoch=3, groups=groups, seed=5, **options)

    whole = [batch["case"] for batch in loader().epoch(3)]
    assert all(Counter(case[0] for case in batch) == {"A": 2, "B": 2} for batch in whole)
    assert [batch["case"] for batch in loader().epoch(3, start=1)] == whole[1:]
    shares = [[batch["case"] for batch in loader(rank=rank, ranks=2).epoch(3)] for rank in (0, 1)]
    for batch, even, odd in zip(whole, *shares, strict=True):
        assert [case for pair in zip(even, odd, strict=True) for case in pair] == batch


def test_a_stopped_joint_training_goes_on_to_the_bit(tmp_path) -> None:
    setup = joint_setup(tmp_path)
    settings = {"epochs": 2, "iterations_per_epoch": 3, "batch_size": 2, "base_features": 4, "optimiser": "adamw"}

    def trainer(fold: int, *, resume: bool = False) -> Trainer:
        return Trainer(UNetMethod().with_settings(settings), replace(setup, fold=fold), seed=1, resume=resume)

    whole, stopped, again = trainer(0), trainer(1), trainer(1, resume=True)
    whole.run_training()
    ends = iter((stopped.on_epoch_end, _interrupt))
    stopped.on_epoch_end = lambda *arguments: next(ends)(*arguments)
    with pytest.raises(KeyboardInterrupt):
        stopped.run_training()
    again.run_training()
    assert again.first_epoch == 1
    histories = [
        [{name: value for name, value in entry.items() if "seconds" not in name} for entry in read_metrics(folder)]
        for folder in (whole.setup.folder, again.setup.folder)
    ]
    assert histories[0] == histories[1] and {"val_dice_A", "val_dice_B"} <= set(histories[0][0])
    kept, resumed = (load_checkpoint(t.setup.folder / "checkpoint_final.pth")["network"] for t in (whole, again))
    assert all(torch.equal(value, resumed[name]) for name, value in kept.items())


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_each_datasets_samples_are_augmented_by_its_own_plan(tmp_path) -> None:
    setup = joint_setup(tmp_path)
    own = {
        name: build_augmentation("light", rotation_degrees=plan.rotation_degrees, mirror=bool(plan.mirror_axes))
        for name, plan in setup.plan.each().items()
    }
    reader = SampleReader(setup.store, setup.plan, 1, own)
    changed = dict.fromkeys("AB", False)
    for case in setup.train[:2]:
        plain = torch.from_numpy(setup.store.labels(case, [0]))
        for seed in range(6):
            labels = torch.from_numpy(reader.read(Sample(case, (0,)), (seed,))["labels"])
            changed[case[0]] |= not torch.equal(labels, plain)
            assert torch.equal(labels, plain) or torch.equal(labels, plain.flip(2))
    assert changed == {"A": True, "B": False}


def test_what_is_decided_for_each_dataset_is_not_given_for_all(tmp_path) -> None:
    plan = joint_setup(tmp_path).plan
    with pytest.raises(EchoPlanError, match="for each of A, B apart"):
        plan.value("mirror_axes")
    with pytest.raises(EchoPlanError, match="has no dataset C"):
        plan.of("C")


def test_the_watched_dice_is_the_mean_over_datasets() -> None:
    score = OnlineDice(1)
    labels = torch.ones(3, 1, 4, 4, dtype=torch.uint8)
    logits = torch.full((3, 1, 1, 4, 4), 9.0)
    logits[2] = -9.0  # wrong in the only sample of B
    score.add(logits, labels, ["A", "A", "B"])
    assert score.by_dataset() == {"A": 1.0, "B": 0.0} and score.mean() == 0.5
    alone = OnlineDice(1)
    alone.add(logits, labels, ["A"] * 3)
    assert alone.mean() == pytest.approx(2 / 3) and OnlineDice(1).mean() is None


def test_a_wrong_balance_is_refused() -> None:
    with pytest.raises(EchoPlanError, match="balance must be one of datasets, samples"):
        Recipe().with_settings({"balance": "patients"})
