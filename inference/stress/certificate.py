"""What graded changes of its clips do to a model: Dice, EF, the quality flag and the intervals, level by level."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from echoplan import layout
from echoplan.dataset import Case, EchoDataset
from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path, read_json, write_csv, write_json, write_text
from echoplan.inputs import InputClip, digest
from echoplan.labels import IGNORE
from echoplan.parallel_map import progress

from ...evaluation import agreement, measure_case, measure_patients
from ...evaluation.ejection import CHECK
from ...evaluation.quality import clip_measures
from ...evaluation.ventricle.volumes import VolumeRule
from ..predictor import EchoPredictor
from ..uncertainty import assess_patient
from .changes import Change, LabelledClip

UNCHANGED = "unchanged"
_PERCENT = 100


@dataclass(frozen=True)
class _Found:
    """What one patient's clips gave at one level; None is not measured.

    Attributes:
        dice: the mean over the labelled frames.
        ef_percent, reference_percent: of the prediction, and of the reference masks by the same rule.
        doubted: whether the row is to check.
        covered: whether the interval holds the reference.
    """

    dice: float | None
    ef_percent: float | None
    reference_percent: float | None
    doubted: bool
    covered: bool | None


@dataclass(frozen=True)
class Certificate:
    """What `stress_model` found.

    Attributes:
        rows: a row a level, as stress.csv has them.
        skipped: patient -> why the patient takes no part.
    """

    rows: pd.DataFrame
    skipped: Mapping[str, str]


def stress_model(
    predictor: EchoPredictor,
    dataset: EchoDataset,
    cases: Sequence[Case],
    out: Path,
    changes: Sequence[Change],
    *,
    ef_method: VolumeRule = "simpson",
    overwrite: bool = False,
) -> Certificate:
    """Predict every patient's clips as they are and under every level of every change, and write the tables.

    Left in `out`: stress.csv, stress.md, stress.png, and a file for each patient, from which a further call goes on.

    Args:
        predictor: the model.
        dataset: the raw dataset.
        cases: those of it to use, all with labels.
        out: the folder for the results.
        changes: of `changes_called`.
        ef_method: the volume rule.
        overwrite: whether to do again what is finished.

    Raises:
        EchoPlanError: no case has labels, or the labels are other structures than the model's.
    """
    target = predictor.description.target
    patients = _labelled_patients(dataset, cases, target)
    work, trust = out / layout.STRESS_PATIENTS, predictor.trust
    errors = None if trust.calibration is None else trust.calibration.to_dict()
    how = {"model": predictor.identity, "rule": ef_method, "trust": trust.to_dict(), "errors": errors}
    found: dict[str, dict[str, _Found]] = {}
    skipped: dict[str, str] = {}
    for patient, own in progress(patients.items(), description="stressing", unit="patient"):
        file = work / f"{own[0].case}.json"
        try:
            made_by = digest({**how, "clips": [content for case in own for content in _content(dataset, case)]})
            kept = {} if overwrite or not file.is_file() else _read(file, made_by)
            stress = _Stress(predictor, dataset, own, ef_method)
            found[patient] = stress.under(changes, kept)
        except EchoPlanError as error:
            if error.fatal:
                raise
            skipped[patient] = str(error)
            continue
        if found[patient] != kept:
            write_json(file, {"made_by": made_by, "levels": {name: asdict(of) for name, of in found[patient].items()}})
    if not found:
        raise EchoPlanError(f"no patient can be used: {next(iter(skipped.values()))}", file=dataset.folder)
    rows = pd.DataFrame(_rows(found, changes))
    write_csv(out / layout.STRESS_CSV, rows.to_dict("records"), columns=list(rows))
    write_text(out / layout.STRESS_TABLE, _markdown(rows, predictor))
    _draw(rows, changes, target, out / layout.STRESS_FIGURE)
    return Certificate(rows, skipped)


def _labelled_patients(dataset: EchoDataset, cases: Sequence[Case], target: str) -> dict[str, list[Case]]:
    """Patient -> the cases that have labels."""
    if target not in dataset.description.structures:
        raise EchoPlanError(f"this dataset does not label {target}, which the model measures", file=dataset.folder)
    patients: dict[str, list[Case]] = {}
    for case in cases:
        if case.label is not None:
            patients.setdefault(case.patient or case.case, []).append(case)
    if not patients:
        raise EchoPlanError("no case has labels to judge by", file=dataset.folder)
    return patients


class _Stress:
    """The clips of one patient, read once."""

    def __init__(
        self, predictor: EchoPredictor, dataset: EchoDataset, cases: Sequence[Case], ef_method: VolumeRule
    ) -> None:
        self.predictor, self.ef_method = predictor, ef_method
        self.value = dataset.description.structures[predictor.description.target]  # in the reference masks
        self.items = [LabelledClip(clip, dataset.load_mask(case, clip=clip), case.with_header(clip))
                      for case in cases for clip in (dataset.load_clip(case),)]  # fmt: skip
        if len({item.case.exam for item in self.items}) > 1:
            raise EchoPlanError("the clips are of several exams", file=dataset.folder, remedy="name each a patient")
        measured = [
            measure_case(item.case, item.labels == self.value, method=ef_method)
            for item in self.items
            if _has_phases(item)
        ]
        whole = len(measured) == len(self.items)
        self.reference = measure_patients(measured, method=ef_method)[0].ef_percent if whole else None

    def under(self, changes: Sequence[Change], kept: Mapping[str, _Found]) -> dict[str, _Found]:
        """Level -> what was found, of what is not `kept`; clips that cannot carry a level have none."""
        found = dict(kept)
        if UNCHANGED not in found:
            found[UNCHANGED] = self._judge(self.items)
        for change in changes:
            for level in change.levels:
                name = _name(change, level)
                if name not in found:
                    items = [change.apply(item, level) for item in self.items]
                    if None not in items:
                        found[name] = self._judge([item for item in items if item is not None])
        return found

    def _judge(self, items: Sequence[LabelledClip]) -> _Found:
        dice: list[float] = []
        measured, evidence, judged = [], {}, []
        for item in items:
            case = item.case
            given = None if case.ed_frame is None or case.es_frame is None else (case.ed_frame, case.es_frame)
            segmented = self.predictor.segment(self.predictor.prepare(item.clip), phases=given)
            cavity = segmented.mask == self.predictor.target
            dice += self._dice(cavity, item.labels)
            measured.append(measure_case(case, cavity, method=self.ef_method))
            evidence[case.case] = segmented.evidence
            judged.append((case, clip_measures(cavity, measured[-1])))
        (row,) = measure_patients(measured, method=self.ef_method)
        row = assess_patient(row, judged, evidence, self.predictor.trust).row
        low, high, reference = row.ef_low_percent, row.ef_high_percent, self.reference
        covered = None if low is None or high is None or reference is None else low <= reference <= high
        return _Found(fmean(dice) if dice else None, row.ef_percent, reference, row.quality == CHECK, covered)

    def _dice(self, cavity: np.ndarray, labels: np.ndarray) -> Iterator[float]:
        for found, answer in zip(cavity, labels, strict=True):
            known = answer != IGNORE
            if known.any():
                true = answer == self.value
                sizes = np.count_nonzero(found & known) + np.count_nonzero(true)
                yield 2 * np.count_nonzero(found & true) / sizes if sizes else 1.0


def _has_phases(item: LabelledClip) -> bool:
    """Whether the labels can be measured: end-diastole and end-systole are known, or every frame is labelled."""
    known = None not in (item.case.ed_frame, item.case.es_frame)
    return known or bool((item.labels != IGNORE).any(axis=(1, 2)).all())


def _content(dataset: EchoDataset, case: Case) -> list[dict[str, Any]]:
    """What a case's results depend on: its clip, its labels, and what is known of them."""
    return [InputClip(dataset.folder / name, case).content() for name in (case.image, case.label or "")]


