"""echoplan_extract_fingerprint, echoplan_plan_experiment, echoplan_plan_and_preprocess."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from echoplan import layout
from echoplan.case_warnings import few, lines_of
from echoplan.cli import folders, report_failures
from echoplan.dataset import DatasetDescription, EchoDataset
from echoplan.errors import EchoPlanError, printable
from echoplan.files import read_json, write_json
from echoplan.multi_dataset import MultiDataset
from echoplan.paths import Folders
from echoplan.plans import Configuration, Decision, Plan, ResolvedPlan

from ..preprocessing.commands import preprocess_planned
from ..training.methods import Method, find_method, method_registry
from .fingerprint import current_fingerprint, joint_fingerprint
from .fingerprint import extract_fingerprint as measure_dataset
from .gpu_check import check_batch
from .integrity import verify_dataset
from .planner import plan_experiment as make_plan
from .splits import Splits, joint_splits, paper_split, write_fixed_splits, write_splits

logger = logging.getLogger(__name__)
_MOST_LINES = 9  # of a plan at a glance; the tenth says where the rest is


def extract_fingerprint(chosen: argparse.Namespace) -> int:
    """Measure datasets."""
    return max(
        report_failures(_fingerprint(folders(), name, chosen), work=f"measuring {name}") for name in chosen.dataset
    )


def plan_experiment(chosen: argparse.Namespace) -> int:
    """Plan datasets whose fingerprint is there."""
    return max(_plan(folders(), name, chosen) for name in chosen.dataset)


def plan_and_preprocess(chosen: argparse.Namespace) -> int:
    """Fingerprint, plan and preprocessing in one go."""
    where = folders().absolute() if chosen.engine else folders()
    return max(_plan_and_preprocess(where, name, chosen) for name in chosen.dataset)


def _plan_and_preprocess(where: Folders, name: str, chosen: argparse.Namespace) -> int:
    failures = _fingerprint(where, name, chosen)
    try:
        _plan(where, name, chosen)
        if not chosen.no_preprocess:
            failures |= preprocess_planned(where, name, chosen)
    finally:  # an error in between must not hide the broken cases that may have caused it
        status = report_failures(failures, work=f"planning and preprocessing {name}")
    return status


def _fingerprint(where: Folders, name: str, chosen: argparse.Namespace) -> dict[str, str]:
    """Measure, and say why which cases are left out; of several datasets, each that is not measured yet."""
    dataset = MultiDataset.read(where, name)
    if chosen.verify_dataset_integrity:
        for source in dataset.sources:
            _verify(source.raw, where.preprocessed / source.raw.folder.name, chosen.np)
    for own, structures in dataset.left_out.items():
        print(f"{', '.join(structures)} of {own} is background in {dataset.name}: not all its datasets have it")
    fingerprints = {}
    for source in dataset.sources:
        home = where.preprocessed / source.raw.folder.name
        kept = current_fingerprint(home / layout.FINGERPRINT_FILE, source.raw) if dataset.several else None
        fingerprints[source.name] = kept or _write_fingerprint(
            home, source.raw.description, measure_dataset(source.raw, processes=chosen.np)
        )
    together = next(iter(fingerprints.values()))
    if dataset.several:
        home = where.preprocessed / dataset.name
        together = _write_fingerprint(home, dataset.description, joint_fingerprint(dataset, fingerprints))
    failures: dict[str, str] = together["failed_cases"]
    return failures


def _write_fingerprint(home: Path, description: DatasetDescription, fingerprint: dict[str, Any]) -> dict[str, Any]:
    write_json(home / layout.FINGERPRINT_FILE, fingerprint)
    write_json(home / layout.DATASET_FILE, description.to_dict())
    print(f"{home.name}: {len(fingerprint['cases'])} clips measured, {home / layout.FINGERPRINT_FILE}")
    return fingerprint


def _verify(dataset: EchoDataset, home: Path, processes: int) -> None:
    findings = verify_dataset(dataset, processes=processes)
    warnings: dict[str, list[tuple[str, str]]] = {}
    for line in findings.warnings:
        case, _, text = line.partition(": ")
        warnings.setdefault(case, []).append((re.sub(r"\d[\d.]*", "", text), text))  # a kind, whatever its numbers
    lines = lines_of(warnings, of=len(dataset.cases))
    for line in lines:
        print(printable(f"warning: {line}"), file=sys.stderr)
    if len(lines) < len(findings.warnings):
        write_json(home / layout.INTEGRITY_FILE, {"warnings": findings.warnings, "problems": findings.problems})
        print(f"every warning is in {home / layout.INTEGRITY_FILE}", file=sys.stderr)
    for line in findings.problems:
        print(f"problem: {line}", file=sys.stderr)
    if findings.problems:
        raise EchoPlanError(
            f"{len(findings.problems)} problem(s) in the dataset, listed above",
            file=dataset.folder,
            remedy="mend them first",
        )
    print(f"{dataset.folder.name}: no problem found in {len(dataset.cases)} cases")


def _plan(where: Folders, name: str, chosen: argparse.Namespace) -> int:
    dataset = MultiDataset.read(where, name)
    home = where.preprocessed / dataset.name
    plan = make_plan(
        _read_fingerprint(home / layout.FINGERPRINT_FILE, name),
        dataset.description,
        trainers=method_registry() if chosen.trainers is None else _named(chosen.trainers),
        gpu_memory_gb=chosen.gpu_memory_target,
        protocol="stretch" if chosen.protocol == "paper" else "aspect",
        published="" if dataset.several else dataset.sources[0].raw.description.published,
        size=chosen.size,
        frames=chosen.frames,
        plans_name=chosen.plans_name,
        check=None if chosen.no_gpu_check else check_batch,
    )
    file = home / layout.plan_file(chosen.plans_name)
    _with_earlier(plan, file).write(file)
    write_json(home / layout.DATASET_FILE, dataset.description.to_dict())
    _write_folds(where, dataset, name)
    _write_paper_splits(home, dataset, plan)
    print(describe_plan(plan) if chosen.verbose else summarise_plan(plan))
    print(f"written: {file}{'' if chosen.verbose else ' (all decisions, and why; --verbose prints them)'}")
    return 0


def _read_fingerprint(file: Path, name: str) -> dict[str, Any]:
    if not file.is_file():
        raise EchoPlanError(
            "the dataset is not measured yet", file=file, remedy=f"run echoplan_extract_fingerprint -d {name}"
        )
    return read_json(file)


def _with_earlier(plan: Plan, file: Path) -> Plan:
    """Also the trainers planned before, where nothing that they rest on has changed."""
    try:
        return plan.with_trainers_of(Plan.read(file)) if file.is_file() else plan
    except EchoPlanError as error:
        logger.warning("the plan that is there is replaced: %s", error)
        return plan


def _write_folds(where: Folders, dataset: MultiDataset, name: str) -> None:
    """Each dataset's own folds, made where there are none yet; of several datasets also those, united."""
    splits = {}
    for source in dataset.sources:
        home = where.preprocessed / source.raw.folder.name
        fingerprint = _read_fingerprint(home / layout.FINGERPRINT_FILE, name)
        splits[source.name] = _write_splits(home / layout.SPLITS_FILE, source.raw, fingerprint)
    if dataset.several:
        path = where.preprocessed / dataset.name / layout.SPLITS_FILE
        write_fixed_splits(path, joint_splits(dataset, splits))
        print(f"fold k of each dataset is part of fold k of the joint: {path}")


