"""`echoplan_convert_dataset` and `echoplan_make_phantom`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from echoplan import cli, layout
from echoplan.dataset import EchoDataset
from echoplan.datasets.camus import convert_camus
from echoplan.datasets.echonet_dynamic import convert_echonet_dynamic
from echoplan.datasets.folder import convert_folder
from echoplan.datasets.phantom.patient import PhantomSettings
from echoplan.datasets.phantom.write import make_phantom_dataset
from echoplan.errors import EchoPlanError
from echoplan.files import sweep_partial_files

CONVERTERS: dict[str, Callable[..., EchoDataset]] = {
    "camus": convert_camus, "echonet_dynamic": convert_echonet_dynamic, "folder": convert_folder,
}  # fmt: skip


def convert_dataset(options: argparse.Namespace) -> int:
    """Convert a dataset into the raw format; broken cases are named at the end."""
    settings = {"structures": options.structures, "processes": options.np, "overwrite": options.overwrite}
    if options.layout == "folder":
        settings |= {"csv": options.csv or layout.CASES_FILE, "labels": options.labels}
    destination = cli.folders().new_dataset_folder(options.dataset, dataset_id=options.id)
    sweep_partial_files(destination)
    failures: dict[str, str] = {}
    try:
        dataset = CONVERTERS[options.layout](
            options.source, destination, name=options.dataset, failures=failures, **settings
        )  # fmt: skip
        print(f"{len(dataset.cases)} cases in {destination}")
    finally:
        status = cli.report_failures(failures, work="conversion")
    return status


def make_phantom(chosen: argparse.Namespace) -> int:
    """Make a dataset of simulated patients of known volume; returns 0, or 1 if a patient failed."""
    destination = _phantom_destination(chosen.dataset, chosen.id, chosen.layout, chosen.output)
    results = make_phantom_dataset(
        destination,
        patients=chosen.patients,
        seed=chosen.seed,
        layout=chosen.layout,
        labels=chosen.labelled_frames,
        structures=chosen.structures,
        test_patients=chosen.test_patients,
        settings=PhantomSettings(
            size=chosen.size,
            frames=chosen.frames,
            whole_beat=chosen.whole_beat,
            quality=tuple(chosen.quality),
            randomised=chosen.randomised,
        ),
        processes=chosen.np,
    )
    print(f"{len(results.done)} patients in {destination}")
    return cli.report_failures(results.failures, work="making phantoms")


def _phantom_destination(name: str, dataset_id: int | None, phantom_layout: str, out: Path | None) -> Path:
    if phantom_layout == "raw":
        if out is not None:
            raise EchoPlanError(
                "--output is for the layouts camus and echonet_dynamic",
                remedy="leave it out; the raw folder is where echoplan_raw says",
            )
        return cli.folders().new_dataset_folder(name, dataset_id=dataset_id)
    if out is None:
        raise EchoPlanError(f"the layout {phantom_layout} needs a folder", remedy="say where with -o FOLDER")
    return out
