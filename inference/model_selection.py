"""Which model predicts: what the user named, the best configuration found, or the only one there is."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from echoplan import layout
from echoplan.errors import EchoPlanError
from echoplan.files import read_json
from echoplan.models import DEFAULT, shipped_model
from echoplan.paths import Folders, dataset_folders, dataset_name

from ..training.model_folder import ModelFolder
from .postprocessing import check_steps
from .trained_weights import UNKNOWN_WEIGHTS, Weights, read_weights, trained_again, weights_of

logger = logging.getLogger(__name__)

BY_EXPORT = "export"  # its "chosen_by", where no cross-validation chose but who exported the models together


@dataclass(frozen=True)
class ModelChoice:
    """What to predict with.

    Attributes:
        members: (model folder, folds) of each model; folds None: every fold trained.
        postprocessing: the steps; None: each model's own.
        reason: why these, in words.
        calibration: the calibration.json of the whole; None: a single model's own.
        best: the best_configuration.json that says so; None where no such file had a part in it.
        weights: those that it was written for; empty where it does not say.
        trust_code: whether users' own trainers may run: those of the results folder, and those that the user trusts.
    """

    members: tuple[tuple[Path, tuple[int, ...] | None], ...]
    postprocessing: tuple[dict[str, Any], ...] | None
    reason: str
    calibration: Path | None = None
    best: Path | None = None
    weights: Weights = field(default_factory=dict)
    trust_code: bool = True


def choose_models(
    folders: Folders,
    *,
    dataset: str | None = None,
    trainer: str | None = None,
    plans_name: str | None = None,
    configuration: str | None = None,
    folds: Sequence[int] | None = None,
    model_folders: Sequence[Path] | None = None,
    trust_code: bool = False,
) -> ModelChoice:
    """Settle what to predict with.

    Args:
        folders: where results lie.
        dataset: name, id or folder name; None: the only one with a trained model.
        trainer, plans_name, configuration: of the model; None where it is clear without.
        folds: None: every fold trained, or those of the best configuration.
        model_folders: model folders anywhere, an ensemble if several; the other names then do not matter.
        trust_code: whether users' own trainers may run that lie outside the results folder.

    Raises:
        EchoPlanError: nothing of what was named is trained, nothing fits, or several models do; the message lists what
            to type.

    Example:
        >>> from pathlib import Path
        >>> from echoplan.paths import Folders
        >>> from echoplan.inference import choose_models
        >>> choose_models(Folders(Path("raw"), Path("preprocessed"), Path("results"))).reason
        'the model that comes with EchoPlan, for nothing is trained here'
    """
    chosen_folds = None if folds is None else tuple(folds)
    if model_folders:
        members = tuple((path, chosen_folds) for path in model_folders)
        own = all(path.resolve().is_relative_to(folders.results.resolve()) for path in model_folders)
        return ModelChoice(members, None, "the model folders given", trust_code=own or trust_code)
    trainer = None if trainer is None else trainer.rpartition(":")[2]  # path/to/file.py:Class
    wanted = {"-tr": trainer, "-p": plans_name, "-c": configuration}
    shipped = shipped_model()
    # Where a training was begun, its user waits for that model: no other one stands in for it unasked.
    if not (dataset or any(wanted.values()) or dataset_folders(folders.results)) and shipped is not None:
        reason = "the model that comes with EchoPlan, for nothing is trained here"
        return ModelChoice(((shipped, chosen_folds),), None, reason)
    home = folders.find_results(dataset) if dataset is not None else _only_dataset(folders)
    best = home / layout.BEST_CONFIGURATION_FILE
    if not any(wanted.values()) and best.is_file():
        return read_best(best, chosen_folds)
    there = trained_models(home)
    fitting = [path for path in there if all(map(_fits, wanted.values(), _parts(path)))]
    if len(fitting) == 1:
        return ModelChoice(((fitting[0], chosen_folds),), None, "the only trained model that fits")
    raise _no_single_model(home, there, fitting, wanted)


def trained_models(results: Path) -> tuple[Path, ...]:
    """The model folders of a dataset's results that have a finished fold, by name."""
    models = layout.model_folders(results)
    return tuple(model for model in models if len(_parts(model)) == 3 and layout.finished_folds(model))


def command_for(dataset: str, model: Path) -> str:
    """The command line that predicts with one model."""
    trainer, plans_name, configuration = _parts(model)
    return f"echoplan_predict -i IN -o OUT -d {dataset} -tr {trainer} -p {plans_name} -c {configuration}"


