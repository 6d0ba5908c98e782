"""The best model or ensemble of a dataset and its postprocessing, by cross-validation."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from echoplan import layout
from echoplan.case_warnings import few, log_failures
from echoplan.errors import EchoPlanError
from echoplan.files import read_json, sweep_partial_files, write_json
from echoplan.imageio import Clip, write_mask
from echoplan.parallel_map import run_cases
from echoplan.paths import Folders, dataset_name

from ..evaluation import evaluate_cases
from ..preprocessing.store import ClipStore, StoredCase
from ..training.model_folder import ModelFolder
from ..training.resume_check import folds_of_other_plans
from ..training.validation import judged_case
from .calibrate import calibrate
from .cross_validation import Candidate, CrossValidation, FrameScore, load_labelled, score_candidates
from .postprocessing import (
    apply_postprocessing,
    determine_postprocessing,
    read_postprocessing,
)
from .trained_weights import Weights, weights_of

logger = logging.getLogger(__name__)

MINIMAL_ENSEMBLE_GAIN = 1e-4  # mean Dice; an ensemble costs twice the time, so a tie goes to the single model


@dataclass(frozen=True)
class CandidateScore:
    """A candidate's means over labelled frames: Dice over all structures, Dice and HD95 of the target."""

    name: str
    mean_dice: float
    mean_dice_by_dataset: dict[str, float] | None
    sd_dice: float | None
    target_dice: float
    frames: int
    cases: int
    target_hd95_mm: float | None
    target_hd95_px: float | None
    target_both_empty: int  # frames without the target, in which none is found: their Dice is 1

    def to_row(self) -> dict[str, Any]:
        """As best_configuration.json holds it; a single dataset has no means of its parts."""
        row = asdict(self)
        if self.mean_dice_by_dataset is None:
            del row["mean_dice_by_dataset"]
        return row


@dataclass(frozen=True)
class BestConfiguration:
    """What cross-validation found.

    Attributes:
        best: the model or ensemble with the highest mean Dice.
        scores: one a candidate, best first.
        postprocessing: as postprocessing.json holds it.
        left_out: model -> why it was not compared.
        file: the best_configuration.json written.
    """

    best: Candidate
    scores: list[CandidateScore]
    postprocessing: dict[str, Any]
    left_out: dict[str, str]
    file: Path


def find_best_configuration(
    folders: Folders,
    dataset: str,
    *,
    trainers: Sequence[str] | None = None,
    folds: Sequence[int] | None = None,
    ensembles: bool = True,
    overwrite: bool = False,
    processes: int = 0,
) -> BestConfiguration:
    """Compare all trained models of a dataset, and pairs of them, and choose the best and its postprocessing.

    Every case is judged by the fold in which it is validation only. The score is the mean Dice over structures and
    labelled frames. Written: crossval_results/summary.json of every candidate (before postprocessing); the best one's
    postprocessing.json, and its postprocessed masks and ef.csv in crossval_results/; the calibration.json of every
    model and of the best ensemble, there too; best_configuration.json. The last two name the weights they are of.

    Args:
        folders: where the dataset lies.
        dataset: name, id or folder name.
        trainers: only these; then all of them must be complete. None: all that are complete.
        folds: only these, for those who do not train all; None: all.
        ensembles: whether pairs are tried.
        overwrite: whether a choice among more folds, models or ensembles may be replaced by one among fewer.
        processes: worker processes; 0: none.

    Raises:
        EchoPlanError: a trainer or fold is missing (the message has the commands that train it), or what is there was
            chosen among more.

    Example:
        >>> from echoplan.errors import EchoPlanError
        >>> from echoplan.paths import Folders
        >>> from echoplan.inference import find_best_configuration
        >>> try:
        ...     find_best_configuration(Folders.from_environment({"ECHOPLAN_ROOT": "nowhere"}), "Phantom")
        ... except EchoPlanError as error:
        ...     print(error.problem)
        there is no dataset 'Phantom' here
    """
    crossval = CrossValidation.read(folders, dataset, folds)
    sweep_partial_files(crossval.results)
    models, left_out = _complete_models(crossval, trainers)
    candidates = [Candidate((model,)) for model in models]
    candidates += [Candidate(pair) for pair in _pairs(crossval, models, left_out)] if ensembles else []
    if not overwrite and not (folds is None and trainers is None and ensembles):
        _keep_wider_choice(crossval, candidates)
    structures, target, dataset_of = _common_labels(crossval, models)
    of_frames = score_candidates(crossval, candidates, structures, processes=processes)
    scores = {name: summarise(name, found, target, dataset_of) for name, found in of_frames.items()}
    _write_summaries(crossval, candidates, scores, of_frames)
    best = _choose(candidates, scores)
    postprocessing = _postprocess_best(crossval, best, structures, processes)
    weights = weights_of(models, crossval.folds)
    for candidate in {best, *(item for item in candidates if len(item.models) == 1)}:
        _write_calibration(crossval, candidate, weights, structures, structures[target], processes)
    table = sorted(scores.values(), key=lambda score: -score.mean_dice)
    file = _write_best(crossval, best, weights, table, postprocessing, left_out)
    return BestConfiguration(best, table, postprocessing, left_out, file)


