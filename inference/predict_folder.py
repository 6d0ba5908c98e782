"""Predict a folder of clips: masks, ejection-fraction report, and a record of how they came about."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from echoplan import __version__, layout
from echoplan.errors import EchoPlanError
from echoplan.files import sweep_partial_files, write_json
from echoplan.inputs import InputClip, find_inputs
from echoplan.masks import find_mask
from echoplan.parallel_map import CaseResults, write_warnings

from ..evaluation import PatientRow
from ..evaluation.ventricle.volumes import VolumeRule
from .dicom_output import require_highdicom, write_dicom
from .pipeline import Helpers, Pipeline, origin
from .predictor import EchoPredictor
from .reporting import EarlyMeasurements, write_reports
from .uncertainty import ClipEvidence

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """What predicts clips elsewhere than in this process."""

    def predict(self, todo: Sequence[InputClip], source: Path, out: Path, *, keep_probabilities: bool) -> CaseResults:
        """Write the results of the clips in `todo`, found in `source`, to `out`; cases come back in their order."""
        ...


@dataclass(frozen=True)
class Part:
    """One of `count` shares of the clips, numbered from 0: every `count`-th clip, so that shares are alike.

    Several machines may predict a share each into one folder. Nothing is measured, and what is left of each is
    prediction_args.part_<number>_of_<count>.json; `continue_prediction` of the whole measures all clips.

    Raises:
        EchoPlanError: there is no such share.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.number < self.count:
            raise EchoPlanError(
                f"there is no part {self.number} of {self.count}",
                remedy=f"give --part_id 0 to {max(self.count, 1) - 1}, as many calls as --num_parts says",
            )

    def of(self, inputs: Sequence[InputClip]) -> tuple[InputClip, ...]:
        """This share of the clips."""
        return tuple(inputs[self.number :: self.count])