def _only_dataset(folders: Folders) -> Path:
    root = folders.results
    datasets = dataset_folders(root)
    trained = [path for path in datasets if trained_models(path)]
    if len(trained) == 1:
        return trained[0]
    if trained:
        lines = "\n".join(f"  echoplan_predict -i IN -o OUT -d {dataset_name(path)}" for path in trained)
        raise EchoPlanError(f"{len(trained)} datasets have trained models", file=root, remedy=f"type one of:\n{lines}")
    raise EchoPlanError(
        "nothing is trained to its end yet",
        file=root,
        remedy=(
            f"train ({_how_to_finish(datasets[0])})"
            if datasets
            else "train (echoplan_plan_and_preprocess -d NAME, then echoplan_train NAME 0)"
        )
        + f", or give a model folder with -m; -m {DEFAULT} is the model that comes with EchoPlan",
    )


def read_best(file: Path, folds: tuple[int, ...] | None = None) -> ModelChoice:
    """What a best_configuration.json says, with other folds if they are given.

    Where folds were trained again since it was written, the reason says so, and no longer that it is the best.

    Raises:
        EchoPlanError: it is none.
    """
    content = read_json(file)
    try:
        members = tuple((file.parent / item["model"], folds or tuple(item["folds"])) for item in content["members"])
        steps = check_steps(content["postprocessing"]["steps"])
        weights = read_weights({item["model"]: item["weights"] for item in content["members"] if "weights" in item})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EchoPlanError(
            f"this is no best configuration: {error!r}", file=file, remedy="run echoplan_find_best_configuration again"
        ) from error
    exported = content.get("chosen_by") == BY_EXPORT
    found = "the ensemble that was exported" if exported else "the best configuration that cross-validation found"
    reason = f"{found}, {content.get('name', '')}"
    calibration = content.get("calibration")
    calibration = None if calibration is None else file.parent / calibration
    if others := _trained_since(members, weights):
        logger.warning(
            "%s was written for other weights: %s. What it says of them, Dice, postprocessing "
            "and intervals, holds no longer; run echoplan_find_best_configuration %s again",
            file, others, dataset_name(file.parent),
        )  # fmt: skip
        reason = f"the models of {file.name}, of which {others} it was written"
    elif not weights and (calibration is None or not calibration.is_file()):  # which else says so for both
        logger.warning("%s %s", file, UNKNOWN_WEIGHTS)
    return ModelChoice(members, steps, reason, calibration, file, weights)


def _trained_since(members: Sequence[tuple[Path, Sequence[int]]], weights: Weights) -> str:
    """The folds among `members` that have other weights now, in words."""
    known = [(model, folds) for model, folds in members if model.name in weights and model.is_dir()]
    return trained_again(weights, {name: own for one, folds in known for name, own in weights_of([one], folds).items()})


def _lines(dataset: str, models: Sequence[Path]) -> str:
    rows = []
    for model in models:
        folds = ", ".join(map(str, ModelFolder.read(model).folds()))
        rows.append(f"  {command_for(dataset, model)}   (folds {folds})")
    return "\n".join(rows)


def _no_single_model(
    home: Path, there: Sequence[Path], fitting: Sequence[Path], wanted: Mapping[str, str | None]
) -> EchoPlanError:
    """Why none of a dataset's models, or more than one, fits what was asked."""
    name = dataset_name(home)
    if not there:
        return EchoPlanError(f"nothing is trained to its end for {name}", file=home, remedy=_how_to_finish(home))
    if not fitting:
        asked = " ".join(f"{option} {value}" for option, value in wanted.items() if value)
        remedy = f"type one of:\n{_lines(name, there)}"
        return EchoPlanError(f"no model of {name} fits {asked}", file=home, remedy=remedy)
    return EchoPlanError(
        f"{name} has {len(fitting)} trained models",
        file=home,
        remedy=f"run echoplan_find_best_configuration {name}, or type one of:\n{_lines(name, fitting)}",
    )


def _how_to_finish(home: Path) -> str:
    """What to type where no fold of a dataset is trained to its end: what was begun goes on."""
    for model in layout.model_folders(home):
        for fold, _ in layout.folds_with(model, layout.checkpoint_file("latest")):
            return ModelFolder.read(model).training_command(fold)
    return f"echoplan_train {dataset_name(home)} 0"


def _fits(wanted: str | None, part: str) -> bool:
    return wanted in (None, part)


def _parts(model: Path) -> list[str]:
    return model.name.split("__")
