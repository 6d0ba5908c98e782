"""`echoplan_convert_dataset` and `echoplan_make_phantom`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from echoplan import cli, layout
from echoplan.dataset import EchoDataset
from echoplan.datasets.building import STRUCTURES
from echoplan.datasets.camus import convert_camus
from echoplan.datasets.echonet_dynamic import convert_echonet_dynamic
from echoplan.datasets.folder import convert_folder
from echoplan.datasets.phantom.patient import PhantomSettings
from echoplan.datasets.phantom.write import LABELS, LAYOUTS, make_phantom_dataset
from echoplan.errors import EchoPlanError
from echoplan.files import sweep_partial_files

CONVERTERS: dict[str, Callable[..., EchoDataset]] = {
    "camus": convert_camus, "echonet_dynamic": convert_echonet_dynamic, "folder": convert_folder,
}  # fmt: skip


@cli.command()
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
    parser.add_argument("--csv", default=None, metavar="FILE", help=f"folder: the CSV (default {layout.CASES_FILE})")
    parser.add_argument("--labels", nargs="+", default=None, metavar="NAME",
                        help="folder, with --structures all: what 1, 2, 3, ... mean (default LV MYO LA)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="convert again what exists")
    cli.add_processes(parser)
    return parser


@cli.command()
def make_phantom(arguments: Sequence[str]) -> int:
    """Make a dataset of simulated patients of known volume; returns 0, or 1 if a patient failed."""
    options = cli.parser("echoplan_make_phantom", "Make a dataset of simulated echocardiograms with known volumes.")
    options.add_argument("-d", required=True, metavar="NAME", help="the dataset's name")
    options.add_argument("--id", type=int, default=None, help="the dataset's id; the next free one if not given")
    options.add_argument("--patients", type=int, default=20, help="patients for training")
    options.add_argument("--test_patients", type=int, default=0, help="patients more for testing")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument(
        "--size", type=int, nargs="+", default=[160], metavar="PIXELS", help="rows, and columns where they differ"
    )
    options.add_argument("--labels", choices=LABELS, default="dense", help="which frames have labels")
    options.add_argument("--structures", choices=tuple(STRUCTURES), default="lv")
    options.add_argument("--layout", choices=LAYOUTS, default="raw", help="raw format, or as a public release lies")
    options.add_argument("--out", type=Path, default=None, help="folder for the layouts camus and echonet_dynamic")
    options.add_argument("--whole_beat", action="store_true", help="a whole beat, not only end-diastole to end-systole")
    options.add_argument(
        "--quality", type=float, nargs=2, default=list(PhantomSettings.quality), metavar=("FROM", "TO"),
        help="range of the image quality, 0 poor to 1 good",
    )  # fmt: skip
    cli.add_processes(options)
    chosen = options.parse_args(arguments)
    if len(chosen.size) > 2:
        options.error("--size takes one or two numbers")

    destination = _phantom_destination(chosen.d, chosen.id, chosen.layout, chosen.out)
    results = make_phantom_dataset(
        destination,
        patients=chosen.patients,
        seed=chosen.seed,
        layout=chosen.layout,
        labels=chosen.labels,
        structures=chosen.structures,
        test_patients=chosen.test_patients,
        settings=PhantomSettings(
            size=(chosen.size[0], chosen.size[-1]), whole_beat=chosen.whole_beat, quality=tuple(chosen.quality)
        ),
        processes=chosen.np,
    )
    print(f"{len(results.done)} patients in {destination}")
    return cli.report_failures(results.failures, work="making phantoms")


def _phantom_destination(name: str, dataset_id: int | None, phantom_layout: str, out: Path | None) -> Path:
    if phantom_layout == "raw":
        if out is not None:
            raise EchoPlanError(
                "--out is for the layouts camus and echonet_dynamic",
                remedy="leave it out; the raw folder is where echoplan_raw says",
            )
        return cli.folders().new_dataset_folder(name, dataset_id=dataset_id)
    if out is None:
        raise EchoPlanError(f"the layout {phantom_layout} needs a folder", remedy="say where with --out FOLDER")
    return out
