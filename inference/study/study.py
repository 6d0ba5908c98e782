"""A study made ready: its trainings with their folders, plans and patients, and what study.json remembers of it."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from echoplan import __version__, layout
from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path, plain, read_json, sha256_of, write_json
from echoplan.networks.complexity import count_parameters
from echoplan.paths import Folders
from echoplan.plans import Configuration, Plan, ResolvedPlan

from ...training.fold import FoldSetup
from ...training.methods import find_method
from ...training.train_fold import FoldJob
from .grid import (
    Cell,
    StudyRequest,
    class_name,
    drawn_patients,
    make_cells,
    patients_asked,
    with_clip_length,
)

STUDIES = "studies"
_FIXED = ("dataset", "plans_name", "settings", "trainer_settings")
_BYTES = 4  # a float32 weight


@dataclass(frozen=True)
class Training:
    """One fold of one cell: what is trained in one go."""

    cell: Cell
    fold: int
    job: FoldJob
    setup: FoldSetup

    @property
    def name(self) -> str:
        """As failures name it."""
        return f"{self.cell.name} fold {self.fold}"

    @property
    def finished(self) -> bool:
        """Trained to its end and validated."""
        return (self.setup.folder / layout.checkpoint_file("final")).is_file() and self.summary.is_file()

    @property
    def started(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return (self.setup.folder / layout.checkpoint_file("latest")).is_file()

    @property
    def summary(self) -> Path:
        """The validation's figures."""
        return self.setup.folder / layout.VALIDATION / layout.SUMMARY_FILE


@dataclass(frozen=True)
class Study:
    """A study whose request fits the dataset.

    Attributes:
        request: what was asked for.
        folder: results/<Dataset>/studies/<name>.
        trainings: all of them, in the order to train.
        setups: (trainer, fold) -> the whole fold as the dataset's plan has it.
        patients: case -> patient, of the cases of the folds.
        weights: trainer's class name -> the SHA-256 of the file of weights that was named to start from.
    """

    request: StudyRequest
    folder: Path
    trainings: tuple[Training, ...]
    setups: Mapping[tuple[str, int], FoldSetup]
    patients: Mapping[str, str]
    weights: Mapping[str, str] = field(default_factory=dict)

    @property
    def description(self) -> Any:
        """The dataset's labels."""
        return next(iter(self.setups.values())).description

    @property
    def results(self) -> Path:
        """The dataset's results folder."""
        return self.folder.parent.parent

    def largest(self) -> set[str]:
        """The training sizes with the most patients of those asked for."""
        available = len({self.patients[case] for case in next(iter(self.setups.values())).train})
        most = max(patients_asked(size, available) for size in self.request.sizes)
        return {size for size in self.request.sizes if patients_asked(size, available) == most}

    def disk_bytes(self) -> int:
        """About what the trainings that are not finished will leave: checkpoints and validation probabilities."""
        weights: dict[tuple[str, int], int] = {}
        frames: dict[int, int] = {}
        total = 0
        for training in self.trainings:
            if training.finished:
                continue
            setup, key = training.setup, (training.cell.trainer, training.cell.frames)
            if key not in weights:
                weights[key] = _parameters(training)
            # final, best, and latest with up to two numbers a weight of the optimiser's
            total += weights[key] * _BYTES * 5
            if training.fold not in frames:
                frames[training.fold] = sum(case.native_frames for case in setup.stored_cases(setup.val))
            total += frames[training.fold] * setup.plan.size[0] * setup.plan.size[1] * setup.description.classes // 4
        return total

    def write(self) -> None:
        """Remember the study: its fixed settings, every cell ever asked for, and the versions.

        Raises:
            EchoPlanError: a study of this name was begun with other settings, another plan or other weights.
        """
        file = self.folder / layout.STUDY_FILE
        before = read_json(file) if file.is_file() else {}
        request = plain(asdict(self.request))
        plans = {setup_trainer: _digest(setup.plan) for (setup_trainer, _), setup in self.setups.items()}
        fixed = {name: request[name] for name in _FIXED}
        fixed["dataset"] = self.results.name
        self._check_unchanged(file, before, fixed, plans)
        fixed["trainer_settings"] = {**before.get("trainer_settings", {}), **fixed["trainer_settings"]}
        asked = {training.cell.name: training.cell.to_dict() for training in self.trainings}
        write_json(
            file,
            {
                **fixed,
                "asked_last": request,
                "cells": {**before.get("cells", {}), **asked},
                "plans": {**before.get("plans", {}), **plans},
                "weights": {**before.get("weights", {}), **self.weights},
                "versions": {
                    "echoplan": __version__,
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "numpy": np.__version__,
                },
            },
        )

    def _check_unchanged(
        self, file: Path, before: Mapping[str, Any], fixed: Mapping[str, Any], plans: Mapping[str, str]
    ) -> None:
        if not before:
            return
        changed = [name for name, value in fixed.items() if name != "trainer_settings" and before[name] != value]
        theirs, ours = before["trainer_settings"], fixed["trainer_settings"]
        known = {cell["trainer"] for cell in before["cells"].values()}
        changed += [
            f"settings of {class_name(name)}"
            for name in known & set(self.request.trainers)
            if theirs.get(class_name(name)) != ours.get(class_name(name))
        ]
        changed += [f"plan of {name}" for name in plans if before["plans"].get(name, plans[name]) != plans[name]]
        weights = before.get("weights", self.weights)  # an earlier EchoPlan remembered none
        changed += [
            f"file of weights for {name}"
            for name in map(class_name, sorted(known & set(self.request.trainers)))
            if weights.get(name) != self.weights.get(name)
        ]
        if changed:
            raise EchoPlanError(
                f"the study {self.request.name} was begun with another {', another '.join(changed)}",
                file=file,
                remedy="type the same again, or give another --name: trainings of one study must be comparable",
            )