def _write_summaries(
    crossval: CrossValidation,
    candidates: Sequence[Candidate],
    scores: Mapping[str, CandidateScore],
    of_frames: Mapping[str, Sequence[FrameScore]],
) -> None:
    """Write every candidate's crossval_results/summary.json."""
    for candidate in candidates:
        means = {key: value for key, value in scores[candidate.name].to_row().items() if key != "name"}
        per_frame = [score.to_row() for score in of_frames[candidate.name]]
        content = {"folds": list(crossval.folds), **means, "per_frame": per_frame}
        write_json(candidate.home / layout.CROSS_VALIDATION / layout.SUMMARY_FILE, content)


def _keep_wider_choice(crossval: CrossValidation, candidates: Sequence[Candidate]) -> None:
    """Raise an EchoPlanError where the choice that is there was made among more than these."""
    file = crossval.results / layout.BEST_CONFIGURATION_FILE
    if not file.is_file():
        return
    try:
        before = read_json(file)
        folds = {fold for member in before["members"] for fold in member["folds"]}
        names = {score["name"] for score in before["scores"]}
    except (EchoPlanError, KeyError, TypeError):
        return  # what nothing can predict with need not be kept
    lacking = [f"fold {fold}" for fold in sorted(folds - {*crossval.folds})]
    lacking += sorted(names - {candidate.name for candidate in candidates})
    if lacking:
        raise EchoPlanError(
            f"the best configuration that is there was chosen among more: {few(lacking)} would take no part now",
            file=file,
            remedy="compare all again, without -f, -tr and --disable_ensembling, or replace it with --overwrite",
        )


def _write_best(
    crossval: CrossValidation,
    best: Candidate,
    weights: Weights,
    table: Sequence[CandidateScore],
    postprocessing: Mapping[str, Any],
    left_out: Mapping[str, str],
) -> Path:
    """Write best_configuration.json, by which `choose_models` finds the best."""
    file = crossval.results / layout.BEST_CONFIGURATION_FILE
    content = {
        "dataset": crossval.results.name,
        "name": best.name,
        "members": [
            {"model": model.name, "folds": list(crossval.folds), "weights": weights[model.name]}
            for model in best.models
        ],
        "postprocessing": postprocessing,
        "calibration": best.calibration.relative_to(crossval.results).as_posix(),
        "score": "mean Dice over structures and labelled frames; each case judged by the fold that validates it",
        "scores": [score.to_row() for score in table],
        "left_out": left_out,
        "predict": f"echoplan_predict -i IN -o OUT -d {dataset_name(crossval.results)}",
    }
    write_json(file, content)
    return file


