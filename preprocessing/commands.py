"""echoplan_preprocess."""

from __future__ import annotations

import argparse
from contextlib import nullcontext

from echoplan import layout
from echoplan.cli import folders, report_failures
from echoplan.cluster import connected
from echoplan.cluster_map import ClusterMap
from echoplan.multi_dataset import MultiDataset
from echoplan.paths import Folders
from echoplan.plans import Plan

from .dataset import preprocess_dataset


def preprocess(chosen: argparse.Namespace) -> int:
    """Crop, resample and store the clips of planned datasets."""
    where = folders().absolute() if chosen.engine else folders()
    return max(
        report_failures(preprocess_planned(where, name, chosen), work=f"preprocessing {name}")
        for name in chosen.dataset
    )


def preprocess_planned(where: Folders, name: str, chosen: argparse.Namespace) -> dict[str, str]:
    """Preprocess a planned dataset with a command's options, and say why which cases are left out."""
    dataset = MultiDataset.read(where, name)
    plan = Plan.read(where.preprocessed / dataset.name / layout.plan_file(chosen.plans_name))
    # A trainer of the user's own, path/to/file.py:Class, is in the plan by its class's name.
    trainers = None if chosen.trainers is None else [trainer.rpartition(":")[2] for trainer in chosen.trainers]
    with connected(chosen.address) if chosen.engine else nullcontext() as cluster:
        results = preprocess_dataset(
            where,
            dataset,
            plan,
            trainers=trainers,
            processes=chosen.np,
            overwrite=chosen.overwrite,
            engine=None if cluster is None else ClusterMap(cluster, {"CPU": 1.0}, where.preprocessed, (where.raw,)),
        )
    print(f"{dataset.name}: {len(results.done)} cases are preprocessed")
    return results.failures
