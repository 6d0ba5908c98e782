"""What a study trains: every combination of what was asked for, its patients, and the plan with its clip length."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from echoplan import layout
from echoplan.errors import EchoPlanError
from echoplan.plans import Decision, ResolvedPlan

from ...evaluation.comparison.scores import MASKS
from ...evaluation.ventricle.volumes import VolumeRule
from ...training.recipe import parse_settings

OWN_AUGMENTATION = "own"  # the recipe's, where no policy is asked for
EVERYTHING = "100%"
_SIZE = re.compile(r"(\d+)|(\d+(?:\.\d+)?)%")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class StudyRequest:
    """What a command line asks for.

    Attributes:
        dataset: name, id or folder name.
        trainers: as `-tr` names them.
        name: the study's own.
        sizes: patients to train on: numbers, or shares such as "50%".
        clip_lengths: T of the clip trainers; empty takes the plan's.
        augmentations: policies; empty takes each recipe's own.
        folds, seeds: each training is repeated for every one of them.
        grid: settings to vary, "KEY" or "TRAINER:KEY" -> values as `--set` takes them; every combination is trained.
        settings: changed settings of all recipes.
        trainer_settings: trainer's class name -> changed settings of its recipe alone.
        test_on: other datasets to predict.
        test_every_size: predict them with the trainings on all sizes, not only the largest.
        plans_name: the plan's file name without its ending.
        ef_method, ef_reference: of the EF in the study's tables, see `read_ef_table`; no training depends on them.
    """

    dataset: str
    trainers: tuple[str, ...]
    name: str = "study"
    sizes: tuple[str, ...] = (EVERYTHING,)
    clip_lengths: tuple[int, ...] = ()
    augmentations: tuple[str, ...] = ()
    grid: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folds: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0,)
    settings: Mapping[str, Any] = field(default_factory=dict)
    trainer_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    test_on: tuple[str, ...] = ()
    test_every_size: bool = False
    plans_name: str = layout.DEFAULT_PLANS
    ef_method: VolumeRule | None = None
    ef_reference: str = MASKS

    def check(self) -> None:
        """Check what can be checked without the dataset.

        Raises:
            EchoPlanError: something is asked for twice or makes no sense.
        """
        if not _NAME.fullmatch(self.name):
            raise EchoPlanError(f"{self.name!r} cannot name a study", remedy="use letters, digits, '-', '_' and '.'")
        for words, values in {
            "trainer": [class_name(name) for name in self.trainers],
            "training size": self.sizes,
            "clip length": self.clip_lengths,
            "augmentation": self.augmentations,
            "fold": self.folds,
            "seed": self.seeds,
            "dataset to test on": self.test_on,
            **{f"value of {name}": values for name, values in self.grid.items()},
        }.items():
            twice = sorted({str(value) for value in values if list(values).count(value) > 1})
            if twice:
                raise EchoPlanError(f"a {words} is named twice: {', '.join(twice)}")
        for size in self.sizes:
            patients_asked(size, 1)
        short = [length for length in self.clip_lengths if length < 2]
        if short:
            raise EchoPlanError(f"a clip of {short[0]} frame(s) shows no motion", remedy="give clip lengths from 2 on")
        of_trainers = {name.rpartition(":")[0] for name in self.grid} - {""}
        stray = sorted(({*self.trainer_settings} | of_trainers) - {class_name(name) for name in self.trainers})
        if stray:
            raise EchoPlanError(f"--set or --grid names a trainer that the study does not train: {', '.join(stray)}")

    def settings_of(self, cell: Cell) -> dict[str, Any]:
        """The changed settings of a cell's recipe."""
        policy = {} if cell.augmentation == OWN_AUGMENTATION else {"augmentation": cell.augmentation}
        own = self.trainer_settings.get(cell.method, {})
        return {**self.settings, **own, **policy, **parse_settings(cell.settings)}

    def variants(self, trainer: str) -> list[tuple[str, ...]]:
        """What the grid makes of a trainer's settings: ("key=value", ...) of every combination."""
        axes = [
            [f"{key}={value}" for value in values]
            for name, values in self.grid.items()
            for owner, _, key in (name.rpartition(":"),)
            if owner in ("", class_name(trainer))
        ]
        return list(product(*axes))


