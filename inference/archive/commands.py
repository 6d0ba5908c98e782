"""echoplan_export_model, echoplan_install_model"""

from __future__ import annotations

import argparse
from pathlib import Path

from echoplan.cli import folders
from echoplan.errors import EchoPlanError
from echoplan.models import card_of
from echoplan.paths import dataset_name

from ...training.model_folder import ModelFolder
from ...training.recipe import parse_settings
from ..commands import models_of
from ..model_selection import ModelChoice, command_for
from .export import export_model
from .install import install_model
from .manifest import Manifest
from .published import install_published


def export(options: argparse.Namespace) -> int:
    """echoplan_export_model DATASET -o model.zip"""
    choice = models_of(options)
    dataset = _home_name(options, choice)
    how = {"checkpoint": options.checkpoint, "half_precision": options.half_precision}
    manifest = export_model(choice, options.output, dataset=dataset, **how)
    print(f"{options.output}, {options.output.stat().st_size / 1e6:.1f} MB: {choice.reason}")
    _print_content(manifest)
    trust = " --trust_code" if manifest.code else ""
    print(f"install it elsewhere: echoplan_install_model {options.output.name}{trust}")
    return 0


def install(options: argparse.Namespace) -> int:
    """echoplan_install_model model.zip"""
    if options.trainer is not None:
        about = {"trainer": options.trainer, "settings": parse_settings(options.set), "size": options.size}
        model = install_published(
            options.archive, folders(), name=options.dataset, overwrite=options.overwrite, **about
        )
        print(f"installed: {model}\npredict with it: {command_for(dataset_name(model.parent), model)}")
        return 0
    how = {"name": options.dataset, "overwrite": options.overwrite, "trust_code": options.trust_code}
    installed = install_model(options.archive, folders(), **how)
    print(f"installed in {installed.home}:")
    _print_content(installed.manifest)
    if installed.replaced:
        print(f"replaced: {', '.join(installed.replaced)}")
    print(f"predict with it: {installed.command}")
    return 0


def _home_name(options: argparse.Namespace, choice: ModelChoice) -> str:
    """The name of the dataset's folder, Dataset001_CAMUS; of model folders anywhere, what their plans say.

    Raises:
        EchoPlanError: the model folders are of several datasets and none of them is named, or another one is.
    """
    if not options.models and card_of(choice.members[0][0]) is None:
        return choice.members[0][0].parent.name
    asked, datasets = options.dataset, sorted({ModelFolder.read(path).plan.dataset for path, _ in choice.members})
    fitting = [name for name in datasets if asked in (None, name, dataset_name(Path(name)))]
    if len(fitting) != 1:
        raise EchoPlanError(
            f"the models were trained on {' and '.join(datasets)}",
            file=choice.members[0][0],
            remedy="name the one to install them under: echoplan_export_model DATASET -m MODEL_FOLDER MODEL_FOLDER",
        )
    return fitting[0]


def _print_content(manifest: Manifest) -> None:
    for folder in manifest.packages:
        checkpoint = "" if manifest.checkpoint == "final" else f", {manifest.checkpoint} checkpoints"
        print(f"  {folder}, folds {', '.join(map(str, manifest.folds(folder)))}{checkpoint}")
    print(f"trained on {dataset_name(Path(manifest.dataset))}; licence of the data: {manifest.licence or 'not named'}")
    if manifest.reference:
        print(f"cite: {manifest.reference}")
