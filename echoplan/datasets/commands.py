"""`echoplan_convert_dataset`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from echoplan import cli, layout
from echoplan.datasets.building import STRUCTURES
from echoplan.datasets.camus import convert_camus
from echoplan.datasets.echonet_dynamic import convert_echonet_dynamic
from echoplan.datasets.folder import convert_folder
from echoplan.errors import EchoPlanError
from echoplan.files import sweep_partial_files

CONVERTERS = {"camus": convert_camus, "echonet_dynamic": convert_echonet_dynamic, "folder": convert_folder}


@cli.command
def convert_dataset(arguments: Sequence[str]) -> int:
    """Convert a dataset into the raw format; broken cases are named at the end."""
    options = _parser().parse_args(arguments)
    settings = {"structures": options.structures, "processes": options.np, "overwrite": options.overwrite}
    if options.layout == "folder":
        settings |= {"csv": options.csv or layout.CASES_FILE, "labels": options.labels}
    elif options.csv or options.labels:
        raise EchoPlanError(f"--csv and --labels belong to the layout folder, not to {options.layout}")
    destination = cli.folders().new_dataset_folder(options.d, dataset_id=options.id)
    sweep_partial_files(destination)
    failures: dict[str, str] = {}
    try:
        dataset = CONVERTERS[options.layout](
            options.source, destination, name=options.d, failures=failures, **settings
        )  # fmt: skip
        print(f"{len(dataset.cases)} cases in {destination}")
    finally:
        status = cli.report_failures(failures, work="conversion")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("echoplan_convert_dataset", "Convert a dataset into EchoPlan's raw format.")
    parser.add_argument("layout", choices=tuple(CONVERTERS), help="how the source is laid out")
    parser.add_argument("source", type=cli.existing_path, metavar="SOURCE", help="the dataset's folder")
    parser.add_argument("-d", required=True, metavar="NAME", help="the new dataset's name")
    parser.add_argument("--id", type=int, default=None, metavar="N", help="its number; by default the next free one")
    parser.add_argument("--structures", choices=tuple(STRUCTURES), default="lv", help="the LV alone, or all")
    parser.add_argument("--csv", default=None, metavar="FILE", help="folder: the CSV (default cases.csv)")
    parser.add_argument("--labels", nargs="+", default=None, metavar="NAME",
                        help="folder, with --structures all: what 1, 2, 3, ... mean (default LV MYO LA)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="convert again what exists")
    cli.add_processes(parser)
    return parser
