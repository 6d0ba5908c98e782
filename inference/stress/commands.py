"""echoplan_stress"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from echoplan import layout
from echoplan.cli import folders, report_failures
from echoplan.dataset import Case, EchoDataset
from echoplan.errors import EchoPlanError
from echoplan.files import read_json
from echoplan.paths import dataset_name

from ..ensemble import PredictorMember
from ..model_selection import choose_models
from ..predictor import EchoPredictor
from .certificate import UNCHANGED, stress_model
from .changes import changes_called

logger = logging.getLogger(__name__)


def stress(options: argparse.Namespace) -> int:
    """echoplan_stress MODEL -d DATASET -o OUT"""
    where, changes = folders(), changes_called(tuple(options.changes))
    dataset = EchoDataset.read(where.find_raw(options.dataset))
    choice = choose_models(where, model_folders=options.models, folds=options.folds, trust_code=options.trust_code)
    predictor = EchoPredictor.from_model_folders(
        choice.members, device=options.device, trust_code=choice.trust_code, coverage=options.coverage
    )
    cases = _unseen(predictor.members, dataset, [c for c in dataset.cases if c.label and _is_in(c, options.split)])
    cases = _of_first_patients(cases, options.patients)
    certificate = stress_model(
        predictor, dataset, cases, options.output, changes, ef_method=options.ef_method, overwrite=options.overwrite
    )
    plain = certificate.rows.iloc[0]
    print(f"{plain['patients']} patients, {UNCHANGED}: Dice {plain['dice_percent']:.1f} %")
    for change in changes:
        own = certificate.rows[certificate.rows["change"] == change.name].dropna(subset=["dice_percent"])
        if own.empty:
            print(f"  {change.name}: no clip can carry it")
            continue
        worst = own.loc[own["dice_percent"].idxmin()]
        print(f"  {change.name}: {worst['dice_percent']:.1f} % at worst, {worst['level']:g} {change.unit}; "
              f"{worst['check_percent']:.0f} % of the patients are then to check")  # fmt: skip
    names = (layout.STRESS_CSV, layout.STRESS_TABLE, layout.STRESS_FIGURE)
    print(f"written: {', '.join(names)} in {options.output}")
    return report_failures(certificate.skipped, work="stressing")


def _is_in(case: Case, split: str) -> bool:
    return split == "all" or (case.split or "train") == split


def _unseen(members: Iterable[PredictorMember], dataset: EchoDataset, cases: Sequence[Case]) -> list[Case]:
    """The cases that the model did not learn from, as far as it tells.

    Raises:
        EchoPlanError: it learned from all of them.
    """
    seen: set[str] = set()
    for member in members:
        if dataset_name(dataset.folder) not in map(dataset_name, map(Path, member.model.plan.datasets)):
            continue
        files = [file for fold, file in layout.folds_with(member.model.path, layout.DEBUG_FILE) if fold in member.folds]
        if not files:
            logger.warning(
                "%s was trained on a dataset of this name and does not tell on which cases: those would look too good",
                member.model.path.name,
            )
        seen |= {case for file in files for case in read_json(file).get("train", ())}
    patients = {case.patient for case in cases if case.case in seen}
    unseen = [case for case in cases if case.case not in seen and (not case.patient or case.patient not in patients)]
    if len(unseen) < len(cases):
        print(f"{len(cases) - len(unseen)} of {len(cases)} clips are of patients that the model learned from: left out")
    if cases and not unseen:
        raise EchoPlanError("the model learned from all of these cases", file=dataset.folder, remedy="give others (-d)")
    return unseen


def _of_first_patients(cases: Sequence[Case], count: int | None) -> list[Case]:
    patients = list(dict.fromkeys(case.patient or case.case for case in cases))[:count]
    return [case for case in cases if (case.patient or case.case) in patients]
