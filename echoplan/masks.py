"""Masks as they are read everywhere: on their clip's grid, with values that mean something, checked once and here.

And as predictions keep them: <case>.nii.gz, or <case>.mha where NIfTI cannot hold the clip's place.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from echoplan import layout
from echoplan.errors import EchoPlanError
from echoplan.imageio import Clip, ClipInfo, probe_clip, read_mask, write_mask
from echoplan.imageio.space import brought_to
from echoplan.labels import IGNORE

_LARGEST_LABEL = 31  # that somebody may have numbered; beyond it lie grey values


def load_mask(
    path: Path,
    *,
    clip: Clip | ClipInfo | None = None,
    any_frames: bool = False,
    labels: Collection[int] | None = None,
    named_in: str = "",
) -> np.ndarray:
    """Read a mask, (T, H, W) uint8 on its clip's grid, and check it.

    A mask may lie on the grid of the clip's file, or on the larger one that the clip was cropped from. Where both
    headers state a place, it must be the same: a mask that is only mirrored or has its axes exchanged is turned.

    Args:
        path: the file.
        clip: the clip, or another mask of the same grid; None: the grid is not checked.
        any_frames: take any number of frames.
        labels, named_in: as in `check_values`.

    Raises:
        EchoPlanError: the file cannot be read, lies on another grid or elsewhere, or fails `check_values`.
    """
    mask = read_mask(path)
    if clip is not None:
        mask = bring_to_grid(mask, path, clip, any_frames=any_frames)
    check_values(mask, labels, named_in=named_in, file=path)
    return mask


def save_mask(folder: Path, case: str, mask: np.ndarray, *, like: Clip) -> None:
    """Write a predicted mask as `write_mask` does, where `find_mask` finds it; one in the other format goes."""
    usual, exact = folder / layout.mask_file(case), folder / layout.exact_mask_file(case)
    path, other = (usual, exact) if like.space is None or like.space.in_nifti else (exact, usual)
    write_mask(path, mask, like=like)
    other.unlink(missing_ok=True)


def find_mask(folder: Path, case: str) -> Path:
    """The file of a predicted mask; where there is none, what it is mostly called."""
    usual, exact = folder / layout.mask_file(case), folder / layout.exact_mask_file(case)
    return exact if exact.is_file() and not usual.is_file() else usual


def bring_to_grid(
    mask: np.ndarray, path: Path, clip: Clip | ClipInfo, *, any_frames: bool = False, old: bool = True
) -> np.ndarray:
    """A mask as its file has it, cut or turned to its clip's grid, as `load_mask` does it.

    `old` takes masks of an EchoPlan that did not keep the place of clips; it does not hold between two masks.

    Raises:
        EchoPlanError: it lies on another grid, or elsewhere.
    """
    frames, *sides = clip.frames.shape if isinstance(clip, Clip) else clip.shape
    header = probe_clip(path, spacing_mm=(1.0, 1.0))  # a broken spacing is no concern of a mask
    place, target, misplaced = header.space, clip.space, False
    if clip.crop is not None:
        mask = clip.crop.to_clip(mask)
    elif place is not None and target is not None and place.stated and target.stated:
        turned = brought_to(mask, place, target)
        # Before EchoPlan kept the place of clips, its masks began at 0. It alone writes a frame time there.
        earlier = old and place.plain and header.frame_time_ms == place.spacing[-1]
        misplaced = turned is None and not earlier
        mask = mask if turned is None else turned
    if list(mask.shape[1:]) != sides or not (any_frames or len(mask) == frames):
        raise EchoPlanError(
            f"the labels are {mask.shape} and the clip {(frames, *sides)} (frames, rows, columns)",
            file=path,
            remedy="export them on the clip's own grid; where few frames are labelled, name them in labelled_frames",
        )
    if misplaced:
        raise EchoPlanError(
            "the labels lie elsewhere in space than the clip: origin, spacing or direction in their header is another",
            file=path,
            remedy="export them on the clip's own grid (SimpleITK.Resample onto the clip); where only the header is "
            "wrong, take the clip's (labels.CopyInformation(clip))",
        )
    return mask


def check_values(
    mask: np.ndarray, labels: Collection[int] | None = None, *, named_in: str = "", file: Path | None = None
) -> None:
    """Stop masks of 0 and 255 or of grey values, which would silently be masks without a ventricle, or with a ring.

    Args:
        mask: (T, H, W) uint8.
        labels: the values of the structures; None: any that somebody may have numbered.
        named_in: what names all values that may occur ("dataset.json", "--labels"); "": small ones may occur beside
            `labels`, and are structures that nobody asked for.
        file: what the message names.

    Raises:
        EchoPlanError: a value is no label, or none is a structure's.
    """
    present = _values(mask)
    values = set(np.flatnonzero(present.any(axis=0)).tolist())
    structures = set(range(1, _LARGEST_LABEL + 1) if labels is None else labels) - {0, IGNORE}
    unnamed = sorted(values - structures - {0, IGNORE})
    if unnamed and (named_in or (unnamed[-1] > _LARGEST_LABEL and values & structures)):
        lacking = f", which {named_in} does not name" if named_in == layout.DATASET_FILE else " without a name"
        raise EchoPlanError(
            f"the labels hold the value(s) {_listed(unnamed)}{lacking}",
            file=file,
            remedy=f"name them all in {named_in or layout.DATASET_FILE}, or mend the mask: grey values left by "
            "resizing are no labels",
        )
    two = present[:, 0] & present[:, IGNORE] & (present.sum(axis=1) == 2)  # with a structure, ignored pixels are fine
    if (unnamed or two.any()) and not values & structures:
        raise EchoPlanError(
            f"the labels hold the values {_listed(values)}, and none of a structure",
            file=file,
            remedy="number the left ventricle 1, or name the values that there are (--labels, or a dataset with -d); "
            "255 marks pixels nobody labelled",
        )


def without_empty_rest(mask: np.ndarray) -> tuple[np.ndarray, str]:
    """Labels of single frames whose other frames were left at 0, with those unlabelled (255); and a note of it.

    So are taken labels without any wholly unlabelled frame, of 3 frames or more, in which one or two frames show a
    structure, or several with empty ones between each two of them: a ventricle does not vanish. Others stay unchanged.
    """
    present = _values(mask)
    shown = np.flatnonzero(present[:, 1:IGNORE].any(axis=1))
    empty = np.flatnonzero(~present[:, 1:].any(axis=1))
    marked = (present[:, IGNORE] & (present.sum(axis=1) == 1)).any()
    single = 0 < len(shown) <= 2 or (len(shown) > 2 and np.diff(shown).min() > 1)
    if marked or not single or len(mask) < 3 or not len(empty):
        return mask, ""
    mask = mask.copy()
    mask[empty] = IGNORE
    frames = ", ".join(map(str, shown[:4])) + (" ..." if len(shown) > 4 else "")
    return mask, (
        f"only the frames {frames} of {len(mask)} show a structure; the {len(empty)} that are 0 all over are taken as "
        "unlabelled (name the labelled ones in labelled_frames)"
    )


def _values(mask: np.ndarray) -> np.ndarray:
    """(T, 256): which values each frame holds."""
    present = np.zeros((len(mask), 256), bool)
    for frame, found in zip(mask, present, strict=True):
        found[frame.ravel()] = True
    return present


def _listed(values: Collection[int]) -> str:
    first = sorted(values)[:10]
    return f"[{', '.join(map(str, first))}{', ...' if len(values) > len(first) else ''}]"
