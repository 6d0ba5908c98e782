"""The networks of one model or several over a clip: how each sees it, and what all find, part by part.

A long clip's probabilities are never all in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import nn

from echoplan.errors import EchoPlanError
from echoplan.imageio import Clip, ClipInfo
from echoplan.networks.interface import StreamingNetwork, labels_from_probabilities
from echoplan.networks.sliding_window import FrameSums, segment_parts
from echoplan.plans import ResolvedPlan

from ..preprocessing.clip import normaliser, preprocess_clip, sector_statistics
from ..preprocessing.geometry import Geometry
from ..preprocessing.probabilities import ClipProbabilities, average
from ..training.model_folder import ModelFolder, normalisation_for
from .deployment.exported import TORCH, digest_of_weights, hand_over
from .nearest_dataset import plan_for_clip
from .uncertainty import ClipEvidence

# Of a plan, what a clip meets on its way to the mask and back.
_DECISIONS = ("size", "protocol", "crop", "normalisation", "frames", "frame_stride", "mirror_axes")
_PIXELS_AT_ONCE = 32 * 256 * 256  # bounds a batch's memory: 32 frames at 256 x 256


@dataclass(frozen=True)
class PreparedClip:
    """A clip on a network's grid, (T, h, w) uint8, its mean and SD, where the grid lies, and the plan."""

    frames: torch.Tensor
    statistics: tuple[float, float]
    geometry: Geometry
    plan: ResolvedPlan


