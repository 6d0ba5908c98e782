"""The networks of one model or several over a clip: how each sees it, and what all find, part by part.

A long clip's probabilities are never all in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from echoplan import layout
from echoplan.errors import EchoPlanError
from echoplan.imageio import Clip, ClipInfo
from echoplan.networks.batches import BatchSize, are_enough, can_share_batches, network_device, windows_together
from echoplan.networks.held_frames import FrameSums
from echoplan.networks.interface import StreamingNetwork
from echoplan.networks.sliding_window import segment_parts
from echoplan.plans import ResolvedPlan

from ..preprocessing.clip import NormalisedFrames, preprocess_clip, sector_statistics
from ..preprocessing.geometry import Geometry
from ..preprocessing.probabilities import ClipProbabilities, native_geometry
from ..training.model_folder import ModelFolder, normalisation_for
from .deployment.exported import TORCH, digest_of_weights, hand_over
from .nearest_dataset import plan_for_clip
from .uncertainty import ClipEvidence

# Of a plan, what a clip meets on its way to the mask and back.
_DECISIONS = ("size", "protocol", "crop", "normalisation", "frames", "frame_stride", "mirror_axes")


@dataclass(frozen=True)
class PreparedClip:
    """A clip on a network's grid, (T, h, w) uint8, its mean and SD, where the grid lies, and the plan."""

    frames: np.ndarray
    statistics: tuple[float, float]
    geometry: Geometry
    plan: ResolvedPlan


