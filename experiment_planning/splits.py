"""Cross-validation folds: patients never part, and each fold looks like the whole."""

from __future__ import annotations

import logging
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from echoplan import layout
from echoplan.dataset import Case, EchoDataset
from echoplan.errors import EchoPlanError
from echoplan.files import read_json, write_json
from echoplan.multi_dataset import MultiDataset

logger = logging.getLogger(__name__)

Splits = list[dict[str, list[str]]]


def make_splits(cases: Iterable[Case], *, folds: int = 5, seed: int = 12345) -> Splits:
    """Deal patients into folds, stratified by ejection fraction (thirds of the patients) and by the views they have.

    Test cases stay out. Cases that the dataset marks as "val" are training material like any other: each case is
    validated on once in cross-validation. Fewer patients than folds make fewer folds, one patient each.

    Args:
        cases: the dataset's cases.
        folds: how many folds.
        seed: of the shuffle within a stratum.

    Returns:
        For each fold {"train": [...], "val": [...]}, case names sorted.

    Raises:
        EchoPlanError: there are fewer than two patients.
    """
    patients: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if case.split != "test":
            patients[case.patient].append(case)
    if len(patients) < 2:
        raise EchoPlanError(
            f"cross-validation needs at least 2 patients, the training cases have {len(patients)}",
            remedy="add patients, or check the column patient of cases.csv",
        )
    if len(patients) < folds:
        logger.warning("%d patients make %d folds instead of %d", len(patients), len(patients), folds)
        folds = len(patients)
    validation: list[list[str]] = [[] for _ in range(folds)]
    for turn, patient in enumerate(_in_strata(patients, seed)):
        # Going on from stratum to stratum keeps the folds' sizes within one patient of each other.
        validation[turn % folds] += [case.case for case in patients[patient]]
    everything = {name for names in validation for name in names}
    return [{"train": sorted(everything - set(names)), "val": sorted(names)} for names in validation]


def write_splits(path: Path, cases: Sequence[Case], *, folds: int = 5, seed: int = 12345) -> Splits:
    """Write splits_final.json; one that is there already is kept, so that trained folds stay comparable.

    Raises:
        EchoPlanError: a file that is there does not fit the dataset, or there are too few patients.
    """
    if not path.is_file():
        splits = make_splits(cases, folds=folds, seed=seed)
        write_json(path, splits)
        return splits
    splits = read_json(path)
    _check_kept_splits(path, splits, {case.case: case for case in cases if case.split != "test"})
    return splits


def joint_splits(dataset: MultiDataset, splits: Mapping[str, Splits]) -> Splits:
    """The datasets' own folds united: fold k trains on nothing that a dataset's fold k validates on.

    A dataset with fewer folds than another has all its cases in training in the folds that it lacks, so that every
    case is validated once.

    Args:
        dataset: the datasets.
        splits: source dataset -> its own folds.
    """
    united: Splits = [{"train": [], "val": []} for _ in range(max(map(len, splits.values())))]
    for source in dataset.sources:
        own = splits[source.name]
        everything = sorted({case for fold in own for case in (*fold["train"], *fold["val"])})
        for number, fold in enumerate(united):
            parts = own[number] if number < len(own) else {"train": everything, "val": []}
            for part, cases in fold.items():
                cases += map(source.case_name, parts[part])
    return united


def paper_split(dataset: EchoDataset, split: str) -> dict[str, list[str]]:
    """The train, val and test cases of a paper's split, of all labelled cases of a dataset; no patient parts.

    Args:
        dataset: the raw dataset.
        split: "number", 7 : 1 : 2 of the patients in the order of their numbers; or "official", as cases.csv has them.

    Raises:
        EchoPlanError: a part is empty.
    """
    cases = [case for case in dataset.cases if case.label is not None]
    if split == "official":
        part_of = {case.case: case.split or "train" for case in cases}
    else:
        patients = sorted({case.patient for case in cases}, key=_by_number)
        place = {patient: (number + 0.5) / len(patients) for number, patient in enumerate(patients)}
        part_of = {
            case.case: "train" if place[case.patient] < 0.7 else "val" if place[case.patient] < 0.8 else "test"
            for case in cases
        }
    parts = {part: sorted(case for case, own in part_of.items() if own == part) for part in ("train", "val", "test")}
    empty = [part for part, names in parts.items() if not names]
    if empty:
        raise EchoPlanError(
            f"the papers' split by {split} has no labelled case for {' and '.join(empty)}",
            file=dataset.folder / layout.CASES_FILE,
            remedy="give the column split train, val and test, or plan without --protocol paper",
        )
    return parts


def _by_number(patient: str) -> list[tuple[int, str]]:
    """patient2 before patient10."""
    return [(int(digits or 0), text) for text, digits in re.findall(r"(\D*)(\d*)", patient)]


def write_fixed_splits(path: Path, splits: Splits) -> None:
    """Write splits that follow from the cases; those that are there must be the same, so that folds stay comparable.

    Raises:
        EchoPlanError: it is another.
    """
    if path.is_file() and read_json(path) != splits:
        raise EchoPlanError(
            "the cases no longer give the splits that are here",
            file=path,
            remedy="put the datasets' cases and their own splits_final.json back, or remove this file to have it made "
            "anew (trained folds are then no longer comparable)",
        )
    write_json(path, splits)


def _check_kept_splits(path: Path, splits: Any, cases: Mapping[str, Case]) -> None:
    remedy = (
        "mend the cases or this file, or remove it to have new folds made (trained folds are then no longer comparable)"
    )
    named: set[str] = set()
    try:
        for number, fold in enumerate(splits):
            named.update(fold["train"], fold["val"])
            unknown = sorted(named - set(cases))
            if unknown:
                raise EchoPlanError(
                    f"fold {number} names cases that are not readable training cases: {', '.join(unknown[:5])}",
                    file=path,
                    remedy=remedy,
                )
            shared = {cases[name].patient for name in fold["train"]} & {cases[name].patient for name in fold["val"]}
            if shared:
                raise EchoPlanError(
                    f"fold {number} trains and validates on the same patients: {', '.join(sorted(shared)[:5])}",
                    file=path,
                    remedy=remedy,
                )
    except (TypeError, KeyError) as error:
        raise EchoPlanError("this is not a list of folds with train and val", file=path, remedy=remedy) from error
    new = sorted(set(cases) - named)
    if new:
        logger.warning(
            "%d cases are in no fold of the kept %s (%s ...); remove the file to have folds made of all cases",
            len(new), path, ", ".join(new[:3]),
        )  # fmt: skip


def _in_strata(patients: Mapping[str, Sequence[Case]], seed: int) -> list[str]:
    """All patients, those of one stratum together and shuffled."""
    fractions = {patient: _mean_ef(cases) for patient, cases in patients.items()}
    known = [value for value in fractions.values() if value is not None]
    edges = np.quantile(known, (1 / 3, 2 / 3)) if known else ()
    strata: dict[tuple[int, str], list[str]] = defaultdict(list)
    for patient, cases in patients.items():
        fraction = fractions[patient]
        third = -1 if fraction is None else int(np.searchsorted(edges, fraction))
        strata[third, "+".join(sorted({case.view for case in cases}))].append(patient)
    shuffle = random.Random(seed)
    ordered = []
    for key in sorted(strata):
        members = sorted(strata[key])
        shuffle.shuffle(members)
        ordered += members
    return ordered


def _mean_ef(cases: Sequence[Case]) -> float | None:
    known = [case.ef_percent for case in cases if case.ef_percent is not None]
    return sum(known) / len(known) if known else None