@dataclass(frozen=True)
class PredictorMember:
    """One model of an ensemble: a model folder and the networks of some of its folds."""

    model: ModelFolder
    folds: tuple[int, ...]
    networks: tuple[nn.Module, ...]

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        folds: Sequence[int] | None,
        device: torch.device,
        checkpoint: str = "final",
        trust_code: bool = False,
        backend: str = TORCH,
    ) -> PredictorMember:
        """Load a model's networks; arguments as in `EchoPredictor.from_model_folders`.

        Raises:
            EchoPlanError: this is no model folder, a fold is not trained, or its trainer is code that was not trusted.
        """
        model = ModelFolder.read(folder)
        trained = model.folds()
        wanted = trained if folds is None else tuple(folds)
        missing = [fold for fold in wanted if fold not in trained]
        if not wanted or missing:
            there = f"; trained are {', '.join(map(str, trained))}" if trained else ""
            what = f"fold {', '.join(map(str, missing))} of" if missing else "no fold of"
            raise EchoPlanError(
                f"{what} {model.trainer} is {'not ' if missing else ''}trained to its end{there}",
                file=model.path,
                remedy=f"echoplan_train {model.plan.dataset} {(*missing, 0)[0]} -tr {model.trainer}",
            )
        home = device if backend == TORCH else "cpu"
        networks = tuple(
            hand_over(
                model.load_network(fold, device=home, checkpoint=checkpoint, trust_code=trust_code),
                model.checkpoint(fold, checkpoint),
                backend=backend,
                device=device,
                size=model.plan.size,
                framewise=model.window == 1,
            )
            for fold in wanted
        )
        return cls(model, wanted, networks)

    def prepare(self, clip: Clip, like: str | None) -> PreparedClip:
        """The clip on the networks' grid, and the plan as it holds for the clip."""
        plan = plan_for_clip(self.model.plan, clip, like)
        frames, geometry = preprocess_clip(clip, size=plan.size, protocol=plan.protocol, crop=plan.crop)
        return PreparedClip(torch.from_numpy(frames), sector_statistics(frames), geometry, plan)

    def identity(self) -> dict[str, Any]:
        """What a mask depends on beside its clip: the weights, and the plan's decisions for each dataset."""
        plans = self.model.plan.each()
        return {
            "trainer": self.model.trainer,
            "plan": {str(name): {key: plan.value(key) for key in _DECISIONS} for name, plan in plans.items()},
            "weights": [digest_of_weights(network) for network in self.networks],
        }

    def probabilities(
        self, network: nn.Module, clip: PreparedClip, *, mirroring: bool, autocast: bool
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Frames (n,) and the probabilities (K, n, h, w) that one of the networks gives them, part by part.

        Args:
            network: one of this member's.
            clip: what this member prepared.
            mirroring, autocast: as in `EchoPredictor`.
        """
        plan = clip.plan
        return segment_parts(
            network,
            clip.frames,
            normalise=normaliser(*clip.statistics, normalisation_for(network, plan)),
            window=plan.frames,
            stride=plan.window_stride,
            classes=self.model.description.classes,
            batch=max(1, _PIXELS_AT_ONCE // (plan.frames * plan.size[0] * plan.size[1])),
            mirror_axes=plan.mirror_axes if mirroring else (),
            autocast=autocast,
        )


@dataclass(frozen=True)
class PreparedInput:
    """All that a predictor needs of a clip; the clip's own frames can be let go.

    Attributes:
        clip: shape, spacing, frame time and crop of the clip.
        sector: where there is an image, as `image_sector` has it.
        on_grids: the clip on each member's grid.
    """

    clip: ClipInfo
    sector: np.ndarray
    on_grids: tuple[PreparedClip, ...]


@dataclass(frozen=True)
class Segmentation:
    """What a predictor found in a clip.

    Attributes:
        clip: the clip's shape, spacing, frame time and crop.
        mask: (T, H, W) uint8 labels on the clip's own grid, after postprocessing.
        evidence: what is known about the trust it deserves.
        probabilities: of all networks together, where they were asked for.
    """

    clip: ClipInfo
    mask: np.ndarray
    evidence: ClipEvidence
    probabilities: ClipProbabilities | None = None


@dataclass(frozen=True)
class FrameProbabilities:
    """What is found in some frames (n,), by one fold's networks alone or, where `fold` is None, by all together."""

    fold: int | None
    frames: np.ndarray
    probabilities: ClipProbabilities


def run_networks(
    members: Sequence[PredictorMember],
    clips: Sequence[PreparedClip],
    folds: Sequence[int],
    *,
    mirroring: bool,
    autocast: bool,
) -> Iterator[FrameProbabilities]:
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
            (index, number): members[number].probabilities(
                members[number].networks[index], clips[number], mirroring=mirroring, autocast=autocast
            )
            for index, number in running
        }
        for (index, number), frames, found in _abreast(streams):
            if folds and (met := alone[index].add(number, frames, found)) is not None:
                yield FrameProbabilities(folds[index], *met)
            totals[number].add(frames, found)
            if (finished := totals[number].take()) is not None:
                frames, total = finished
                np.divide(total, np.float32(len(members[number].networks)), out=total)
                if (met := together.add(number, frames, total)) is not None:
                    yield FrameProbabilities(None, *met)


class ClipLabels:
    """What all parts amount to: labels on the clip's own grid, every opinion's on the network's, in little memory.

    Args:
        shape: (T, H, W) of the clip.
        keep_probabilities: their type, or None where they are not wanted.

    Attributes:
        labels: (T, H, W) uint8, of all networks together.
        on_grid: fold -> what its networks find, on the network's grid; None -> what all find together.
        geometry: of that grid, once something is found.
    """

    geometry: Geometry

    def __init__(self, shape: tuple[int, int, int], keep_probabilities: DTypeLike | None) -> None:
        self.labels = np.zeros(shape, np.uint8)
        self.on_grid: dict[int | None, PackedLabels] = {}
        self._kept_type = keep_probabilities
        self._kept: np.ndarray | None = None

    @property
    def probabilities(self) -> ClipProbabilities | None:
        """Those of all networks together, where they were to be kept."""
        return None if self._kept is None else ClipProbabilities(self._kept, self.geometry)

    def add(self, part: FrameProbabilities) -> None:
        """Take what is found in some frames."""
        values, self.geometry = part.probabilities.values, part.probabilities.geometry
        shape = (len(self.labels), *values.shape[2:])
        if part.fold not in self.on_grid:
            self.on_grid[part.fold] = PackedLabels(shape, len(values))
        self.on_grid[part.fold].put(part.frames, labels_from_probabilities(values))
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