@dataclass(frozen=True)
class PredictorMember:
    """One model of an ensemble: a model folder and the networks of some of its folds.

    Attributes:
        batches: windows or clips that go through a network together, by the pixels of a window; fewer where memory was
            too small.
    """

    model: ModelFolder
    folds: tuple[int, ...]
    networks: tuple[nn.Module, ...]
    batches: dict[int, BatchSize] = field(default_factory=dict, repr=False, compare=False)

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
                remedy=_how_to_complete(model, missing, trained),
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
        return PreparedClip(frames, sector_statistics(frames), geometry, plan)

    @cached_property
    def weights(self) -> dict[int, str]:
        """fold -> the digest of its network's weights."""
        return {fold: digest_of_weights(network) for fold, network in zip(self.folds, self.networks, strict=True)}

    def identity(self) -> dict[str, Any]:
        """What a mask depends on beside its clip: the weights, and the plan's decisions for each dataset."""
        plans = self.model.plan.each()
        return {
            "trainer": self.model.trainer,
            "plan": {str(name): {key: plan.value(key) for key in _DECISIONS} for name, plan in plans.items()},
            "weights": list(self.weights.values()),
        }

    def to_dict(self) -> dict[str, Any]:
        """Which model with which folds and grid, in plain types."""
        plan = self.model.plan
        return {
            "folder": str(self.model.path),
            "trainer": self.model.trainer,
            "plans_name": plan.plans_name,
            "configuration": plan.configuration,
            "folds": list(self.folds),
            "size": list(plan.size),
            "window_frames": self.model.window,
            "stride_frames": self.model.stride,
        }

    def share_batches(self, one: PreparedClip, other: PreparedClip) -> bool:
        """Whether two clips can go through the networks together."""
        first, second = one.plan, other.plan
        return (
            one.frames.shape[1:] == other.frames.shape[1:]
            and (first.frames, first.window_stride, first.mirror_axes, first.normalisation)
            == (second.frames, second.window_stride, second.mirror_axes, second.normalisation)
            and all(can_share_batches(network) for network in self.networks)
        )

    def are_enough(self, clips: Sequence[PreparedClip]) -> bool:
        """Whether clips that share batches keep the networks busy."""
        return are_enough(self.networks[0], [clip.frames.shape for clip in clips])

    def as_seen(self, clips: Sequence[PreparedClip]) -> NormalisedFrames:
        """Clips that this member prepared, one behind the other, on the networks' device."""
        network = self.networks[0]
        return NormalisedFrames(
            [clip.frames for clip in clips],
            [clip.statistics for clip in clips],
            normalisation_for(network, clips[0].plan),
            network_device(network),
        )

    def probabilities(
        self,
        network: nn.Module,
        frames: NormalisedFrames,
        clips: Sequence[PreparedClip],
        *,
        mirroring: bool,
        autocast: bool | None,
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Frames (n,) and the probabilities (K, n, h, w) that one of the networks gives them, part by part.

        Args:
            network: one of this member's.
            frames: of `as_seen`, the clips one behind the other.
            clips: what this member prepared; of several, windows share batches, or they are walked abreast.
            mirroring, autocast: as in `EchoPredictor`.
        """
        plan = clips[0].plan
        most = windows_together(network, frames=plan.frames, size=plan.size)
        batch = self.batches.setdefault(plan.frames * plan.size[0] * plan.size[1], BatchSize(most))
        return segment_parts(
            network,
            frames,
            clips=[len(clip.frames) for clip in clips],
            window=plan.frames,
            stride=plan.window_stride,
            classes=self.model.description.classes,
            batch=batch,
            mirror_axes=plan.mirror_axes if mirroring else (),
            autocast=autocast,
        )


def _how_to_complete(model: ModelFolder, missing: Sequence[int], trained: Sequence[int]) -> str:
    """What to type where folds are asked for that are not trained, or where none is."""
    begun = [fold for fold, _ in layout.folds_with(model.path, layout.checkpoint_file("latest")) if fold not in trained]
    chosen = [fold for fold in begun if fold in missing or not missing]
    command = model.training_command((*chosen, *missing, 0)[0])
    if chosen or not trained:
        return command
    return f"predict with -f {' '.join(map(str, trained))}, or, if the dataset has such a fold, train it: {command}"


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
    """What is found in some frames of a clip, by one fold's networks alone or by all together.

    Attributes:
        clip: its number among those that went through the networks together.
        fold: None: all together.
        frames: (n,).
        values: (K, n, h, w), on the networks' device.
        geometry: how that grid lies on the clip's native grid.
    """

    clip: int
    fold: int | None
    frames: np.ndarray
    values: Tensor
    geometry: Geometry


def run_networks(
    members: Sequence[PredictorMember],
    clips: Sequence[Sequence[PreparedClip]],
    folds: Sequence[int],
    *,
    mirroring: bool,
    autocast: bool | None,
) -> Iterator[FrameProbabilities]:
    """Run all networks over a clip, or several that share batches, side by side; no network runs twice.

    Probabilities are averaged over a member's networks, then over the members: on the network's grid where all members
    share one, else on the native grid.

    Args:
        members: the models.
        clips: each clip as each of the members sees it.
        folds: numbers of the networks where all members have the same ones, to hear of each fold alone; else empty.
        mirroring, autocast: as in `EchoPredictor`.

    Yields:
        each frame once for each of the folds, and once for all together.
    """
    ends = np.cumsum([len(clip[0].frames) for clip in clips])
    alone, together = (
        [_Meeting([of.geometry for of in clip]) for clip in clips for _ in range(n)] for n in (len(folds), 1)
    )
    totals = [FrameSums(np.full(ends[-1], len(member.networks))) for member in members]
    by_member = [[clip[number] for clip in clips] for number in range(len(members))]
    seen = [member.as_seen(own) for member, own in zip(members, by_member, strict=True)]
    for running in _running_together(members):
        streams = {
            (index, number): members[number].probabilities(
                members[number].networks[index],
                seen[number],
                by_member[number],
                mirroring=mirroring,
                autocast=autocast,
            )
            for index, number in running
        }
        for (index, number), frames, found in _abreast(streams):
            for clip, own, values in _by_clip(frames, found, ends) if folds else ():
                yield from alone[clip * len(folds) + index].add(clip, folds[index], number, own, values)
            totals[number].add(frames, found)
            if (finished := totals[number].take()) is not None:
                frames, total = finished
                for clip, own, values in _by_clip(frames, total / len(members[number].networks), ends):
                    yield from together[clip].add(clip, None, number, own, values)


def _by_clip(frames: np.ndarray, values: Tensor, ends: np.ndarray) -> Iterator[tuple[int, np.ndarray, Tensor]]:
    """What was found in frames (n,), ascending, of clips one behind the other: a clip's number, its frames, values."""
    of_clip = np.searchsorted(ends, frames, side="right")
    for clip in np.unique(of_clip).tolist():
        first, end = np.searchsorted(of_clip, (clip, clip + 1)).tolist()
        yield clip, frames[first:end] - (ends[clip - 1] if clip else 0), values[:, first:end]


class _Meeting:
    """Averages members' probabilities of a clip, on grids (M,), frame by frame as all have come to a frame."""

    def __init__(self, grids: Sequence[Geometry]) -> None:
        self._grids = grids
        self._waiting: dict[int, dict[int, Tensor]] = {}

    def add(
        self, clip: int, fold: int | None, number: int, frames: np.ndarray, values: Tensor
    ) -> Iterator[FrameProbabilities]:
        """Take the (K, n, h, w) of one member; yield the averages in the frames at which it was the last, if any."""
        if len(self._grids) == 1:
            yield FrameProbabilities(clip, fold, frames, values, self._grids[0])
            return
        for frame, found in zip(frames.tolist(), values.unbind(1), strict=True):
            self._waiting.setdefault(frame, {})[number] = found
        met = [frame for frame in frames.tolist() if len(self._waiting[frame]) == len(self._grids)]
        if met:
            of_frames = [self._waiting.pop(frame) for frame in met]
            of_members = [torch.stack([found[index] for found in of_frames], 1) for index in range(len(self._grids))]
            yield FrameProbabilities(clip, fold, np.array(met), *_average(of_members, self._grids))


def _average(values: Sequence[Tensor], grids: Sequence[Geometry]) -> tuple[Tensor, Geometry]:
    """The mean of several models' probabilities on their common grid, else on the native one; as `average` has it."""
    grid = grids[0]
    if any(other != grid for other in grids):
        values = [on_native_grid(of, own) for of, own in zip(values, grids, strict=True)]
        grid = native_geometry(grid.native_shape, grid.native_spacing_mm)
    total = values[0]
    for other in values[1:]:
        total = total + other
    return total / len(values), grid


def on_native_grid(values: Tensor, geometry: Geometry) -> Tensor:
    """(K, n, H, W) on the clip's own grid."""
    return values if geometry.is_native else geometry.tensor_to_native(values)


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
    streams: Mapping[tuple[int, int], Iterator[tuple[np.ndarray, Tensor]]],
) -> Iterator[tuple[tuple[int, int], np.ndarray, Tensor]]:
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
