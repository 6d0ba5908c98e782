"""What a study's trainings left behind, read for its tables and figures."""

from __future__ import annotations

from pathlib import Path

from echoplan import layout
from echoplan.files import read_json

from ...evaluation.comparison.learning_curves import CellResult, Line
from ...evaluation.comparison.method_results import read_ef_rows, read_summary
from .grid import Cell
from .study import Study, cells_of, trainings_of


def read_results(study: Study) -> list[CellResult]:
    """Every finished training of the study, those of earlier and larger requests too, in the order of study.json."""
    found = []
    for cell, model in trainings_of(study, cells_of(study.folder)):
        for fold in validated_folds(model):
            found.append(_read(study, cell, model, fold))
    return found


def validated_folds(model: Path) -> list[int]:
    """The folds of a model folder that are trained to their end and validated."""
    return [
        fold
        for fold in layout.finished_folds(model)
        if (model / layout.fold_folder(fold) / layout.VALIDATION / layout.SUMMARY_FILE).is_file()
    ]


def line_of(cell: Cell) -> Line:
    """The learning curve that a cell is a point of."""
    return Line(cell.method, cell.frames, cell.augmentation)


def _read(study: Study, cell: Cell, model: Path, fold: int) -> CellResult:
    folder = model / layout.fold_folder(fold)
    train = read_json(folder / layout.DEBUG_FILE)["train"]
    return CellResult(
        line=line_of(cell),
        size=cell.size,
        patients=len({study.patients[case] for case in train}),
        clips=len(train),
        seed=cell.seed,
        fold=fold,
        per_case=read_summary(folder / layout.VALIDATION / layout.SUMMARY_FILE)["per_case"],
        patient_of=study.patients,
        ef_rows=read_ef_rows(folder / layout.VALIDATION),
    )
