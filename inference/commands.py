"""echoplan_predict, echoplan_find_best_configuration, echoplan_ensemble, echoplan_apply_postprocessing"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from echoplan import layout
from echoplan.cli import folders, report_failures
from echoplan.models import card_of
from echoplan.paths import dataset_name

from ..evaluation.ejection import CHECK
from .best_configuration import BestConfiguration, CandidateScore, find_best_configuration
from .dicom_output import require_highdicom
from .ensemble_folders import ensemble_folders, postprocess_folder
from .model_selection import ModelChoice, choose_models
from .postprocessing import read_postprocessing
from .predict_folder import Part, PredictionRun, predict_folder
from .predictor import EchoPredictor
from .ray_engine import RayEngine
from .trained_weights import UNKNOWN_WEIGHTS

_NO_SETTING = ("input", "output", "quiet", "verbose")


def predict(options: argparse.Namespace) -> int:
    """echoplan_predict -i IN -o OUT"""
    part = None if options.num_parts is None else Part(options.part_id, options.num_parts)
    if options.dicom:
        require_highdicom()
    choice = models_of(options)
    models = {
        "folders": [(folder.absolute(), folds) for folder, folds in choice.members],
        "postprocessing": () if options.no_postprocessing else choice.postprocessing,
        "checkpoint": options.checkpoint,
        "mirroring": options.mirroring,
        "autocast": options.mixed_precision,
        "like": options.like,
        "trust_code": choice.trust_code,
        "backend": options.backend,
        "calibration": choice.calibration and choice.calibration.absolute(),
        "coverage": options.coverage,
    }
    # With an engine this process only names and measures; its machine may have no GPU.
    predictor = EchoPredictor.from_model_folders(**models, device="cpu" if options.engine else options.device)
    names = "\n".join(
        f"  {member.model.path.name}, folds {', '.join(map(str, member.folds))}" for member in predictor.members
    )
    print(f"predicting with {choice.reason}:\n{names}")
    for member in predictor.members:
        if card := card_of(member.model.path):
            print(f"{predictor.origin}\nits card: {card}")
    run = predict_folder(
        options.input,
        options.output,
        predictor,
        ef_method=options.ef_method,
        find_phases=options.find_phases,
        dicom=options.dicom,
        dicom_doubtful=options.dicom_doubtful,
        overlays=options.overlays,
        processes=options.np,
        part=part,
        overwrite=options.overwrite,
        continue_prediction=options.resume,
        keep_probabilities=options.save_probabilities,
        engine=_engine(options, models),
        details=_settings(options, choice),
    )
    _tell_run(run, part, predictor, options)
    return report_failures(run.failures, work="predicting")


def _settings(options: argparse.Namespace, choice: ModelChoice) -> dict[str, Any]:
    """What prediction_args.json holds of the command line, and of why these models predict."""
    return {name: value for name, value in vars(options).items() if name not in _NO_SETTING} | {
        "models_chosen": choice.reason
    }


def _engine(options: argparse.Namespace, models: Mapping[str, Any]) -> RayEngine | None:
    if not options.engine:
        return None
    cpus = options.cpus_per_actor or 1
    return RayEngine(models, options.device, options.address, options.actors, cpus)


def _tell_run(run: PredictionRun, part: Part | None, predictor: EchoPredictor, options: argparse.Namespace) -> None:
    out, done = options.output, f"{len(run.predicted)} clips predicted"
    done += f", {len(run.kept)} were finished before" if run.kept else ""
    if part is not None:
        print(
            f"part {part.number} of {part.count}: {done}; masks are in {out}\n"
            "once all parts are done, measure them: the same command with --c instead of --num_parts "
            "and --part_id"
        )
        return
    print(f"{done}; masks and ef_report.csv, report.html are in {out}")
    if options.dicom:
        print(f"{len(run.dicom_files)} DICOM files, which name the patients, are in {out / layout.DICOM}")
    doubtful = sum(row.quality == CHECK for row in run.rows)
    if doubtful:
        print(f"{doubtful} of {len(run.rows)} patients are worth a look; quality_reasons in ef_report.csv says why")
    for note in run.notes:
        print(note)
    if predictor.trust.calibration is not None and not predictor.trust.calibration.weights:
        print(f"{predictor.trust.file} {UNKNOWN_WEIGHTS}")
    unmeasured = sum(row.ef_percent is None for row in run.rows)
    if unmeasured:
        print(f"{unmeasured} of {len(run.rows)} patients have no EF; the column failure of ef_report.csv says why")


def models_of(options: argparse.Namespace) -> ModelChoice:
    """What the options of `add_models` mean; several trainers are an ensemble."""
    names = ("dataset", "plans_name", "configuration", "folds", "trust_code")
    given = {name: getattr(options, name) for name in names}
    choices = [
        choose_models(folders(), trainer=trainer, model_folders=options.models, **given)
        for trainer in options.trainers or (None,)
    ]
    if len(choices) == 1 or options.models:
        return choices[0]
    members = tuple(member for choice in choices for member in choice.members)
    return ModelChoice(members, None, "the trainers given, as an ensemble")


def choose_best(options: argparse.Namespace) -> int:
    """echoplan_find_best_configuration DATASET"""
    found = find_best_configuration(
        folders(),
        options.dataset,
        trainers=options.trainers,
        folds=options.folds,
        ensembles=not options.disable_ensembling,
        overwrite=options.overwrite,
        processes=options.np,
    )
    print(_table(found.scores))
    _print_choice(found)
    return 0


def ensemble(options: argparse.Namespace) -> int:
    """echoplan_ensemble -i FOLDER1 FOLDER2 ... -o OUT"""
    results = ensemble_folders(
        options.inputs, options.output, keep_probabilities=options.save_probabilities, processes=options.np
    )
    print(f"{len(results.done)} clips averaged over {len(options.inputs)} predictions; masks are in {options.output}")
    return report_failures(results.failures, work="averaging")


def postprocess(options: argparse.Namespace) -> int:
    """echoplan_apply_postprocessing -i MASKS -o OUT --pp postprocessing.json"""
    steps = read_postprocessing(options.pp)
    results = postprocess_folder(options.input, options.output, steps, processes=options.np)
    names = ", ".join(step["name"] for step in steps) or "no step"
    print(f"{len(results.done)} masks written to {options.output} ({names})")
    return report_failures(results.failures, work="postprocessing")


def _table(scores: Sequence[CandidateScore]) -> str:
    rows = [("", "Dice", "SD", "target Dice", "target HD95", "frames")]
    for score in scores:
        in_mm, in_px = score.target_hd95_mm, score.target_hd95_px
        hd95 = f"{in_mm:.2f} mm" if in_mm is not None else f"{in_px:.2f} px" if in_px is not None else "-"
        sd = "-" if score.sd_dice is None else f"{score.sd_dice:.4f}"
        rows.append((score.name, f"{score.mean_dice:.4f}", sd, f"{score.target_dice:.4f}", hd95, str(score.frames)))
    widest = max(len(name) for name, *_ in rows)
    return "\n".join(
        f"{name:{widest}}  {dice:>6}  {sd:>6}  {target:>11}  {hd95:>11}  {frames:>6}"
        for name, dice, sd, target, hd95, frames in rows
    )


def _print_choice(found: BestConfiguration) -> None:
    steps = ", ".join(step["name"] for step in found.postprocessing["steps"]) or "none"
    print(f"\nbest: {' + '.join(model.name for model in found.best.models)}\npostprocessing: {steps}")
    for name, reason in found.left_out.items():
        print(f"left out: {name} ({reason})", file=sys.stderr)
    print(f"written: {found.file}\npredict with it: echoplan_predict -i IN -o OUT -d {dataset_name(found.file.parent)}")