def _name(change: Change, level: float) -> str:
    return f"{change.name} {level:g}"


def _read(file: Path, made_by: str) -> dict[str, _Found]:
    """What an earlier call found; nothing where it was another model, or the file is damaged."""
    try:
        content = read_json(file)
        if content["made_by"] != made_by:
            return {}
        return {name: _Found(**of) for name, of in content["levels"].items()}
    except (EchoPlanError, KeyError, TypeError):
        return {}


def _rows(found: Mapping[str, Mapping[str, _Found]], changes: Sequence[Change]) -> Iterator[dict[str, Any]]:
    """A row a level: first the clips as they are."""
    yield {"change": UNCHANGED, "level": None} | _summary([of[UNCHANGED] for of in found.values()])
    for change in changes:
        for level in change.levels:
            name = _name(change, level)
            of_level = [of[name] for of in found.values() if name in of]
            if of_level:
                yield {"change": change.name, "level": level} | _summary(of_level)


def _summary(found: Sequence[_Found]) -> dict[str, Any]:
    dice = [of.dice for of in found if of.dice is not None]
    ef = agreement([of.ef_percent for of in found], [of.reference_percent for of in found], bootstrap=0)
    covered = [of.covered for of in found if of.covered is not None]
    return {
        "patients": len(found),
        "dice_percent": _PERCENT * fmean(dice) if dice else None,
        "dice_sd_percent": _PERCENT * float(np.std(dice, ddof=1)) if len(dice) > 1 else None,
        "ef_measured": ef["n"],
        "ef_bias": ef["bias"],
        "ef_mae": ef["mae"],
        "ef_pearson_r": ef["pearson_r"],
        "check_percent": _PERCENT * fmean(of.doubted for of in found),
        "intervals": len(covered),
        "coverage_percent": _PERCENT * fmean(covered) if covered else None,
    }


