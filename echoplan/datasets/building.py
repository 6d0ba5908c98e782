"""What every converter does: a place for the dataset, labels on the clip's grid, and the two files that describe it."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from echoplan import layout
from echoplan.case_warnings import log_failures
from echoplan.dataset import Case, DatasetDescription, EchoDataset
from echoplan.errors import EchoPlanError
from echoplan.labels import IGNORE
from echoplan.names import check_cases
from echoplan.parallel_map import run_cases, write_warnings

logger = logging.getLogger(__name__)

STRUCTURES = {
    "lv": {"background": 0, "LV": 1},
    "all": {"background": 0, "LV": 1, "MYO": 2, "LA": 3},
}


def labels_of(structures: str) -> dict[str, int]:
    """The labels kept by `--structures lv|all`, numbered as CAMUS does.

    Raises:
        EchoPlanError: there is no such choice.
    """
    try:
        return dict(STRUCTURES[structures])
    except KeyError:
        choices = ", ".join(STRUCTURES)
        raise EchoPlanError(f"structures is {structures!r}", remedy=f"choose one of: {choices}") from None


def build_dataset(
    source: Path,
    folder: Path,
    description: DatasetDescription,
    convert: Callable[..., Case],
    arguments: Mapping[str, tuple[Any, ...]],
    *,
    processes: int = 0,
    overwrite: bool = False,
    failures: dict[str, str] | None = None,
) -> EchoDataset:
    """Convert every case into `folder`, go on past broken ones, and write dataset.json and cases.csv at the end.

    Args:
        source: where the data comes from; it must not lie in `folder`.
        folder: the dataset's folder; what an interrupted conversion left there is written again.
        convert: a module-level function, called with (folder, *arguments[case]); gives the row of cases.csv.
        arguments: case name -> what `convert` takes; cases.csv keeps this order.
        failures: filled with each broken case's reason; without it they are logged.

    Raises:
        EchoPlanError: the dataset exists and `overwrite` is off, a case cannot be called so, or no case at all could be
            converted.
    """
    check_cases(arguments, file=source)
    _make_room(folder, source, overwrite=overwrite)
    with_folder = {case: (folder, *values) for case, values in arguments.items()}
    results = run_cases(convert, with_folder, processes=processes, description="converting")
    converted = [results.done[case] for case in arguments if case in results.done]
    if failures is not None:
        failures.update(results.failures)
    else:
        log_failures(logger, results.failures, "left out", of=len(arguments))
    if not converted:
        with suppress(OSError):
            folder.rmdir()  # else an empty folder would pass for a dataset
        raise _nothing_converted(results.failures, source)
    dataset = EchoDataset(folder, description, tuple(converted))
    dataset.write()
    write_warnings(folder, results)
    return dataset


def places(case: str, split: str, *, image_ending: str = ".nii.gz") -> tuple[str, str]:
    """Where a case's image and label lie, relative to the dataset's folder."""
    images, labels = layout.TRAINING_IMAGES, layout.TRAINING_LABELS
    if split == "test":
        images, labels = layout.TEST_IMAGES, layout.TEST_LABELS
    return f"{images}/{case}{image_ending}", f"{labels}/{layout.mask_file(case)}"


def finite_number(table: Mapping[str, str], *keys: str) -> float | None:
    """The value of the first key that holds a finite number; None where none does."""
    for key in keys:
        try:
            value = float(table[key])
        except (KeyError, ValueError):
            continue
        if math.isfinite(value):
            return value
    return None


def frame_time(rate_hz: float | None) -> float | None:
    """Milliseconds between two frames, None where no rate is given."""
    return 1000 / rate_hz if rate_hz and rate_hz > 0 else None


def keep_labels(mask: np.ndarray, labels: Mapping[str, int]) -> np.ndarray:
    """The mask with every value that `labels` does not name made background; 255 stays."""
    return np.where(np.isin(mask, [*labels.values(), IGNORE]), mask, 0).astype(np.uint8)


def spread_labels(
    labelled: np.ndarray, frames: Sequence[int], shape: tuple[int, int, int], *, source: str | Path
) -> np.ndarray:
    """A (T, H, W) label clip that holds 255 everywhere but on the labelled frames.

    Args:
        labelled: (n, H, W) label values.
        frames: the n frames they belong to.
        shape: (T, H, W) of the clip.
        source: what messages name.

    Raises:
        EchoPlanError: the numbers of frames or the grids differ, or a frame lies outside the clip.
    """
    if labelled.shape != (len(frames), *shape[1:]):
        raise EchoPlanError(
            f"the labels are {labelled.shape}, not {len(frames)} labelled frames on the grid of the clip {shape}",
            file=source,
            remedy="export the labels on the clip's own grid, one frame for each labelled frame",
        )
    outside = [frame for frame in frames if not 0 <= frame < shape[0]]
    if outside:
        raise EchoPlanError(
            f"there is no frame {outside[0]} in a clip of {shape[0]} frames", file=source, remedy="count frames from 0"
        )
    mask = np.full(shape, IGNORE, np.uint8)
    mask[list(frames)] = labelled
    return mask


def _nothing_converted(failures: Mapping[str, str], source: Path) -> EchoPlanError:
    if not failures:
        return EchoPlanError("no case is named, so there is nothing to convert", file=source)
    case, reason = next(iter(failures.items()))
    return EchoPlanError(f"no case could be converted; the first one, {case}: {reason}")


def _make_room(folder: Path, source: Path, *, overwrite: bool) -> None:
    if source.resolve().is_relative_to(folder.resolve()):
        raise EchoPlanError(
            "a dataset cannot be converted into itself", file=source, remedy="choose another name with -d"
        )
    description = folder / layout.DATASET_FILE
    if description.exists():  # without it, what lies here was left by a conversion that was stopped
        if not overwrite:
            raise EchoPlanError("this dataset exists already", file=folder, remedy="give --overwrite, or another name")
        description.unlink()
        (folder / layout.CASES_FILE).unlink(missing_ok=True)
        for name in (layout.TRAINING_IMAGES, layout.TRAINING_LABELS, layout.TEST_IMAGES, layout.TEST_LABELS):
            shutil.rmtree(folder / name, ignore_errors=True)
    (folder / layout.WARNINGS_FILE).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
