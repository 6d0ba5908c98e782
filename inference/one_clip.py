"""One clip of a folder: segmented, and its files written. The same steps whoever calls them, here or on a cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from echoplan import layout
from echoplan.errors import EchoPlanError
from echoplan.files import sweep_partial_files
from echoplan.imageio import Clip, write_mask

from ..preprocessing.probabilities import SAVED_TYPE, save_probabilities
from .inputs import InputClip
from .predictor import EchoPredictor
from .provenance import digest
from .segmentation import PreparedInput, Segmentation
from .uncertainty import ClipEvidence


def result_path(out: Path, case: str, ending: str = ".nii.gz") -> Path:
    """Where a clip's result goes."""
    return out / f"{case}{ending}"


def sweep_results(out: Path) -> None:
    """Remove what killed processes left half-written where results lie; no deeper, `out` may be anybody's folder."""
    for folder in (out, out / layout.EVIDENCE, out / layout.OVERLAYS):
        sweep_partial_files(folder, below=False)


def origin(item: InputClip, predictor: EchoPredictor) -> str:
    """Which model makes a clip's result, and of what: another where either has changed."""
    return f"{predictor.identity} {digest(item.content())}"


def has_result(out: Path, item: InputClip, predictor: EchoPredictor, *, keep_probabilities: bool) -> bool:
    """Whether everything asked for is there, made by this model of this very clip."""
    endings = (".nii.gz", ".npz") if keep_probabilities else (".nii.gz",)
    if not all(result_path(out, item.case, ending).is_file() for ending in endings):
        return False
    return ClipEvidence.read_origin(result_path(out / layout.EVIDENCE, item.case, ".npz")) == origin(item, predictor)


def segment_input(
    item: InputClip, prepared: PreparedInput, predictor: EchoPredictor, *, keep_probabilities: bool
) -> Segmentation:
    """What the networks find in a clip.

    Raises:
        EchoPlanError: the GPU's memory is too small for it.
    """
    given = item.about.ed_frame, item.about.es_frame
    try:
        return predictor.segment(
            prepared,
            phases=None if None in given else given,
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
    result_path(out, item.case).unlink(missing_ok=True)
    evidence.write(result_path(out / layout.EVIDENCE, item.case, ".npz"))
    if found.probabilities is not None:
        save_probabilities(result_path(out, item.case, ".npz"), found.probabilities)
    about, mask = found.about, found.mask
    del found  # what is written is in memory beside its copies in the file's own form
    if about.crop is not None:  # back on the file's own grid, where other programs expect it
        mask = about.crop.to_file(mask)
    write_mask(result_path(out, item.case), mask, like=Clip(mask, about.spacing_mm, about.frame_time_ms))
