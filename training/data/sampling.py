"""Which frames make a training sample, and in which order samples come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...preprocessing.store import StoredCase


@dataclass(frozen=True)
class Sample:
    """A training sample: some frames of a case, in the order the network sees them."""

    case: str
    frames: tuple[int, ...]


def uniform_frames(first: int, last: int, count: int) -> tuple[int, ...]:
    """`count` frames evenly from `first` to `last`, both kept; frames repeat where there are fewer.

    The papers sample 10 frames from end-diastole to end-systole this way.
    """
    return tuple(int(frame) for frame in np.rint(np.linspace(first, last, count)))


def visible_frames(case: StoredCase, supervision: str) -> tuple[int, ...]:
    """The labelled frames of a case that a training may see.

    Args:
        case: as the store knows it.
        supervision: "all", or "ed_es": only those two, where both are known.
    """
    phases = (case.ed_frame, case.es_frame)
    if supervision == "all" or None in phases:
        return case.labelled_frames
    return tuple(frame for frame in case.labelled_frames if frame in phases)


def frame_samples(cases: Iterable[StoredCase]) -> list[Sample]:
    """One sample for every labelled frame."""
    return [Sample(case.case, (frame,)) for case in cases for frame in case.labelled_frames]


def clip_samples(cases: Iterable[StoredCase], count: int) -> list[Sample]:
    """One sample of `count` frames for every case that has a labelled frame.

    From end-diastole to end-systole where both are known; else over the span of the labelled frames. Time runs forward,
    so a clip that starts at end-systole is not played backwards.
    """
    samples = []
    for case in cases:
        if not case.labelled_frames:
            continue
        if case.ed_frame is None or case.es_frame is None:
            ends = case.labelled_frames
        else:
            ends = (case.ed_frame, case.es_frame)
        samples.append(Sample(case.case, uniform_frames(min(ends), max(ends), count)))
    return samples


def window_samples(cases: Iterable[StoredCase], count: int, *, stride: Callable[[StoredCase], int]) -> list[Sample]:
    """For every labelled frame, one sample with that frame at each of the `count` places of a window.

    A network that mixes neighbouring frames learns nothing about the places where it never sees a label. With labels at
    end-diastole and end-systole alone, and clips from the one to the other, those would be all places but the first and
    the last. A window that leaves the clip is reflected back into it: at both phases the heart turns round anyway.

    Args:
        cases: as the store knows them.
        count: T.
        stride: of a case, frames from one of a window's frames to the next.
    """
    return [
        Sample(case.case, _reflect(frame + (np.arange(count) - place) * stride(case), case.native_frames))
        for case in cases
        for frame in case.labelled_frames
        for place in range(count)
    ]


def _reflect(frames: np.ndarray, length: int) -> tuple[int, ...]:
    period = max(2 * (length - 1), 1)
    folded = np.abs(frames) % period
    return tuple(int(frame) for frame in np.minimum(folded, period - folded))


def epoch_order(samples: int, wanted: int, *, seed: int, epoch: int) -> list[int]:
    """`wanted` sample indices for an epoch: whole shuffled passes, the last one cut.

    A function of its arguments alone, so that a resumed training meets the same samples as an uninterrupted one.
    """
    random = np.random.default_rng([seed, epoch])
    passes = -(-wanted // samples)
    return np.concatenate([random.permutation(samples) for _ in range(passes)])[:wanted].tolist()


def balanced_order(groups: Sequence[str], wanted: int, batch_size: int, *, seed: int, epoch: int) -> list[int]:
    """`wanted` sample indices for an epoch, as many of each group, and of each as many in every batch.

    Each group's samples come in shuffled passes that go on from one epoch to the next: none is repeated before all were
    there, however many a group has, and a small group is repeated as often as it takes. Where `wanted` or a batch
    cannot be divided, the groups have one more in turn.

    A function of its arguments alone, like `epoch_order`.

    Args:
        groups: of each sample.
        wanted: how many.
        batch_size: in which the order is cut.
        seed, epoch: of the order.
    """
    names = sorted(set(groups))
    drawn = np.arange(epoch * wanted, (epoch + 1) * wanted)  # counted from the training's first sample
    order = np.empty(wanted, dtype=np.int64)
    for turn, name in enumerate(names):
        mine = np.flatnonzero(drawn % len(names) == turn)
        own = np.flatnonzero([group == name for group in groups])
        order[mine] = _in_passes(own, drawn[mine] // len(names), seed=[seed, turn])
    random = np.random.default_rng([seed, epoch])
    return [int(index) for batch in batches(order.tolist(), batch_size) for index in random.permutation(batch)]


def _in_passes(samples: np.ndarray, places: np.ndarray, *, seed: list[int]) -> np.ndarray:
    """What stands at some places of an endless row of shuffled passes over the samples."""
    found = np.empty(len(places), dtype=samples.dtype)
    passes = places // len(samples)
    for number in np.unique(passes):
        shuffled = np.random.default_rng([*seed, int(number)]).permutation(samples)
        found[passes == number] = shuffled[places[passes == number] % len(samples)]
    return found


def batches(order: Sequence[int], batch_size: int) -> list[list[int]]:
    """The order cut into batches; the last one may be smaller."""
    return [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
