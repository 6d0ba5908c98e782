"""echoplan_extract_fingerprint, echoplan_plan_experiment, echoplan_plan_and_preprocess, echoplan_preprocess"""

from __future__ import annotations

from echoplan.options.parser import Parser, parser
from echoplan.options.shared import (
    add_continue,
    add_dataset,
    add_engine,
    add_overwrite,
    add_plans_name,
    add_processes,
    add_size,
    add_trainers,
)

_DATASETS = "names or ids of datasets; A+B for a joint one"


def extract_fingerprint() -> Parser:
    """echoplan_extract_fingerprint DATASET ..."""
    made = parser(
        "echoplan_extract_fingerprint",
        "Measure datasets: spacings, shapes, sectors, phases, labels.",
        examples=[
            "echoplan_extract_fingerprint CAMUS",
            "echoplan_extract_fingerprint CAMUS EchoNet --verify_dataset_integrity",
        ],
        docs="docs/planning.md",
    )
    add_dataset(made, _DATASETS, several=True)
    _add_verify(made)
    add_processes(made)
    return made


def plan_experiment() -> Parser:
    """echoplan_plan_experiment DATASET ..."""
    made = parser(
        "echoplan_plan_experiment",
        "Plan datasets from their fingerprints, and say why.",
        examples=[
            "echoplan_plan_experiment CAMUS --verbose",
            "echoplan_plan_experiment CAMUS --gpu_memory_target 11 -p Small",
        ],
        docs="docs/planning.md",
    )
    add_dataset(made, _DATASETS, several=True)
    _add_planning(made)
    return made


def plan_and_preprocess() -> Parser:
    """echoplan_plan_and_preprocess DATASET ..."""
    made = parser(
        "echoplan_plan_and_preprocess",
        "Measure, plan and preprocess datasets.",
        examples=[
            "echoplan_plan_and_preprocess -d CAMUS --verify_dataset_integrity",
            "echoplan_plan_and_preprocess -d CAMUS -tr UNetTrainer PKEchoNetTrainer",
        ],
        docs="docs/planning.md",
    )
    add_dataset(made, _DATASETS, several=True)
    _add_verify(made)
    _add_planning(made)
    made.add_argument("--no_preprocess", action="store_true", help="stop after the plan")
    add_continue(made)
    add_overwrite(made, "preprocess finished cases again")
    add_processes(made)
    add_engine(made)
    return made


def preprocess() -> Parser:
    """echoplan_preprocess DATASET ..."""
    made = parser(
        "echoplan_preprocess",
        "Crop, resample and store the clips of datasets that have a plan.",
        examples=["echoplan_preprocess CAMUS", "echoplan_preprocess CAMUS -p Small -tr UNetTrainer"],
        docs="docs/formats.md",
    )
    add_dataset(made, _DATASETS, several=True)
    add_trainers(made, "only what these trainers need")
    add_continue(made)
    add_overwrite(made, "do finished cases again")
    add_plans_name(made)
    add_processes(made)
    add_engine(made)
    return made


def _add_verify(to: Parser) -> None:
    to.add_argument(
        "--verify_dataset_integrity", action="store_true", help="check every file first; stop if one is wrong"
    )


def _add_planning(to: Parser) -> None:
    to.add_argument("--gpu_memory_target", type=float, metavar="GB", help="GPU to plan for; else the one found, else 8")
    to.add_argument("--no_gpu_check", action="store_true",
                    help="take no training step on the GPU to check the forecast of its memory")  # fmt: skip
    add_trainers(to, "plan and preprocess for these trainers only, and keep what an equal plan has; "
                 "path/to/file.py:Class for one of your own")  # fmt: skip
    to.add_argument("--frames", type=int, metavar="T", help="frames of a training clip instead of the rule's")
    add_size(to, "of the network's input, instead of the rule's")
    to.add_argument(
        "--protocol",
        choices=("aspect", "paper"),
        default="aspect",
        help="keep the aspect, or do all as the methods' papers did: stretched, whole frames, their size, "
        "frames, labels, split and evaluation; give the plan a name of its own (-p)",
    )
    add_plans_name(to)
