"""A joint's fingerprint and folds, made of its datasets' own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echoplan.errors import EchoPlanError
from echoplan.files import read_json, write_json
from echoplan.joint import JointDataset, Member

from .splits import Splits
from .summary import balanced


def join_fingerprints(joint: JointDataset, fingerprints: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The joint's fingerprint, in the form of `extract_fingerprint`, with a summary in which each dataset counts alike.

    Args:
        joint: the datasets.
        fingerprints: dataset -> its own.
    """
    cases, failed = {}, {}
    for member in joint.members:
        own = fingerprints[member.name]
        for case, measured in own["cases"].items():
            cases[member.case_name(case)] = {**measured, "patient": member.case_name(measured["patient"])}
        failed |= {member.case_name(case): reason for case, reason in own["failed_cases"].items()}
    return {
        "dataset": joint.name,
        "cases": cases,
        "summary": balanced({member.name: fingerprints[member.name]["summary"] for member in joint.members}),
        "failed_cases": failed,
    }


def current_fingerprint(file: Path, member: Member) -> dict[str, Any] | None:
    """A dataset's fingerprint where it is there and knows just the cases that the dataset has; else None."""
    if not file.is_file():
        return None
    fingerprint = read_json(file)
    known = {*fingerprint["cases"], *fingerprint["failed_cases"]}
    return fingerprint if known == {case.case for case in member.dataset.training_cases()} else None


def join_splits(joint: JointDataset, splits: Mapping[str, Splits]) -> Splits:
    """The datasets' own folds united: fold k trains on nothing that a dataset's fold k validates on.

    A dataset with fewer folds than another has all its cases in training in the folds that it lacks, so that every
    case is validated once.

    Args:
        joint: the datasets.
        splits: dataset -> its own folds.
    """
    united: Splits = [{"train": [], "val": []} for _ in range(max(map(len, splits.values())))]
    for member in joint.members:
        own = splits[member.name]
        everything = sorted({case for fold in own for case in (*fold["train"], *fold["val"])})
        for number, fold in enumerate(united):
            parts = own[number] if number < len(own) else {"train": everything, "val": []}
            for part, cases in fold.items():
                cases += map(member.case_name, parts[part])
    return united


def write_joint_splits(path: Path, splits: Splits) -> None:
    """Write splits_final.json; one that is there must be the same, so that trained folds stay comparable.

    Raises:
        EchoPlanError: it is another.
    """
    if path.is_file() and read_json(path) != splits:
        raise EchoPlanError(
            "the folds of the datasets are no longer those that were joined here",
            file=path,
            remedy="put the datasets' own splits_final.json back, or remove this one to have the folds joined anew "
            "(trained folds are then no longer comparable)",
        )
    write_json(path, splits)
