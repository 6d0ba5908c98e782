"""Work on whole folders of saved predictions: averaging probabilities, postprocessing masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from echoplan import __version__, layout
from echoplan.errors import EchoPlanError
from echoplan.files import write_json
from echoplan.imageio import Clip, probe_clip
from echoplan.labels import IGNORE
from echoplan.masks import find_mask, load_mask, save_mask
from echoplan.parallel_map import CaseResults, run_cases

from ..evaluation.evaluate_cases import find_masks
from ..preprocessing.probabilities import average, load_probabilities, save_probabilities
from .postprocessing import Step, apply_postprocessing


def ensemble_folders(
    folders: Sequence[Path], out: Path, *, keep_probabilities: bool = False, processes: int = 0
) -> CaseResults:
    """Average the saved probabilities of several predictions, case by case, and write the masks.

    Args:
        folders: folders with <case>.npz.
        out: where the masks (and <case>.npz) go.
        keep_probabilities: also write the averages.
        processes: worker processes; 0: none.

    Returns:
        what was done; cases that a folder lacks, or that do not fit together, are among the failures.

    Raises:
        EchoPlanError: a folder has no probabilities, or `out` is one of the folders.
    """
    found = [{path.stem: path for path in sorted(folder.glob("*.npz"))} for folder in folders]
    for folder, files in zip(folders, found, strict=True):
        if not files:
            raise EchoPlanError(
                "there are no saved probabilities (.npz) here", file=folder, remedy="predict with --save_probabilities"
            )
    _begin(folders, out, "echoplan_ensemble")
    everywhere = sorted(set.intersection(*map(set, found)))
    results = run_cases(
        _ensemble_case,
        {case: (tuple(files[case] for files in found), out, keep_probabilities) for case in everywhere},
        processes=processes,
        description="averaging",
    )
    for case in sorted(set.union(*map(set, found)) - set(everywhere)):
        lacking = [str(folder) for folder, files in zip(folders, found, strict=True) if case not in files]
        results.failures[case] = f"not in {', '.join(lacking)}"
    return results


def postprocess_folder(folder: Path, out: Path, steps: Sequence[Step], *, processes: int = 0) -> CaseResults:
    """Apply postprocessing steps to every mask of a folder.

    Raises:
        EchoPlanError: there is no mask, or `out` is the folder itself.
    """
    masks = find_masks(folder)
    if not masks:
        raise EchoPlanError("there are no masks here", file=folder)
    _begin([folder], out, "echoplan_apply_postprocessing")
    arguments = {case: (path, out, case, tuple(steps)) for case, path in masks.items()}
    return run_cases(_postprocess_case, arguments, processes=processes, description="postprocessing")


def _ensemble_case(files: tuple[Path, ...], out: Path, keep_probabilities: bool) -> None:
    mean = average(load_probabilities(file) for file in files)
    mask = mean.labels()
    if keep_probabilities:
        save_probabilities(out / files[0].name, mean)
    case = files[0].stem
    first = find_mask(files[0].parent, case)  # the probabilities know neither frame time nor place
    known = probe_clip(first) if first.is_file() else None
    time, space = (known.frame_time_ms, known.space) if known else (None, None)
    like = Clip(mask, mean.geometry.native_spacing_mm, time, space=space)
    save_mask(out, case, mask, like=like)


def _postprocess_case(source: Path, out: Path, case: str, steps: Sequence[Step]) -> None:
    mask = load_mask(source)
    info = probe_clip(source)
    labels: dict[str, Any] = {str(value): int(value) for value in np.unique(mask) if value not in (0, IGNORE)}
    mended = apply_postprocessing(mask, steps, labels, frame_time_ms=info.frame_time_ms)
    like = Clip(mended, info.spacing_mm, info.frame_time_ms, source=str(source), space=info.space)
    save_mask(out, case, mended, like=like)


def _begin(folders: Sequence[Path], out: Path, made_by: str) -> None:
    """Note what is made there, by which a search for clips knows masks; EchoPlanError where it is made from itself."""
    if out.resolve() in {folder.resolve() for folder in folders}:
        raise EchoPlanError("the results would overwrite what they are made from", file=out, remedy="give another -o")
    inputs = [str(folder) for folder in folders]
    write_json(out / layout.ARGUMENTS_FILE, {"command": made_by, "inputs": inputs, "version": __version__})
