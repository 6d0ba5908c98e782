"""echoplan_export_onnx"""

from __future__ import annotations

import argparse
from dataclasses import replace

from echoplan import layout

from ..commands import models_of
from .export import FrameSize, export_onnx


def export(options: argparse.Namespace) -> int:
    """echoplan_export_onnx DATASET -o FOLDER"""
    choice = models_of(options)
    if options.no_postprocessing:
        choice = replace(choice, postprocessing=())
    size = FrameSize(options.frame_size, options.spacing and tuple(options.spacing)) if options.frame_size else None
    written = export_onnx(choice, options.output, checkpoint=options.checkpoint, frame_size=size)
    for file in (options.output / name for name in written.files):
        print(f"{file}, {file.stat().st_size / 1e6:.1f} MB: {choice.reason}")
    print(f"what goes in and comes out, and how to run it: {options.output / layout.MODEL_CARD_FILE}")
    return 0
