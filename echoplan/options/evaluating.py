"""echoplan_evaluate_folder, echoplan_report, echoplan_compare"""

from __future__ import annotations

import argparse

from echoplan.options.parser import Parser, parser
from echoplan.options.shared import (
    add_dataset,
    add_ef_method,
    add_ef_reference,
    add_find_phases,
    add_output,
    add_processes,
    add_trainers,
    existing_path,
    label,
    named_path,
    numbered,
)


def evaluate_folder() -> Parser:
    """echoplan_evaluate_folder PREDICTIONS REFERENCES"""
    made = parser(
        "echoplan_evaluate_folder",
        "Dice, IoU, HD95 and ASSD of predicted masks, frame by frame.",
        examples=[
            "echoplan_evaluate_folder out labels -d CAMUS --ef_method simpson",
            "echoplan_evaluate_folder -pred out -ref labels --labels LV=1 MYO=2",
        ],
        docs="docs/comparing.md",
    )
    made.add_argument("folders", nargs="*", type=existing_path, metavar="PREDICTIONS REFERENCES",
                      help="folder of predicted masks, then that of reference masks")  # fmt: skip
    made.add_argument("-pred", "--predictions", type=existing_path, metavar="FOLDER", help="the one, by name")
    _add_references(made, "the other, by name")
    add_dataset(made, "takes labels, ED and ES from this raw dataset", required=False, bare=False)
    made.add_argument("--labels", nargs="+", type=label, metavar="NAME[=VALUE]", help="instead of a dataset's labels")
    add_output(made, "for the figures; PREDICTIONS/summary.json if not given", required=False, metavar="FILE")
    add_ef_method(made, "also measure EF in both masks by this rule, at the ED and ES of -d, and write "
                  "PREDICTIONS/ef.csv, ef_camus.csv, ...", default=None)  # fmt: skip
    add_processes(made)

    def settle(chosen: argparse.Namespace) -> None:
        given, named = vars(chosen).pop("folders"), [chosen.predictions, chosen.references]
        if [len(given), *map(bool, named)] not in ([2, False, False], [0, True, True]):
            made.error("give two folders: PREDICTIONS REFERENCES, in this order, or -pred FOLDER -ref FOLDER")
        chosen.predictions, chosen.references = given or named
        chosen.labels = numbered(chosen.labels or ())

    made.checks.append(settle)
    return made


def report() -> Parser:
    """echoplan_report -i CLIPS --masks MASKS -o OUT"""
    made = parser(
        "echoplan_report",
        "Measures volumes and ejection fractions in masks, and writes the reports, as after masks were corrected by "
        "hand.",
        examples=[
            "echoplan_report -i clips --masks out -o report",
            "echoplan_report -i clips --masks out -o report -d CAMUS --ef_method camus --overlays",
        ],
        docs="docs/formats.md",
    )
    clips = made.add_argument("-i", "--input", type=existing_path, required=True, metavar="CLIPS", help="a folder of "
                              "clips")  # fmt: skip
    made.also(clips, "--clips")
    masks = made.add_argument("--masks", required=True, type=existing_path, metavar="MASKS", help="their masks' folder")
    made.also(masks, "-m")
    add_output(made, "folder for the reports")
    add_dataset(made, "a raw dataset that names patients and views; not given: a cases.csv with the clips, or their "
                "names, as for echoplan_predict", required=False, bare=False)  # fmt: skip
    add_ef_method(made)
    add_find_phases(made)
    made.add_argument("--title", default="Ejection fraction report", help="the report's heading")
    made.add_argument("--overlays", action="store_true", help="also write OUT/overlays/<case>.mp4 with the outline")
    add_processes(made)
    return made


def compare() -> Parser:
    """echoplan_compare DATASET, or --predictions NAME=FOLDER ... --references FOLDER"""
    made = parser(
        "echoplan_compare",
        "Compare methods on the same cases: the cross-validation of a dataset's trainers, or folders of predictions.",
        examples=[
            "echoplan_compare CAMUS -o comparison",
            "echoplan_compare --predictions ours=out_a theirs=out_b --references labels -d CAMUS",
        ],
        docs="docs/comparing.md",
    )
    add_dataset(made, "compares the trainers of this dataset; with --predictions a raw dataset that knows their cases",
                required=False)  # fmt: skip
    add_trainers(made, "these, in this order; else all")
    made.add_argument("-pred", "--predictions", nargs="+", type=named_path, metavar="NAME=FOLDER",
                      help="folders of masks")  # fmt: skip
    _add_references(made, "reference masks of --predictions")
    made.add_argument("--baseline", metavar="NAME", help="the method to test the others against; else the first")
    made.add_argument("--structure", metavar="NAME", help="whose masks to compare; else the dataset's target, or LV")
    add_output(made, "folder for comparison.md, .csv, .tex, .json", required=False)
    add_ef_method(made, "the rule for volumes; simpson if not given", default=None)
    add_ef_reference(made)
    add_processes(made)
    made.checks.append(lambda chosen: _check_compare(made, chosen))
    return made


def _check_compare(made: Parser, chosen: argparse.Namespace) -> None:
    if not chosen.dataset and not chosen.predictions:
        made.error("give a DATASET to compare its trainers, or --predictions")
    if chosen.references and not chosen.predictions:
        made.error("--references goes with --predictions")
    if chosen.predictions and chosen.references is None:
        made.error("--predictions needs --references")
    if chosen.predictions and chosen.trainers:
        made.error("-tr compares the trainers of a dataset, without --predictions")
    names = [name for name, _ in chosen.predictions or ()]
    if chosen.predictions and (len(names) < 2 or len(set(names)) < len(names)):
        made.error("--predictions needs two or more folders, each with a NAME of its own")


def _add_references(to: Parser, help: str) -> None:
    to.add_argument("-ref", "--references", type=existing_path, metavar="FOLDER", help=help)
