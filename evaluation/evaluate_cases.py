"""The one place that judges: predicted masks against references and measurements, in summary.json and ef.csv."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from echoplan import layout
from echoplan.case_warnings import few
from echoplan.dataset import Case
from echoplan.errors import EchoPlanError
from echoplan.files import write_json
from echoplan.imageio import FORMATS, ending, probe_clip
from echoplan.labels import IGNORE
from echoplan.masks import bring_to_grid, check_values, load_mask, without_empty_rest
from echoplan.names import name_of_file
from echoplan.parallel_map import run_cases

from .agreement import agreement
from .ejection import PatientRow, measure_patients, write_rows
from .measurements import CaseMeasurement, measure_case, under_rule
from .metrics import score_frames, summarise
from .ventricle.volumes import VOLUME_RULES, VolumeRule

logger = logging.getLogger(__name__)

MASK_ENDINGS = tuple(end for row in FORMATS if row.read_labels is not None for end in row.endings if end)
Masks = str | Path | Mapping[str, Path | np.ndarray]  # a folder of mask files, or case -> file or (T, H, W) labels


class _Outcome(NamedTuple):
    """What summary.json holds of a case, its measurement, why it could not be judged, and a note on its labels.

    `reference` is the measurement of its reference mask, where its phases are known; `unlabelled` whether its
    prediction has pixels that nobody labelled, as references have.
    """

    judged: dict[str, Any] | None = None
    measured: CaseMeasurement | None = None
    reference: CaseMeasurement | None = None
    failure: str = ""
    note: str = ""
    unlabelled: bool = False


@dataclass(frozen=True)
class Evaluation:
    """What was found about some cases.

    Attributes:
        labels: structure -> value.
        per_case: judged case -> `spacing_mm`, `distance_unit`, `ed_frame`, `es_frame` and `frames`, each frame with its
            number and, for each label, the metrics of `score_frames`; by name.
        measured: the measurements there are, in the order of the cases. references: those of the reference masks.
        missing: cases with a reference and without a prediction.
        failures: case -> why it could not be judged.
    """

    labels: dict[str, int]
    per_case: dict[str, dict[str, Any]] = field(default_factory=dict)
    measured: tuple[CaseMeasurement, ...] = ()
    references: tuple[CaseMeasurement, ...] = ()
    missing: tuple[str, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)

    def rows(self, rule: VolumeRule = "simpson") -> list[PatientRow]:
        """One row a measured patient by a volume rule, with the EF that the reference masks have by the same rule."""
        rows, truths = (
            measure_patients([under_rule(item, rule) for item in measured], method=rule)
            for measured in (self.measured, self.references)
        )
        known = {(truth.patient, truth.exam): truth.measured("ef_percent") for truth in truths}
        return [replace(row, reference_mask_ef_percent=known.get((row.patient, row.exam))) for row in rows]

    def ef_lines(self, rule: VolumeRule) -> list[str]:
        """The agreement of EF with each kind of reference that there is, a line each, for a command to print."""
        lines, rows = [], self.rows(rule)
        kinds = {"reference_mask_ef_percent": "the reference masks'", "reference_ef_percent": "the table's"}
        for name, words in kinds.items():
            values = [row.measured("ef_percent") for row in rows], [getattr(row, name) for row in rows]
            found = agreement(*values, bootstrap=0)
            if found["n"]:
                keys = {"r": "pearson_r", "bias": "bias", "SD": "sd_of_differences", "MAE": "mae"}
                shown = [f"{word} {found[key]:.3g}" for word, key in keys.items() if found[key] is not None]
                lines.append(f"EF by {rule} against {words}: {found['n']} patients, {', '.join(shown)}")
        return lines

    def write_rows(self, folder: Path) -> None:
        """Write ef.csv, and the table by each of the other rules: ef_camus.csv, ..."""
        for rule in VOLUME_RULES:
            write_rows(folder / layout.ef_file(rule), self.rows(rule))

    def only(self, names: Collection[str]) -> Evaluation:
        """The same of some of the cases."""
        return replace(
            self,
            per_case={name: judged for name, judged in self.per_case.items() if name in names},
            measured=tuple(measured for measured in self.measured if measured.name in names),
            references=tuple(measured for measured in self.references if measured.name in names),
            missing=tuple(name for name in self.missing if name in names),
            failures={name: reason for name, reason in self.failures.items() if name in names},
        )

    def summary(self) -> dict[str, Any]:
        """What summary.json holds: `labels`, `cases`, `frames`, `missing`, `failures`; `mean`, label -> `summarise`;
        `per_case`.
        """
        return {
            "labels": self.labels,
            "cases": len(self.per_case),
            "frames": sum(len(judged["frames"]) for judged in self.per_case.values()),
            "missing": list(self.missing),
            "failures": self.failures,
            "mean": {name: summarise(self.per_case.values(), name) for name in self.labels},
            "per_case": self.per_case,
        }

    def write(self, folder: Path, **more: Any) -> dict[str, Any]:
        """Write the EF tables and, last, summary.json with what else it is to hold; returns the summary."""
        self.write_rows(folder)
        summary = self.summary() | more
        write_json(folder / layout.SUMMARY_FILE, summary)
        return summary


def evaluate_cases(
    cases: Iterable[Case],
    predictions: Masks,
    references: Masks | None = None,
    *,
    labels: Mapping[str, int],
    named: Mapping[str, int] | None = None,
    target: str | None = None,
    processes: int = 0,
) -> Evaluation:
    """Judge every labelled frame of some cases against their references, and measure their volumes and EF.

    Distances are in mm where the reference's header gives a spacing, else in pixels; the summary keeps both apart. A
    missing or broken prediction is counted and listed, and never stops the rest; an empty one has Dice 0 and the
    image's diagonal as distance, and is counted too. One case's masks are in memory at a time.

    Args:
        cases: what is known of the cases; spacing, frame time and phases as the measurements are to take them.
        predictions, references: masks; in folders they are found by the cases' names, whatever their ending. Cases
            without a reference are measured alone; None: all of them.
        labels: structure -> value; the background, 0, is passed over.
        named: all structures that the masks may hold, where `labels` are some of them.
        target: the structure that is measured; None: nothing is.
        processes: worker processes; 0 works in this one.

    Raises:
        EchoPlanError: a folder is missing, there is no reference mask, no label to evaluate, or predictions hold 255.

    Example:
        >>> import numpy as np
        >>> from echoplan.dataset import Case
        >>> from echoplan.evaluation import evaluate_cases
        >>> truth = np.ones((2, 64, 64), dtype=np.uint8)
        >>> case = Case("a", "patient1", ed_frame=0, es_frame=1)
        >>> found = evaluate_cases([case], {"a": truth}, {"a": truth}, labels={"LV": 1})
        >>> found.summary()["mean"]["LV"]["all"]["dice"]
        {'mean': 1.0, 'sd': 0.0}
    """
    structures = {name: int(value) for name, value in labels.items() if value != 0}
    if not structures:
        raise EchoPlanError("there is no label to evaluate", remedy="name one, as in LV=1")
    truths = {} if references is None else _masks(references)
    if isinstance(references, (str, Path)) and not truths:
        raise EchoPlanError("there is no reference mask here", file=references)
    masks, chosen = _masks(predictions), list(cases)
    value = None if target is None else structures[target]
    arguments = {
        case.case: (case, masks[case.case], truths.get(case.case), structures, value, {**structures, **(named or {})})
        for case in sorted(chosen, key=lambda case: case.case)
        if case.case in masks and (value is not None or case.case in truths)
    }
    results = run_cases(_evaluate_case, arguments, processes=processes, description="evaluating")
    outcomes = {name: results.done[name] for name in arguments if name in results.done}
    _refuse_unlabelled(outcomes, predictions)
    missing = sorted(case.case for case in chosen if case.case in truths and case.case not in masks)
    return _evaluation([case.case for case in chosen], outcomes, structures, missing, results.failures)


def _refuse_unlabelled(outcomes: Mapping[str, _Outcome], predictions: Masks) -> None:
    """Raise an EchoPlanError where predictions have pixels that nobody labelled, which count as none of a structure."""
    if partly := [name for name, outcome in outcomes.items() if outcome.unlabelled]:
        raise EchoPlanError(
            f"{len(partly)} of {len(outcomes)} predictions hold {IGNORE}, which marks pixels that nobody labelled and "
            f"that no network predicts: {few(partly)}",
            file=predictions if isinstance(predictions, (str, Path)) else None,
            remedy="are the folders of predictions and references swapped?",
        )


def cases_in(folder: str | Path, known: Iterable[Case] = (), *, headers: bool = False) -> list[Case]:
    """What is known of each case that has a mask in a folder; those that nothing is known of are patients of their own.

    Args:
        folder: of masks.
        known: cases.
        headers: whether spacing and frame time are read from the masks' files, as measuring needs them.

    Raises:
        EchoPlanError: as `find_masks`.
    """
    by_name = {case.case: case for case in known}
    cases = ((by_name.get(name) or Case(name, name), file) for name, file in find_masks(folder).items())
    return [case.with_header(probe_clip(file)) if headers else case for case, file in cases]


def find_masks(folder: str | Path) -> dict[str, Path]:
    """Case name -> file of every mask in a folder.

    Raises:
        EchoPlanError: there is no such folder, or two files name one case.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EchoPlanError("there is no such folder", file=folder)
    masks: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        end = ending(path)
        if end not in MASK_ENDINGS or path.name.startswith(".") or not path.is_file():
            continue
        case = name_of_file(path)
        if case in masks:
            raise EchoPlanError(f"both {masks[case].name} and {path.name} are masks of {case}", file=folder)
        masks[case] = path
    return masks


