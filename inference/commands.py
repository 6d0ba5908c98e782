"""echoplan_predict, echoplan_find_best_configuration, echoplan_ensemble, echoplan_apply_postprocessing"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from echoplan import layout
from echoplan.cli import (
    add_device,
    add_folds,
    add_processes,
    add_trust_code,
    command,
    existing_path,
    folders,
    parser,
    positive_count,
    report_failures,
)
from echoplan.cluster import add_engine, check_engine
from echoplan.errors import EchoPlanError
from echoplan.models import DEFAULT, card_of, shipped_model
from echoplan.paths import dataset_name

from ..evaluation import VOLUME_RULES
from ..evaluation.conformal import DEFAULT_COVERAGE, check_coverage
from ..evaluation.ejection import CHECK
from .best_configuration import BestConfiguration, CandidateScore, find_best_configuration
from .deployment.exported import BACKENDS, TORCH
from .dicom_output import require_highdicom
from .ensemble_folders import ensemble_folders, postprocess_folder
from .model_selection import ModelChoice, choose_models
from .postprocessing import read_postprocessing
from .predict_folder import Part, PredictionRun, predict_folder
from .predictor import EchoPredictor
from .ray_engine import RayEngine
from .trained_weights import UNKNOWN_WEIGHTS


@command(resume="--continue_prediction")
def predict(arguments: Sequence[str]) -> int:
    """echoplan_predict -i IN -o OUT"""
    options = _predict_parser().parse_args(arguments)
    check_engine(options, "actors", "cpus_per_actor")
    part = _part(options)
    if options.dicom_doubtful and not options.dicom:
        raise EchoPlanError("--dicom_doubtful belongs to --dicom", remedy="give both")
    if options.dicom:
        require_highdicom()
    choice = models_of(options, options.trainer)
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
        continue_prediction=options.continue_prediction,
        keep_probabilities=options.save_probabilities,
        engine=_engine(options, models),
        details=_settings(options, choice),
    )
    _tell_run(run, part, predictor, options)
    return report_failures(run.failures, work="predicting")


def _settings(options: argparse.Namespace, choice: ModelChoice) -> dict[str, Any]:
    """What prediction_args.json holds of the command line, and of why these models predict."""
    return {name: value for name, value in vars(options).items() if name not in ("input", "output")} | {
        "models_chosen": choice.reason
    }


def _part(options: argparse.Namespace) -> Part | None:
    """The share of the clips asked for, if one is."""
    if options.num_parts is None and options.part_id is None:
        return None
    if None in (options.num_parts, options.part_id):
        raise EchoPlanError("--num_parts and --part_id belong together", remedy="--num_parts 4 --part_id 0, say")
    if options.dicom or options.overlays:
        raise EchoPlanError(
            "--dicom and --overlays belong to the call that measures all parts",
            remedy="give them to echoplan_predict --continue_prediction, once the parts are done",
        )
    return Part(options.part_id, options.num_parts)


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
            "once all parts are done, measure them: the same command with --continue_prediction instead of --num_parts "
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


def add_model_options(to: argparse.ArgumentParser) -> None:
    """Which model, beside its dataset and trainer: what `models_of` reads, and -chk."""
    to.add_argument("-p", dest="plans_name", metavar="PLANS", help="which plan's model")
    to.add_argument("-c", dest="configuration", metavar="CONFIGURATION", help="which configuration's model")
    add_folds(to, "-f", help="which folds, or all (every fold trained)")
    to.add_argument("-m", dest="model_folders", nargs="+", type=model_folder, metavar="MODEL_FOLDER",
                    help=f"a model folder anywhere; several are an ensemble; {DEFAULT}: the model that comes with "
                    "EchoPlan")  # fmt: skip
    add_trust_code(to)
    to.add_argument("-chk", "--checkpoint", dest="checkpoint", choices=("final", "best"), default="final",
                    help="which checkpoint")  # fmt: skip


def add_coverage(to: argparse.ArgumentParser) -> None:
    """--coverage: of intervals."""
    to.add_argument("--coverage", type=_coverage, default=DEFAULT_COVERAGE, metavar="SHARE",
                    help="how often the intervals of EF and volumes hold the reference")  # fmt: skip


def model_folder(text: str) -> Path:
    """An argparse type: a folder, or the name of a model that comes with EchoPlan."""
    shipped = None if Path(text).exists() else shipped_model(text)
    return shipped or existing_path(text)


def models_of(options: argparse.Namespace, trainer: str | None) -> ModelChoice:
    """What a command line and the name of a trainer mean."""
    names = ("dataset", "plans_name", "configuration", "folds", "model_folders", "trust_code")
    return choose_models(folders(), trainer=trainer, **{name: getattr(options, name) for name in names})


def _predict_parser() -> argparse.ArgumentParser:
    made = parser(
        "echoplan_predict",
        "Segment clips and measure the ejection fraction. With nothing or one model trained, or a best configuration "
        "found, -i and -o are all it needs.",
    )
    made.add_argument(
        "-i", dest="input", type=existing_path, required=True, metavar="IN", help="a clip or a folder of clips"
    )
    made.add_argument("-o", dest="output", type=Path, required=True, metavar="OUT", help="the folder for the results")
    made.add_argument("-d", dest="dataset", metavar="DATASET", help="whose models; name, id or folder name")
    made.add_argument("-tr", dest="trainer", metavar="TRAINER", help="which trainer's model")
    add_model_options(made)
    made.add_argument("--like", metavar="DATASET", help="of a joint model: treat all clips as those of this dataset")
    made.add_argument("--continue_prediction", action="store_true", help="keep what still holds, do the rest")
    made.add_argument("--overwrite", action="store_true", help="do again what is there already")
    made.add_argument("--save_probabilities", action="store_true", help="also write <case>.npz")
    made.add_argument("--dicom", action="store_true", help="also write DICOM segmentations and reports of DICOM clips")
    made.add_argument("--dicom_doubtful", action="store_true", help="with --dicom: reports of rows to check, too")
    made.add_argument("--overlays", action="store_true", help="also write OUT/overlays/<case>.mp4 with the outline")
    made.add_argument("--no_postprocessing", action="store_true", help="leave the masks as the network made them")
    made.add_argument("--mirroring", action="store_true", help="average over the flips the plan allows; slower")
    made.add_argument("--mixed_precision", action=argparse.BooleanOptionalAction,
                      help="faster, with other probabilities in the third digit; on GPUs with bfloat16 if not given",
                      )  # fmt: skip
    made.add_argument("--ef_method", choices=sorted(VOLUME_RULES), default="simpson", help="the rule for volumes")
    made.add_argument("--find_phases", action="store_true",
                      help="find end-diastole and end-systole even where cases.csv gives them")  # fmt: skip
    add_coverage(made)
    made.add_argument("--num_parts", type=positive_count, metavar="N", help="predict one of N parts of the clips; with")
    made.add_argument("--part_id", type=int, metavar="K", help="the part's number, 0 to N - 1")
    made.add_argument("--backend", choices=BACKENDS, default=TORCH, help="what computes the networks; onnx and "
                      "openvino from files that are written beside the checkpoints at first")  # fmt: skip
    add_processes(made)
    add_device(made)
    add_engine(made)
    made.add_argument("--actors", type=positive_count, metavar="N",
                      help="with --engine: how many load the model; not given: one a GPU, or where there is none as "
                      "many as have their cores")  # fmt: skip
    made.add_argument(
        "--cpus_per_actor", type=positive_count, metavar="N", help="with --engine: cores of each; 1 if not given"
    )
    return made


@command()
def find_best_configuration_command(arguments: Sequence[str]) -> int:
    """echoplan_find_best_configuration DATASET"""
    made = parser(
        "echoplan_find_best_configuration",
        "Compare the trained models of a dataset and ensembles of two on cross-validation; choose the postprocessing.",
    )
    made.add_argument("dataset", metavar="DATASET", help="name, id or folder name")
    made.add_argument("-tr", dest="trainers", nargs="+", metavar="TRAINER", help="only these trainers")
    add_folds(made, "-f", "--folds", help="only these folds, where not all are trained")
    made.add_argument("--disable_ensembling", action="store_true", help="compare single models only")
    made.add_argument("--overwrite", action="store_true",
                      help="replace a choice that was made among more folds, trainers or ensembles")  # fmt: skip
    add_processes(made)
    options = made.parse_args(arguments)
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


@command()
def ensemble(arguments: Sequence[str]) -> int:
    """echoplan_ensemble -i FOLDER1 FOLDER2 ... -o OUT"""
    made = parser("echoplan_ensemble", "Average the probabilities of several predictions of the same clips.")
    made.add_argument("-i", dest="inputs", nargs="+", type=existing_path, required=True, metavar="FOLDER",
                      help="folders that echoplan_predict --save_probabilities wrote")  # fmt: skip
    made.add_argument("-o", dest="output", type=Path, required=True, metavar="OUT", help="the folder for the masks")
    made.add_argument("--save_probabilities", action="store_true", help="also write <case>.npz")
    add_processes(made)
    options = made.parse_args(arguments)
    results = ensemble_folders(
        options.inputs, options.output, keep_probabilities=options.save_probabilities, processes=options.np
    )
    print(f"{len(results.done)} clips averaged over {len(options.inputs)} predictions; masks are in {options.output}")
    return report_failures(results.failures, work="averaging")


@command()
def apply_postprocessing_command(arguments: Sequence[str]) -> int:
    """echoplan_apply_postprocessing -i MASKS -o OUT --pp postprocessing.json"""
    made = parser("echoplan_apply_postprocessing", "Apply postprocessing steps to a folder of masks.")
    made.add_argument("-i", dest="input", type=existing_path, required=True, metavar="MASKS", help="a folder of masks")
    made.add_argument("-o", dest="output", type=Path, required=True, metavar="OUT", help="the folder for the new masks")
    made.add_argument("--pp", type=existing_path, required=True, metavar="FILE", help="a postprocessing.json")
    add_processes(made)
    options = made.parse_args(arguments)
    steps = read_postprocessing(options.pp)
    results = postprocess_folder(options.input, options.output, steps, processes=options.np)
    names = ", ".join(step["name"] for step in steps) or "no step"
    print(f"{len(results.done)} masks written to {options.output} ({names})")
    return report_failures(results.failures, work="postprocessing")


def _coverage(text: str) -> float:
    try:
        return check_coverage(float(text))
    except (ValueError, EchoPlanError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1, such as 0.9") from error


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