def _write_paper_splits(home: Path, dataset: MultiDataset, plan: Plan) -> None:
    """The papers' splits that trainers of the plan take, made of all labelled cases, the test cases too."""
    wanted = {plan.resolve(trainer).split for trainer in plan.trainers} - {"folds"}
    for split in sorted(wanted):
        path, raw = home / layout.split_file(split), dataset.sources[0].raw
        parts = paper_split(raw, split)
        write_fixed_splits(path, [parts])
        counts = ", ".join(f"{len(cases)} {part}" for part, cases in parts.items())
        print(f"the papers' split by {split}: {counts}: {path}")


def _write_splits(path: Path, dataset: EchoDataset, fingerprint: dict[str, Any]) -> Splits:
    """Folds of the cases that could be read and have labels: no other can train or validate."""
    usable = {name for name, measured in fingerprint["cases"].items() if measured["labelled_frames"]}
    unlabelled = sorted(set(fingerprint["cases"]) - usable)
    if unlabelled:
        logger.warning("%d cases without a labelled frame, and so in no fold: %s", len(unlabelled), few(unlabelled))
    splits = write_splits(path, [case for case in dataset.training_cases() if case.case in usable])
    sizes = ", ".join(str(len(fold["val"])) for fold in splits)
    print(f"{len(splits)} folds, {sizes} clips to validate on: {path}")
    return splits


