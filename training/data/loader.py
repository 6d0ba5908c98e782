"""Batches for the training loop: read, augmented and collated in worker processes, always in the same order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from echoplan.device import upload
from echoplan.errors import EchoPlanError
from echoplan.labels import IGNORE
from echoplan.plans import ResolvedPlan
from echoplan.termination import undisturbed

from ...preprocessing.clip import normalise
from ...preprocessing.store import ClipStore
from ..augmentation import Augmentation
from .sampling import Sample, balanced_order, batches, epoch_order, visible_frames
from .workers import Workers

Batch = dict[str, Any]
_NAMES = ("case", "dataset")  # what a batch holds as lists of words
Finish = Callable[[np.ndarray], Mapping[str, np.ndarray]]
_Stream = Workers | Generator["Batch | EchoPlanError", None, None]


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
    checkpoints: a worker that dies meanwhile costs nothing of the epoch. An epoch that is left before its end takes its
    workers along, and so does one that is entered before another's end.

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
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.samples = list(samples)
        self.reader = reader
        self.batch_size = batch_size
        self.epochs = epochs
        self.seed = seed
        self.processes = processes
        self.rank = rank
        self.ranks = ranks
        left_out = len(self.samples) % batch_size if drop_last and len(self.samples) >= batch_size else 0
        self._draws = len(self.samples) - left_out if batches_per_epoch is None else batches_per_epoch * batch_size
        self._order = partial(
            _order, len(self.samples), self._draws, batch_size, shuffle=shuffle, groups=groups, seed=seed
        )
        self._stream: _Stream | None = None
        self._ahead: tuple[int, int] | None = None  # the epoch and its batch that the stream gives next

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
        if self._stream is None or self._ahead != (epoch, start):
            self.close()
            with undisturbed():
                self._stream = self._begin(epoch, start)
        stream, self._ahead = self._stream, None
        try:
            for _ in range(start, len(self)):
                batch = next(stream)
                if isinstance(batch, EchoPlanError):
                    raise batch
                yield batch
            if epoch + 1 < self.epochs:
                self._ahead = (epoch + 1, 0)
        finally:
            if self._ahead is None:
                stream.close()

    def close(self) -> None:
        """End all workers."""
        if self._stream is not None:
            self._stream.close()
        self._stream = self._ahead = None

    def _begin(self, epoch: int, start: int) -> _Stream:
        """The batches from one of an epoch's on, and those of the epochs to come."""
        batches = _Batches(
            self.samples,
            self.reader,
            self.seed,
            self._order,
            epochs=range(epoch, max(self.epochs, epoch + 1)),
            start=start,
            batch_size=self.batch_size,
            mine=slice(self.rank, None, self.ranks),
        )
        return Workers(batches.read, self.processes, batches.case) if self.processes else batches.read()

    def count(self, index: int) -> int:
        """The samples of an epoch's batch number `index`, of all processes."""
        return min(self.batch_size, self._draws - index * self.batch_size)

    def share(self, index: int) -> float:
        """This process's share of the samples of an epoch's batch number `index`."""
        count = self.count(index)
        return len(range(self.rank, count, self.ranks)) / count


def _order(
    count: int, draws: int, batch_size: int, epoch: int, *, shuffle: bool, groups: Sequence[str] | None, seed: int
) -> list[int]:
    """The samples of an epoch, one after another."""
    if not shuffle:
        return list(range(count))
    if groups is None or len(set(groups)) == 1:
        return epoch_order(count, draws, seed=seed, epoch=epoch)
    return balanced_order(groups, draws, batch_size, seed=seed, epoch=epoch)


def split_batch(batch: Batch, parts: int) -> list[tuple[float, Batch]]:
    """A batch in at most `parts` parts along its samples, each with its share of the samples."""
    count = len(batch["case"])
    step = -(-count // parts)
    return [
        (len(batch["case"][start : start + step]) / count,
         {name: value[start : start + step] for name, value in batch.items()})
        for start in range(0, count, step)
    ]  # fmt: skip


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors on a device."""
    return {name: upload(value, device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


@dataclass(frozen=True)
class _Batches:
    """This process's part of each batch of some epochs; of the first, from the batch number `start` on."""

    samples: list[Sample]
    reader: SampleReader
    seed: int
    order: Callable[[int], list[int]]
    epochs: Iterable[int]
    start: int
    batch_size: int
    mine: slice

    def read(
        self, first: int = 0, step: int = 1, begin: Callable[[int], None] = lambda sample: None
    ) -> Generator[Batch | EchoPlanError, None, None]:
        """Every `step`-th batch from the `first` on; `begin` hears the number of each sample before it is read."""
        for keys in islice(self._keys(), first, None, step):
            items = []
            for key in keys:
                begin(key[0])
                items.append(self._read(*key))
            yield _collate(items)

    def case(self, sample: int) -> str:
        """The case of a sample, by its number."""
        return self.samples[sample].case

    def _keys(self) -> Iterator[list[tuple[int, int, int]]]:
        """Of each batch its samples, by number, place in the epoch, and epoch."""
        start = self.start
        for epoch in self.epochs:
            keys = [(sample, place, epoch) for place, sample in enumerate(self.order(epoch))]
            for batch in batches(keys, self.batch_size)[start:]:
                # In a batch smaller than the number of processes somebody has none, and takes part with one of share 0.
                yield batch[self.mine] or batch[:1]
            start = 0

    def _read(self, number: int, place: int, epoch: int) -> Batch | EchoPlanError:
        sample = self.samples[number]
        try:
            return self.reader.read(sample, (self.seed, epoch, place))
        except Exception as error:
            # Returned, not raised: a worker goes on, and its exception could not always be sent.
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
