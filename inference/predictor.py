"""From a clip to a mask, an area curve and an ejection fraction.

Starts no process, reads no environment, prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from echoplan.dataset import DatasetDescription
from echoplan.device import choose_device
from echoplan.errors import EchoPlanError
from echoplan.imageio.clip import Clip
from echoplan.networks.apply import segment_clip

from ..evaluation import CaseMask, measure_case
from ..preprocessing.clip import normalise, preprocess_clip, sector_statistics
from ..preprocessing.probabilities import ClipProbabilities, average
from ..training.model_folder import ModelFolder
from .inputs import clip_from_array
from .postprocessing import Step, apply_postprocessing, check_steps, read_postprocessing

POSTPROCESSING_FILE = "postprocessing.json"
_PIXELS_AT_ONCE = 32 * 256 * 256  # bounds a batch's memory: 32 frames at 256 x 256


@dataclass(frozen=True)
class Prediction:
    """What a predictor finds in one clip.

    Attributes:
        mask: (T, H, W) uint8 labels on the clip's own grid, after postprocessing.
        probabilities: (T, H, W) float32, of the target structure, before postprocessing.
        area_mm2: (T,) area of the target in the mask; None where the spacing is unknown.
        ed_frame, es_frame: end-diastole and end-systole, found on the area curve; None where there is no cavity.
        ef_percent: single-plane ejection fraction; None where it cannot be measured.
        note: why something is missing or doubtful; empty if nothing is.
    """

    mask: np.ndarray
    probabilities: np.ndarray
    area_mm2: np.ndarray | None
    ed_frame: int | None
    es_frame: int | None
    ef_percent: float | None
    note: str = ""


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

    def segment(self, clip: Clip, *, mirroring: bool, autocast: bool) -> ClipProbabilities:
        """The probabilities of a clip on this model's grid, averaged over its folds."""
        plan = self.model.plan
        frames, geometry = preprocess_clip(clip, size=plan.size, protocol=plan.protocol, crop=plan.crop)
        values = torch.from_numpy(normalise(frames, *sector_statistics(frames), plan.normalisation))
        window = self.model.window
        total: np.ndarray | None = None
        for network in self.networks:
            probabilities = segment_clip(
                network,
                values,
                window=window,
                stride=self.model.stride,
                classes=self.model.description.classes,
                batch=max(1, _PIXELS_AT_ONCE // (window * plan.size[0] * plan.size[1])),
                mirror_axes=plan.mirror_axes if mirroring else (),
                autocast=autocast,
            )
            total = probabilities if total is None else np.add(total, probabilities, out=total)
        if total is None:
            raise ValueError("a member without networks")
        return ClipProbabilities(total / np.float32(len(self.networks)), geometry)


class EchoPredictor:
    """Predicts with one model, or with an ensemble of several, on any clip.

    Args:
        members: the models; their probabilities are averaged, each model counting alike.
        postprocessing: steps applied to the masks.
        mirroring: also average over the flips that the plan allows; slower.
        autocast: mixed precision; faster on most devices, probabilities differ in the third digit.

    Raises:
        EchoPlanError: the members have different labels, or a step does not exist.
    """

    def __init__(
        self,
        members: Sequence[PredictorMember],
        *,
        postprocessing: Iterable[str | Step] = (),
        mirroring: bool = False,
        autocast: bool = False,
    ) -> None:
        if not members:
            raise ValueError("a predictor needs a model")
        first = members[0].model
        for member in members[1:]:
            other = member.model.description
            if (other.labels, other.target) != (first.description.labels, first.description.target):
                raise EchoPlanError(
                    f"{first.path.name} and {member.model.path.name} were trained on different labels: no ensemble"
                )
        self.members = tuple(members)
        self.postprocessing = check_steps(postprocessing)
        self.mirroring = mirroring
        self.autocast = autocast

    @classmethod
    def from_model_folder(
        cls,
        folder: str | Path,
        folds: Sequence[int] | None = None,
        device: str = "auto",
        postprocessing: Iterable[str | Step] | str | Path | None = None,
        **options: Any,
    ) -> EchoPredictor:
        """Predict with one trained model.

        Args:
            folder: results/<Dataset>/<Trainer>__<Plans>__<configuration>.
            folds: which folds' networks are averaged; None: every fold trained.
            device: "auto", "cuda", "mps" or "cpu".
            postprocessing: steps, or a postprocessing.json; None takes the model's own where it has one, () none.
            options: as the class takes them.

        Raises:
            EchoPlanError: there is no such model, fold, device or step.
        """
        return cls.from_model_folders([(folder, folds)], device=device, postprocessing=postprocessing, **options)

    @classmethod
    def from_model_folders(
        cls,
        folders: Sequence[tuple[str | Path, Sequence[int] | None]],
        *,
        device: str = "auto",
        postprocessing: Iterable[str | Step] | str | Path | None = None,
        checkpoint: str = "final",
        **options: Any,
    ) -> EchoPredictor:
        """Predict with an ensemble of models.

        Args:
            folders: (model folder, folds) of each member, folds as in `from_model_folder`.
            device, postprocessing, options: as in `from_model_folder`; an ensemble has no postprocessing of its own.
            checkpoint: "final" or "best".
        """
        chosen = choose_device(device)
        members = [
            PredictorMember.load(folder, folds=folds, device=chosen, checkpoint=checkpoint) for folder, folds in folders
        ]
        if postprocessing is None:
            own = members[0].model.path / POSTPROCESSING_FILE
            postprocessing = own if len(members) == 1 and own.is_file() else ()
        if isinstance(postprocessing, (str, Path)):
            postprocessing = read_postprocessing(postprocessing)
        return cls(members, postprocessing=postprocessing, **options)

    @property
    def description(self) -> DatasetDescription:
        """The labels that masks hold."""
        return self.members[0].model.description

    @property
    def target(self) -> int:
        """The label that is measured."""
        return self.description.labels[self.description.target]

    @property
    def name(self) -> str:
        """The members' folder names."""
        return " + ".join(member.model.path.name for member in self.members)

    def predict(
        self,
        frames: np.ndarray,
        spacing_mm: tuple[float, float] | None = None,
        frame_time_ms: float | None = None,
    ) -> Prediction:
        """Segment a clip and measure it.

        Args:
            frames: (T, H, W), (H, W) for a single frame, or (T, H, W, 3) in colour; any real number type.
            spacing_mm: (row, column) size of a pixel; None where unknown.
            frame_time_ms: time between two frames; None where unknown.

        Raises:
            EchoPlanError: the array is no clip, or spacing or time are no positive numbers.
        """
        return self.predict_clip(clip_from_array(frames, spacing_mm, frame_time_ms))

    def predict_clip(self, clip: Clip) -> Prediction:
        """Like `predict`, for what `read_clip` returns."""
        return self.conclude(clip, self.segment(clip))

    def segment(self, clip: Clip) -> ClipProbabilities:
        """The class probabilities, on the network's grid where all members share one, else on the native grid."""
        return average(
            member.segment(clip, mirroring=self.mirroring, autocast=self.autocast) for member in self.members
        )

    def conclude(self, clip: Clip, probabilities: ClipProbabilities) -> Prediction:
        """Mask and measurements from the probabilities that `segment` gave."""
        target = self.target
        mask = self.label(clip, probabilities)
        cavity = mask == target
        area = None if clip.spacing_mm is None else cavity.sum(axis=(1, 2)) * float(np.prod(clip.spacing_mm))
        found = measure_case(
            CaseMask(case="", mask=cavity, spacing_mm=clip.spacing_mm, frame_time_ms=clip.frame_time_ms)
        )
        return Prediction(
            mask=mask,
            probabilities=probabilities.of_class(0 if len(probabilities.values) == 1 else target),
            area_mm2=area,
            ed_frame=found.ed_frame,
            es_frame=found.es_frame,
            ef_percent=found.ef_percent,
            note="; ".join(part for part in (found.note, found.failure) if part),
        )

    def label(self, clip: Clip, probabilities: ClipProbabilities) -> np.ndarray:
        """The mask alone, (T, H, W) uint8, after postprocessing."""
        return apply_postprocessing(
            probabilities.labels(),
            self.postprocessing,
            self.description.structures,
            frame_time_ms=clip.frame_time_ms,
        )

    def to_dict(self) -> dict[str, Any]:
        """Which models with which settings, in plain types."""
        return {
            "members": [
                {
                    "folder": str(member.model.path),
                    "trainer": member.model.trainer,
                    "plans_name": member.model.plan.plans_name,
                    "configuration": member.model.plan.configuration,
                    "folds": list(member.folds),
                    "size": list(member.model.plan.size),
                    "window_frames": member.model.window,
                    "stride_frames": member.model.stride,
                }
                for member in self.members
            ],
            "dataset": self.members[0].model.plan.dataset,
            "labels": dict(self.description.labels),
            "target": self.description.target,
            "postprocessing": list(self.postprocessing),
            "mirroring": self.mirroring,
            "autocast": self.autocast,
        }
