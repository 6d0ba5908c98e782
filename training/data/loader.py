"""Batches for the training loop: read, augmented and collated in worker processes, always in the same order."""

from __future__ import annotations

import os
import re
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from echoplan.errors import EchoPlanError
from echoplan.labels import IGNORE
from echoplan.plans import ResolvedPlan

from ...preprocessing.clip import normalise
from ...preprocessing.store import ClipStore
from ..augmentation import Augmentation
from .sampling import Sample, balanced_order, batches, epoch_order, visible_frames

WORKER_TIMEOUT_SECONDS = 300  # a loader that has not delivered by then hangs
Batch = dict[str, Any]
_NAMES = ("case", "dataset")  # what a batch holds as lists of words
Finish = Callable[[np.ndarray], Mapping[str, np.ndarray]]
_Key = tuple[int, int, int]  # of a sample, its place in the epoch, the epoch
_Stream = Iterator[Batch | EchoPlanError]


@dataclass(frozen=True)
class SampleReader:
    """Turns a `Sample` and a seed into arrays; picklable, so that workers can use it.

    Attributes:
        store: the compressed store.
        plan: the normalisation, unless `normalisation` says another.
        classes: K of the network (1: labels 0 and 1).
        augmentation: of each source dataset, what changes its samples at random; None reads samples as they are.
        finish: more targets made from the labels after augmentation (labels (T, H, W) -> named arrays).
        supervision: "all", or "ed_es": labels of other frames become 255, and stand under "hidden" for watching only.
        normalisation: of intensities, of `NORMALISATIONS`.
    """

    store: ClipStore
    plan: ResolvedPlan
    classes: int
    augmentation: Mapping[str, Augmentation] | None = None
    finish: Finish | None = None
    supervision: str = "all"
    normalisation: str | None = None

    def read(self, sample: Sample, seed: Sequence[int]) -> Batch:
        """ "clip" float32 (T, 1, H, W), "labels" uint8 (T, H, W), "case", "dataset", and what `finish` adds.

        Where labels are hidden there is also "hidden" uint8 (T, H, W): those labels, 255 where the training sees them.
        """
        case = self.store.case(sample.case)
        augmentation = None if self.augmentation is None else self.augmentation[case.dataset]
        if augmentation is not None:
            frame_numbers = augmentation.retime(
                sample.frames,
                labelled=visible_frames(case, self.supervision),
                native_frames=case.native_frames,
                seed=seed,
            )
            sample = Sample(sample.case, frame_numbers)
        frames = self.store.frames(sample.case, sample.frames)
        labels = self.store.labels(sample.case, sample.frames)
        if augmentation is not None:
            frames, labels = augmentation.move(
                frames, labels, apex=case.geometry.apex, classes=max(self.classes, 2), seed=seed
            )
        clip = normalise(frames, case.mean, case.std, self.normalisation or self.plan.normalisation)
        if augmentation is not None:
            clip = augmentation.colour(clip, seed=seed)
        batch: Batch = {"clip": clip[:, None], "labels": labels, "case": sample.case, "dataset": case.dataset}
        if self.supervision != "all":
            seen = np.isin(sample.frames, visible_frames(case, self.supervision))[:, None, None]
            batch |= {"labels": np.where(seen, labels, IGNORE), "hidden": np.where(seen, IGNORE, labels)}
        return batch if self.finish is None else {**batch, **self.finish(batch["labels"])}


