"""What a predictor's networks find in a clip, part by part: a long clip's probabilities are never all in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import DTypeLike

from echoplan.imageio import Clip, ClipInfo
from echoplan.networks.decision import labels_from_probabilities
from echoplan.networks.sliding_window import FrameSums
from echoplan.networks.streaming import StreamingNetwork

from ..preprocessing.geometry import Geometry
from ..preprocessing.probabilities import ClipProbabilities, average
from .ensemble import PredictorMember, PreparedClip
from .uncertainty import ClipEvidence, image_sector


@dataclass(frozen=True)
class PreparedInput:
    """All that a predictor needs of a clip; the clip's own frames can be let go.

    Attributes:
        about: shape, spacing, frame time and crop of the clip.
        sector: where there is an image, as `image_sector` has it.
        clips: the clip on each member's grid.
    """

    about: ClipInfo
    sector: np.ndarray
    clips: tuple[PreparedClip, ...]

    @classmethod
    def of(cls, clip: Clip, members: Sequence[PredictorMember], like: str | None) -> PreparedInput:
        """Prepare a clip for each member, as `like` of `EchoPredictor` says."""
        about = ClipInfo(clip.frames.shape, clip.spacing_mm, clip.frame_time_ms, clip.crop)
        return cls(about, image_sector(clip.frames), tuple(member.prepare(clip, like) for member in members))


@dataclass(frozen=True)
class Segmentation:
    """What a predictor found in a clip.

    Attributes:
        about: the clip's shape, spacing, frame time and crop.
        mask: (T, H, W) uint8 labels on the clip's own grid, after postprocessing.
        evidence: what is known about the trust it deserves.
        probabilities: of all networks together, where they were asked for.
    """

    about: ClipInfo
    mask: np.ndarray
    evidence: ClipEvidence
    probabilities: ClipProbabilities | None = None


@dataclass(frozen=True)
class Part:
    """What is found in some frames (n,), by one fold's networks alone or, where `fold` is None, by all together."""

    fold: int | None
    frames: np.ndarray
    probabilities: ClipProbabilities


def find_in_parts(
    members: Sequence[PredictorMember],
    clips: Sequence[PreparedClip],
    folds: Sequence[int],
    *,
    mirroring: bool,
    autocast: bool,
) -> Iterator[Part]:
    """Run all networks over a clip side by side; no network runs twice.

    Probabilities are averaged over a member's networks, then over the members: on the network's grid where all members
    share one, else on the native grid.

    Args:
        members: the models.
        clips: the clip as each of them sees it.
        folds: numbers of the networks where all members have the same ones, to hear of each fold alone; else empty.
        mirroring, autocast: as in `EchoPredictor`.

    Yields:
        each frame once for each of the folds, and once for all together.
    """
    length, grids = len(clips[0].frames), [clip.geometry for clip in clips]
    alone = [_Meeting(grids) for _ in folds]
    totals = [FrameSums(np.full(length, len(member.networks))) for member in members]
    together = _Meeting(grids)
    for running in _running_together(members):
        streams = {
            (index, number): members[number].segment(
                members[number].networks[index], clips[number], mirroring=mirroring, autocast=autocast
            )
            for index, number in running
        }
        for (index, number), frames, found in _abreast(streams):
            if folds and (met := alone[index].add(number, frames, found)) is not None:
                yield Part(folds[index], *met)
            totals[number].add(frames, found)
            if (finished := totals[number].take()) is not None:
                frames, total = finished
                np.divide(total, np.float32(len(members[number].networks)), out=total)
                if (met := together.add(number, frames, total)) is not None:
                    yield Part(None, *met)


