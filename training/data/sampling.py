"""Which frames make a training sample, and in which order samples come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from echoplan.errors import EchoPlanError
from echoplan.plans import ResolvedPlan

from ...preprocessing.store import StoredCase

Item = TypeVar("Item")
SAMPLINGS = ("labelled_frames", "uniform_ed_es", "windows")


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


def planned_samples(cases: Iterable[StoredCase], plan: ResolvedPlan, *, every_place: bool = True) -> list[Sample]:
    """The samples that the plan's `sampling` makes of some cases; each case by the decision of its own dataset.

    "labelled_frames": every labelled frame alone. "uniform_ed_es": T frames evenly from end-diastole to end-systole;
    where a case's phases are unknown, from its first labelled frame to its last. "windows": the same where both phases
    are known, and else windows of the clip around each labelled frame. A single labelled frame without phases is seen
    in windows by either, for T times the same frame would show no motion. Cases without a labelled frame have none.

    Args:
        cases: as the store knows them; their labelled frames are those that may be seen.
        plan: with T and the stride of windows.
        every_place: whether windows show a labelled frame at each of their places, or in their middle alone.

    Raises:
        EchoPlanError: the plan names another sampling, or samples of different length.
    """
    samples = []
    for case in cases:
        own, labelled = plan.of(case.dataset), case.labelled_frames
        known = case.ed_frame is not None and case.es_frame is not None
        if own.sampling not in SAMPLINGS:
            raise EchoPlanError(
                f"the plan {plan.plans_name} samples by {own.sampling!r}", remedy=f"choose {', '.join(SAMPLINGS)} in it"
            )
        if own.sampling == "labelled_frames":
            samples += frame_samples([case])
        elif not known and (len(labelled) == 1 or own.sampling == "windows"):
            places = range(own.frames) if every_place else (own.frames // 2,)
            samples += window_samples(case, own.frames, stride=own.frame_stride, places=places)
        else:
            samples += clip_samples([case], own.frames)
    if len({len(sample.frames) for sample in samples}) > 1:
        raise EchoPlanError(
            f"the plan {plan.plans_name} samples single frames of some datasets and clips of others",
            remedy="give all its datasets a sampling of the same kind",
        )
    return samples


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


def window_samples(case: StoredCase, count: int, *, stride: int, places: Sequence[int] | None = None) -> list[Sample]:
    """For every labelled frame of a case, one sample with that frame at each place of a window of `count` frames.

    A network that mixes neighbouring frames learns nothing about the places where it never sees a label. With labels at
    end-diastole and end-systole alone, and clips from the one to the other, those would be all places but the first and
    the last. A window that leaves the clip is reflected back into it: at both phases the heart turns round anyway.

    Args:
        case: as the store knows it.
        count: T.
        stride: frames from one of a window's frames to the next.
        places: only these; None: all.
    """
    return [
        Sample(case.case, _reflect(frame + (np.arange(count) - place) * stride, case.native_frames))
        for frame in case.labelled_frames
        for place in (range(count) if places is None else places)
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


def batches(order: Sequence[Item], batch_size: int) -> list[list[Item]]:
    """The order cut into batches; the last one may be smaller."""
    return [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
