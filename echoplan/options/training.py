"""echoplan_train, echoplan_compare_prompts"""

from __future__ import annotations

import argparse
from importlib.metadata import entry_points

from echoplan.models import DEFAULT
from echoplan.options import choices
from echoplan.options.parser import Parser, parser
from echoplan.options.shared import (
    add_continue,
    add_dataset_and_folds,
    add_device,
    add_engine,
    add_epochs,
    add_overwrite,
    add_plans_name,
    add_processes,
    add_settings,
    add_trainer,
    add_trainers,
    positive_amount,
    positive_count,
    weights_file,
)

ENTRY_POINTS = "echoplan.trainers"  # the group in which other packages offer theirs


def train() -> Parser:
    """echoplan_train DATASET FOLD -tr TRAINER"""
    made = parser(
        "echoplan_train",
        "Train a method on folds of a dataset, one after another.",
        examples=[
            "echoplan_train CAMUS 0 -tr PKEchoNetTrainer",
            "echoplan_train CAMUS all -tr E3SAM2Trainer --c",
            "echoplan_train -d CAMUS+EchoNet -f 0 1 --epochs 50 --set learning_rate=0.001",
        ],
        more=_trainers(),
        docs="docs/trainers.md",
    )
    add_dataset_and_folds(made, "name, id or folder name; A+B trains on several", "0 to 4, or all")
    add_trainers(made, "trainer names, or path/to/file.py:Class", default=["UNetTrainer"])
    add_plans_name(made)
    add_epochs(made)
    made.add_argument("--augmentation", metavar="POLICY",
                      help="generic (the method's own), ultrasound, none, or parts joined by +")  # fmt: skip
    add_settings(made, "change a setting of the recipe")
    made.add_argument("--seed", type=int, help="of weights, order and augmentation; 0 if not given")
    add_continue(made, "go on where the training stopped, with its settings")
    made.add_argument("--stop_after", type=positive_amount, metavar="HOURS", help="stop after so many hours with what "
                      "is done saved, and exit code 75; --c goes on. A file named stop in the fold's folder does so at "
                      "once")  # fmt: skip
    made.add_argument("--val", action="store_true", help="only validate a finished training again")
    add_overwrite(made, "throw away a training that is there and start again")
    weights = made.add_argument("--weights", type=weights_file, metavar="FILE", help="weights to start from: published "
                                "ones, or a checkpoint of the same trainer trained on other data, whose network's "
                                f"settings are taken; {DEFAULT}: the model that comes with EchoPlan")  # fmt: skip
    made.also(weights, "-pretrained_weights", "--pretrained_weights", "-weights")
    add_processes(made)
    add_device(made)
    add_engine(made, "gpus_per_fold", "cpus_per_fold", "processes_per_fold")
    made.add_argument("--gpus_per_fold", type=_amount, metavar="N",
                      help="with --engine: 0.5 puts two folds on a GPU, 2 trains a fold on two; not given: 1 where the "
                      "cluster has GPUs")  # fmt: skip
    made.add_argument("--cpus_per_fold", type=positive_count, metavar="N", help="with --engine: not given: by -np")
    made.add_argument("--processes_per_fold", type=positive_count, metavar="N",
                      help="with --engine: processes that train a fold together; not given: one a GPU")  # fmt: skip

    def settle(chosen: argparse.Namespace) -> None:
        if chosen.engine and chosen.stop_after:
            made.error("--stop_after is for trainings of this process, not for --engine")

    made.checks.append(settle)
    return made


def compare_prompts() -> Parser:
    """echoplan_compare_prompts DATASET FOLD -tr TRAINER"""
    made = parser(
        "echoplan_compare_prompts",
        "What a prompt would add: a promptable method's validation cases begun by itself, with points, boxes and masks "
        "from the labels, and with points and boxes near these. Only the first is what echoplan_predict does.",
        examples=[
            "echoplan_compare_prompts CAMUS 0",
            "echoplan_compare_prompts CAMUS all -tr SAM2Trainer --device cuda",
        ],
        docs="docs/trainers.md",
    )
    add_dataset_and_folds(made, "name, id or folder name", "trained folds, or all")
    add_trainer(made, "a promptable trainer", default="E3SAM2Trainer")
    add_plans_name(made)
    add_device(made)
    return made


def _trainers() -> str:
    """The trainers that there are, those of installed packages, too, which are not imported."""
    others = {point.name: f"of the package {point.module.split('.')[0]}" for point in entry_points(group=ENTRY_POINTS)}
    known = {**others, **choices.TRAINERS}
    widest = max(map(len, known))
    lines = [f"  {name:{widest}}  {about}" for name, about in known.items()]
    return "trainers (-tr):\n" + "\n".join(lines)


def _amount(text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = -1.0
    if not 0 <= amount < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount such as 0.5, 1 or 2")
    return amount