def summarise(
    name: str, scores: Sequence[FrameScore], target: str, dataset_of: Mapping[str, str] | None = None
) -> CandidateScore:
    """A candidate's means over labelled frames.

    HD95 is given in mm where all spacings are known, in pixels where none is, and left out where they are mixed. With
    `dataset_of`, the source dataset of each case, the mean Dice is the mean of the datasets', which are given too, so
    that each counts alike.
    """
    by_frame: dict[tuple[str, int], list[float]] = {}
    for score in scores:
        by_frame.setdefault((score.case, score.frame), []).append(score.dice)
    dice = np.array([np.mean(values) for values in by_frame.values()])
    of_frames = np.array(["" if dataset_of is None else dataset_of[case] for case, _ in by_frame])
    by_dataset = {str(name): float(dice[of_frames == name].mean()) for name in np.unique(of_frames)}
    of_target = [score for score in scores if score.structure == target]
    units = {score.distance_unit for score in of_target}
    hd95 = float(np.mean([score.hd95 for score in of_target]))
    return CandidateScore(
        name=name,
        mean_dice=float(np.mean(list(by_dataset.values()))),
        mean_dice_by_dataset=None if dataset_of is None else by_dataset,
        sd_dice=float(dice.std(ddof=1)) if len(dice) > 1 else None,
        target_dice=float(np.mean([score.dice for score in of_target])),
        frames=len(by_frame),
        cases=len({case for case, _ in by_frame}),
        target_hd95_mm=hd95 if units == {"mm"} else None,
        target_hd95_px=hd95 if units == {"px"} else None,
        target_both_empty=sum(score.both_empty for score in of_target),
    )


def _complete_models(crossval: CrossValidation, trainers: Sequence[str] | None) -> tuple[list[Path], dict[str, str]]:
    """The models with all folds validated; the others with the reason and the commands that complete them."""
    dataset = dataset_name(crossval.results)
    wanted = None if trainers is None else [name.rpartition(":")[2] for name in trainers]
    models = layout.model_folders(crossval.results)
    complete, left_out = [], {}
    commands: list[str] = []
    for model in models:
        trainer = model.name.split("__")[0]
        if wanted is not None and trainer not in wanted:
            continue
        folder = ModelFolder.read(model)
        if folder.plan.split != "folds":
            continue  # a paper's split is no cross-validation
        gaps = crossval.gaps(model)
        others = {} if gaps else folds_of_other_plans(model, folder.plan)
        others = {fold: difference for fold, difference in others.items() if fold in crossval.folds}
        if not gaps and not others:
            complete.append(model)
            continue
        left_out[model.name] = "; ".join(
            [f"fold {fold}: no {what}" for fold, what in gaps.items()]
            + [f"fold {fold}: trained on another plan, {difference}" for fold, difference in others.items()]
        )
        options = {fold: "--val" if what == "validation" else "" for fold, what in gaps.items()}
        options |= dict.fromkeys(others, "--overwrite")
        commands += [f"  {folder.training_command(fold, option)}" for fold, option in options.items()]
    untrained = [name for name in wanted or () if name not in {model.name.split("__")[0] for model in models}]
    commands += [f"  echoplan_train {dataset} all -tr {name}" for name in untrained]
    if not complete or untrained or (wanted is not None and left_out):
        found = [f"{name}: {reason}" for name, reason in left_out.items()] + [
            f"{name}: not trained" for name in untrained
        ]
        raise EchoPlanError(
            f"cross-validation is not complete: {'. '.join(found) or 'no model is trained'}",
            file=crossval.results,
            remedy="name the folds that there are with --folds, or type:\n"
            + "\n".join(commands or [f"  echoplan_train {dataset} all -tr UNetTrainer"]),
        )
    for name, reason in left_out.items():
        logger.warning("%s is not compared: %s", name, reason)
    return complete, left_out


def _common_labels(
    crossval: CrossValidation, models: Sequence[Path]
) -> tuple[dict[str, int], str, dict[str, str] | None]:
    """The structures and the target that all models segment, and the source dataset of each case if there are more."""
    folders = {model: ModelFolder.read(model) for model in models}
    first = folders[models[0]].description
    for model, folder in folders.items():
        description = folder.description
        if (description.structures, description.target) != (first.structures, first.target):
            raise EchoPlanError(
                f"{models[0].name} and {model.name} segment different structures "
                f"({', '.join(first.structures)}; {', '.join(description.structures)})",
                file=model / layout.DATASET_FILE,
                remedy="compare models of the same labels: name their trainers with -tr, or train the others again",
            )
    plan = folders[models[0]].plan
    store = ClipStore(crossval.preprocessed / plan.store)
    # The scores of a single dataset are nobody's part.
    dataset_of = {case: store.case(case).dataset for case in crossval.cases} if plan.multi_dataset else None
    return first.structures, first.target, dataset_of