def cells_of(folder: Path) -> list[Cell]:
    """Every cell that was ever asked for in a study's folder.

    Raises:
        EchoPlanError: there is no study.json, or it is something else.
    """
    try:
        cells = read_json(folder / layout.STUDY_FILE)["cells"].values()
        return [Cell(**{**content, "settings": tuple(content.get("settings", ()))}) for content in cells]
    except (KeyError, TypeError, AttributeError) as error:
        raise EchoPlanError(f"this is no study: {error!r}", file=folder / layout.STUDY_FILE) from error


def plan_study(
    where: Folders,
    request: StudyRequest,
    *,
    cells: Sequence[Cell] | None = None,
    weights: Mapping[str, Path] | None = None,
    processes: int = 0,
) -> Study:
    """Check a request against the dataset, and lay out its trainings; nothing is written.

    Args:
        where: raw, preprocessed, results.
        request: what was asked for.
        cells: what is trained, with the frames of its trainer's plan; None: every combination of the request.
        weights: trainer -> a file with weights to start from.
        processes: data-loading workers of the trainings.

    Raises:
        EchoPlanError: the request makes no sense, a trainer or setting does not exist, the dataset is not planned or
            preprocessed for a trainer, or a fold has fewer patients than asked for.
    """
    request.check()
    for cell in make_cells(request, dict.fromkeys(request.trainers, 1)):
        find_method(cell.trainer).with_settings(request.settings_of(cell))
    setups = {
        (trainer, fold): FoldJob(request.dataset, fold, trainer=trainer, plans_name=request.plans_name).setup(where)
        for trainer in request.trainers
        for fold in request.folds
    }
    first = next(iter(setups.values()))
    cases = dict.fromkeys(case for setup in setups.values() for case in (*setup.train, *setup.val))
    patients = {case: first.store.case(case).patient for case in cases}
    _check_sizes(request, setups, patients)
    for name in request.test_on:
        if where.find_raw(name).name == first.model_folder.parent.name:
            raise EchoPlanError(f"{name} is what the study trains on", remedy="--test_on names other datasets")
    folder = first.model_folder.parent / STUDIES / request.name
    frames = {trainer: setups[trainer, request.folds[0]].plan.frames for trainer in request.trainers}
    if cells is None:
        cells = make_cells(request, frames)
    else:
        cells = [replace(cell, frames=frames[cell.trainer]) for cell in cells]
    files = weights or {}
    trainings = tuple(
        _training(request, cell, setups[cell.trainer, fold], folder, patients, processes, files.get(cell.trainer))
        for cell in cells
        for fold in request.folds
    )
    digests = {class_name(trainer): sha256_of(file) for trainer, file in files.items()}
    return Study(request, folder, trainings, setups, patients, digests)