def _named(trainers: Sequence[str]) -> dict[str, Method[Any]]:
    """The methods that -tr names, by their own names."""
    return {method.name: method for method in map(find_method, trainers)}


def summarise_plan(plan: Plan) -> str:
    """The plan at a glance, in nine lines at most: what holds for all, then trainers with their batch."""
    hardware = {name: _value(decision.value) for name, decision in plan.hardware.items()}
    common = plan.resolve("", configuration="frame")
    lines = [
        f"Plan {plan.plans_name} of {plan.dataset} for {hardware.get('gpu_memory_target_gb', '?')} GB of GPU memory "
        f"(GPU here: {hardware.get('device', 'unknown')})",
        f"crop {_of_each(common, 'crop')}, {_of_each(common, 'normalisation')}, flips "
        f"{_of_each(common, 'mirror_axes')}, rotations to {_of_each(common, 'rotation_degrees')} degrees, protocol "
        f"{_of_each(common, 'protocol')}",
        f"{'trainer':20} {'input':>11} {'frames':>6} {'stride':>6} {'batch':>5}  learning rate",
    ]
    rows = []
    for trainer in plan.trainers:
        own = plan.resolve(trainer)
        names = ("size", "frames", "frame_stride", "batch_size", "learning_rate")
        size, frames, stride, batch, rate = (_of_each(own, name) for name in names)
        rows.append(f"{trainer:20} {size:>11} {frames:>6} {stride:>6} {batch:>5}  {rate}")
    most = _MOST_LINES - len(lines)
    if len(rows) > most:
        rows = [*rows[: most - 1], f"and {len(rows) - most + 1} trainers more"]
    return "\n".join([*lines, *rows])


def _of_each(plan: ResolvedPlan, name: str) -> str:
    """A decision's value, or those of several datasets where they differ."""
    return " / ".join(dict.fromkeys(_value(own.value(name)) for own in plan.each().values()))


def describe_plan(plan: Plan) -> str:
    """The plan, one line a decision: name, value, and the rule behind it."""
    lines = [f"Plan {plan.plans_name} of {plan.dataset}", "", "hardware", *_decision_lines(plan.hardware)]
    for title, group in (("configuration", plan.configurations), ("trainer", plan.trainers)):
        for configuration in group.values():
            lines += ["", f"{title} {configuration.name}{_parent(configuration)}"]
            lines += _decision_lines(configuration.decisions)
            for dataset, decisions in configuration.datasets.items():
                lines += [f"  of {dataset}:", *(f"  {line}" for line in _decision_lines(decisions))]
    return "\n".join(lines)


def _parent(configuration: Configuration) -> str:
    return f" (else as configuration {configuration.inherits_from})" if configuration.inherits_from else ""


def _decision_lines(decisions: Mapping[str, Decision]) -> list[str]:
    return [f"  {name}: {_value(decision.value)}, because: {decision.rule}" for name, decision in decisions.items()]


def _value(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        numbers = bool(value) and all(isinstance(item, (int, float)) for item in value)
        return (" x " if numbers else ", ").join(map(_value, value)) or "none"
    return str(value)
