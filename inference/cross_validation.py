"""Cross-validated predictions: each case by the fold that never trained on its patient, judged on its native grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from echoplan import layout
from echoplan.errors import EchoPlanError
from echoplan.files import read_json
from echoplan.imageio import probe_clip
from echoplan.labels import IGNORE
from echoplan.masks import load_mask
from echoplan.networks.interface import labels_from_probabilities
from echoplan.parallel_map import run_cases
from echoplan.paths import Folders

from ..evaluation.metrics import score_frames
from ..preprocessing.probabilities import Certainty, ClipProbabilities, average, load_probabilities
from .postprocessing import LabelledPrediction


@dataclass(frozen=True)
class CrossValidation:
    """The cases that cross-validation judges.

    Attributes:
        results, preprocessed: the dataset's folders.
        folds: fold -> its validation cases that have labels.
    """

    results: Path
    preprocessed: Path
    folds: Mapping[int, tuple[str, ...]]

    @classmethod
    def read(cls, folders: Folders, dataset: str, folds: Sequence[int] | None = None) -> CrossValidation:
        """Read the splits of a dataset.

        Args:
            folders: where the dataset lies.
            dataset: name, id or folder name.
            folds: only these; None: all.

        Raises:
            EchoPlanError: nothing is trained or preprocessed, a fold does not exist, or no case has labels.
        """
        results = folders.find_results(dataset)
        preprocessed = folders.preprocessed / results.name
        file = preprocessed / layout.SPLITS_FILE
        splits = read_json(file)
        wanted = range(len(splits)) if folds is None else sorted(set(folds))
        outside = [fold for fold in wanted if not 0 <= fold < len(splits)]
        if outside:
            raise EchoPlanError(
                f"there is no fold {outside[0]}: the folds are 0 to {len(splits) - 1}",
                file=file,
                remedy="name folds that there are, or leave -f out",
            )
        cases = {}
        for fold in wanted:
            both = set(splits[fold]["train"]) & set(splits[fold]["val"])
            if both:
                raise EchoPlanError(
                    f"fold {fold} trains on a case that it validates on, {min(both)}", file=file, remedy="plan again"
                )
            labels = preprocessed / layout.GROUND_TRUTH
            cases[fold] = tuple(case for case in splits[fold]["val"] if (labels / layout.mask_file(case)).is_file())
        if not any(cases.values()):
            raise EchoPlanError("no validation case has labels to judge by", file=preprocessed / layout.GROUND_TRUTH)
        return cls(results, preprocessed, cases)

    @property
    def cases(self) -> dict[str, int]:
        """case -> the fold in which it is validated."""
        return {case: fold for fold, cases in self.folds.items() for case in cases}

    def reference(self, case: str) -> Path:
        """The case's labels on the native grid."""
        return self.preprocessed / layout.GROUND_TRUTH / layout.mask_file(case)

    def prediction(self, model: Path, case: str, ending: str = ".nii.gz") -> Path:
        """What a model's fold left for a case: the mask (.nii.gz) or the probabilities (.npz)."""
        return model / layout.fold_folder(self.cases[case]) / layout.VALIDATION / f"{case}{ending}"

    def gaps(self, model: Path) -> dict[int, str]:
        """The folds a model lacks, and what is missing: "training" or "validation"."""
        found = {}
        for fold, cases in self.folds.items():
            folder = model / layout.fold_folder(fold)
            if not (folder / layout.checkpoint_file("final")).is_file():
                found[fold] = "training"
            elif not all((folder / layout.VALIDATION / layout.mask_file(case)).is_file() for case in cases):
                found[fold] = "validation"
        return found


@dataclass(frozen=True)
class Candidate:
    """One model, or an ensemble of several, that may become the best configuration."""

    models: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The model folder's name; those of an ensemble joined."""
        return layout.together([model.name for model in self.models])

    @property
    def home(self) -> Path:
        """A model's own folder; ensembles/<name> for an ensemble."""
        return self.models[0].parent / layout.home_of([model.name for model in self.models])

    @property
    def calibration(self) -> Path:
        """Where its calibration lies."""
        return self.home / layout.CROSS_VALIDATION / layout.CALIBRATION_FILE

    def certainty(self, crossval: CrossValidation, case: str, target: int) -> float | None:
        """How sure the candidate is of a structure in a case, see `Certainty`; None where it kept no probabilities."""
        files = [crossval.prediction(model, case, ".npz") for model in self.models]
        if not all(file.is_file() for file in files):
            return None
        values = torch.from_numpy(average(map(load_probabilities, files)).values)
        certainty = Certainty(target)
        certainty.add(values, labels_from_probabilities(values))
        return certainty.mean

    def files(self, crossval: CrossValidation, case: str) -> tuple[Path, ...]:
        """What the candidate's mask of a case is made from: one mask, or several models' probabilities."""
        ending = ".nii.gz" if len(self.models) == 1 else ".npz"
        return tuple(crossval.prediction(model, case, ending) for model in self.models)


