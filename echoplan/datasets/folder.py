"""Any folder of clips with a CSV that has the columns of cases.csv (only case, patient and image are required)."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from echoplan import layout
from echoplan.dataset import Case, DatasetDescription, EchoDataset, read_cases
from echoplan.datasets.building import build_dataset, keep_labels, labels_of, places, spread_labels
from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path
from echoplan.imageio import Clip, ending, find_format, read_clip, write_clip, write_mask
from echoplan.masks import check_values, load_mask, without_empty_rest

logger = logging.getLogger(__name__)

logger = logging.getLogger(__name__)

_WRITTEN = ".nii.gz"


def convert_folder(
    source: str | Path,
    destination: str | Path,
    *,
    name: str,
    csv: str | Path = layout.CASES_FILE,
    structures: str = "lv",
    labels: Sequence[str] | None = None,
    licence: str = "",
    reference: str = "",
    processes: int = 0,
    overwrite: bool = False,
    failures: dict[str, str] | None = None,
) -> EchoDataset:
    """Convert a folder of clips.

    Clips that are all single files of one format are copied as they are. Otherwise, and always for DICOM, picture
    folders and .mhd with .raw, every clip is written as .nii.gz; that way nothing of a DICOM header but spacing and
    times goes along.
    Labels are written as .nii.gz label clips, with 255 on the frames that `labelled_frames` leaves out.

    Args:
        source: the folder; `image` and `label` in the CSV are relative to it.
        destination: the dataset's folder.
        csv: the CSV, relative to `source` or to the current folder.
        structures: "lv" keeps the value 1 as LV and makes all others background; "all" keeps all named ones.
        labels: the names of the values 1, 2, 3, ... for "all"; by default LV, MYO, LA.
        processes: worker processes; 0 works in this process.
        failures: filled with each broken case's reason.

    Raises:
        EchoPlanError: the CSV is missing or wrong, the dataset exists already, or no case could be converted.
    """
    source = Path(source)
    table = source / csv
    if not table.is_file() and Path(csv).is_file():
        table = Path(csv)  # typed as it lies from here
    if not table.is_file():
        raise EchoPlanError(
            "the CSV is missing", file=table, remedy="write one with the columns case, patient, image, or give --csv"
        )
    kept = labels_of(structures)
    if structures == "all" and labels:
        kept = {"background": 0, **{label: value for value, label in enumerate(labels, start=1)}}
    cases = read_cases(table)
    image_ending = _common_ending(source, cases)
    arguments = {case.case: (source, case, kept, structures == "all", image_ending) for case in cases}
    description = DatasetDescription(
        name=name,
        labels=kept,
        target="LV" if "LV" in kept else list(kept)[1],
        image_ending=image_ending or _WRITTEN,
        licence=licence,
        reference=reference,
    )
    return build_dataset(source, Path(destination), description, _convert_case, arguments,
                         processes=processes, overwrite=overwrite, failures=failures)  # fmt: skip


def _common_ending(source: Path, cases: Sequence[Case]) -> str | None:
    """The one ending with which all clips can be copied as they are; None where they must be written anew."""
    endings = set()
    for case in cases:
        path = source / case.image
        if not path.exists():
            continue  # its own conversion will say so
        try:
            clip_format = find_format(path)
        except EchoPlanError:
            continue
        name_ends = ending(path)
        if not clip_format.one_file or name_ends not in clip_format.endings:  # a misleading name is not kept either
            return None
        endings.add(name_ends)
    return endings.pop() if len(endings) == 1 else None


def _convert_case(
    destination: Path, source: Path, case: Case, labels: dict[str, int], all_named: bool, image_ending: str | None
) -> Case:
    path = source / case.image
    clip = read_clip(path, spacing_mm=case.spacing_mm, frame_time_ms=case.frame_time_ms)
    if wrong := case.wrong_phases(len(clip)):
        raise EchoPlanError("; ".join(wrong), file=path, remedy="count frames from 0")
    image, label = places(case.case, case.split, image_ending=image_ending or _WRITTEN)
    if case.label is not None:
        mask, note = _label_clip(source / case.label, case, clip)
        if note:
            logger.warning(note)
        check_values(mask, labels.values(), named_in="--labels" if all_named else "", file=source / case.label)
        write_mask(destination / label, keep_labels(mask, labels), like=clip)
    if image_ending is None:
        write_clip(destination / image, clip)
    else:
        with atomic_path(destination / image) as temporary:
            shutil.copyfile(path, temporary)
    if clip.scale_note:
        logger.warning("%s", clip.scale_note)
    return replace(case, image=image, label=None if case.label is None else label, exam=case.exam or clip.exam)


def _label_clip(path: Path, case: Case, clip: Clip) -> tuple[np.ndarray, str]:
    """(T, H, W) labels, 255 on every frame that is not among the labelled ones; and what a user should know of them."""
    mask = load_mask(path, clip=clip, any_frames=case.labelled_frames is not None)
    if case.labelled_frames is not None:
        named = list(case.labelled_frames)
        if len(mask) == len(clip) and max(named, default=0) < len(clip):
            mask = mask[named]
        return spread_labels(mask, named, clip.frames.shape, source=path), ""
    return without_empty_rest(mask)
