"""echoplan_export_model, echoplan_install_model"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from echoplan.cli import command, existing_path, folders, parser
from echoplan.errors import EchoPlanError
from echoplan.models import card_of
from echoplan.paths import dataset_name

from ...training.model_folder import ModelFolder
from ...training.recipe import parse_settings
from ..commands import add_model_options, models_of
from ..model_selection import ModelChoice, command_for
from .export import export_model
from .install import install_model
from .manifest import Manifest
from .published import install_published


@command()
def export_model_command(arguments: Sequence[str]) -> int:
    """echoplan_export_model DATASET -o model.zip"""
    made = parser(
        "echoplan_export_model",
        "Write what echoplan_predict needs to one file, for other machines. Without -tr or -m it is the best "
        "configuration found, or the only model trained.",
    )
    made.add_argument("dataset", nargs="?", metavar="DATASET", help="whose models; name, id or folder name")
    made.add_argument("-o", dest="output", type=Path, required=True, metavar="FILE", help="the archive, model.zip, say")
    made.add_argument("-tr", dest="trainers", nargs="+", metavar="TRAINER",
                      help="which trainer's model; several are an ensemble")  # fmt: skip
    made.add_argument("--half_precision", action="store_true", help="keep the weights in 16 bits: half the size, "
                      "rounded")  # fmt: skip
    add_model_options(made)
    options = made.parse_args(arguments)
    choice = _choose(options)
    dataset = _home_name(options, choice)
    how = {"checkpoint": options.checkpoint, "half_precision": options.half_precision}
    manifest = export_model(choice, options.output, dataset=dataset, **how)
    print(f"{options.output}, {options.output.stat().st_size / 1e6:.1f} MB: {choice.reason}")
    _print_content(manifest)
    trust = " --trust_code" if manifest.code else ""
    print(f"install it elsewhere: echoplan_install_model {options.output.name}{trust}")
    return 0


@command()
def install_model_command(arguments: Sequence[str]) -> int:
    """echoplan_install_model model.zip"""
    made = parser(
        "echoplan_install_model",
        "Install a model that echoplan_export_model wrote, or with -tr a network that a paper's authors published. "
        "Nothing of the file is run; what is not just as its manifest says is refused.",
    )
    made.add_argument("archive", type=existing_path, metavar="FILE", help="what was exported, or published weights")
    made.add_argument("-tr", dest="trainer", metavar="TRAINER", help="whose published weights the file holds")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="with -tr: change a setting")
    made.add_argument("--size", type=int, metavar="PIXELS", help="with -tr: side of the frames that the network saw")
    made.add_argument(
        "-d", dest="dataset", metavar="NAME", help="what its dataset is called here; as there if not given"
    )
    made.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    made.add_argument("--trust_code", action="store_true", help="install a model that brings the code of its trainer; "
                      "it runs whenever the model is used")  # fmt: skip
    options = made.parse_args(arguments)
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


def _choose(options: argparse.Namespace) -> ModelChoice:
    """As echoplan_predict chooses; of several trainers each one's model."""
    choices = [models_of(options, trainer) for trainer in options.trainers or (None,)]
    if len(choices) == 1 or options.model_folders:
        return choices[0]
    members = tuple(member for choice in choices for member in choice.members)
    return ModelChoice(members, None, "the trainers given, as an ensemble")


def _home_name(options: argparse.Namespace, choice: ModelChoice) -> str:
    """The name of the dataset's folder, Dataset001_CAMUS; of model folders anywhere, what their plans say.

    Raises:
        EchoPlanError: the model folders are of several datasets and none of them is named, or another one is.
    """
    if not options.model_folders and card_of(choice.members[0][0]) is None:
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