@dataclass
class PredictionRun:
    """What predicting a folder left.

    Attributes:
        predicted: cases predicted now.
        kept: cases finished by an earlier run.
        failures: case -> reason.
        masks: case -> mask file of those that are predicted or kept, in the order of the clips.
        rows: the ejection-fraction report, one row a patient.
        notes: what holds for several of them, in words.
        dicom_files: the DICOM segmentations and reports written.
    """

    predicted: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    rows: list[PatientRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dicom_files: list[Path] = field(default_factory=list)


def predict_folder(
    source: str | Path,
    out: str | Path,
    predictor: EchoPredictor,
    *,
    overwrite: bool = False,
    continue_prediction: bool = False,
    keep_probabilities: bool = False,
    ef_method: VolumeRule = "simpson",
    dicom: bool = False,
    dicom_doubtful: bool = False,
    overlays: bool = False,
    find_phases: bool = False,
    processes: int = 0,
    part: Part | None = None,
    engine: Engine | None = None,
    details: Mapping[str, Any] | None = None,
) -> PredictionRun:
    """Predict every clip in a file or folder and write the reports.

    Broken clips are passed over and listed; an interrupted run can be continued. Left in `out`: the masks, as
    `save_mask` names them, on the clip's own grid, evidence/<case>.npz, ef_report.csv and .json, report.html, and
    prediction_args.json.

    Args:
        source, out: what `find_inputs` takes; the folder for the results, made where it is missing.
        predictor: the model or ensemble.
        overwrite, continue_prediction: do again, or keep, what is there already.
        keep_probabilities: also write the class probabilities.
        ef_method: the volume rule, "simpson" or "camus".
        dicom, dicom_doubtful: also write DICOM segmentations and reports of the clips that are DICOM; of rows to check.
        overlays: also write a video of each clip with its outline, overlays/<case>.mp4.
        find_phases: pass over the end-diastole and end-systole that cases.csv gives.
        processes: that read, write and measure beside the networks, at most one beside those on a CPU; 0: none.
        part: the share of the clips to predict, none of which is then measured; None: all.
        engine: predicts the clips elsewhere; None: here, with `predictor`.
        details: more for prediction_args.json (the command line's choices).

    Raises:
        EchoPlanError: no clip, results there already or about to overwrite the clips, a full disk, no highdicom.

    Example:
        >>> from echoplan.inference import EchoPredictor, predict_folder
        >>> def patient_rows(clips, out, model):
        ...     return predict_folder(clips, out, EchoPredictor.from_model_folder(model)).rows
    """
    if dicom:
        require_highdicom()
    source, out = Path(source), Path(out)
    inputs = _inputs_beside(source, out, part, find_phases=find_phases)
    todo = _todo(inputs, out, predictor, overwrite, continue_prediction, keep_probabilities)
    how: dict[str, Any] = {"ef_method": ef_method, "overlays": overlays, "processes": processes}
    with closing(Helpers(_helping(processes, todo, predictor) if engine is None else 0)) as helpers:
        run = _predict(inputs, todo, source, out, predictor, engine, helpers, keep_probabilities, part, how)
    if part is None and dicom:
        what = out / layout.DICOM, inputs, run.masks, run.rows, run.failures, predictor.description, predictor.name
        run.dicom_files = write_dicom(*what, doubtful=dicom_doubtful)
    file = layout.ARGUMENTS_FILE if part is None else layout.part_arguments_file(part.number, part.count)
    write_json(out / file, prediction_record(predictor, inputs, run, {**(details or {}), "ef_method": ef_method}))
    return run


def _predict(
    inputs: Sequence[InputClip],
    todo: Sequence[InputClip],
    source: Path,
    out: Path,
    predictor: EchoPredictor,
    engine: Engine | None,
    helpers: Helpers,
    keep_probabilities: bool,
    part: Part | None,
    how: Mapping[str, Any],
) -> PredictionRun:
    """Predict some of the clips, the others have results, and report on all where they are no part; `how` that goes."""
    waiting = {item.name for item in todo}
    kept = [item for item in inputs if item.name not in waiting]
    early = None
    if helpers.processes and part is None:
        early = EarlyMeasurements(inputs, helpers.work, out, predictor.target, how["ef_method"], predictor.trust)
        early.settle_all(kept, out)
    engine = engine or Pipeline(predictor, helpers, early)
    results = engine.predict(todo, source, out, keep_probabilities=keep_probabilities) if todo else CaseResults()
    run = _what_is_left(inputs, kept, results, out)
    if part is None:
        about: dict[str, Any] = {
            "target": predictor.target,
            "title": f"{predictor.name}, {predictor.origin}",
            "trust": predictor.trust,
        }
        run.rows, run.notes = write_reports(out, inputs, run.masks, run.failures, early=early, **about, **how)
    return run


def _what_is_left(
    inputs: Sequence[InputClip], kept: Sequence[InputClip], results: CaseResults, out: Path
) -> PredictionRun:
    write_warnings(out, results)
    finished = {*results.done, *(item.name for item in kept)}
    masks = {item.name: find_mask(out, item.name) for item in inputs if item.name in finished}
    return PredictionRun(list(results.done), [item.name for item in kept], results.failures, masks)


def _helping(processes: int, todo: Sequence[InputClip], predictor: EchoPredictor) -> int:
    """The processes that are worth the seconds in which they start: beside networks on a CPU one keeps up."""
    if len(todo) < 2:
        return 0
    return min(processes, len(todo), 1) if predictor.device.type == "cpu" else min(processes, len(todo))


def _todo(
    inputs: Sequence[InputClip],
    out: Path,
    predictor: EchoPredictor,
    overwrite: bool,
    continue_prediction: bool,
    keep_probabilities: bool,
) -> list[InputClip]:
    """The clips without a result, or with one of another model or of a clip that has changed since; or all."""
    sweep_results(out)
    if not (overwrite or continue_prediction):
        _check_no_results(inputs, out)
    todo = [
        item
        for item in inputs
        if overwrite or not has_result(out, item, predictor, keep_probabilities=keep_probabilities)
    ]
    stale = sum(find_mask(out, item.name).is_file() for item in todo)
    if stale and not overwrite:
        logger.warning("%d results are of another model, or their clips have changed: predicted again", stale)
    return todo


def prediction_record(
    predictor: EchoPredictor, inputs: Sequence[InputClip], run: PredictionRun, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What prediction_args.json holds of the clips found, what came of them, and the user's choices."""
    predicted, kept = set(run.predicted), set(run.kept)
    return {
        "versions": {
            "echoplan": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "settings": dict(settings),
        "model": predictor.to_dict(),
        "inputs": [
            {
                "case": item.name,
                "path": str(item.path),
                "patient": item.case.patient,
                "view": item.case.view,
                "result": "predicted" if item.name in predicted else "kept" if item.name in kept else "failed",
            }
            for item in inputs
        ],
        "failures": dict(run.failures),
    }


def _inputs_beside(source: Path, out: Path, part: Part | None, *, find_phases: bool) -> tuple[InputClip, ...]:
    """The clips in `source`, or the share of them, once it is clear that results in `out` do not harm them."""
    if out.resolve() == source.resolve():
        raise EchoPlanError("the results would lie among the clips", file=out, remedy="give another -o")
    blocking = next((path for path in (out, *out.parents) if path.exists()), out)
    if blocking.exists() and not blocking.is_dir():
        raise EchoPlanError("a file lies where the results should go", file=blocking, remedy="give another -o")
    inputs = find_inputs(source, leave_out=out)
    names = (name(item.name) for item in inputs for name in (layout.mask_file, layout.exact_mask_file))
    targets = {(out / name).resolve() for name in names}
    clash = [item.path for item in inputs if Path(os.path.realpath(item.path)) in targets]
    if clash:
        raise EchoPlanError("the results would overwrite the clips", file=clash[0], remedy="give another -o")
    if find_phases:
        inputs = tuple(replace(item, case=item.case.without_phases()) for item in inputs)
    return inputs if part is None else part.of(inputs)


def _check_no_results(inputs: Sequence[InputClip], out: Path) -> None:
    """Raise an EchoPlanError if there are results of these clips already."""
    existing = sum(find_mask(out, item.name).exists() for item in inputs)
    if existing:
        raise EchoPlanError(
            f"results of {existing} of the {len(inputs)} clips are there already",
            file=out,
            remedy="--c keeps them and does the rest, --overwrite does all again, or give another -o",
        )


def sweep_results(out: Path) -> None:
    """Remove what killed processes left half-written where results lie; no deeper, `out` may be anybody's folder."""
    for folder in (out, out / layout.EVIDENCE, out / layout.OVERLAYS):
        sweep_partial_files(folder, below=False)


def has_result(out: Path, item: InputClip, predictor: EchoPredictor, *, keep_probabilities: bool) -> bool:
    """Whether everything asked for is there, made by this model of this very clip."""
    probabilities = out / layout.probabilities_file(item.name)
    if not find_mask(out, item.name).is_file() or (keep_probabilities and not probabilities.is_file()):
        return False
    evidence = out / layout.EVIDENCE / layout.probabilities_file(item.name)
    try:
        return ClipEvidence.read_origin(evidence) == origin(item, predictor)
    except EchoPlanError:  # the clip is gone, of which reading it tells
        return False
