"""echoplan_convert_dataset, echoplan_make_phantom, echoplan_doctor"""

from __future__ import annotations

import argparse

from echoplan import layout
from echoplan.options import choices
from echoplan.options.parser import Parser, parser
from echoplan.options.shared import (
    add_dataset,
    add_output,
    add_overwrite,
    add_processes,
    existing_path,
    image_size,
    label,
    numbered,
)


def convert_dataset() -> Parser:
    """echoplan_convert_dataset LAYOUT SOURCE -d NAME"""
    made = parser(
        "echoplan_convert_dataset",
        "Convert a dataset into EchoPlan's raw format.",
        examples=[
            "echoplan_convert_dataset camus /data/CAMUS_public -d CAMUS",
            "echoplan_convert_dataset folder /data/my_clips --csv cases.csv -d Mine",
        ],
        docs="docs/formats.md",
    )
    made.add_argument("layout", choices=choices.CONVERTERS, help="how the source is laid out")
    made.add_argument("source", type=existing_path, metavar="SOURCE", help="the dataset's folder")
    add_dataset(made, "the new dataset's name", bare=False)
    _add_id(made)
    _add_structures(made)
    made.add_argument("--csv", metavar="FILE", help=f"folder: the table; {layout.CASES_FILE} if not given")
    made.add_argument("--labels", nargs="+", type=label, metavar="NAME[=VALUE]",
                      help="folder, with --structures all: what 1, 2, 3, ... mean; LV MYO LA if not given")  # fmt: skip
    add_overwrite(made, "convert again what exists")
    add_processes(made)

    def settle(chosen: argparse.Namespace) -> None:
        labels = numbered(chosen.labels or ())
        if [*labels.values()] != list(range(1, len(labels) + 1)):
            made.error("--labels: here the values are 1, 2, 3, ... in this order")
        chosen.labels = [*labels] or None
        if chosen.layout != "folder" and (chosen.csv or chosen.labels):
            made.error(f"--csv and --labels belong to the layout folder, not to {chosen.layout}")

    made.checks.append(settle)
    return made


def make_phantom() -> Parser:
    """echoplan_make_phantom -d NAME"""
    made = parser(
        "echoplan_make_phantom",
        "Make a dataset of simulated echocardiograms with known volumes.",
        examples=[
            "echoplan_make_phantom -d Phantom --patients 20",
            "echoplan_make_phantom -d Test --patients 10 --size 480x600 --labelled_frames ed_es --structures all",
        ],
        docs="docs/formats.md",
    )
    add_dataset(made, "the dataset's name")
    _add_id(made)
    made.add_argument("--patients", type=int, default=20, metavar="N", help="how many patients, for training")
    made.add_argument("--test_patients", type=int, default=0, metavar="N", help="patients more for testing")
    made.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    made.add_argument("--size", type=image_size, nargs="+", metavar="N|HxW", help="of the frames; 160 if not given")
    frames = made.add_argument(
        "--labelled_frames", choices=choices.LABELLED_FRAMES, default="dense", help="which frames have labels"
    )
    made.also(frames, "--labels")
    _add_structures(made)
    made.add_argument("--layout", choices=choices.PHANTOM_LAYOUTS, default="raw",
                      help="raw format, or as a public release lies")  # fmt: skip
    made.also(add_output(made, "folder for the layouts camus and echonet_dynamic", required=False), "--out")
    made.add_argument("--frames", type=int, metavar="T",
                      help="frames of a clip, 2: end-diastole and end-systole; as recorded if not given")  # fmt: skip
    made.add_argument("--randomised", action="store_true",
                      help="hearts, sectors, scanners and artefacts of far more kinds, sides of 112 pixels up to "
                      "--size: to learn from phantoms alone")  # fmt: skip
    made.add_argument("--whole_beat", action="store_true", help="a whole beat, not only end-diastole to end-systole")
    made.add_argument("--quality", type=float, nargs=2, default=(0.0, 1.0), metavar=("FROM", "TO"),
                      help="range of the image quality, 0 poor to 1 good")  # fmt: skip
    add_processes(made)

    def settle(chosen: argparse.Namespace) -> None:
        sizes = chosen.size or [(160, 160)]
        if len(sizes) > 2 or (len(sizes) == 2 and any(height != width for height, width in sizes)):
            made.error("--size is one size, or rows and columns: give 160, 480x600 or 480 600")
        chosen.size = (sizes[0][0], sizes[-1][1])  # of 480 600, too

    made.checks.append(settle)
    return made


def doctor() -> Parser:
    """echoplan_doctor"""
    return parser(
        "echoplan_doctor",
        "Print folders, versions, device, free disk, and what is missing.",
        examples=["echoplan_doctor", "ECHOPLAN_ROOT=/data/echo echoplan_doctor"],
    )


def _add_id(to: Parser) -> None:
    to.add_argument("--id", type=int, metavar="N", help="the dataset's number; the next free one if not given")


def _add_structures(to: Parser) -> None:
    to.add_argument("--structures", choices=choices.STRUCTURES, default="lv", help="the LV alone, or all")