def _pairs(crossval: CrossValidation, models: Sequence[Path], left_out: dict[str, str]) -> list[tuple[Path, ...]]:
    """Pairs of models that have probabilities of every case; the others are noted in `left_out`."""
    usable = []
    for model in models:
        missing = [case for case in crossval.cases if not crossval.prediction(model, case, ".npz").is_file()]
        if missing and len(models) > 1:
            left_out[f"ensembles with {model.name}"] = f"no probabilities (.npz) of {len(missing)} cases"
        elif not missing:
            usable.append(model)
    return list(combinations(usable, 2))


def _choose(candidates: Sequence[Candidate], scores: Mapping[str, CandidateScore]) -> Candidate:
    def dice(candidate: Candidate) -> float:
        return scores[candidate.name].mean_dice

    single = max((item for item in candidates if len(item.models) == 1), key=dice)
    best = max(candidates, key=dice)
    return best if dice(best) - dice(single) >= MINIMAL_ENSEMBLE_GAIN else single


def _postprocess_best(
    crossval: CrossValidation, best: Candidate, structures: Mapping[str, int], processes: int
) -> dict[str, Any]:
    """Choose the steps, and write the postprocessed masks, their summary and their EF table."""
    sources = {case: (best.files(crossval, case), crossval.reference(case)) for case in crossval.cases}
    postprocessing = determine_postprocessing(load_labelled, sources, structures, processes=processes)
    home = best.home
    write_json(home / layout.POSTPROCESSING_FILE, postprocessing)
    model = ModelFolder.read(best.models[0])
    store = ClipStore(crossval.preprocessed / model.plan.store)
    masks = home / layout.CROSS_VALIDATION
    cases = [judged_case(store.case(case)) for case in crossval.cases]
    how = postprocessing["steps"], dict(structures), masks
    arguments = {case.case: (case, *sources[case.case], *how) for case in cases}
    results = run_cases(_write_final_mask, arguments, processes=processes, description="writing masks")
    log_failures(logger, results.failures, "no postprocessed mask", of=len(arguments))
    measured = evaluate_cases(
        cases, results.done, labels=structures, target=model.description.target, processes=processes
    )
    measured.write_rows(masks)
    return postprocessing


def _write_calibration(
    crossval: CrossValidation,
    candidate: Candidate,
    weights: Weights,
    structures: Mapping[str, int],
    target: int,
    processes: int,
) -> None:
    """Calibrate a model, or the best ensemble, with the postprocessing that it predicts with when told nothing else."""
    own = candidate.home / layout.POSTPROCESSING_FILE
    steps = read_postprocessing(own) if own.is_file() else ()
    store = ClipStore(crossval.preprocessed / ModelFolder.read(candidate.models[0]).plan.store)
    calibration = calibrate(crossval, candidate, store, steps, structures, target, processes=processes)
    own_weights = {model.name: weights[model.name] for model in candidate.models}
    replace(calibration, weights=own_weights).write(candidate.calibration)


def _write_final_mask(
    case: StoredCase,
    files: tuple[Path, ...],
    reference: Path,
    steps: Sequence[Mapping[str, Any]],
    structures: Mapping[str, int],
    folder: Path,
) -> Path:
    """Write one postprocessed mask."""
    item = load_labelled(files, reference)
    mask = apply_postprocessing(item.prediction, steps, structures, frame_time_ms=item.frame_time_ms)
    file = folder / layout.mask_file(case.case)
    like = Clip(mask, case.spacing_mm, case.frame_time_ms, source=case.case, space=case.space)
    write_mask(file, mask, like=like)
    return file