_HEADS = {
    "change": "change", "level": "level", "patients": "patients", "dice_percent": "Dice, %", "dice_sd_percent": "SD",
    "ef_measured": "EFs", "ef_bias": "bias", "ef_mae": "MAE", "ef_pearson_r": "r", "check_percent": "check, %",
    "intervals": "intervals", "coverage_percent": "hold the reference, %",
}  # fmt: skip


def _markdown(rows: pd.DataFrame, predictor: EchoPredictor) -> str:
    shown = rows.rename(columns=_HEADS)
    for name, digits in (("Dice, %", 1), ("SD", 1), ("bias", 1), ("MAE", 1), ("r", 2), ("check, %", 0),
                         ("hold the reference, %", 0), ("level", 2)):  # fmt: skip
        shown[name] = [
            "" if pd.isna(value) else f"{value:.{digits}f}".rstrip("0").rstrip(".") if name == "level"
            else f"{value:.{digits}f}" for value in shown[name]
        ]  # fmt: skip
    about = f"{predictor.name}, {predictor.origin}. EF in points; intervals are to hold the reference in "
    return f"{about}{_PERCENT * predictor.trust.coverage:.0f} % of the patients.\n\n{shown.to_markdown(index=False)}\n"


def _draw(rows: pd.DataFrame, changes: Sequence[Change], target: str, file: Path) -> None:
    """Dice and the EF's error over each change's levels; the dotted lines are the clips as they are."""
    plain = rows.iloc[0]
    drawn = [change for change in changes if (rows["change"] == change.name).any()]
    figure = Figure(figsize=(2.6 * len(drawn), 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(drawn), squeeze=False, sharey="row")
    for column, change in enumerate(drawn):
        own = rows[rows["change"] == change.name]
        levels = [*own["level"], change.unchanged]
        order = np.argsort(levels)
        for row, (name, label) in enumerate((("dice_percent", f"{target} Dice, %"), ("ef_mae", "EF, MAE in points"))):
            values = np.array([*own[name], plain[name]], dtype=float)
            axis = axes[row, column]
            axis.plot(np.array(levels)[order], values[order], "o-", color="#1f77b4", markersize=4)
            axis.axhline(float(plain[name] if plain[name] is not None else np.nan), color="#888888", linestyle=":")
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(label)
        axes[0, column].set_title(change.name.replace("_", " "))
        axes[1, column].set_xlabel(change.unit)
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
