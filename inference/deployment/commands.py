"""echoplan_export_onnx"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from echoplan import layout
from echoplan.cli import command, parser, positive_count
from echoplan.errors import EchoPlanError

from ..commands import add_model_options, models_of
from .export import FrameSize, export_onnx


@command()
def export_onnx_command(arguments: Sequence[str]) -> int:
    """echoplan_export_onnx DATASET -o FOLDER"""
    made = parser(
        "echoplan_export_onnx",
        "Write a trained model as ONNX, which takes a clip's bytes and gives masks without EchoPlan and PyTorch, and a "
        "card that says how. Without -tr or -m it is the best configuration found, or the only model trained.",
    )
    made.add_argument("dataset", nargs="?", metavar="DATASET", help="whose models; name, id or folder name")
    made.add_argument("-o", dest="output", type=Path, required=True, metavar="FOLDER", help="where the files go")
    made.add_argument("-tr", dest="trainer", metavar="TRAINER", help="which trainer's model")
    add_model_options(made)
    made.add_argument("--no_postprocessing", action="store_true", help="masks as the network makes them")
    made.add_argument("--frame_size", nargs=2, type=positive_count, metavar=("HEIGHT", "WIDTH"),
                      help="take clips of this size, resizing inside; else frames on the model's grid")  # fmt: skip
    made.add_argument("--spacing", nargs=2, type=_millimetres, metavar=("ROW", "COLUMN"),
                      help="with --frame_size: size of their pixels in mm; square if not given")  # fmt: skip
    options = made.parse_args(arguments)
    if options.spacing and not options.frame_size:
        raise EchoPlanError("--spacing belongs to --frame_size", remedy="give both")
    choice = models_of(options, options.trainer)
    if options.no_postprocessing:
        choice = replace(choice, postprocessing=())
    size = (
        FrameSize(tuple(options.frame_size), options.spacing and tuple(options.spacing)) if options.frame_size else None
    )
    written = export_onnx(choice, options.output, checkpoint=options.checkpoint, frame_size=size)
    for file in (options.output / name for name in written.files):
        print(f"{file}, {file.stat().st_size / 1e6:.1f} MB: {choice.reason}")
    print(f"what goes in and comes out, and how to run it: {options.output / layout.MODEL_CARD_FILE}")
    return 0


def _millimetres(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return value