class BatchLoader:
    """The batches of an epoch, a function of (samples, seed, epoch) whatever the number of workers.

    At an epoch's end the workers go on with the next one's batches, while the training validates and writes its
    checkpoints. An epoch that is left before its end takes its workers along.

    Args:
        samples: what there is to draw from.
        reader: reads one of them.
        batch_size: samples a batch.
        batches_per_epoch: None is one pass.
        drop_last: whether a pass leaves out what does not fill its last batch; a first batch is never left out.
        epochs: of the training, through which the workers live; 0: every epoch has workers of its own.
        shuffle: a new order each epoch; else the samples' own order.
        groups: of each sample; a new order then has as many samples of each group.
        seed: of order and augmentation.
        processes: workers; 0 reads in this process.
        pin_memory: for faster copies to a GPU.
        rank, ranks: this process takes every `ranks`-th sample of each batch, from the `rank`-th on.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        reader: SampleReader,
        *,
        batch_size: int,
        batches_per_epoch: int | None = None,
        drop_last: bool = False,
        epochs: int = 0,
        shuffle: bool = True,
        groups: Sequence[str] | None = None,
        seed: int = 0,
        processes: int = 0,
        pin_memory: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.samples = list(samples)
        self.reader = reader
        self.batch_size = batch_size
        self.epochs = epochs
        self.seed = seed
        self.processes = processes
        self.pin_memory = pin_memory
        self.rank = rank
        self.ranks = ranks
        left_out = len(self.samples) % batch_size if drop_last and len(self.samples) >= batch_size else 0
        self._draws = len(self.samples) - left_out if batches_per_epoch is None else batches_per_epoch * batch_size
        self._order = partial(
            _order, len(self.samples), self._draws, batch_size, shuffle=shuffle, groups=groups, seed=seed
        )
        self._at_work = _AtWork(processes)
        self._ahead: tuple[int, _Stream] | None = None  # an epoch, and the stream that has gone on to it
        self._streams: list[_Stream] = []  # those whose workers live
        weakref.finalize(self, _end, self._streams)  # with the loader, or with Python

    def __len__(self) -> int:
        return -(-self._draws // self.batch_size)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch: "clip" (B, T, 1, H, W), "labels" (B, T, H, W); "case", "dataset": lists.

        Args:
            epoch: its number.
            start: batches to leave out at the beginning, as done before.

        Raises:
            EchoPlanError: a case cannot be read, or a worker died or hangs.
        """
        stream = self._take_ahead(epoch, start)
        try:
            if stream is None:
                stream = self._begin(epoch, start)
            for _ in range(start, len(self)):
                batch = next(stream)
                if isinstance(batch, EchoPlanError):
                    raise batch
                yield batch
            if epoch + 1 < self.epochs:
                self._ahead, stream = (epoch + 1, stream), None
        except RuntimeError as error:
            raise self.explain(error) from error
        finally:
            _end(self._streams, stream)

    def close(self) -> None:
        """End all workers."""
        self._ahead = None
        _end(self._streams)

    def _take_ahead(self, epoch: int, start: int) -> _Stream | None:
        """The stream that has gone on, where this is what it has gone on to; else it is ended."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and (ahead[0], 0) == (epoch, start):
            return ahead[1]
        _end(self._streams, None if ahead is None else ahead[1])
        return None

    def _begin(self, epoch: int, start: int) -> _Stream:
        """The batches from one of an epoch's on, and those of the epochs to come."""
        self._at_work = _AtWork(self.processes)
        epochs, mine = range(epoch, max(self.epochs, epoch + 1)), slice(self.rank, None, self.ranks)
        loader = DataLoader(
            _Reading(self.samples, self.reader, self.seed, self._at_work),
            batch_sampler=_keys(self._order, epochs, start, self.batch_size, mine),
            collate_fn=_collate,
            num_workers=self.processes,
            pin_memory=self.pin_memory,
            timeout=WORKER_TIMEOUT_SECONDS if self.processes else 0,
            worker_init_fn=_calm_worker,
            # Its own: else the start would take a number from the network's random stream.
            generator=torch.Generator().manual_seed(self.seed),
        )
        self._streams.append(iter(loader))
        return self._streams[-1]

    def count(self, index: int) -> int:
        """The samples of an epoch's batch number `index`, of all processes."""
        return min(self.batch_size, self._draws - index * self.batch_size)

    def share(self, index: int) -> float:
        """This process's share of the samples of an epoch's batch number `index`."""
        count = self.count(index)
        return len(range(self.rank, count, self.ranks)) / count

    def explain(self, error: RuntimeError, *others: BatchLoader) -> Exception:
        """The error that tells a user of a dead worker and its case, or the error itself where it is another one.

        PyTorch raises in the main thread as soon as a worker dies, wherever that thread happens to be: the worker may
        be one of the `others`.
        """
        if "DataLoader" not in str(error):
            return error
        loader = next((other for other in others if other._at_work.names(str(error))), self)
        cases = loader._at_work.cases(loader.samples, str(error))
        return EchoPlanError(
            f"a data-loading worker died or hangs{f' while reading {cases}' if cases else ''}: {str(error).strip()}",
            remedy="resume with --c, with fewer workers (-np), or with -np 0 to read in the training process",
        )


def _order(
    count: int, draws: int, batch_size: int, epoch: int, *, shuffle: bool, groups: Sequence[str] | None, seed: int
) -> list[int]:
    """The samples of an epoch, one after another."""
    if not shuffle:
        return list(range(count))
    if groups is None or len(set(groups)) == 1:
        return epoch_order(count, draws, seed=seed, epoch=epoch)
    return balanced_order(groups, draws, batch_size, seed=seed, epoch=epoch)


