from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch

from echoplan.errors import EchoPlanError
from echoplan.training.data import BatchLoader, SampleReader, build_augmentation, clip_samples, frame_samples
from echoplan.training.fold import FoldSetup

from .conftest import make_setup


def make_loader(
    setup: FoldSetup, *, processes: int = 0, reader: SampleReader | None = None, **options: object
) -> BatchLoader:
    properties = setup.properties(setup.train)
    count = setup.plan.frames
    samples = frame_samples(properties) if count == 1 else clip_samples(properties, count)
    augmentation = build_augmentation("strong", rotation_degrees=20, mirror=True)
    reader = reader or SampleReader(setup.store, setup.plan, 1, augmentation)
    return BatchLoader(samples, reader, batch_size=2, processes=processes, seed=3, **options)


def test_batches_have_the_promised_shapes_and_types(clip_setup: FoldSetup) -> None:
    batches = list(make_loader(clip_setup).epoch(0))
    assert [len(batch["case"]) for batch in batches] == [2, 1]
    assert batches[0]["clip"].shape == (2, 4, 1, 32, 32) and batches[0]["clip"].dtype == torch.float32
    assert batches[0]["labels"].shape == (2, 4, 32, 32) and batches[0]["labels"].dtype == torch.uint8
    # frames 0, 2, 3, 5 of 0..5, of which the first and the last carry labels
    assert (batches[0]["labels"][:, 1:3] == 255).all() and (batches[0]["labels"][:, [0, 3]] != 255).all()


def test_workers_give_the_same_batches_as_no_workers(frame_setup: FoldSetup) -> None:
    here = list(make_loader(frame_setup).epoch(5))
    there = list(make_loader(frame_setup, processes=2).epoch(5))
    assert len(here) == len(there) == 3
    for mine, theirs in zip(here, there, strict=True):
        assert mine["case"] == theirs["case"]
        torch.testing.assert_close(mine["clip"], theirs["clip"], rtol=0, atol=0)
        torch.testing.assert_close(mine["labels"], theirs["labels"], rtol=0, atol=0)


def test_epochs_differ_and_a_fixed_number_of_batches_is_kept(frame_setup: FoldSetup) -> None:
    loader = make_loader(frame_setup, batches_per_epoch=5)
    assert len(loader) == 5
    first, second = list(loader.epoch(0)), list(loader.epoch(1))
    assert len(first) == 5
    assert any(not torch.equal(a["clip"], b["clip"]) for a, b in zip(first, second, strict=True))


def test_without_augmentation_the_clip_is_normalised_and_the_labels_are_the_stores(frame_setup: FoldSetup) -> None:
    loader = make_loader(frame_setup, reader=SampleReader(frame_setup.store, frame_setup.plan, 1), shuffle=False)
    batch = next(iter(loader.epoch(0)))
    case, about = batch["case"][0], frame_setup.store.properties(batch["case"][0])
    expected = (frame_setup.store.frames(case, [0])[0] - about["mean"]) / about["std"]
    np.testing.assert_allclose(batch["clip"][0, 0, 0].numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(batch["labels"][0].numpy(), frame_setup.store.labels(case, [0]))


@pytest.mark.parametrize("processes", [0, 1])
def test_a_damaged_case_is_named(frame_setup: FoldSetup, processes: int) -> None:
    path = frame_setup.store.folder / f"{frame_setup.train[1]}.b2nd"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(EchoPlanError, match=frame_setup.train[1]):
        list(make_loader(frame_setup, processes=processes).epoch(0))


def test_a_worker_that_dies_becomes_a_clear_error(frame_setup: FoldSetup) -> None:
    reader = SampleReader(frame_setup.store, frame_setup.plan, 1, finish=_kill_this_process)
    loader = make_loader(frame_setup, processes=1, reader=reader, shuffle=False)
    with pytest.raises(EchoPlanError, match=rf"worker died or hangs while reading {loader.samples[0].case}: .*--c"):
        list(loader.epoch(0))


def test_only_the_dead_workers_case_is_named_wherever_the_error_surfaces(frame_setup: FoldSetup) -> None:
    loader = make_loader(frame_setup, processes=2)
    at_work = loader._at_work
    at_work._shared[:] = torch.tensor([[1234, 0], [5678, 5]])
    dead = loader.explain(RuntimeError("DataLoader worker (pid 5678) is killed by signal: Killed. "))
    assert isinstance(dead, EchoPlanError) and f"while reading {loader.samples[5].case}:" in str(dead)
    other = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert loader.explain(other) is other


def test_an_epoch_can_be_entered_in_its_middle(frame_setup: FoldSetup) -> None:
    loader = make_loader(frame_setup)
    rest, whole = list(loader.epoch(2, start=1)), list(loader.epoch(2))
    assert len(rest) == len(whole) - 1
    for mine, theirs in zip(rest, whole[1:], strict=True):
        assert mine["case"] == theirs["case"] and torch.equal(mine["clip"], theirs["clip"])


def test_a_death_in_validation_names_the_case_validated(frame_setup):
    training, validation = (
        BatchLoader(clip_samples(frame_setup.properties(cases), 1), reader, batch_size=2, processes=1)
        for cases, reader in (
            (frame_setup.train, SampleReader(frame_setup.store, frame_setup.plan, 1)),
            (frame_setup.val, SampleReader(frame_setup.store, frame_setup.plan, 1)),
        )
    )
    training._at_work._shared[0] = torch.tensor([1234, 0])
    validation._at_work._shared[0] = torch.tensor([5678, 0])
    for pid, case in ((1234, training.samples[0].case), (5678, validation.samples[0].case)):
        error = training.explain(
            RuntimeError(f"DataLoader worker (pid {pid}) is killed by signal: Killed."), validation
        )
        assert f"while reading {case}:" in str(error)


def _kill_this_process(labels: np.ndarray) -> dict[str, np.ndarray]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def test_hidden_labels_stand_apart_and_never_among_the_labels(tmp_path) -> None:
    setup = make_setup(tmp_path, frames=4, dense=True)
    reader = SampleReader(setup.store, setup.plan, 1, supervision="ed_es")
    sample = clip_samples(setup.properties(setup.train), 4)[0]
    seen, whole = reader.read(sample, (0,)), SampleReader(setup.store, setup.plan, 1).read(sample, (0,))
    assert "hidden" not in whole
    np.testing.assert_array_equal(seen["labels"][[0, 3]], whole["labels"][[0, 3]])
    np.testing.assert_array_equal(seen["hidden"][1:3], whole["labels"][1:3])
    assert (seen["labels"][1:3] == 255).all() and (seen["hidden"][[0, 3]] == 255).all()
