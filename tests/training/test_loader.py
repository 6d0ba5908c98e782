from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from echoplan.errors import EchoPlanError
from echoplan.training.data import BatchLoader, SampleReader, build_augmentation, clip_samples, frame_samples, loader
from echoplan.training.fold import FoldSetup
from echoplan.training.methods.unet import UNetMethod
from echoplan.training.trainer import Trainer

from .conftest import make_setup


def make_loader(
    setup: FoldSetup, *, processes: int = 0, reader: SampleReader | None = None, **options: object
) -> BatchLoader:
    cases, count = setup.stored_cases(setup.train), setup.plan.frames
    samples = frame_samples(cases) if count == 1 else clip_samples(cases, count)
    augmentation = build_augmentation("strong", rotation_degrees=20, mirror=True)
    reader = reader or SampleReader(setup.store, setup.plan, 1, {"Toy": augmentation})
    return BatchLoader(samples, reader, batch_size=2, processes=processes, seed=3, **options)


def test_batches_have_the_promised_shapes_and_types(clip_setup: FoldSetup) -> None:
    batches = list(make_loader(clip_setup).epoch(0))
    assert [len(batch["case"]) for batch in batches] == [2, 1]
    assert batches[0]["clip"].shape == (2, 4, 1, 32, 32) and batches[0]["clip"].dtype == torch.float32
    assert batches[0]["labels"].shape == (2, 4, 32, 32) and batches[0]["labels"].dtype == torch.uint8
    # frames 0, 2, 3, 5 of 0..5, of which the first and the last carry labels
    assert (batches[0]["labels"][:, 1:3] == 255).all() and (batches[0]["labels"][:, [0, 3]] != 255).all()


def test_what_does_not_fill_a_batch_can_be_left_out_but_not_everything(clip_setup: FoldSetup) -> None:
    assert [len(batch["case"]) for batch in make_loader(clip_setup, drop_last=True).epoch(0)] == [2]
    cases = clip_samples(clip_setup.stored_cases(clip_setup.train), 4)
    one = BatchLoader(cases[:1], SampleReader(clip_setup.store, clip_setup.plan, 1), batch_size=2, drop_last=True)
    assert [len(batch["case"]) for batch in one.epoch(0)] == [1]


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
    case, stored = batch["case"][0], frame_setup.store.case(batch["case"][0])
    expected = (frame_setup.store.frames(case, [0])[0] - stored.mean) / stored.std
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
    case = loader.samples[0].case
    with pytest.raises(EchoPlanError, match=rf"worker died or hangs while reading {case}: Killed.*--c"):
        list(loader.epoch(0))


def _half_a_batch(batch: object, connection: Connection) -> None:
    os.write(connection.fileno(), (1000).to_bytes(4, "big") + b"half")
    time.sleep(0.3)  # who takes it has begun to read
    os.kill(os.getpid(), signal.SIGKILL)


def _a_batch_without_its_memory(batch: object, connection: Connection) -> None:
    connection.send(batch)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("hand_over", [_half_a_batch, _a_batch_without_its_memory])
def test_a_death_amid_a_batch_is_named(
    frame_setup: FoldSetup, monkeypatch: pytest.MonkeyPatch, hand_over: Callable[[object, Connection], None]
) -> None:
    monkeypatch.setattr("echoplan.training.data.workers._hand_over", hand_over)  # workers are copies of this process
    with pytest.raises(EchoPlanError, match=r"worker died or hangs while reading p.*: Killed"):
        list(make_loader(frame_setup, processes=2).epoch(0))
    assert multiprocessing.active_children() == []


def _hang(labels: np.ndarray) -> dict[str, np.ndarray]:
    time.sleep(600)
    return {}


