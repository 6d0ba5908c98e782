"""The console scripts of setup.cfg; what each does lies in its room's commands.py."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence

from echoplan.cli import command, parser, script
from echoplan.errors import EchoPlanError

# In the order in which they are typed; `echoplan` alone lists them.
SUMMARIES = {
    "predict": "masks, EF and a report of clips; with nothing trained, by the model that comes with EchoPlan",
    "convert_dataset": "bring CAMUS, EchoNet-Dynamic or a folder with a table into EchoPlan's format",
    "make_phantom": "make beating hearts of known volume, to try things on",
    "plan_and_preprocess": "measure a dataset, plan, and compress its clips: the next three in one",
    "extract_fingerprint": "measure a dataset",
    "plan_experiment": "decide crop, size, sampling and batch from the fingerprint and the GPU",
    "preprocess": "bring the clips to the plan's grid",
    "train": "train a method on one fold, or on all",
    "find_best_configuration": "choose model or ensemble, and postprocessing, by cross-validation",
    "evaluate_folder": "judge a folder of masks by reference masks",
    "report": "EF report of masks that are there",
    "compare": "trained methods side by side, with tests on patients",
    "study": "learning curves over patients, clip lengths, seeds; tests on other datasets",
    "stress": "a model under graded gain, haze, depth, rotation, resolution, frame rate",
    "reproduce": "a paper's tables as its authors ran them, beside what they printed",
    "zero_shot": "SAM, MedSAM, LiteMedSAM or SAM2 untrained, told a box",
    "compare_prompts": "what a click or a box would add to a promptable method",
    "ensemble": "average the probabilities of several predictions",
    "apply_postprocessing": "apply postprocessing steps to a folder of masks",
    "export_model": "a trained model as one file",
    "export_onnx": "a trained model as ONNX, to run without EchoPlan",
    "install_model": "install a model that was exported, or published weights",
    "doctor": "folders, versions, device, and what is missing",
}

convert_dataset = script("echoplan.datasets.commands:convert_dataset")
make_phantom = script("echoplan.datasets.commands:make_phantom")
extract_fingerprint = script("echoplan.experiment_planning.commands:extract_fingerprint")
plan_experiment = script("echoplan.experiment_planning.commands:plan_experiment")
plan_and_preprocess = script("echoplan.experiment_planning.commands:plan_and_preprocess")
preprocess = script("echoplan.preprocessing.commands:preprocess")
train = script("echoplan.training.commands:train")
compare_prompts = script("echoplan.training.commands:compare_prompts")
zero_shot = script("echoplan.inference.foundation.commands:zero_shot")
find_best_configuration = script("echoplan.inference.commands:find_best_configuration_command")
predict = script("echoplan.inference.commands:predict")
ensemble = script("echoplan.inference.commands:ensemble")
apply_postprocessing = script("echoplan.inference.commands:apply_postprocessing_command")
export_model = script("echoplan.inference.archive.commands:export_model_command")
export_onnx = script("echoplan.inference.deployment.commands:export_onnx_command")
install_model = script("echoplan.inference.archive.commands:install_model_command")
study = script("echoplan.inference.study.commands:study")
stress = script("echoplan.inference.stress.commands:stress")
reproduce = script("echoplan.inference.study.commands:reproduce")
evaluate_folder = script("echoplan.evaluation.commands:evaluate_folder_command")
report = script("echoplan.evaluation.commands:report_command")
compare = script("echoplan.evaluation.commands:compare_command")
doctor = script("echoplan.doctor:doctor")


@command()
def echoplan(arguments: Sequence[str]) -> int:
    """echoplan [COMMAND ...]: list the commands, or run one; `echoplan predict ...` is `echoplan_predict ...`."""
    widest = max(map(len, SUMMARIES))
    made = parser("echoplan", "EchoPlan's commands. Each has --help; `echoplan predict` is `echoplan_predict`.")
    made.usage, made.formatter_class = "echoplan [-h] [--version] [COMMAND ...]", argparse.RawDescriptionHelpFormatter
    made.epilog = "\n".join(f"  echoplan_{name:{widest}}  {summary}" for name, summary in SUMMARIES.items())
    if not arguments or arguments[0].startswith("-"):
        made.parse_args(arguments)
        made.print_help()
        return 0
    name, *rest = arguments
    name = name.removeprefix("echoplan_")
    if name not in SUMMARIES:
        near = difflib.get_close_matches(name, SUMMARIES, n=1)
        hint = f"did you mean {near[0]}?" if near else "echoplan alone lists the commands"
        raise EchoPlanError(f"there is no command {name!r}", remedy=hint)
    status: int = globals()[name](rest)
    return status
