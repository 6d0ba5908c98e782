"""The labels of a clip as training wants them: ignored where nobody labelled, phases told by area."""

from __future__ import annotations

import logging

import numpy as np

from echoplan import layout
from echoplan.dataset import Case, EchoDataset
from echoplan.errors import EchoPlanError
from echoplan.imageio.clip import Clip
from echoplan.labels import IGNORE

logger = logging.getLogger(__name__)


def load_labels(dataset: EchoDataset, case: Case, clip: Clip) -> np.ndarray:
    """The case's labels on the clip's grid, (T, H, W) uint8; frames that cases.csv does not list are `IGNORE`.

    Raises:
        EchoPlanError: no label file, another grid than the clip's, an unnamed value, a listed frame outside the clip.
    """
    mask = dataset.load_mask(case, clip=clip)
    if case.labelled_frames is not None:
        outside = [frame for frame in case.labelled_frames if frame >= len(clip)]
        if outside:
            raise EchoPlanError(
                f"labelled_frames of {case.case} names {outside}, but the clip has {len(clip)} frames (counted from 0)",
                file=dataset.folder / layout.CASES_FILE,
            )
        unlisted = np.setdiff1d(np.arange(len(clip)), case.labelled_frames)
        mask = mask.copy()
        mask[unlisted] = IGNORE
    return mask


def labelled_frames(mask: np.ndarray) -> list[int]:
    """The frames of (T, H, W) labels in which any pixel is labelled (zeros are a label: background)."""
    return np.flatnonzero((mask != IGNORE).any(axis=(1, 2))).tolist()


def find_phases(case: Case, mask: np.ndarray | None, target: int) -> tuple[int | None, int | None]:
    """End-diastole and end-systole of a clip: the larger and the smaller cavity.

    What cases.csv says holds, except that the two are exchanged where both are labelled and the areas contradict their
    order. Where it does not say, the labelled frames with the largest and the smallest area are taken, if any differ.

    Args:
        case: the row of cases.csv.
        mask: (T, H, W) labels, or None.
        target: the label of the cavity that is measured.

    Returns:
        (ed_frame, es_frame), None where unknown.
    """
    end_diastole, end_systole = case.ed_frame, case.es_frame
    frames = [] if mask is None else labelled_frames(mask)
    areas = {frame: int((mask[frame] == target).sum()) for frame in frames}
    if len(frames) >= 2 and max(areas.values()) > min(areas.values()):
        if end_diastole is None:
            end_diastole = max(frames, key=areas.get)
        if end_systole is None:
            end_systole = min(frames, key=areas.get)
    if end_diastole in areas and end_systole in areas and areas[end_diastole] < areas[end_systole]:
        logger.info("%s: end-diastole and end-systole are exchanged, for the areas say so", case.case)
        end_diastole, end_systole = end_systole, end_diastole
    return end_diastole, end_systole