def _keys(
    order: Callable[[int], list[int]], epochs: Iterable[int], start: int, batch_size: int, mine: slice
) -> Iterator[list[_Key]]:
    """This process's part of each batch of some epochs; of the first, from the batch number `start` on.

    It must not know the `BatchLoader`, which ends this generator's stream when it goes itself.
    """
    for epoch in epochs:
        keys = [(index, place, epoch) for place, index in enumerate(order(epoch))]
        for batch in batches(keys, batch_size)[start:]:
            # In a batch smaller than the number of processes somebody has none, and takes part with one of share 0.
            yield batch[mine] or batch[:1]
        start = 0


def _end(streams: list[_Stream], *chosen: _Stream | None) -> None:
    """End the workers of the chosen ones of the streams, or of all of them.

    PyTorch does it with the last reference to a stream. But the traceback of an error may hold one until Python ends,
    which would then wait for the workers for ever, for they ignore SIGTERM.
    """
    for stream in list(streams):
        if not chosen or any(stream is other for other in chosen):
            streams.remove(stream)
            getattr(stream, "_shutdown_workers", lambda: None)()  # what has no workers does not know the word


def split_batch(batch: Batch, parts: int) -> list[tuple[float, Batch]]:
    """A batch in at most `parts` parts along its samples, each with its share of the samples."""
    count = len(batch["case"])
    step = -(-count // parts)
    return [
        (len(batch["case"][start : start + step]) / count,
         {name: value[start : start + step] for name, value in batch.items()})
        for start in range(0, count, step)
    ]  # fmt: skip


class _AtWork:
    """Which sample each worker reads, where the main process can see it."""

    def __init__(self, workers: int) -> None:
        # Per worker its process and its sample; without a lock, which a killed worker could leave locked.
        self._shared = torch.full((max(workers, 1), 2), -1, dtype=torch.int64).share_memory_()

    def on(self, index: int) -> None:
        """Note that this process now reads sample `index`."""
        about = get_worker_info()
        if about is not None:
            self._shared[about.id] = torch.tensor([os.getpid(), index])

    def names(self, message: str) -> set[int]:
        """Those of these processes that a message names."""
        return {int(number) for number in re.findall(r"\d+", message)} & {pid for pid, _ in self._busy()}

    def cases(self, samples: Sequence[Sample], message: str) -> str:
        """The cases of the processes that a message names; of all of them where it names none."""
        named = self.names(message)
        chosen = [index for pid, index in self._busy() if pid in named or not named]
        return ", ".join(sorted({samples[index].case for index in chosen}))

    def _busy(self) -> list[tuple[int, int]]:
        """Process and sample of each worker that has begun one."""
        return [(pid, index) for pid, index in self._shared.tolist() if index >= 0]


class _Reading(Dataset["Batch | EchoPlanError"]):
    def __init__(self, samples: list[Sample], reader: SampleReader, seed: int, at_work: _AtWork) -> None:
        self.samples = samples
        self.reader = reader
        self.seed = seed
        self.at_work = at_work

    def __getitem__(self, key: _Key) -> Batch | EchoPlanError:
        index, place, epoch = key
        sample = self.samples[index]
        self.at_work.on(index)
        try:
            return self.reader.read(sample, (self.seed, epoch, place))
        except Exception as error:
            # Returned, not raised: a worker's exception would reach the user wrapped in the worker's traceback.
            if isinstance(error, EchoPlanError):
                return error
            return EchoPlanError(
                f"case {sample.case} cannot be read for training: {type(error).__name__}: {error}",
                file=self.reader.store.folder,
                remedy="preprocess it again (echoplan_preprocess --overwrite)",
            )


def _collate(items: Sequence[Batch | EchoPlanError]) -> Batch | EchoPlanError:
    samples: list[Batch] = []
    for item in items:
        if isinstance(item, EchoPlanError):
            return item
        samples.append(item)
    batch: Batch = {name: [sample[name] for sample in samples] for name in _NAMES}
    for name in samples[0].keys() - _NAMES:
        batch[name] = torch.from_numpy(np.stack([sample[name] for sample in samples]))
    return batch


def _calm_worker(_: int) -> None:
    torch.set_num_threads(1)
    # A cluster terminates all processes of a job at once: the training saves itself and then ends its workers.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