def _masks(masks: Masks) -> Mapping[str, Path | np.ndarray]:
    return masks if isinstance(masks, Mapping) else find_masks(masks)


def _evaluation(
    cases: Sequence[str],
    outcomes: Mapping[str, _Outcome],
    labels: dict[str, int],
    missing: Sequence[str],
    broken: Mapping[str, str],
) -> Evaluation:
    noted = [name for name, outcome in outcomes.items() if outcome.note]
    if noted:
        more = f" and {len(noted) - 1} other references" if len(noted) > 1 else ""
        logger.warning("%s%s: %s", noted[0], more, outcomes[noted[0]].note)
    failures = dict(broken) | {name: outcome.failure for name, outcome in outcomes.items() if outcome.failure}
    known = [outcomes[name] for name in cases if name in outcomes]
    return Evaluation(
        labels=labels,
        per_case={name: outcome.judged for name, outcome in outcomes.items() if outcome.judged is not None},
        measured=tuple(outcome.measured for outcome in known if outcome.measured is not None),
        references=tuple(outcome.reference for outcome in known if outcome.reference is not None),
        missing=tuple(missing),
        failures=dict(sorted(failures.items())),
    )


def _evaluate_case(
    case: Case,
    prediction: Path | np.ndarray,
    reference: Path | np.ndarray | None,
    labels: Mapping[str, int],
    target: int | None,
    named: Mapping[str, int],
) -> _Outcome:
    mask = _labels(prediction, named)
    if reference is not None and (mask == IGNORE).any():
        return _Outcome(unlabelled=True)
    measured = None if target is None else measure_case(case, mask == target)
    if reference is None:
        return _Outcome(measured=measured)
    try:
        truth, note = without_empty_rest(_labels(reference, named))
        if isinstance(prediction, Path) and isinstance(reference, Path):
            mask = bring_to_grid(mask, prediction, probe_clip(reference), old=False)
        if mask.shape != truth.shape:
            raise EchoPlanError(
                f"the mask is {mask.shape} and its reference {truth.shape} (frames, rows, columns)",
                remedy="export the mask on the clip's own grid",
            )
        spacing = case.plausible().spacing_mm if isinstance(reference, np.ndarray) else probe_clip(reference).spacing_mm
        frames = list(score_frames(mask, truth, labels, spacing))
    except EchoPlanError as error:
        if error.fatal:
            raise
        return _Outcome(measured=measured, failure=str(error))
    unit = "px" if spacing is None else "mm"
    phases = {"ed_frame": case.ed_frame, "es_frame": case.es_frame}
    judged = {**phases, "spacing_mm": spacing, "distance_unit": unit, "frames": frames}
    known = target is not None and None not in (case.ed_frame, case.es_frame)
    return _Outcome(judged, measured, measure_case(case, truth == target) if known else None, note=note)


def _labels(mask: Path | np.ndarray, named: Mapping[str, int]) -> np.ndarray:
    if isinstance(mask, Path):
        return load_mask(mask, labels=named.values())
    check_values(mask, named.values())
    return mask
