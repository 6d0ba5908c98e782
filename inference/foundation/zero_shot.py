"""The untrained row of a comparison: a foundation model on a raw dataset, judged like a trained method."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from echoplan import __version__, layout
from echoplan.dataset import Case, EchoDataset
from echoplan.errors import EchoPlanError
from echoplan.files import read_json, write_json
from echoplan.imageio import ClipInfo, probe_clip, write_mask
from echoplan.labels import IGNORE
from echoplan.parallel_map import run_cases
from echoplan.paths import Folders, dataset_name

from ...evaluation import Evaluation, evaluate_cases
from ...evaluation.comparison.method_results import judged_by
from ...preprocessing.clip import to_uint8
from .networks import FoundationModel

FOLDER = "zero_shot"


@dataclass
class ZeroShotRun:
    """What a run left.

    Attributes:
        folder: with <case>.nii.gz, summary.json, ef.csv and zero_shot.json; the labels that judged are in references/,
            and fold_<k>/validation/ holds the figures of each fold's validation cases alone.
        summary: as summary.json holds it, over all cases.
        evaluation: what the summary and the EF tables are of; None where nothing was judged.
        done, kept: cases segmented now, and by an earlier run.
        failures: case -> reason.
    """

    folder: Path
    summary: dict[str, Any] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def run_zero_shot(
    folders: Folders,
    dataset: str,
    chosen: FoundationModel,
    *,
    split: str = "train",
    folds: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    continue_run: bool = False,
    processes: int = 0,
) -> ZeroShotRun:
    """Segment the labelled cases of a raw dataset with a foundation model that nobody trained on it, and judge it.

    Clips are read as they are, resized to what the model wants, and the masks brought back to the clips' own grid. The
    labels tell the model where the structure is, so the figures are not those of an automatic method.

    Args:
        folders: raw and results; preprocessed, where the folds are known.
        dataset: name, id or folder name.
        chosen: the model.
        split: "train" (whose cases are cross-validated elsewhere) or "test".
        folds: only the validation cases of these folds.
        device: where to compute.
        overwrite, continue_run: do again, or keep, what is there already.
        processes: worker processes for judging; 0 works in this one.

    Raises:
        EchoPlanError: there is no such dataset or labelled case, the folds are not known, results are there already, or
            the model cannot be had.
    """
    raw = EchoDataset.read(folders.find_raw(dataset))
    splits = _splits(folders, raw) if split == "train" else []
    cases = _labelled(raw, split, folds, splits)
    name = chosen.name if split == "train" else f"{chosen.name}_{split}"
    run = ZeroShotRun(folders.results / raw.folder.name / FOLDER / name)
    settings = _check_folder(run.folder, chosen, overwrite=overwrite, continue_run=continue_run)
    todo = [case for case in cases if overwrite or not (run.folder / layout.mask_file(case.case)).is_file()]
    run.kept = [case.case for case in cases if case not in todo]
    network = chosen.load(device) if todo else None  # before anything is thrown away
    if overwrite and run.folder.exists():
        shutil.rmtree(run.folder)
    write_json(run.folder / layout.ZERO_SHOT_FILE, settings)
    results = run_cases(
        _segment_case,
        {case.case: (raw, case, chosen, network, run.folder) for case in todo},
        processes=0,  # one network on one device
        description=chosen.name,
    )
    run.done, run.failures = list(results.done), dict(results.failures)
    finished = [case for case in cases if case.case not in run.failures]
    if not finished:
        return run
    run.evaluation = evaluation = _evaluate(raw, finished, run.folder, processes)
    run.summary = evaluation.write(run.folder, **judged_by(run.folder / layout.REFERENCES))
    for fold, validated in enumerate(splits):
        own = {case.case for case in finished} & set(validated["val"])
        if own and (folds is None or fold in folds):
            evaluation.only(own).write(run.folder / layout.fold_folder(fold) / layout.VALIDATION)
    return run


def _splits(folders: Folders, raw: EchoDataset) -> list[dict[str, Any]]:
    """The folds of a dataset that is planned; none otherwise."""
    file = folders.preprocessed / raw.folder.name / layout.SPLITS_FILE
    return read_json(file) if file.is_file() else []


def _labelled(
    raw: EchoDataset, split: str, folds: Sequence[int] | None, splits: Sequence[Mapping[str, Any]]
) -> list[Case]:
    cases = [case for case in (raw.test_cases() if split == "test" else raw.training_cases()) if case.label is not None]
    if folds is not None:
        if not splits or not all(0 <= fold < len(splits) for fold in folds):
            known = f"the folds are 0 to {len(splits) - 1}" if splits else "there are no folds of these cases"
            plan = f"plan the dataset (echoplan_plan_and_preprocess -d {dataset_name(raw.folder)}), or "
            first = "name folds that there are, or " if splits else plan if split == "train" else ""
            raise EchoPlanError(
                f"{known}, not {', '.join(map(str, folds))}",
                file=raw.folder,
                remedy=f"{first}leave -f out",
            )
        wanted = {name for fold in folds for name in splits[fold]["val"]}
        cases = [case for case in cases if case.case in wanted]
    if not cases:
        raise EchoPlanError(f"there is no labelled case to segment ({split})", file=raw.folder / layout.CASES_FILE)
    return cases


def _check_folder(folder: Path, chosen: FoundationModel, *, overwrite: bool, continue_run: bool) -> dict[str, Any]:
    """The settings to keep with the results, once it is clear that what is there may be kept or thrown away."""
    weights = None if chosen.weights is None else str(chosen.weights.resolve())
    settings = {**vars(chosen), "weights": weights}
    file = folder / layout.ZERO_SHOT_FILE
    if file.is_file() and not overwrite:
        if not continue_run:
            raise EchoPlanError(
                "results of this model are there already",
                file=folder,
                remedy="--c keeps them and does the rest, --overwrite does all again",
            )
        before = read_json(file)
        # What an earlier EchoPlan could not be told was as it is when nobody says anything.
        changed = [
            name for name, value in settings.items() if before.get(name, getattr(FoundationModel, name, None)) != value
        ]
        if changed:
            raise EchoPlanError(
                f"what is there was made with other settings: {', '.join(changed)}", file=file, remedy="use --overwrite"
            )
    return {**settings, "versions": {"echoplan": __version__, "torch": torch.__version__}}


def _segment_case(raw: EchoDataset, case: Case, chosen: FoundationModel, network: nn.Module, folder: Path) -> None:
    clip = raw.load_clip(case)
    labels = raw.load_mask(case, clip=clip)
    value = raw.description.labels[raw.description.target]
    labelled = np.flatnonzero((labels != IGNORE).any(axis=(1, 2))).tolist()
    masks = {frame: labels[frame] == value for frame in labelled}
    found = chosen.segment(network, to_uint8(clip.frames), masks, case.case)
    write_mask(folder / layout.REFERENCES / layout.mask_file(case.case), labels, like=clip)
    write_mask(
        folder / layout.mask_file(case.case), found.astype(np.uint8) * value, like=clip
    )  # last: the case is finished


def _evaluate(raw: EchoDataset, cases: Sequence[Case], folder: Path, processes: int) -> Evaluation:
    """The cases judged as those of a trained fold's validation are."""
    target = raw.description.target
    known = [_as_predicted(case, probe_clip(folder / layout.mask_file(case.case))) for case in cases]
    evaluation = evaluate_cases(
        known,
        folder,
        folder / layout.REFERENCES,
        labels={target: raw.description.labels[target]},
        named=raw.description.labels,
        target=target,
        processes=processes,
    )
    # Where the phases are not known none could be found, for most frames have no mask.
    measurable = [item for item in evaluation.measured if None not in (item.case.ed_frame, item.case.es_frame)]
    return replace(evaluation, measured=tuple(measurable))


def _as_predicted(case: Case, header: ClipInfo) -> Case:
    return replace(case.with_header(header), edv_ml=None, esv_ml=None)
