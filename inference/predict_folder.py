"""Predict a folder of clips: masks, ejection-fraction report, and a record of how they came about."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from echoplan import __version__, layout
from echoplan.case_warnings import held_back
from echoplan.errors import EchoPlanError
from echoplan.files import sweep_partial_files, write_json
from echoplan.imageio import Clip
from echoplan.inputs import InputClip, digest, find_inputs
from echoplan.masks import find_mask, save_mask
from echoplan.parallel_map import CaseResults, run_cases, write_warnings

from ..evaluation import PatientRow
from ..evaluation.ventricle.volumes import VolumeRule
from ..preprocessing.probabilities import SAVED_TYPE, save_probabilities
from .dicom_output import require_highdicom, write_dicom
from .ensemble import PreparedInput, Segmentation
from .predictor import EchoPredictor
from .reporting import write_reports
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
        dicom_files: the DICOM segmentations and reports written.
    """

    predicted: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    rows: list[PatientRow] = field(default_factory=list)
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
    processes: int = 0,
    part: Part | None = None,
    engine: Engine | None = None,
    details: Mapping[str, Any] | None = None,
) -> PredictionRun:
    """Predict every clip in a file or folder and write the reports.

    Broken clips are passed over and listed; an interrupted run can be continued. Left in `out`: the masks, as
    `save_mask` names them, on the clip's own grid, evidence/<case>.npz, ef_report.csv, ef_report.json, report.html, and
    prediction_args.json.

    Args:
        source, out: what `find_inputs` takes; the folder for the results, made where it is missing.
        predictor: the model or ensemble.
        overwrite, continue_prediction: do again, or keep, what is there already.
        keep_probabilities: also write the class probabilities.
        ef_method: the volume rule, "simpson" or "camus".
        dicom, dicom_doubtful: also write DICOM segmentations and reports of the clips that are DICOM; of rows to check.
        overlays: also write a video of each clip with its outline, overlays/<case>.mp4.
        processes: worker processes for the measurements; 0: none.
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
    source, out, engine = Path(source), Path(out), engine or _Here(predictor)
    inputs = _inputs_beside(source, out, part)
    run = _predict_rest(inputs, source, out, predictor, engine, overwrite, continue_prediction, keep_probabilities)
    file = layout.ARGUMENTS_FILE if part is None else layout.part_arguments_file(part.number, part.count)
    if part is None:
        run.rows = write_reports(
            out, inputs, run.masks, run.failures, target=predictor.target, ef_method=ef_method, title=predictor.name,
            trust=predictor.trust, overlays=overlays, processes=processes)  # fmt: skip
        if dicom:
            what = out / layout.DICOM, inputs, run.masks, run.rows, run.failures, predictor.description, predictor.name
            run.dicom_files = write_dicom(*what, doubtful=dicom_doubtful)
    write_json(out / file, prediction_record(predictor, inputs, run, {**(details or {}), "ef_method": ef_method}))
    return run


def _predict_rest(
    inputs: Sequence[InputClip],
    source: Path,
    out: Path,
    predictor: EchoPredictor,
    engine: Engine,
    overwrite: bool,
    continue_prediction: bool,
    keep_probabilities: bool,
) -> PredictionRun:
    """Predict what has no result yet, or one of another model or of a clip that has changed since; or everything."""
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
    waiting = {item.name for item in todo}
    results = engine.predict(todo, source, out, keep_probabilities=keep_probabilities) if todo else CaseResults()
    write_warnings(out, results)
    kept = [item.name for item in inputs if item.name not in waiting]
    finished = {*results.done, *kept}
    masks = {item.name: find_mask(out, item.name) for item in inputs if item.name in finished}
    return PredictionRun(list(results.done), kept, results.failures, masks)


@dataclass(frozen=True)
class _Here:
    """Predicts in this process."""

    predictor: EchoPredictor

    def predict(self, todo: Sequence[InputClip], source: Path, out: Path, *, keep_probabilities: bool) -> CaseResults:
        with _ReadAhead(todo) as reader:
            return run_cases(
                _predict_case,
                {item.name: (item, reader, self.predictor, out, keep_probabilities) for item in todo},
                processes=0,  # one network on one device
                description="predicting",
            )


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


class _ReadAhead:
    """Decodes the next clip in a thread while the network works on this one."""

    def __init__(self, items: Iterable[InputClip]) -> None:
        self._items = iter(items)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._coming: Future[tuple[Clip, list[logging.LogRecord]]] | None = None

    def __enter__(self) -> _ReadAhead:
        self._submit()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def next(self) -> Clip:
        """The next clip in order; raises what reading it raised."""
        coming = self._coming
        if coming is None:
            raise ValueError("no clip is left to read")
        self._submit()
        clip, warnings = coming.result()
        for record in warnings:  # of this case, not of the one that was worked on meanwhile
            logging.getLogger(record.name).handle(record)
        return clip

    def _submit(self) -> None:
        item = next(self._items, None)
        self._coming = None if item is None else self._thread.submit(_read_quietly, item)


def _read_quietly(item: InputClip) -> tuple[Clip, list[logging.LogRecord]]:
    with held_back() as warnings:
        return item.read(), warnings


def _predict_case(
    item: InputClip, reader: _ReadAhead, predictor: EchoPredictor, out: Path, keep_probabilities: bool
) -> None:
    # Nothing of this has a name: the clip leaves the memory when it is prepared, and so on.
    write_result(
        item,
        predictor,
        segment_input(item, predictor.prepare(reader.next()), predictor, keep_probabilities=keep_probabilities),
        out,
    )


def _inputs_beside(source: Path, out: Path, part: Part | None) -> tuple[InputClip, ...]:
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
    return inputs if part is None else part.of(inputs)


def _check_no_results(inputs: Sequence[InputClip], out: Path) -> None:
    """Raise an EchoPlanError if there are results of these clips already."""
    existing = sum(find_mask(out, item.name).exists() for item in inputs)
    if existing:
        raise EchoPlanError(
            f"results of {existing} of the {len(inputs)} clips are there already",
            file=out,
            remedy="--continue_prediction keeps them and does the rest, --overwrite does all again, or give another -o",
        )


def sweep_results(out: Path) -> None:
    """Remove what killed processes left half-written where results lie; no deeper, `out` may be anybody's folder."""
    for folder in (out, out / layout.EVIDENCE, out / layout.OVERLAYS):
        sweep_partial_files(folder, below=False)


