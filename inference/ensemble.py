"""One model of an ensemble: how it sees a clip, and what its networks find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from echoplan.errors import EchoPlanError
from echoplan.imageio.clip import Clip
from echoplan.networks.sliding_window import segment_parts
from echoplan.plans import ResolvedPlan

from ..preprocessing.clip import normaliser, preprocess_clip, sector_statistics
from ..preprocessing.geometry import Geometry
from ..training.model_folder import ModelFolder
from .nearest_dataset import plan_for_clip

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
        cls, folder: str | Path, *, folds: Sequence[int] | None, device: torch.device, checkpoint: str = "final"
    ) -> PredictorMember:
        """Load a model's networks.

        Raises:
            EchoPlanError: this is no model folder, or a fold is not trained.
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
        networks = tuple(model.load_network(fold, device=device, checkpoint=checkpoint) for fold in wanted)
        return cls(model, wanted, networks)

    def prepare(self, clip: Clip, like: str | None) -> PreparedClip:
        """The clip on the networks' grid, and the plan as it holds for the clip."""
        plan = plan_for_clip(self.model.plan, clip, like)
        frames, geometry = preprocess_clip(clip, size=plan.size, protocol=plan.protocol, crop=plan.crop)
        return PreparedClip(torch.from_numpy(frames), sector_statistics(frames), geometry, plan)

    def segment(
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
            normalise=normaliser(*clip.statistics, plan.normalisation),
            window=plan.frames,
            stride=plan.window_stride,
            classes=self.model.description.classes,
            batch=max(1, _PIXELS_AT_ONCE // (plan.frames * plan.size[0] * plan.size[1])),
            mirror_axes=plan.mirror_axes if mirroring else (),
            autocast=autocast,
        )
