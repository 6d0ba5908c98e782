"""echoplan_make_phantom: simulated patients of known volume, to try everything without data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from echoplan.cli import add_processes, command, folders, parser, report_failures
from echoplan.datasets.building import STRUCTURES
from echoplan.errors import EchoPlanError

from .patient import PhantomSettings
from .write import LABELS, LAYOUTS, make_phantom_dataset


@command
def make_phantom(arguments: Sequence[str]) -> int:
    """echoplan_make_phantom: returns 0, or 1 if a patient failed."""
    options = parser("echoplan_make_phantom", "Make a dataset of simulated echocardiograms with known volumes.")
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
    add_processes(options)
    chosen = options.parse_args(arguments)
    if len(chosen.size) > 2:
        options.error("--size takes one or two numbers")

    results = make_phantom_dataset(
        destination := _destination(chosen.d, chosen.id, chosen.layout, chosen.out),
        patients=chosen.patients,
        seed=chosen.seed,
        layout=chosen.layout,
        labels=chosen.labels,
        structures=chosen.structures,
        test_patients=chosen.test_patients,
        settings=PhantomSettings(size=(chosen.size[0], chosen.size[-1]), whole_beat=chosen.whole_beat),
        processes=chosen.np,
    )
    print(f"{len(results.done)} patients in {destination}")
    return report_failures(results.failures, work="making phantoms")


def _destination(name: str, dataset_id: int | None, layout: str, out: Path | None) -> Path:
    if layout == "raw":
        if out is not None:
            raise EchoPlanError(
                "--out is for the layouts camus and echonet_dynamic",
                remedy="leave it out; the raw folder is where echoplan_raw says",
            )
        return folders().new_dataset_folder(name, dataset_id=dataset_id)
    if out is None:
        raise EchoPlanError(f"the layout {layout} needs a folder", remedy="say where with --out FOLDER")
    return out
