"""echoplan_compare_prompts"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from echoplan import layout
from echoplan.cli import add_device, add_plans_name, command, folders, parser
from echoplan.device import choose_device
from echoplan.files import read_json

from ..evaluation.metrics import summarise
from .fold import FoldSetup, fold_numbers
from .methods import find_method
from .model_folder import ModelFolder
from .prompts import CasePrompts, prompt_kinds, without_begun
from .train_fold import FoldJob
from .validation import validate_fold


@command
def compare_prompts(arguments: Sequence[str]) -> int:
    """echoplan_compare_prompts DATASET FOLD -tr TRAINER"""
    made = parser(
        "echoplan_compare_prompts",
        "What a prompt would add: a promptable method's validation cases begun by itself, with points, boxes and masks "
        "from the labels, and with points and boxes near these. Only the first is what echoplan_predict does.",
    )
    made.add_argument("dataset", metavar="DATASET", help="name, id or folder name")
    made.add_argument("fold", metavar="FOLD", help="a trained fold, or all")
    made.add_argument("-tr", dest="trainer", default="E3SAM2Trainer", metavar="TRAINER", help="a promptable trainer")
    add_plans_name(made)
    add_device(made)
    options = made.parse_args(arguments)
    find_method(options.trainer)
    where = folders()
    count = len(read_json(where.find_preprocessed(options.dataset) / layout.SPLITS_FILE))
    for fold in fold_numbers(options.fold, count):
        setup = FoldJob(options.dataset, fold, options.trainer, plans_name=options.plans_name).setup(where)
        model = ModelFolder.read(setup.model_folder)
        network = model.load_network(setup.fold, device=choose_device(options.device))
        kinds = prompt_kinds(network)
        print(f"fold {setup.fold}, {len(setup.val)} cases       Dice %   IoU %   HD95 mm  ASSD mm")
        for kind in kinds:
            for name, means in _compared(network, setup, kind).items():
                print(f"{name:24} {_figures(means)}")
        if "mask" in kinds:
            print("A mask is the answer in its own frame, which is left out of its line.")
        print(f"written: {setup.folder / 'prompts'}")
    return 0


def _compared(network: nn.Module, setup: FoldSetup, kind: str) -> dict[str, Mapping[str, Any]]:
    """The means of one kind of prompt, by the name of their line; none where no frame is left to judge."""
    prompts = CasePrompts(network, setup, kind)
    summary = validate_fold(network, setup, folder=setup.folder / "prompts" / kind, prompt=prompts)
    target = setup.description.target
    judged = without_begun(summary["per_case"], prompts.begun) if kind == "mask" else summary["per_case"]
    found = summarise(judged.values(), target)
    return {kind: found["all"]} if found else {}


def _figures(means: Mapping[str, Any]) -> str:
    values = [(100, "dice"), (100, "iou"), (1, "hd95_mm"), (1, "assd_mm")]
    known = [f"{scale * means[name]['mean']:8.2f}" if name in means else "       –" for scale, name in values]
    return " ".join(known)