def test_a_worker_that_hangs_is_named_and_ended(frame_setup: FoldSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echoplan.training.data.workers.HANGS_AFTER_SECONDS", 0.3)
    reader = SampleReader(frame_setup.store, frame_setup.plan, 1, finish=_hang)
    with pytest.raises(EchoPlanError, match=r"worker died or hangs.*: no batch for 0 s"):
        list(make_loader(frame_setup, processes=1, reader=reader).epoch(0))
    assert multiprocessing.active_children() == []


def test_too_little_shared_memory_is_told(frame_setup: FoldSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: torch.UntypedStorage) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    with pytest.raises(EchoPlanError, match=r"shared memory: .*No space left.*-np 0"):
        list(make_loader(frame_setup, processes=1).epoch(0))


def test_ctrl_c_while_workers_start_waits_until_they_can_be_ended(
    frame_setup: FoldSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, start = make_loader(frame_setup, processes=2), multiprocessing.Process.start
    started = []

    def interrupted(worker: multiprocessing.Process) -> None:
        signal.raise_signal(signal.SIGINT)
        start(worker)
        started.append(worker)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(multiprocessing.Process, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(loader.epoch(0))
    loader.close()
    assert len(started) == 2 and multiprocessing.active_children() == []


def test_an_epoch_can_be_entered_in_its_middle(frame_setup: FoldSetup) -> None:
    loader = make_loader(frame_setup)
    rest, whole = list(loader.epoch(2, start=1)), list(loader.epoch(2))
    assert len(rest) == len(whole) - 1
    for mine, theirs in zip(rest, whole[1:], strict=True):
        assert mine["case"] == theirs["case"] and torch.equal(mine["clip"], theirs["clip"])


def _kill_this_process(labels: np.ndarray) -> dict[str, np.ndarray]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


# Workers that live on ------------------------------------------------------------------------------------------------


def _note(labels: np.ndarray, *, file: Path) -> dict[str, np.ndarray]:
    """Who reads a sample."""
    with open(file, "a") as stream:
        stream.write(f"{os.getpid()}\n")
    return {}


def noting_loader(setup: FoldSetup, file: Path) -> BatchLoader:
    """A loader for three epochs of 3 batches, whose worker writes a line for each of their 6 samples."""
    reader = SampleReader(setup.store, setup.plan, 1, finish=partial(_note, file=file))
    return make_loader(setup, processes=1, reader=reader, epochs=3)


def wait_for_lines(file: Path, count: int) -> list[str]:
    deadline = time.monotonic() + 500
    while len(lines := file.read_text().split()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return lines


def test_workers_live_on_and_read_the_next_epoch_while_nobody_asks_yet(frame_setup: FoldSetup, tmp_path: Path) -> None:
    loader, file = noting_loader(frame_setup, tmp_path / "reads"), tmp_path / "reads"
    got = list(loader.epoch(0))
    wait_for_lines(file, 10)  # the 6 of this epoch, and two batches of the next
    got += [*loader.epoch(1), *loader.epoch(2)]
    assert multiprocessing.active_children() == []  # there is no epoch to come
    assert len(wait_for_lines(file, 18)) == 18 and len(set(wait_for_lines(file, 18))) == 1  # one worker, none in vain
    reader = SampleReader(frame_setup.store, frame_setup.plan, 1)
    fresh = [batch for epoch in range(3) for batch in make_loader(frame_setup, reader=reader).epoch(epoch)]
    for mine, theirs in zip(got, fresh, strict=True):
        assert mine["case"] == theirs["case"] and torch.equal(mine["clip"], theirs["clip"])


def test_another_epoch_than_the_next_is_read_anew(frame_setup: FoldSetup, tmp_path: Path) -> None:
    loader = noting_loader(frame_setup, tmp_path / "reads")
    plain = make_loader(frame_setup, reader=SampleReader(frame_setup.store, frame_setup.plan, 1))
    list(loader.epoch(0))
    for epoch, start in ((0, 0), (1, 1), (1, 2)):
        got, expected = list(loader.epoch(epoch, start=start)), list(plain.epoch(epoch, start=start))
        for mine, theirs in zip(got, expected, strict=True):
            assert mine["case"] == theirs["case"] and torch.equal(mine["clip"], theirs["clip"])
        assert len(multiprocessing.active_children()) == 1
    loader.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("ends", ["closed", "forgotten", "left within an epoch"])
def test_no_worker_outlives_its_loader(frame_setup: FoldSetup, tmp_path: Path, ends: str) -> None:
    loader = noting_loader(frame_setup, tmp_path / "reads")
    stream = loader.epoch(0)
    next(stream)
    if ends != "left within an epoch":
        list(stream)
    assert len(multiprocessing.active_children()) == 1
    if ends == "forgotten":
        del loader, stream
    else:
        loader.close()
    assert multiprocessing.active_children() == []


def test_an_error_that_somebody_keeps_keeps_no_worker(frame_setup: FoldSetup) -> None:
    """Python would wait for it at its end, and it for Python."""
    path = frame_setup.store.folder / f"{frame_setup.train[1]}.b2nd"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(EchoPlanError) as kept:
        list(make_loader(frame_setup, processes=1, epochs=2).epoch(0))
    assert kept and multiprocessing.active_children() == []


def test_a_worker_that_dies_ahead_of_its_epoch_is_named_with_it(frame_setup: FoldSetup, tmp_path: Path) -> None:
    loader = noting_loader(frame_setup, tmp_path / "reads")
    list(loader.epoch(0))
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(EchoPlanError, match=r"worker died or hangs while reading p.*: Killed"):
        next(loader.epoch(1))
    assert multiprocessing.active_children() == []


def test_hidden_labels_stand_apart_and_never_among_the_labels(tmp_path) -> None:
    setup = make_setup(tmp_path, frames=4, dense=True)
    reader = SampleReader(setup.store, setup.plan, 1, supervision="ed_es")
    sample = clip_samples(setup.stored_cases(setup.train), 4)[0]
    seen, whole = reader.read(sample, (0,)), SampleReader(setup.store, setup.plan, 1).read(sample, (0,))
    assert "hidden" not in whole
    np.testing.assert_array_equal(seen["labels"][[0, 3]], whole["labels"][[0, 3]])
    np.testing.assert_array_equal(seen["hidden"][1:3], whole["labels"][1:3])
    assert (seen["labels"][1:3] == 255).all() and (seen["hidden"][[0, 3]] == 255).all()


def test_workers_of_training_and_validation_are_started_once_a_training(
    frame_setup: FoldSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    class Counted(loader.Workers):
        def __init__(self, *arguments: Any) -> None:
            started.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(loader, "Workers", Counted)
    method = UNetMethod().with_settings({"epochs": 3, "iterations_per_epoch": 1, "base_features": 4})
    Trainer(method, frame_setup, processes=1).run_training()
    assert len(started) == 2
