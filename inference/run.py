"""Predict a folder of clips: masks, ejection-fraction report, and a record of how they came about."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from echoplan import __version__
from echoplan.errors import EchoPlanError
from echoplan.files import write_json
from echoplan.imageio import Clip, write_mask
from echoplan.work import run_cases

from ..preprocessing.probabilities import save_probabilities
from .dicom_output import DICOM_FOLDER, require_highdicom, write_dicom
from .evidence import FOLDER as EVIDENCE_FOLDER
from .evidence import edge_share
from .inputs import InputClip, find_inputs
from .predictor import EchoPredictor
from .reporting import write_reports

ARGUMENTS_FILE = "prediction_args.json"


@dataclass
class PredictionRun:
    """What predicting a folder left.

    Attributes:
        predicted: cases predicted now.
        kept: cases finished by an earlier run.
        failures: case -> reason.
        rows: the ejection-fraction report, one row a patient.
        dicom_files: the DICOM segmentations and reports written.
    """

    predicted: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    dicom_files: list[Path] = field(default_factory=list)


def predict_folder(
    source: str | Path,
    out: str | Path,
    predictor: EchoPredictor,
    *,
    overwrite: bool = False,
    continue_prediction: bool = False,
    keep_probabilities: bool = False,
    ef_method: str = "simpson",
    dicom: bool = False,
    overlays: bool = False,
    processes: int = 0,
    details: Mapping[str, Any] | None = None,
) -> PredictionRun:
    """Predict every clip in a file or folder and write the reports.

    Broken clips are passed over and listed; an interrupted run can be continued. Left in `out`: <case>.nii.gz on the
    clip's own grid, evidence/<case>.npz (what each fold found), ef_report.csv, ef_report.json, report.html,
    prediction_args.json, and what else is asked for.

    Args:
        source: what `find_inputs` takes.
        out: the folder for the results; made where it is missing.
        predictor: the model or ensemble.
        overwrite, continue_prediction: do again, or keep, what is there already.
        keep_probabilities: also write the class probabilities.
        ef_method: the volume rule, "simpson" or "camus".
        dicom: also write DICOM segmentations and structured reports of the clips that are DICOM.
        overlays: also write a video of each clip with its outline, overlays/<case>.mp4.
        processes: worker processes for the measurements; 0: none.
        details: more for prediction_args.json (the command line's choices).

    Raises:
        EchoPlanError: nothing to predict, results there already or about to overwrite the clips, a full disk, or DICOM
            output without highdicom.
    """
    if dicom:
        require_highdicom()
    out = Path(out)
    inputs = _inputs_beside(Path(source), out, allow_existing=overwrite or continue_prediction)
    run = _predict_unfinished(inputs, out, predictor, overwrite=overwrite, keep_probabilities=keep_probabilities)
    masks = {item.case: mask_path(out, item) for item in inputs if item.case in {*run.predicted, *run.kept}}
    run.rows = write_reports(
        out,
        inputs,
        masks,
        run.failures,
        target=predictor.target,
        ef_method=ef_method,
        title=predictor.name,
        trust=predictor.trust,
        overlays=overlays,
        processes=processes,
    )
    if dicom:
        about = {"description": predictor.description, "model": predictor.name}
        run.dicom_files = write_dicom(out / DICOM_FOLDER, inputs, masks, run.rows, run.failures, **about)
    settings, model = {**(details or {}), "ef_method": ef_method}, predictor.to_dict()
    write_json(out / ARGUMENTS_FILE, prediction_record(model=model, inputs=inputs, run=run, settings=settings))
    return run


def _predict_unfinished(
    inputs: Sequence[InputClip], out: Path, predictor: EchoPredictor, *, overwrite: bool, keep_probabilities: bool
) -> PredictionRun:
    """Predict what has no result yet, or everything."""
    endings = (".nii.gz", ".npz") if keep_probabilities else (".nii.gz",)
    todo = [item for item in inputs if overwrite or not all(mask_path(out, item, end).is_file() for end in endings)]
    waiting = {item.case for item in todo}
    with _ReadAhead(todo) as reader:
        results = run_cases(
            _predict_case,
            {item.case: (item, reader, predictor, out, keep_probabilities) for item in todo},
            processes=0,  # one network on one device
            description="predicting",
        )
    kept = [item.case for item in inputs if item.case not in waiting]
    return PredictionRun(list(results.done), kept, results.failures)


def mask_path(out: Path, item: InputClip, ending: str = ".nii.gz") -> Path:
    """Where a clip's result goes."""
    return out / f"{item.case}{ending}"


def prediction_record(
    *, model: Mapping[str, Any], inputs: Sequence[InputClip], run: PredictionRun, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What prediction_args.json holds; a pure function of its arguments and the versions installed.

    Args:
        model: `EchoPredictor.to_dict()`.
        inputs: the clips found.
        run: what came of them.
        settings: the user's choices.
    """
    predicted, kept = set(run.predicted), set(run.kept)
    return {
        "versions": {
            "echoplan": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "settings": dict(settings),
        "model": dict(model),
        "inputs": [
            {
                "case": item.case,
                "path": str(item.path),
                "patient": item.about.patient,
                "view": item.about.view,
                "result": "predicted" if item.case in predicted else "kept" if item.case in kept else "failed",
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
        self._coming: Future[Clip] | None = None

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
        return coming.result()

    def _submit(self) -> None:
        item = next(self._items, None)
        self._coming = None if item is None else self._thread.submit(item.read)


def _predict_case(
    item: InputClip, reader: _ReadAhead, predictor: EchoPredictor, out: Path, keep_probabilities: bool
) -> None:
    clip = reader.next()
    given = item.about.ed_frame, item.about.es_frame
    try:
        probabilities, evidence = predictor.segment_with_evidence(clip, phases=None if None in given else given)
    except torch.cuda.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise EchoPlanError(
            "the GPU ran out of memory", file=item.path, remedy="predict this clip again with --device cpu"
        ) from error
    mask = predictor.label(clip, probabilities)
    evidence.edge_share = edge_share(clip.frames, mask == predictor.target)
    evidence.write(mask_path(out / EVIDENCE_FOLDER, item, ".npz"))
    if keep_probabilities:
        save_probabilities(mask_path(out, item, ".npz"), probabilities)
    if clip.crop is not None:  # back on the file's own grid, where other programs expect it
        mask = clip.crop.to_file(mask)
        clip = replace(clip, frames=mask, crop=None)
    write_mask(mask_path(out, item), mask, like=clip)  # last: its presence says that the case is finished


def _inputs_beside(source: Path, out: Path, *, allow_existing: bool) -> tuple[InputClip, ...]:
    """The clips to predict, once it is clear that results in `out` harm neither them nor earlier results."""
    if out.resolve() == source.resolve():
        raise EchoPlanError("the results would lie among the clips", file=out, remedy="give another -o")
    inputs = find_inputs(source, leave_out=out)
    targets = {mask_path(out, item).resolve() for item in inputs}
    clash = [item.path for item in inputs if item.path.resolve() in targets]
    if clash:
        raise EchoPlanError("the results would overwrite the clips", file=clash[0], remedy="give another -o")
    existing = [path for path in targets if path.exists()]
    if existing and not allow_existing:
        raise EchoPlanError(
            f"results of {len(existing)} of the {len(inputs)} clips are there already",
            file=out,
            remedy="--continue_prediction keeps them and does the rest, --overwrite does all again, or give another -o",
        )
    return inputs
