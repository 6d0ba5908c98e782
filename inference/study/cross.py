"""A study's networks on other datasets: every labelled case predicted whole and judged on its own grid."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from echoplan import layout
from echoplan.dataset import Case, EchoDataset, read_cases, write_cases
from echoplan.errors import EchoPlanError
from echoplan.imageio import write_mask
from echoplan.parallel_map import run_cases
from echoplan.paths import Folders, dataset_name

from ...evaluation import evaluate_cases
from ...evaluation.comparison.scores import read_summary
from ...preprocessing.clip import phases_from_labels
from ..predictor import EchoPredictor
from .study import Study, trainings_of, validated_folds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OtherDataset:
    """A dataset that the study's networks never saw.

    Attributes:
        dataset: its raw folder.
        references: labels of its labelled cases on their clips' own grid, and what is known of them (cases.csv).
    """

    dataset: EchoDataset
    references: Path

    @property
    def name(self) -> str:
        """As tables show it."""
        return dataset_name(self.dataset.folder)

    @property
    def target(self) -> str:
        """The one structure that is judged."""
        return self.dataset.description.target

    @property
    def value(self) -> int:
        """Of the target in this dataset's masks."""
        return self.dataset.description.labels[self.target]

    @property
    def cases(self) -> dict[str, Case]:
        """The cases that could be read, with their clips' spacing and frame time and their labels' phases."""
        table = self.references / layout.CASES_FILE
        return {case.case: case for case in read_cases(table)} if table.is_file() else {}

    @property
    def patients(self) -> dict[str, str]:
        """Case -> patient."""
        return {name: case.patient for name, case in self.cases.items()}

    def tested(self, fold: Path) -> Path:
        """The folder of what the network of a fold's folder predicts for this dataset."""
        return fold / "tested" / self.dataset.folder.name


def prepare_dataset(
    where: Folders, name: str, study: Study, *, processes: int = 0
) -> tuple[OtherDataset, dict[str, str]]:
    """Write the references of a dataset's labelled cases, once a study.

    Returns:
        the dataset, and why cases are left out.

    Raises:
        EchoPlanError: there is no such dataset, or it has no labels.
    """
    dataset = EchoDataset.read(where.find_raw(name))
    cases = [case for case in dataset.cases if case.label is not None]
    if not cases:
        raise EchoPlanError(f"{name} has no labelled case to test on", file=dataset.folder)
    other = OtherDataset(dataset, study.folder / layout.REFERENCES / dataset.folder.name)
    known = other.cases
    todo = {case.case: (other, case) for case in cases if case.case not in known}
    found = run_cases(_write_reference, todo, processes=processes, description=f"references of {other.name}")
    if todo:
        write_cases(other.references / layout.CASES_FILE, (*known.values(), *found.done.values()))
    return other, found.failures


def judge_networks(study: Study, other: OtherDataset, *, device: str, processes: int = 0) -> dict[str, str]:
    """Predict and judge another dataset with each finished network that the request tests; finished ones are kept.

    Each network predicts alone, as in cross-validation: an average of several would be compared with single ones.

    Returns:
        why networks, or cases of theirs, are left out.
    """
    wanted = {training.cell for training in study.trainings}
    if not study.request.test_every_size:
        wanted = {cell for cell in wanted if cell.size in study.largest()}
    jobs = {
        f"{cell.name} fold {fold} on {other.name}": (model, fold, other, device, processes)
        for cell, model in trainings_of(study, sorted(wanted))
        for fold in validated_folds(model)
    }
    results = run_cases(_judge_network, jobs, description=f"testing on {other.name}")
    failures = dict(results.failures)
    for name, broken in results.done.items():
        failures |= {f"{name}, {case}": reason for case, reason in broken.items()}
    return failures


def _write_reference(other: OtherDataset, case: Case) -> Case:
    """Write one case's labels on its clip's own grid; what is known of it."""
    clip = other.dataset.load_clip(case)
    mask = other.dataset.load_mask(case, clip=clip)
    end_diastole, end_systole = phases_from_labels(case, mask, other.value)
    write_mask(other.references / layout.mask_file(case.case), mask, like=clip)
    return replace(case.with_header(clip), ed_frame=end_diastole, es_frame=end_systole)


def _judge_network(model: Path, fold: int, other: OtherDataset, device: str, processes: int) -> dict[str, str]:
    """One network on all labelled cases of a dataset; why cases are left out."""
    folder, cases = other.tested(model / layout.fold_folder(fold)), other.cases
    if (folder / layout.SUMMARY_FILE).is_file():
        summary = read_summary(folder / layout.SUMMARY_FILE)
        if {*summary["per_case"], *summary["missing"], *summary["failures"]} == set(cases):
            return summary["failures"] | dict.fromkeys(summary["missing"], "it could not be predicted")
    predictor = EchoPredictor.from_model_folder(model, folds=[fold], device=device, postprocessing=(), trust_code=True)
    todo = {case: (predictor, other, case, folder) for case in cases if not (folder / layout.mask_file(case)).is_file()}
    predicted = run_cases(_predict_case, todo, description=f"{model.parent.name} fold {fold}")
    evaluation = evaluate_cases(
        cases.values(),
        folder,
        other.references,
        labels={other.target: other.value},
        named=other.dataset.description.labels,
        target=other.target,
        processes=processes,
    )
    summary = evaluation.write(folder)  # last: with summary.json the network is tested
    return predicted.failures | summary["failures"]


def _predict_case(predictor: EchoPredictor, other: OtherDataset, name: str, folder: Path) -> None:
    """The target alone, under the value that it has in the dataset tested on."""
    clip = other.dataset.load_clip(other.dataset.case(name))
    found = predictor.segment(predictor.prepare(clip)).mask == predictor.target
    write_mask(folder / layout.mask_file(name), found.astype(np.uint8) * np.uint8(other.value), like=clip)
