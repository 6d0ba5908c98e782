"""EchoNet-Dynamic: Videos/*.avi, FileList.csv and VolumeTracings.csv.

Masks are drawn from the tracings as the dataset's authors do (Ouyang et al., Nature 580, 2020): the first row of a
traced frame is the long axis and is dropped; the others are chords, whose ends `skimage.draw.polygon` joins.
"""

from __future__ import annotations

import csv
import logging
import os
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from skimage.draw import polygon

from echoplan.dataset import Case, DatasetDescription, EchoDataset
from echoplan.datasets.building import (
    build_dataset,
    finite_number,
    frame_time,
    labels_of,
    places,
    spread_labels,
)
from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path
from echoplan.imageio import read_clip, write_mask

logger = logging.getLogger(__name__)

LICENCE = "Stanford University Dataset Research Use Agreement"
REFERENCE = "Ouyang et al., Nature 580, 2020, doi:10.1038/s41586-020-2145-8"
_SPLITS = {"TRAIN": "train", "VAL": "val", "TEST": "test"}


@dataclass(frozen=True)
class _Source:
    """One row of FileList.csv with its tracings: frame -> (n, 4) of x1, y1, x2, y2 in pixels."""

    video: Path
    row: dict[str, str]
    tracings: dict[int, np.ndarray]


def convert_echonet_dynamic(
    source: str | Path,
    destination: str | Path,
    *,
    name: str = "EchoNetDynamic",
    structures: str = "lv",
    processes: int = 0,
    overwrite: bool = False,
    failures: dict[str, str] | None = None,
) -> EchoDataset:
    """Convert EchoNet-Dynamic, one case a video, each a patient of its own.

    Videos stay the AVI files they are: hard links where source and destination share a disk, else copies. Labels are
    clips that hold 255 on all frames but the traced ones, of which the larger is ED and the smaller ES.

    Args:
        source: the folder with FileList.csv, VolumeTracings.csv and Videos.
        destination: the dataset's folder.
        structures: the dataset traces the left ventricle alone, so "lv" and "all" are the same.
        processes: worker processes; 0 works in this process.
        failures: filled with each broken case's reason.

    Raises:
        EchoPlanError: a list is missing or lacks a column, the dataset exists already, or no case could be converted.
    """
    labels_of(structures)
    source = Path(source)
    tracings = _read_tracings(source / "VolumeTracings.csv")
    path = source / "FileList.csv"
    rows = _read_rows(path, ("FileName", "EF", "FPS", "Split"))
    stems = [_stem(row["FileName"]) for row in rows]
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        raise EchoPlanError(f"the list names {twice[0]} more than once", file=path, remedy="keep one of the rows")
    sources = {
        stem: (_Source(source / "Videos" / f"{stem}.avi", row, tracings.get(stem, {})),)
        for stem, row in zip(stems, rows, strict=True)
    }
    description = DatasetDescription(name=name, image_ending=".avi", licence=LICENCE, reference=REFERENCE)
    return build_dataset(source, Path(destination), description, _convert_case, sources,
                         processes=processes, overwrite=overwrite, failures=failures)  # fmt: skip


def tracing_mask(tracing: np.ndarray, frame_shape: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 mask of one frame's tracing.

    Args:
        tracing: (n, 4) of x1, y1, x2, y2 in pixels; the first row is the long axis.
        frame_shape: (H, W).
    """
    if len(tracing) < 2:  # the long axis alone
        return np.zeros(frame_shape, np.uint8)
    left_x, left_y, right_x, right_y = tracing[1:].T
    columns = np.concatenate([left_x, right_x[::-1]])
    rows = np.concatenate([left_y, right_y[::-1]])
    mask = np.zeros(frame_shape, np.uint8)
    mask[polygon(np.rint(rows).astype(int), np.rint(columns).astype(int), frame_shape)] = 1
    return mask


def _convert_case(destination: Path, source: _Source) -> Case:
    stem = source.video.stem
    if not source.video.is_file():
        raise EchoPlanError("the video is missing", file=source.video, remedy="download it again")
    clip = read_clip(source.video)  # decoded as a whole, so that a damaged video is found now and not in training
    split = _SPLITS.get(source.row["Split"].strip().upper(), "")
    image, label = places(stem, split, image_ending=".avi")
    ed_frame = es_frame = None
    frames = sorted(source.tracings)
    if frames:
        masks = np.stack([tracing_mask(source.tracings[frame], clip.frame_shape) for frame in frames])
        areas = masks.sum(axis=(1, 2))
        if not areas.all():
            empty = frames[int(areas.argmin())]
            raise EchoPlanError(f"the tracing of frame {empty} encloses nothing", file=source.video)
        mask = spread_labels(masks, frames, clip.frames.shape, source=source.video)
        write_mask(destination / label, mask, like=clip)
    if len(frames) >= 2:
        ed_frame, es_frame = frames[int(areas.argmax())], frames[int(areas.argmin())]
    else:
        logger.warning("%d of its frames are traced, so ED and ES are unknown", len(frames))
    _link_or_copy(source.video, destination / image)
    return Case(
        case=stem,
        patient=stem,
        image=image,
        label=label if frames else None,
        view="A4C",
        split=split,
        ed_frame=ed_frame,
        es_frame=es_frame,
        labelled_frames=tuple(frames) or None,
        frame_time_ms=frame_time(finite_number(source.row, "FPS")),
        ef_percent=finite_number(source.row, "EF"),
        edv_ml=finite_number(source.row, "EDV"),
        esv_ml=finite_number(source.row, "ESV"),
    )


def _link_or_copy(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), destination)
    except OSError:  # another disk, or a file system without links
        with atomic_path(destination) as temporary:
            shutil.copyfile(source, temporary)


def _read_tracings(path: Path) -> dict[str, dict[int, np.ndarray]]:
    """Video -> frame -> (n, 4) of x1, y1, x2, y2, in the file's order."""
    points: dict[str, dict[int, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for line, row in enumerate(_read_rows(path, ("FileName", "X1", "Y1", "X2", "Y2", "Frame")), start=2):
        try:
            frame = int(float(row["Frame"]))
            points[_stem(row["FileName"])][frame].append([float(row[key]) for key in ("X1", "Y1", "X2", "Y2")])
        except ValueError as error:
            raise EchoPlanError(f"row {line} is wrong: {error}", file=path, remedy="download the list again") from error
    return {
        video: {frame: np.asarray(rows) for frame, rows in frames.items()} for video, frames in points.items()
    }  # fmt: skip


def _read_rows(path: Path, required: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, restval="")
            rows = list(reader)
    except FileNotFoundError as error:
        raise EchoPlanError(
            f"{path.name} is missing", file=path, remedy="give the folder with FileList.csv, VolumeTracings.csv, Videos"
        ) from error
    missing = [name for name in required if name not in (reader.fieldnames or ())]
    if missing:
        raise EchoPlanError(f"columns are missing: {', '.join(missing)}", file=path, remedy="download the list again")
    return rows


def _stem(name: str) -> str:
    """The video's name without .avi, which one release has in a list and another has not."""
    name = name.strip()
    return name[:-4] if name.lower().endswith(".avi") else name