def trainings_of(study: Study, cells: list[Cell]) -> Iterator[tuple[Cell, Path]]:
    """Each cell's model folder, whichever plan its trainer has."""
    for cell in cells:
        for model in sorted((study.folder / "cells" / cell.name).glob(f"{cell.method}__*__*")):
            yield cell, model


def validated_folds(model: Path) -> list[int]:
    """The folds of a model folder that are trained to their end and validated."""
    return [
        fold
        for fold in layout.finished_folds(model)
        if (model / layout.fold_folder(fold) / layout.VALIDATION / layout.SUMMARY_FILE).is_file()
    ]


def _check_sizes(
    request: StudyRequest, setups: Mapping[tuple[str, int], FoldSetup], patients: Mapping[str, str]
) -> None:
    for fold in request.folds:
        there = {patients[case] for case in setups[request.trainers[0], fold].train}
        counts: dict[int, str] = {}
        for size in request.sizes:
            count = len(drawn_patients(there, patients_asked(size, len(there)), fold=fold, seed=0))
            if count in counts:
                raise EchoPlanError(
                    f"the training sizes {counts[count]} and {size} are the same {count} patients of fold {fold}",
                    remedy="leave one of them out",
                )
            counts[count] = size


def _training(
    request: StudyRequest,
    cell: Cell,
    whole: FoldSetup,
    folder: Path,
    patients: Mapping[str, str],
    processes: int,
    weights: Path | None,
) -> Training:
    """The fold with the cell's part of the patients, its clip length, and its own folder."""
    there = [patients[case] for case in whole.train]
    drawn = set(drawn_patients(there, patients_asked(cell.size, len(set(there))), fold=whole.fold, seed=cell.seed))
    setup = replace(
        whole,
        train=tuple(case for case in whole.train if patients[case] in drawn),
        model_folder=folder / "cells" / cell.name / whole.model_folder.name,
    )
    if request.clip_lengths and cell.frames > 1:
        setup = replace(
            setup,
            plan=with_clip_length(whole.plan, cell.frames),
            preprocessed=_plan_folder(folder, cell.frames),
            labels=whole.references,
        )
    job = FoldJob(
        request.dataset,
        whole.fold,
        trainer=cell.trainer,
        settings=request.settings_of(cell),
        plans_name=request.plans_name,
        seed=cell.seed,
        processes=processes,
        weights=weights,
    )
    return Training(cell, whole.fold, job, setup)


def write_plans(study: Study) -> None:
    """The dataset's plan with each clip length that the study asks for, where model folders take it from, and what
    they copy beside it.

    Raises:
        EchoPlanError: the dataset's plan cannot be read.
    """
    fold = study.request.folds[0]
    setups = {class_name(trainer): study.setups[trainer, fold] for trainer in study.request.trainers}
    clips = {name: setup for name, setup in setups.items() if setup.plan.frames > 1}
    first = next(iter(setups.values()))
    file = layout.plan_file(first.plan.plans_name)
    for frames in study.request.clip_lengths if clips else ():
        folder, plan = _plan_folder(study.folder, frames), Plan.read(first.preprocessed / file)
        trainers = dict(plan.trainers)
        for name, setup in clips.items():
            own = plan.trainers.get(name) or Configuration(name, {}, inherits_from=setup.plan.configuration)
            asked = with_clip_length(setup.plan, frames)
            trainers[name] = replace(own, decisions=asked.decisions, datasets=asked.datasets)
        replace(plan, trainers=trainers).write(folder / file)
        for beside in (layout.DATASET_FILE, layout.FINGERPRINT_FILE):
            if (first.preprocessed / beside).is_file():
                with atomic_path(folder / beside) as temporary:
                    shutil.copyfile(first.preprocessed / beside, temporary)


def _plan_folder(study: Path, frames: int) -> Path:
    return study / "plans" / f"T{frames}"


def _parameters(training: Training) -> int:
    """Of the network, built without memory for its weights."""
    setup, method = training.setup, training.job.method(training.setup.plan)
    with torch.device("meta"):
        network = method.build_network(size=setup.plan.size, classes=setup.description.classes)
    return count_parameters(network)


def _digest(plan: ResolvedPlan) -> str:
    """What a training depends on: the decisions' values, not their reasons."""
    values = {name: decision.value for name, decision in plan.decisions.items()}
    return hashlib.sha256(json.dumps(plain(values), sort_keys=True).encode()).hexdigest()