class Findings:
    """What all parts amount to: labels on the clip's own grid, every opinion's on the network's, in little memory.

    Args:
        shape: (T, H, W) of the clip.
        keep_probabilities: their type, or None where they are not wanted.

    Attributes:
        labels: (T, H, W) uint8, of all networks together.
        opinions: fold -> its labels on the network's grid; None -> those of all together.
        geometry: of that grid.
    """

    def __init__(self, shape: tuple[int, int, int], keep_probabilities: DTypeLike | None) -> None:
        self.labels = np.zeros(shape, np.uint8)
        self.opinions: dict[int | None, PackedLabels] = {}
        self.geometry: Geometry | None = None
        self._kept_type = keep_probabilities
        self._kept: np.ndarray | None = None

    @property
    def probabilities(self) -> ClipProbabilities | None:
        """Those of all networks together, where they were to be kept."""
        return None if self._kept is None else ClipProbabilities(self._kept, self.geometry)

    def add(self, part: Part) -> None:
        """Take what is found in some frames."""
        values, self.geometry = part.probabilities.values, part.probabilities.geometry
        shape = (len(self.labels), *values.shape[2:])
        if part.fold not in self.opinions:
            self.opinions[part.fold] = PackedLabels(shape, len(values))
        self.opinions[part.fold].put(part.frames, labels_from_probabilities(values))
        if part.fold is not None:
            return
        self.labels[part.frames] = part.probabilities.labels()
        if self._kept_type is not None:
            if self._kept is None:
                self._kept = np.zeros((len(values), *shape), self._kept_type)
            self._kept[:, part.frames] = values


class PackedLabels:
    """Label maps of a whole clip, a bit a pixel where there is one structure: each network has an opinion of its own.

    Args:
        shape: (T, h, w).
        classes: K of the probabilities.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        self._shape = shape
        planes = max(1, (classes - 1).bit_length())
        self._bits = np.zeros((planes, shape[0], -(-shape[1] * shape[2] // 8)), np.uint8)

    def put(self, frames: np.ndarray, labels: np.ndarray) -> None:
        """Keep the labels (n, h, w) uint8 of some frames (n,)."""
        flat = labels.reshape(len(labels), -1)
        for number, plane in enumerate(self._bits):
            plane[frames] = np.packbits(flat >> number & 1, axis=1)

    def unpacked(self) -> np.ndarray:
        """(T, h, w) uint8."""
        labels = np.zeros((self._shape[0], self._shape[1] * self._shape[2]), np.uint8)
        for number, plane in enumerate(self._bits):
            for row, bits in zip(labels, plane, strict=True):
                row |= np.unpackbits(bits, count=len(row)) << number
        return labels.reshape(self._shape)


class _Meeting:
    """Averages members' probabilities, on grids (M,), frame by frame as all members have come to a frame."""

    def __init__(self, grids: Sequence[Geometry]) -> None:
        self._grids = grids
        self._waiting: dict[int, dict[int, np.ndarray]] = {}

    def add(self, number: int, frames: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ClipProbabilities] | None:
        """Take the (K, n, h, w) of one member; give back the frames at which it was the last, and the averages."""
        if len(self._grids) == 1:
            return frames, ClipProbabilities(values, self._grids[0])
        for place, frame in enumerate(frames.tolist()):
            self._waiting.setdefault(frame, {})[number] = values[:, place]
        met = [frame for frame in frames.tolist() if len(self._waiting[frame]) == len(self._grids)]
        if not met:
            return None
        found = [self._waiting.pop(frame) for frame in met]
        return np.array(met), average(
            ClipProbabilities(np.stack([by_member[number] for by_member in found], axis=1), grid)
            for number, grid in enumerate(self._grids)
        )


def _running_together(members: Sequence[PredictorMember]) -> list[list[tuple[int, int]]]:
    """Groups of networks (index, member) to run side by side, fold by fold within a group.

    All form one group, but for ensembles of networks that walk as they like with networks that go from the first frame
    to the last: frames at which some have been and others not are in memory for each fold that runs.
    """
    networks = sorted((index, number) for number, member in enumerate(members) for index in range(len(member.networks)))
    streaming = {isinstance(network, StreamingNetwork) for member in members for network in member.networks}
    if len(streaming) == 1:
        return [networks]
    return [list(group) for _, group in groupby(networks, key=lambda network: network[0])]


def _abreast(
    streams: Mapping[tuple[int, int], Iterator[tuple[np.ndarray, np.ndarray]]],
) -> Iterator[tuple[tuple[int, int], np.ndarray, np.ndarray]]:
    """All parts of all streams with their names; the next comes from the one that is furthest behind."""
    behind = dict.fromkeys(streams, 0)
    while behind:
        name = min(behind, key=behind.__getitem__)
        part = next(streams[name], None)
        if part is None:
            del behind[name]
        else:
            behind[name] += len(part[0])
            yield name, *part
