"""echoplan_preprocess."""

from __future__ import annotations

from collections.abc import Sequence

from echoplan.cli import add_plans_name, add_processes, command, folders, parser, report_failures
from echoplan.dataset import EchoDataset
from echoplan.plans import Plan

from .dataset import preprocess_dataset


@command
def preprocess(arguments: Sequence[str]) -> int:
    """Crop, resample and store the clips of planned datasets."""
    options = parser("echoplan_preprocess", "Crop, resample and store the clips of datasets that have a plan.")
    options.add_argument("-d", "--dataset", nargs="+", required=True, metavar="NAME", help="names or ids of datasets")
    options.add_argument("-tr", "--trainers", nargs="+", metavar="TRAINER", help="only what these trainers need")
    options.add_argument("--overwrite", action="store_true", help="do finished cases again")
    add_plans_name(options)
    add_processes(options)
    chosen = options.parse_args(arguments)
    # A trainer of the user's own, path/to/file.py:Class, is in the plan by its class's name.
    trainers = None if chosen.trainers is None else [name.rpartition(":")[2] for name in chosen.trainers]
    status = 0
    for name in chosen.dataset:
        where = folders()
        dataset = EchoDataset.read(where.find_raw(name))
        plan = Plan.read(where.preprocessed / dataset.folder.name / f"{chosen.plans_name}.json")
        results = preprocess_dataset(
            where, dataset, plan, trainers=trainers, processes=chosen.np, overwrite=chosen.overwrite
        )
        print(f"{dataset.folder.name}: {len(results.done)} cases are preprocessed")
        status |= report_failures(results.failures, work=f"preprocessing {dataset.folder.name}")
    return status
