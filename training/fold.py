"""What the training of one fold starts from: plan, store, cases, folders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from echoplan import layout
from echoplan.dataset import DatasetDescription
from echoplan.errors import EchoPlanError
from echoplan.files import read_json
from echoplan.paths import Folders
from echoplan.plans import ResolvedPlan

from ..preprocessing.store import ClipStore, StoredCase
from .data.sampling import Sample


@dataclass(frozen=True)
class FoldSetup:
    """One fold of one trainer.

    Attributes:
        fold: its number, from 0.
        plan: the decisions that hold for the trainer.
        description: the dataset's labels.
        store: the compressed store of the trainer's grid.
        train, val, test: case names; no patient is in two of them. Folds have no test cases, a paper's split has.
        model_folder: results/<Dataset>/<Trainer>__<Plans>__<configuration>.
        preprocessed: the dataset's preprocessed folder; model folders get their plan and dataset.json from it.
        labels: the labels on the native grid; None: those of the preprocessed folder.
    """

    fold: int
    plan: ResolvedPlan
    description: DatasetDescription
    store: ClipStore
    train: tuple[str, ...]
    val: tuple[str, ...]
    model_folder: Path
    preprocessed: Path
    labels: Path | None = None
    test: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The fold's own folder."""
        return self.model_folder / layout.fold_folder(self.fold)

    @property
    def summary(self) -> Path:
        """What its validation found."""
        return self.folder / layout.VALIDATION / layout.SUMMARY_FILE

    @property
    def references(self) -> Path:
        """The labels on the native grid."""
        return self.labels or self.preprocessed / layout.GROUND_TRUTH

    def stored_cases(self, names: Iterable[str]) -> list[StoredCase]:
        """What the store knows of some cases, in their order."""
        return [self.store.case(name) for name in names]

    def datasets_of(self, samples: Iterable[Sample]) -> list[str]:
        """The source dataset of each sample."""
        return [self.store.case(sample.case).dataset for sample in samples]

    def plan_of(self, case: StoredCase) -> ResolvedPlan:
        """The plan as it holds for a case's source dataset."""
        return self.plan.of(case.dataset)


def model_folder_name(trainer: str, plan: ResolvedPlan) -> str:
    """<Trainer>__<Plans>__<configuration>"""
    return f"{trainer}__{plan.plans_name}__{plan.configuration}"


def read_splits(preprocessed: Path, plan: ResolvedPlan) -> list[dict[str, list[str]]]:
    """The folds of a trainer's plan, or the one of its paper's split.

    Raises:
        EchoPlanError: there is no such file.
    """
    splits: list[dict[str, list[str]]] = read_json(preprocessed / layout.split_file(plan.split))
    return splits


def prepare_fold(
    folders: Folders,
    dataset: str,
    plan: ResolvedPlan,
    *,
    trainer: str,
    fold: int,
) -> FoldSetup:
    """Collect what a fold's training needs.

    Args:
        folders: raw, preprocessed, results.
        dataset: name, id or folder name.
        plan: as it holds for the trainer.
        trainer: its name.
        fold: from 0.

    Raises:
        EchoPlanError: the dataset is not preprocessed for this trainer, or the fold does not exist.
    """
    preprocessed = folders.find_preprocessed(dataset)
    splits = read_splits(preprocessed, plan)
    if not 0 <= fold < len(splits):
        raise EchoPlanError(
            f"there is no fold {fold}: the folds are 0 to {len(splits) - 1}",
            file=preprocessed / layout.split_file(plan.split),
            remedy="name one of them, or all",
        )
    store = ClipStore(preprocessed / plan.store)
    train, val, test = (tuple(splits[fold].get(part, ())) for part in ("train", "val", "test"))
    cases = (*train, *val, *test)
    missing = [case for case in cases if not store.has(case)]
    if missing:
        raise EchoPlanError(
            f"{len(missing)} of {len(cases)} cases are not preprocessed for {trainer} ({', '.join(missing[:3])} ...)",
            file=store.folder,
            remedy=f"run echoplan_preprocess -d {dataset} -tr {trainer}, or mend the cases it names",
        )
    return FoldSetup(
        fold=fold,
        plan=plan,
        description=DatasetDescription.from_dict(read_json(preprocessed / layout.DATASET_FILE)),
        store=store,
        train=train,
        val=val,
        test=test,
        model_folder=folders.results / preprocessed.name / model_folder_name(trainer, plan),
        preprocessed=preprocessed,
    )
