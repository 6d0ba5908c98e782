"""echoplan_preprocess."""

from __future__ import annotations

from collections.abc import Sequence

from echoplan import layout
from echoplan.cli import add_plans_name, add_processes, command, folders, parser, report_failures
from echoplan.cluster import add_engine, check_engine
from echoplan.cluster_map import ClusterCases
from echoplan.joint import home_name, read_dataset
from echoplan.plans import Plan

from .dataset import preprocess_dataset


@command
def preprocess(arguments: Sequence[str]) -> int:
    """Crop, resample and store the clips of planned datasets."""
    options = parser("echoplan_preprocess", "Crop, resample and store the clips of datasets that have a plan.")
    options.add_argument("-d", "--dataset", nargs="+", required=True, metavar="NAME",
                         help="names or ids of datasets; A+B for a joint")  # fmt: skip
    options.add_argument("-tr", "--trainers", nargs="+", metavar="TRAINER", help="only what these trainers need")
    options.add_argument("--overwrite", action="store_true", help="do finished cases again")
    add_plans_name(options)
    add_processes(options)
    add_engine(options)
    chosen = options.parse_args(arguments)
    check_engine(chosen)
    # A trainer of the user's own, path/to/file.py:Class, is in the plan by its class's name.
    trainers = None if chosen.trainers is None else [name.rpartition(":")[2] for name in chosen.trainers]
    status = 0
    where = folders().absolute() if chosen.engine else folders()
    engine = ClusterCases(where.preprocessed, where.raw, chosen.address) if chosen.engine else None
    for name in chosen.dataset:
        dataset = read_dataset(where, name)
        home = home_name(dataset)
        plan = Plan.read(where.preprocessed / home / layout.plan_file(chosen.plans_name))
        results = preprocess_dataset(
            where, dataset, plan, trainers=trainers, processes=chosen.np, overwrite=chosen.overwrite, engine=engine
        )
        print(f"{home}: {len(results.done)} cases are preprocessed")
        status |= report_failures(results.failures, work=f"preprocessing {home}")
    return status