@dataclass(frozen=True)
class FrameScore:
    """How well a structure is segmented in one labelled frame; distances in `distance_unit`, "mm" or "px"."""

    case: str
    frame: int
    structure: str
    distance_unit: str
    dice: float
    iou: float
    hd: float
    hd95: float
    assd: float
    both_empty: bool = False  # then Dice is 1, and says little

    def to_row(self) -> dict[str, Any]:
        """As summary.json holds it."""
        return asdict(self)


def score_candidates(
    crossval: CrossValidation, candidates: Sequence[Candidate], structures: Mapping[str, int], *, processes: int = 0
) -> dict[str, list[FrameScore]]:
    """Judge every candidate on every labelled frame.

    Args:
        crossval: the cases.
        candidates: models and ensembles.
        structures: structure -> value, without the background.
        processes: worker processes; 0: none.

    Returns:
        candidate name -> the score of each frame and structure.

    Raises:
        EchoPlanError: a prediction or a reference cannot be read or does not fit.
    """
    arguments = {
        case: (
            case,
            crossval.reference(case),
            {candidate.name: candidate.files(crossval, case) for candidate in candidates},
            dict(structures),
        )
        for case in crossval.cases
    }
    results = run_cases(_score_case, arguments, processes=processes, description="comparing")
    if results.failures:
        case, reason = next(iter(results.failures.items()))
        raise EchoPlanError(f"{len(results.failures)} cases cannot be judged, {case} first: {reason}")
    return {
        candidate.name: [score for case in crossval.cases for score in results.done[case][candidate.name]]
        for candidate in candidates
    }


def load_labelled(files: tuple[Path, ...], reference: Path) -> LabelledPrediction:
    """A candidate's mask of one case and its reference.

    Raises:
        EchoPlanError: a file is missing or damaged, or the grids differ.
    """
    truth, header = load_mask(reference), probe_clip(reference)
    single = len(files) == 1
    mask = load_mask(files[0], clip=header) if single else average(map(load_probabilities, files)).labels()
    if mask.shape != truth.shape:
        raise EchoPlanError(f"the prediction is {mask.shape}, its reference {truth.shape}", file=files[0])
    return LabelledPrediction(mask, truth, header.frame_time_ms)


def _score_case(
    case: str, reference: Path, files: Mapping[str, tuple[Path, ...]], structures: Mapping[str, int]
) -> dict[str, list[FrameScore]]:
    """Every candidate's scores of one case; each file is read once, and only labelled frames are resampled."""
    truth, header = load_mask(reference), probe_clip(reference)
    spacing = header.spacing_mm
    frames = np.flatnonzero((truth != IGNORE).any(axis=(1, 2)))
    members = {file for group in files.values() if len(group) > 1 for file in group}
    probabilities = {file: _frames(load_probabilities(file), frames) for file in members}
    scores = {}
    for name, group in files.items():
        if len(group) == 1:
            mask = load_mask(group[0], clip=header)[frames]
        else:
            mask = average(probabilities[file] for file in group).labels()
        if mask.shape[1:] != truth.shape[1:]:
            raise EchoPlanError(f"the prediction's frames are {mask.shape[1:]}, the reference's {truth.shape[1:]}")
        scores[name] = [
            FrameScore(case, int(frames[scored["frame"]]), structure, "px" if spacing is None else "mm",
                       **{metric: scored[structure][metric] for metric in ("dice", "iou", "hd", "hd95", "assd")},
                       both_empty=not (scored[structure]["predicted_pixels"] or scored[structure]["reference_pixels"]))
            for scored in score_frames(mask, truth[frames], structures, spacing)
            for structure in structures
        ]  # fmt: skip
    return scores


def _frames(probabilities: ClipProbabilities, frames: np.ndarray) -> ClipProbabilities:
    return ClipProbabilities(probabilities.values[:, frames], probabilities.geometry)
