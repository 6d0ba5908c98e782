"""From a clip to a mask, an area curve and an ejection fraction.

Starts no process, reads no environment, prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from echoplan.dataset import DatasetDescription
from echoplan.device import choose_device
from echoplan.errors import EchoPlanError
from echoplan.imageio.clip import Clip

from ..evaluation import CaseMask, measure_case, measure_patients
from ..evaluation.intervals import DEFAULT_COVERAGE
from ..preprocessing.probabilities import ClipProbabilities, average
from .evidence import ClipEvidence, Opinion, edge_share, grid_spacing, make_opinion
from .inputs import clip_from_array
from .likeness import check_like
from .member import PredictorMember, PreparedClip
from .postprocessing import Step, apply_postprocessing, check_steps, read_postprocessing
from .prediction import Prediction
from .provenance import deciding, digest, digest_of_weights
from .trust import TrustSettings, assess_patient

POSTPROCESSING_FILE = "postprocessing.json"


class EchoPredictor:
    """Predicts with one model, or with an ensemble of several, on any clip.

    Args:
        members: the models; their probabilities are averaged, each model counting alike.
        postprocessing: steps applied to the masks.
        mirroring: also average over the flips that the plan allows; slower.
        autocast: mixed precision; faster on most devices, probabilities differ in the third digit.
        like: the dataset of a joint as whose clips all clips are treated; None: each as those it resembles most.
        trust: the calibration and the coverage of intervals; None: no intervals, the fixed limits of quality.

    Raises:
        EchoPlanError: the members have different labels, or a step or `like` does not exist.
    """

    def __init__(
        self,
        members: Sequence[PredictorMember],
        *,
        postprocessing: Iterable[str | Step] = (),
        mirroring: bool = False,
        autocast: bool = False,
        like: str | None = None,
        trust: TrustSettings | None = None,
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
        self.like = check_like(like, [member.model.plan for member in members])
        self.trust = trust or TrustSettings()

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
            options: as `from_model_folders` and the class take them.

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
        calibration: Path | None = None,
        coverage: float = DEFAULT_COVERAGE,
        **options: Any,
    ) -> EchoPredictor:
        """Predict with an ensemble of models.

        Args:
            folders: (model folder, folds) of each member, folds as in `from_model_folder`.
            device, postprocessing, options: as in `from_model_folder`; an ensemble has no postprocessing of its own.
            checkpoint: "final" or "best".
            calibration: a calibration.json; None takes a single model's own, where it has one.
            coverage: of the intervals, between 0 and 1.
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
        steps = check_steps(postprocessing)
        trust = TrustSettings.find(
            [member.model.path for member in members],
            file=calibration,
            postprocessing=steps,
            checkpoint=checkpoint,
            coverage=coverage,
        )
        return cls(members, postprocessing=steps, trust=trust, **options)

    @property
    def description(self) -> DatasetDescription:
        """The labels that masks hold."""
        return self.members[0].model.description

    @property
    def target(self) -> int:
        """The label that is measured."""
        return self.description.labels[self.description.target]

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds, where all members predict with the same ones; else empty."""
        return self.members[0].folds if len({member.folds for member in self.members}) == 1 else ()

    @property
    def name(self) -> str:
        """The members' folder names."""
        return " + ".join(member.model.path.name for member in self.members)

    @cached_property
    def identity(self) -> str:
        """A short name for all that a mask depends on beside its clip: weights, plans, settings.

        It is the same wherever the model lies and on whatever device it runs.
        """
        members = [
            {
                "trainer": member.model.trainer,
                "plan": deciding(member.model.plan),
                "weights": [digest_of_weights(network) for network in member.networks],
            }
            for member in self.members
        ]
        names = ("labels", "target", "postprocessing", "like", "mirroring", "autocast")
        about = self.to_dict()
        return digest({"members": members, **{name: about[name] for name in names}})

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
        return self.conclude(clip, *self.segment_with_evidence(clip))

    def segment(
        self, clip: Clip, *, on_fold: Callable[[int, ClipProbabilities], None] | None = None
    ) -> ClipProbabilities:
        """The class probabilities, on the network's grid where all members share one, else on the native grid.

        Args:
            clip: what to segment.
            on_fold: called with each fold's number and the average of its networks alone, as they come, where all
                members predict with the same folds. The arrays are the callee's for the time of the call.
        """
        prepared = [member.prepare(clip, self.like) for member in self.members]
        totals: list[np.ndarray | None] = [None] * len(self.members)
        for index in range(max(len(member.networks) for member in self.members)):
            # No name for what comes back: it would be in memory beside the next fold's.
            if on_fold is not None and self.folds:
                on_fold(self.folds[index], average(self._segment_fold(index, prepared, totals)))
            else:
                self._segment_fold(index, prepared, totals)
        return average(
            ClipProbabilities(np.divide(total, np.float32(len(member.networks)), out=total), own.geometry)
            for member, total, own in zip(self.members, totals, prepared, strict=True)
            if total is not None
        )

    def _segment_fold(
        self, index: int, prepared: Sequence[PreparedClip], totals: list[np.ndarray | None]
    ) -> list[ClipProbabilities]:
        """What each member's network number `index` finds; it is added to the member's total."""
        alone = []
        for number, (member, clip) in enumerate(zip(self.members, prepared, strict=True)):
            if index < len(member.networks):
                network, total = member.networks[index], totals[number]
                found = member.segment(network, clip, mirroring=self.mirroring, autocast=self.autocast)
                totals[number] = found if total is None else np.add(total, found, out=total)
                alone.append(ClipProbabilities(found, clip.geometry))
        return alone

    def segment_with_evidence(
        self, clip: Clip, *, phases: tuple[int, int] | None = None
    ) -> tuple[ClipProbabilities, ClipEvidence]:
        """Like `segment`, and what each fold alone found; no network runs twice.

        Args:
            clip: what to segment.
            phases: end-diastole and end-systole where they are given.
        """
        by_fold: dict[int, Opinion] = {}

        def opinion(probabilities: ClipProbabilities) -> Opinion:
            return make_opinion(
                probabilities, self.postprocessing, self.description.structures, self.target,
                phases=phases, frame_time_ms=clip.frame_time_ms,
            )  # fmt: skip

        def remember(fold: int, probabilities: ClipProbabilities) -> None:
            by_fold[fold] = opinion(probabilities)

        probabilities = self.segment(clip, on_fold=remember)
        return probabilities, ClipEvidence(grid_spacing(probabilities), opinion(probabilities), by_fold)

    def conclude(
        self, clip: Clip, probabilities: ClipProbabilities, evidence: ClipEvidence | None = None
    ) -> Prediction:
        """Mask and measurements from what `segment` gave; intervals and quality from the evidence."""
        target = self.target
        mask = self.label(clip, probabilities)
        cavity = mask == target
        area = None if clip.spacing_mm is None else cavity.sum(axis=(1, 2)) * float(np.prod(clip.spacing_mm))
        case = CaseMask(case="", mask=cavity, spacing_mm=clip.spacing_mm, frame_time_ms=clip.frame_time_ms)
        found = measure_case(case)
        prediction = Prediction(
            mask=mask,
            probabilities=probabilities.of_class(0 if len(probabilities.values) == 1 else target),
            area_mm2=area,
            ed_frame=found.ed_frame,
            es_frame=found.es_frame,
            ef_percent=found.ef_percent,
            note="; ".join(part for part in (found.note, found.failure) if part),
        )
        if evidence is None:
            return prediction
        if evidence.edge_share is None:
            evidence = replace(evidence, edge_share=edge_share(clip.frames, mask, target))
        (row,) = measure_patients([case], measurements=[found])
        trust = assess_patient(row, [case], [found], {case.case: evidence}, self.trust)
        return replace(
            prediction,
            ef_low_percent=trust.columns["ef_low_percent"],
            ef_high_percent=trust.columns["ef_high_percent"],
            interval_coverage_percent=trust.columns["interval_coverage_percent"],
            interval_note=trust.no_interval.get("ef_percent", ""),
            ef_fold_sd_percent=trust.columns["ef_fold_sd_percent"],
            quality=trust.columns["quality"],
            quality_reasons=tuple(trust.reasons),
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
            "like": self.like,
            "mirroring": self.mirroring,
            "autocast": self.autocast,
            "calibration": None if self.trust.calibration is None else str(self.trust.file),
        }
