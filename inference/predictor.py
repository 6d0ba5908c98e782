"""From a clip to a mask, an area curve and an ejection fraction.

Starts no process, prints nothing; the environment is read by `from_dataset` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike

from echoplan import layout
from echoplan.dataset import DatasetDescription
from echoplan.errors import EchoPlanError
from echoplan.imageio.clip import Clip, ClipInfo
from echoplan.inputs import as_clip, digest
from echoplan.models import DEFAULT, shipped_model
from echoplan.networks.batches import network_device
from echoplan.paths import Folders

from ..evaluation.conformal import DEFAULT_COVERAGE
from .clip_labels import ClipLabels, PackedLabels
from .deployment.exported import TORCH, device_of
from .ensemble import PredictorMember, PreparedInput, Segmentation, run_networks
from .model_selection import choose_models
from .nearest_dataset import check_like
from .postprocessing import Step, apply_postprocessing, check_steps, read_postprocessing
from .prediction import Prediction, measured
from .uncertainty import (
    ClipEvidence,
    Opinion,
    TrustSettings,
    edge_share,
    grid_spacing,
    image_sector,
    make_opinion,
)


class EchoPredictor:
    """Predicts with one model, or with an ensemble of several, on any clip.

    Args:
        members: the models; their probabilities are averaged, each model counting alike.
        postprocessing: steps applied to the masks.
        mirroring: also average over the flips that the plan allows; slower.
        autocast: mixed precision; faster on most devices, probabilities differ in the third digit. None: on GPUs that
            have bfloat16.
        like: of several datasets trained on, the one as whose clips all clips are treated; None: each as those it
            resembles most.
        trust: the calibration and the coverage of intervals; None: no intervals, the fixed limits of quality.

    Raises:
        EchoPlanError: the members have different labels, or a step or `like` does not exist.

    Example:
        A trained model is read by `EchoPredictor.from_model_folder(folder)`; here is one made by hand.

        >>> import numpy as np
        >>> from pathlib import Path
        >>> from torch import nn
        >>> from echoplan.dataset import DatasetDescription
        >>> from echoplan.inference import EchoPredictor, PredictorMember
        >>> from echoplan.plans import Decision, ResolvedPlan
        >>> from echoplan.training.model_folder import ModelFolder
        >>> class Bright(nn.Module):
        ...     def forward(self, clip):
        ...         return 40 * (clip - 0.5)  # logits: what is bright is the ventricle
        >>> values = {"size": [64, 64], "frames": 1, "frame_stride": 1, "crop": False, "protocol": "aspect",
        ...           "normalisation": "unit", "mirror_axes": []}
        >>> decisions = {name: Decision(value, "by hand") for name, value in values.items()}
        >>> plan = ResolvedPlan("Dataset001_Mine", "EchoPlans", "frame", decisions)
        >>> folder = ModelFolder(Path("Mine__EchoPlans__frame"), "Mine", plan, DatasetDescription("Mine"))
        >>> predictor = EchoPredictor([PredictorMember(folder, (0,), (Bright(),))])
        >>> rows, columns = np.mgrid[:64, :64]
        >>> hearts = [((rows - 48) / 40) ** 2 + ((columns - 32) / width) ** 2 < 1 for width in (18, 15, 12)]
        >>> frames = np.where(np.stack(hearts) & (rows < 48), 230, 20).astype(np.uint8)
        >>> found = predictor.predict(frames, spacing_mm=(2.0, 2.0))
        >>> found.mask.shape, found.ed_frame, found.es_frame, round(found.ef_percent)
        ((3, 64, 64), 0, 2, 56)
    """

    def __init__(
        self,
        members: Sequence[PredictorMember],
        *,
        postprocessing: Iterable[str | Step] = (),
        mirroring: bool = False,
        autocast: bool | None = None,
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
    def from_dataset(
        cls,
        dataset: str,
        *,
        trainer: str | None = None,
        plans_name: str | None = None,
        configuration: str | None = None,
        folds: Sequence[int] | None = None,
        folders: Folders | None = None,
        **options: Any,
    ) -> EchoPredictor:
        """Predict as `echoplan_predict -d` does: with a dataset's best configuration, or the only model trained.

        Args:
            dataset, trainer, plans_name, configuration, folds: as `choose_models` takes them.
            folders: where results lie; None: where the environment says.
            options: as `from_model_folders` and the class take them.

        Raises:
            EchoPlanError: nothing of what was named is trained, or several models fit; the message lists them.
        """
        choice = choose_models(
            folders or Folders.from_environment(), dataset=dataset, trainer=trainer, plans_name=plans_name,
            configuration=configuration, folds=folds,
        )  # fmt: skip
        chosen = {name: getattr(choice, name) for name in ("postprocessing", "calibration", "trust_code")}
        return cls.from_model_folders(choice.members, **{**chosen, **options})

    @classmethod
    def from_model_folders(
        cls,
        folders: Sequence[tuple[str | Path, Sequence[int] | None]],
        *,
        device: str = "auto",
        postprocessing: Iterable[str | Step] | str | Path | None = None,
        checkpoint: str = "final",
        trust_code: bool = False,
        backend: str = TORCH,
        calibration: Path | None = None,
        coverage: float = DEFAULT_COVERAGE,
        **options: Any,
    ) -> EchoPredictor:
        """Predict with an ensemble of models.

        Args:
            folders: (model folder, folds) of each member, folds as in `from_model_folder`.
            device, postprocessing, options: as in `from_model_folder`; an ensemble has no postprocessing of its own.
            checkpoint: "final" or "best".
            trust_code: whether users' own trainers, files that the checkpoints name, may run.
            backend: what computes the networks: "torch"; "onnx" (ONNX Runtime) or "openvino", from ONNX files that are
                written beside the checkpoints at first.
            calibration: a calibration.json; None takes a single model's own, where it has one.
            coverage: of the intervals, between 0 and 1.
        """
        chosen = device_of(backend, device)
        members = [
            PredictorMember.load(
                folder, folds=folds, device=chosen, checkpoint=checkpoint, trust_code=trust_code, backend=backend
            )
            for folder, folds in folders
        ]
        if postprocessing is None:
            own = members[0].model.path / layout.POSTPROCESSING_FILE
            postprocessing = own if len(members) == 1 and own.is_file() else ()
        if isinstance(postprocessing, (str, Path)):
            postprocessing = read_postprocessing(postprocessing)
        steps = check_steps(postprocessing)
        trust = TrustSettings.find(
            [member.model.path for member in members],
            weights={member.model.path.resolve().name: member.weights for member in members},
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

    @property
    def origin(self) -> str:
        """What it was trained on, and the terms of these data, which may bind their models too, in a line."""
        data = self.description
        licence = f"; licence of the data: {data.licence}" if data.licence else ""
        return f"trained on {data.name}{licence}" + (f"; cite: {data.reference}" if data.reference else "")

    @cached_property
    def identity(self) -> str:
        """A short name for all that a mask depends on beside its clip: weights, plans, settings.

        It is the same wherever the model lies and on whatever device it runs.
        """
        members = [member.identity() for member in self.members]
        names = ("labels", "target", "postprocessing", "like", "mirroring", "autocast")
        settings = self.to_dict()
        settings["autocast"] = bool(self.autocast)  # what is left to the device makes no other result
        return digest({"members": members, **{name: settings[name] for name in names}})

    def predict(
        self,
        clip: str | Path | Clip | ArrayLike,
        spacing_mm: tuple[float, float] | None = None,
        frame_time_ms: float | None = None,
    ) -> Prediction:
        """Segment a clip and measure it.

        Args:
            clip: what `read_clip` reads or has read, or frames: (T, H, W), (H, W) for a single one, or (T, H, W, 3) in
                colour, of any real number type.
            spacing_mm: (row, column) size of a pixel; None: as the file or the clip says, unknown of an array.
            frame_time_ms: time between two frames; None: likewise.

        Raises:
            EchoPlanError: the file cannot be read, the array is no clip, or spacing or time are no positive numbers.
        """
        one = as_clip(clip, spacing_mm, frame_time_ms)
        return self.conclude(one, self.segment(self.prepare(one), keep_probabilities=np.float32))

    def prepare(self, clip: Clip) -> PreparedInput:
        """All that `segment` needs of a clip; a long clip's own frames need not be in memory beside its mask."""
        header = ClipInfo(clip.frames.shape, clip.spacing_mm, clip.frame_time_ms, clip.crop, clip.space)
        on_grids = tuple(member.prepare(clip, self.like) for member in self.members)
        return PreparedInput(header, image_sector(clip.frames), on_grids)

    def segment(
        self,
        prepared: PreparedInput,
        *,
        phases: tuple[int, int] | None = None,
        keep_probabilities: DTypeLike | None = None,
    ) -> Segmentation:
        """The mask, and what each fold alone found; no network runs twice.

        Memory that grows with the clip is the mask's, and a bit a pixel of the network's grid for each fold, unless
        the probabilities are to be kept.

        Args:
            prepared: what `prepare` made of the clip.
            phases: end-diastole and end-systole where they are given.
            keep_probabilities: their type where the probabilities are wanted too, on the network's grid where all
                members share one, else on the native grid; None: they are not.
        """
        (found,) = self.find([prepared], keep_probabilities=keep_probabilities)
        return self.judge(prepared, found, phases=phases)

    def find(
        self, prepared: Sequence[PreparedInput], *, keep_probabilities: DTypeLike | None = None
    ) -> list[ClipLabels]:
        """What the networks find in clips, of which several must `share_batches`: the first part of `segment`."""
        classes = self.description.classes
        found = [ClipLabels(item.clip.shape, classes, self.target, keep_probabilities) for item in prepared]
        alone = self.folds if len(self.folds) > 1 else ()  # one fold's own opinion is that of all together
        on_grids = [item.on_grids for item in prepared]
        for part in run_networks(self.members, on_grids, alone, mirroring=self.mirroring, autocast=self.autocast):
            found[part.clip].add(part)
        return found

    @property
    def device(self) -> torch.device:
        """Where the first network is."""
        return network_device(self.members[0].networks[0])

    def share_batches(self, one: PreparedInput, other: PreparedInput) -> bool:
        """Whether two clips can go through the networks together."""
        grids = zip(self.members, one.on_grids, other.on_grids, strict=True)
        return all(member.share_batches(first, second) for member, first, second in grids)

    def are_enough(self, clips: Sequence[PreparedInput]) -> bool:
        """Whether clips that share batches keep all networks busy: with more the first would only end later."""
        by_member = zip(*(clip.on_grids for clip in clips), strict=True)
        return all(member.are_enough(grids) for member, grids in zip(self.members, by_member, strict=True))

    def judge(
        self, prepared: PreparedInput, found: ClipLabels, *, phases: tuple[int, int] | None = None
    ) -> Segmentation:
        """Mask and evidence that `found`, which is used up, amounts to: the part of `segment` without networks."""
        clip = prepared.clip
        together = self._opinion(found.on_grid.pop(None), clip, phases)
        folds = [fold for fold in found.on_grid if fold is not None]
        by_fold = {fold: self._opinion(found.on_grid.pop(fold), clip, phases) for fold in folds}
        mask = apply_postprocessing(
            found.labels.unpacked(),
            self.postprocessing,
            self.description.structures,
            frame_time_ms=clip.frame_time_ms,
            in_place=True,
        )
        evidence = ClipEvidence(
            grid_spacing(found.geometry),
            together,
            by_fold or dict.fromkeys(self.folds, together),
            edge_share(prepared.sector, mask, self.target),
            found.certainty,
        )
        return Segmentation(clip, mask, evidence, found.probabilities)

    def without_networks(self) -> EchoPredictor:
        """What prepares clips and judges what was found in them, small enough for other processes."""
        light = copy(self)
        light.identity  # noqa: B018  # kept, since it cannot be worked out without the weights
        light.members = tuple(replace(member, networks=()) for member in self.members)
        return light

    def _opinion(self, labels: PackedLabels, clip: ClipInfo, phases: tuple[int, int] | None) -> Opinion:
        return make_opinion(
            labels.unpacked(), self.postprocessing, self.description.structures, self.target,
            phases=phases, frame_time_ms=clip.frame_time_ms,
        )  # fmt: skip

    def conclude(self, clip: Clip, found: Segmentation) -> Prediction:
        """Measurements of what `segment` found, with intervals and quality; the probabilities must have been kept."""
        return measured(clip, found, self.target, self.trust)

    def to_dict(self) -> dict[str, Any]:
        """Which models with which settings, in plain types."""
        return {
            "members": [member.to_dict() for member in self.members],
            "dataset": self.members[0].model.plan.dataset,
            "licence": self.description.licence,
            "reference": self.description.reference,
            "labels": dict(self.description.labels),
            "target": self.description.target,
            "postprocessing": list(self.postprocessing),
            "like": self.like,
            "mirroring": self.mirroring,
            "autocast": self.autocast,
            "calibration": None if self.trust.calibration is None else str(self.trust.file),
        }


def default_model(**options: Any) -> EchoPredictor:
    """Predict with the model that comes with EchoPlan, with nothing trained; its `origin` names data and licence.

    Args:
        options: as `EchoPredictor.from_model_folder` takes them.

    Example:
        >>> from echoplan.inference import default_model
        >>> default_model(device="cpu").name
        'UNetTrainer__EchoPlans__frame'
    """
    return EchoPredictor.from_model_folder(shipped_model() or DEFAULT, **options)