@dataclass(frozen=True, order=True)
class Cell:
    """One way to train; its folds lie side by side in one model folder.

    Attributes:
        trainer: as `-tr` names it.
        size: as asked for, "10" or "50%".
        frames: T; 1 for frame trainers, which know no clip length.
        augmentation: the policy, or "own".
        seed: of the weights, the order, the augmentation and the choice of patients.
        settings: "key=value" of the recipe, in which the cell differs from others.
    """

    trainer: str
    size: str
    frames: int
    augmentation: str
    seed: int
    settings: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The trainer class's name."""
        return class_name(self.trainer)

    @property
    def label(self) -> str:
        """As tables name the method: with the settings in which it differs."""
        return f"{self.method} {', '.join(self.settings)}".strip()

    @property
    def name(self) -> str:
        """The cell's folder."""
        size = self.size.replace("%", "pct")
        settings = "".join(f"__{re.sub(r'[^A-Za-z0-9_.-]+', '-', setting)}" for setting in self.settings)
        return f"{self.method}__n{size}__T{self.frames}__{self.augmentation}__s{self.seed}{settings}"

    def to_dict(self) -> dict[str, Any]:
        """As study.json holds it."""
        return asdict(self)


def make_cells(request: StudyRequest, planned_frames: Mapping[str, int]) -> list[Cell]:
    """Every combination, each once: frame trainers are not repeated for clip lengths.

    Args:
        request: what was asked for.
        planned_frames: trainer -> T in its plan; 1 says that it takes single frames.
    """
    return [
        Cell(trainer, size, frames, augmentation, seed, settings)
        for trainer in request.trainers
        for settings in request.variants(trainer)
        for frames in (request.clip_lengths if planned_frames[trainer] > 1 else ()) or (planned_frames[trainer],)
        for augmentation in request.augmentations or (OWN_AUGMENTATION,)
        for size in request.sizes
        for seed in request.seeds
    ]


def class_name(trainer: str) -> str:
    """`Class` of path/to/file.py:Class."""
    return trainer.rpartition(":")[2]


def patients_asked(size: str, available: int) -> int:
    """How many of the available patients "10" or "50%" are; a share is rounded, and at least one patient.

    Raises:
        EchoPlanError: it is neither a number from 1 on nor a share up to 100 %.
    """
    match = _SIZE.fullmatch(size)
    if match and match[1] and int(match[1]) > 0:
        return int(match[1])
    if match and match[2] and 0 < float(match[2]) <= 100:
        return max(1, round(available * float(match[2]) / 100))
    raise EchoPlanError(f"{size!r} is no training size", remedy="give a number of patients, or a share such as 50%")


def drawn_patients(patients: Iterable[str], count: int, *, fold: int, seed: int) -> list[str]:
    """`count` of the patients; a smaller draw of the same fold and seed is always part of a larger one.

    Raises:
        EchoPlanError: there are fewer.
    """
    there = sorted(set(patients))
    if count > len(there):
        raise EchoPlanError(
            f"fold {fold} has {len(there)} patients to train on, and {count} are asked for",
            remedy="ask for fewer, or for 100%",
        )
    order = np.random.default_rng([seed, fold]).permutation(len(there))
    return [there[index] for index in order[:count]]


def with_clip_length(plan: ResolvedPlan, frames: int) -> ResolvedPlan:
    """The resolved plan with clips of T = `frames`, and the `frame_stride` that follows from them.

    A window of T frames goes on spanning the median distance from end-diastole to end-systole, where that is known.
    """
    asked = Decision(frames, "asked for by the study", {"asked_for": frames, "planned": plan.frames}, kind="fixed")
    decisions = {**plan.decisions, "frames": asked, **_strides(plan.decisions, frames)}
    datasets = {name: {**own, **_strides(own, frames)} for name, own in plan.datasets.items()}
    return replace(plan, decisions=decisions, datasets=datasets)


def _strides(decisions: Mapping[str, Decision], frames: int) -> dict[str, Decision]:
    """`frame_stride` by the rule that the plan made it with; nothing where these decisions do not hold it."""
    planned = decisions.get("frame_stride")
    if planned is None:
        return {}
    distance = planned.evidence.get("ed_es_distance_frames")
    stride = planned.value if distance is None else max(1, round(distance["median"] / (frames - 1)))
    return {"frame_stride": Decision(stride, planned.rule, {**planned.evidence, "frames": frames}, planned.kind)}