def origin(item: InputClip, predictor: EchoPredictor) -> str:
    """Which model makes a clip's result, and of what: another where either has changed."""
    return f"{predictor.identity} {digest(item.content())}"


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


def segment_input(
    item: InputClip, prepared: PreparedInput, predictor: EchoPredictor, *, keep_probabilities: bool
) -> Segmentation:
    """What the networks find in a clip.

    Raises:
        EchoPlanError: the GPU's memory is too small for it.
    """
    case, _ = item.case.with_phases_in(prepared.clip.shape[0])
    ed_frame, es_frame = case.ed_frame, case.es_frame
    try:
        return predictor.segment(
            prepared,
            phases=None if ed_frame is None or es_frame is None else (ed_frame, es_frame),
            keep_probabilities=SAVED_TYPE if keep_probabilities else None,
        )
    except torch.cuda.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise EchoPlanError(
            "the GPU ran out of memory", file=item.path, remedy="predict this clip again with --device cpu"
        ) from error


def write_result(item: InputClip, predictor: EchoPredictor, found: Segmentation, out: Path) -> None:
    """Write the evidence, the probabilities if they were kept, and at last the mask: it says that the clip is finished.

    An older mask goes first, or a process killed in between would leave it beside evidence of another model.
    """
    evidence = replace(found.evidence, origin=origin(item, predictor))
    find_mask(out, item.name).unlink(missing_ok=True)
    evidence.write(out / layout.EVIDENCE / layout.probabilities_file(item.name))
    if found.probabilities is not None:
        save_probabilities(out / layout.probabilities_file(item.name), found.probabilities)
    clip, mask = found.clip, found.mask
    del found  # what is written is in memory beside its copies in the file's own form
    mask = mask if clip.crop is None else clip.crop.to_file(mask)  # on the file's own grid, as other programs expect
    like = Clip(mask, clip.spacing_mm, clip.frame_time_ms, space=clip.space)
    save_mask(out, item.name, mask, like=like)
