"""The console scripts of setup.cfg; what each does lies in its room's commands.py, its options in echoplan.options."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

from echoplan.cli import command
from echoplan.errors import EchoPlanError
from echoplan.options.completion import SHELLS, completion
from echoplan.options.parser import Parser, parser


class _Command(NamedTuple):
    """A command: the module of echoplan.options that has its parser, what it runs, and what it is for."""

    options: str
    target: str
    summary: str


# In the order in which they are typed; `echoplan` alone lists them.
COMMANDS = {
    "predict": _Command(
        "predicting", "inference.commands:predict",
        "masks, EF and a report of clips; with nothing trained, by the model that comes with EchoPlan",
    ),
    "convert_dataset": _Command(
        "datasets", "datasets.commands:convert_dataset",
        "bring CAMUS, EchoNet-Dynamic or a folder with a table into EchoPlan's format",
    ),
    "make_phantom": _Command(
        "datasets", "datasets.commands:make_phantom", "make beating hearts of known volume, to try things on"
    ),
    "plan_and_preprocess": _Command(
        "planning", "experiment_planning.commands:plan_and_preprocess",
        "measure a dataset, plan, and compress its clips: the next three in one",
    ),
    "extract_fingerprint": _Command(
        "planning", "experiment_planning.commands:extract_fingerprint", "measure a dataset"
    ),
    "plan_experiment": _Command(
        "planning", "experiment_planning.commands:plan_experiment",
        "decide crop, size, sampling and batch from the fingerprint and the GPU",
    ),
    "preprocess": _Command("planning", "preprocessing.commands:preprocess", "bring the clips to the plan's grid"),
    "train": _Command("training", "training.commands:train", "train a method on one fold, or on all"),
    "find_best_configuration": _Command(
        "predicting", "inference.commands:choose_best",
        "choose model or ensemble, and postprocessing, by cross-validation",
    ),
    "evaluate_folder": _Command(
        "evaluating", "evaluation.commands:evaluate_folder", "judge a folder of masks by reference masks"
    ),
    "report": _Command("evaluating", "evaluation.commands:report", "EF report of masks that are there"),
    "compare": _Command(
        "evaluating", "evaluation.commands:compare", "trained methods side by side, with tests on patients"
    ),
    "study": _Command(
        "studies", "inference.study.commands:study",
        "learning curves over patients, clip lengths, seeds; tests on other datasets",
    ),
    "stress": _Command(
        "studies", "inference.stress.commands:stress",
        "a model under graded gain, haze, depth, rotation, resolution, frame rate",
    ),
    "reproduce": _Command(
        "studies", "inference.study.commands:reproduce",
        "a paper's tables as its authors ran them, beside what they printed",
    ),
    "zero_shot": _Command(
        "studies", "inference.foundation.commands:zero_shot", "SAM, MedSAM, LiteMedSAM or SAM2 untrained, told a box"
    ),
    "compare_prompts": _Command(
        "training", "training.commands:compare_prompts",
        "what a click or a box would add to a promptable method",
    ),
    "ensemble": _Command(
        "predicting", "inference.commands:ensemble", "average the probabilities of several predictions"
    ),
    "apply_postprocessing": _Command(
        "predicting", "inference.commands:postprocess", "apply postprocessing steps to a folder of masks"
    ),
    "export_model": _Command("sharing", "inference.archive.commands:export", "a trained model as one file"),
    "export_onnx": _Command(
        "sharing", "inference.deployment.commands:export", "a trained model as ONNX, to run without EchoPlan"
    ),
    "install_model": _Command(
        "sharing", "inference.archive.commands:install", "install a model that was exported, or published weights"
    ),
    "doctor": _Command("datasets", "doctor:doctor", "folders, versions, device, and what is missing"),
}  # fmt: skip


def parser_of(name: str) -> Parser:
    """The parser of the command `echoplan_<name>`; nothing that it does is imported."""
    made: Parser = getattr(import_module(f"echoplan.options.{COMMANDS[name].options}"), name)()
    return made


def _script(name: str) -> Callable[..., int]:
    """The console script; what it runs is imported after the command line was found right.

    Importing PyTorch takes seconds; Ctrl-C in them is met like Ctrl-C later on.
    """

    def main(chosen: argparse.Namespace) -> int:
        module, _, function = COMMANDS[name].target.partition(":")
        status: int = getattr(import_module(f"echoplan.{module}"), function)(chosen)
        return status

    return command(lambda: parser_of(name), main)


predict = _script("predict")
convert_dataset = _script("convert_dataset")
make_phantom = _script("make_phantom")
plan_and_preprocess = _script("plan_and_preprocess")
extract_fingerprint = _script("extract_fingerprint")
plan_experiment = _script("plan_experiment")
preprocess = _script("preprocess")
train = _script("train")
find_best_configuration = _script("find_best_configuration")
evaluate_folder = _script("evaluate_folder")
report = _script("report")
compare = _script("compare")
study = _script("study")
stress = _script("stress")
reproduce = _script("reproduce")
zero_shot = _script("zero_shot")
compare_prompts = _script("compare_prompts")
ensemble = _script("ensemble")
apply_postprocessing = _script("apply_postprocessing")
export_model = _script("export_model")
export_onnx = _script("export_onnx")
install_model = _script("install_model")
doctor = _script("doctor")


def umbrella() -> Parser:
    """The parser of `echoplan`."""
    widest = max(map(len, COMMANDS))
    made = parser(
        "echoplan",
        "EchoPlan's commands. Each has --help; `echoplan predict` is `echoplan_predict`.",
        examples=["echoplan predict -i clip.dcm -o out", "echoplan train --help", "source <(echoplan completion bash)"],
        more="commands:\n"
        + "\n".join(f"  echoplan_{name:{widest}}  {each.summary}" for name, each in COMMANDS.items()),
        docs="README.md",
    )
    made.add_argument("command", nargs="?", metavar="COMMAND", help="which to run; its own options follow")
    return made


def completion_options() -> Parser:
    """The parser of `echoplan completion`."""
    made = parser(
        "echoplan completion",
        "Print a script with which the shell completes commands, options and their values by the tab key.",
        examples=[
            "echoplan completion bash > ~/.local/share/bash-completion/completions/echoplan.bash",
            "source <(echoplan completion zsh)",
        ],
    )
    made.add_argument("shell", choices=SHELLS, help="for which shell")
    return made


def _completion(chosen: argparse.Namespace) -> int:
    sys.stdout.write(completion(chosen.shell, {name: parser_of(name) for name in COMMANDS}))
    return 0


def _umbrella(chosen: argparse.Namespace) -> int:
    if chosen.command is None:
        umbrella().print_help()
        return 0
    near = difflib.get_close_matches(chosen.command, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else "echoplan alone lists the commands"
    raise EchoPlanError(f"there is no command {chosen.command!r}", remedy=hint)


def echoplan(given: Sequence[str] | None = None) -> int:
    """echoplan [COMMAND ...]: list the commands, or run one; `echoplan predict ...` is `echoplan_predict ...`."""
    arguments = sys.argv[1:] if given is None else list(given)
    name = arguments[0].removeprefix("echoplan_") if arguments else ""
    if name in COMMANDS:
        status: int = globals()[name](arguments[1:])
        return status
    if name == "completion":
        return command(completion_options, _completion)(arguments[1:])
    return command(umbrella, _umbrella)(arguments[:1])
