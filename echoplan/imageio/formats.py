"""The table of formats, and reading and writing by it. A file's content says which format it is, not its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TypeVar

import numpy as np

from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path, naming_full_disk
from echoplan.imageio import dicom, metaimage, nifti, nrrd, pictures, video
from echoplan.imageio.arrays import usable_spacing
from echoplan.imageio.bounds import naming_file, open_regular
from echoplan.imageio.clip import Clip, ClipInfo, plausible_scale

_HEAD_BYTES = 4096
_Read = TypeVar("_Read", Clip, ClipInfo)


@dataclass(frozen=True)
class Format:
    """One row of the table.

    Attributes:
        name: what messages call it.
        endings: the file endings, lower case; a writer is chosen by them.
        matches: (path, first bytes) -> whether the content is of this format.
        read, probe: the whole clip, and what its header says.
        read_labels: whole-number labels, for formats that keep them exactly.
        write: writes a clip to the path given.
        lossless: whether what is written is read again unchanged.
        one_file: whether a clip is one file that can be copied as it is, without anything about a patient in it.
    """

    name: str
    endings: tuple[str, ...]
    matches: Callable[[Path, bytes], bool]
    read: Callable[[Path], Clip]
    probe: Callable[[Path], ClipInfo]
    read_labels: Callable[[Path], np.ndarray] | None = None
    write: Callable[[Path, Clip], None] | None = None
    lossless: bool = True
    one_file: bool = True


FORMATS = (
    Format("NIfTI", (".nii.gz", ".nii"), nifti.matches, nifti.read, nifti.probe, nifti.read_labels, nifti.write),
    Format("MetaImage", (".mha",), metaimage.matches, metaimage.read, metaimage.probe,
           metaimage.read_labels, metaimage.write),
    Format("DICOM", (".dcm", ".dicom"), dicom.matches, dicom.read, dicom.probe, one_file=False),
    Format("AVI", (".avi",), video.is_avi, video.read, video.probe, write=video.write_avi),
    Format("MP4", (".mp4", ".m4v", ".mov"), video.is_mp4, video.read, video.probe,
           write=video.write_mp4, lossless=False),
    Format("PNG", (".png",), pictures.is_kind("PNG", "JPEG"), pictures.read, pictures.probe,
           pictures.read_labels, pictures.write_png),
    Format("PNG folder", ("",), pictures.is_folder, pictures.read, pictures.probe, pictures.read_labels,
           pictures.write_folder, one_file=False),
    Format("NRRD", (".nrrd",), nrrd.matches, nrrd.read, nrrd.probe, nrrd.read_labels, nrrd.write),
    Format("TIFF", (".tif", ".tiff"), pictures.is_kind("TIFF"), pictures.read, pictures.probe, pictures.read_labels),
    Format("BMP", (".bmp",), pictures.is_kind("BMP"), pictures.read, pictures.probe, pictures.read_labels),
    Format("GIF", (".gif",), pictures.is_kind("GIF"), pictures.read, pictures.probe),
    Format("Matroska", (".mkv", ".webm"), video.is_matroska, video.read, video.probe),
    Format("Windows Media", (".wmv", ".asf"), video.is_windows_media, video.read, video.probe),
    Format("MPEG", (".mpg", ".mpeg"), video.is_mpeg, video.read, video.probe),
)  # fmt: skip


def find_format(path: str | PathLike[str]) -> Format:
    """The format of an existing file or folder, by its content.

    Raises:
        EchoPlanError: there is nothing, it is empty, or no reader knows it.

    Example:
        >>> from pathlib import Path
        >>> from echoplan.imageio import find_format
        >>> _ = Path("clip.dat").write_bytes(b"RIFF\\0\\0\\0\\0AVI LIST")
        >>> find_format("clip.dat").name
        'AVI'
    """
    path = Path(path)
    head = b""
    with naming_file(path):
        if not path.is_dir():
            with open_regular(path) as stream:
                head = stream.read(_HEAD_BYTES)
            if not head:
                raise EchoPlanError("the file is empty", file=path, remedy="copy or export it again")
        for known in FORMATS:
            if known.matches(path, head):
                return known
    names = ", ".join(known.name for known in FORMATS)
    raise EchoPlanError("this is no clip of a known format", file=path, remedy=f"convert it to one of: {names}")


def ending(path: str | PathLike[str]) -> str:
    """The file's ending if the table has it, lower case (".nii.gz" is one ending); "" for none.

    Example:
        >>> from echoplan.imageio import ending
        >>> ending("patient0001_4CH.NII.GZ"), ending("notes.txt")
        ('.nii.gz', '')
    """
    name = Path(path).name.lower()
    return next((known for row in FORMATS for known in row.endings if known and name.endswith(known)), "")


def read_clip(
    path: str | PathLike[str],
    *,
    spacing_mm: tuple[float, float] | None = None,
    frame_time_ms: float | None = None,
) -> Clip:
    """Read a clip of any format in the table.

    Args:
        path: a file, or a folder of PNG or JPEG pictures.
        spacing_mm, frame_time_ms: what is known better than the file knows it; they replace what it says. One that no
            echocardiogram has (`plausible_scale`) counts as unknown, and the clip's `scale_note` says so.

    Raises:
        EchoPlanError: the file is missing, damaged or of no known format, or the spacing in its header is no length and
            none was given.

    Example:
        >>> import numpy as np
        >>> from echoplan.imageio import Clip, read_clip, write_clip
        >>> write_clip("clip.nii.gz", Clip(np.zeros((10, 48, 64), np.uint8), (0.3, 0.3), frame_time_ms=20.0))
        >>> clip = read_clip("clip.nii.gz")
        >>> clip.frames.shape, clip.frames.dtype.name, round(clip.spacing_mm[0], 3), clip.frame_time_ms
        ((10, 48, 64), 'uint8', 0.3, 20.0)
    """
    path = Path(path)
    known = find_format(path)
    with naming_file(path):
        clip = known.read(path)
    return _with_scale(clip, spacing_mm, frame_time_ms, path)


def probe_clip(
    path: str | PathLike[str],
    *,
    spacing_mm: tuple[float, float] | None = None,
    frame_time_ms: float | None = None,
) -> ClipInfo:
    """Shape, spacing and frame time of a clip without decoding it.

    Args:
        path, spacing_mm, frame_time_ms: as `read_clip` takes them.

    Raises:
        EchoPlanError: as `read_clip`, as far as the header shows it.

    Example:
        >>> import numpy as np
        >>> from echoplan.imageio import Clip, probe_clip, write_clip
        >>> write_clip("clip.avi", Clip(np.zeros((10, 48, 64), np.uint8), frame_time_ms=20.0))
        >>> probe_clip("clip.avi")
        ClipInfo(shape=(10, 48, 64), spacing_mm=None, frame_time_ms=20.0, crop=None, space=None, exam='', scale_note='')
    """
    path = Path(path)
    known = find_format(path)
    with naming_file(path):
        info = known.probe(path)
    return _with_scale(info, spacing_mm, frame_time_ms, path)


def read_mask(path: str | PathLike[str], *, frames_shape: tuple[int, int, int] | None = None) -> np.ndarray:
    """Read whole-number labels, (T, H, W) uint8.

    Args:
        path: a file of a format that keeps labels (NIfTI, MetaImage, NRRD, PNG, TIFF, BMP), or a folder of PNGs.
        frames_shape: the (T, H, W) of the clip the labels belong to.

    Raises:
        EchoPlanError: the file cannot be read or holds no labels, or its grid is not `frames_shape`.

    Example:
        >>> import numpy as np
        >>> from echoplan.imageio import Clip, read_mask, write_mask
        >>> clip = Clip(np.zeros((2, 24, 32), np.uint8))
        >>> write_mask("mask.png", np.ones((1, 24, 32), bool), like=Clip(clip.frames[:1]))
        >>> read_mask("mask.png", frames_shape=clip.frames.shape)
        Traceback (most recent call last):
        echoplan.errors.EchoPlanError: the mask is (1, 24, 32) and its clip (2, 24, 32) (frames, rows, columns) ...
    """
    path = Path(path)
    known = find_format(path)
    if known.read_labels is None:
        raise EchoPlanError(f"{known.name} files hold no labels", file=path, remedy="use .nii.gz, .mha or .png")
    with naming_file(path):
        mask = known.read_labels(path)
    if frames_shape is not None and mask.shape != tuple(frames_shape):
        raise EchoPlanError(
            f"the mask is {mask.shape} and its clip {tuple(frames_shape)} (frames, rows, columns)",
            file=path,
            remedy="export the mask on the clip's own grid",
        )
    return mask


def write_clip(path: str | PathLike[str], clip: Clip) -> None:
    """Write a clip in the format its path's ending names, whole or not at all; without an ending, a folder of PNGs.

    NIfTI, MetaImage and NRRD keep everything (the frame time as the third spacing, in ms); AVI keeps 8-bit frames and
    the frame time exactly; MP4 is for looking at; PNG keeps 8- and 16-bit frames alone.

    Raises:
        EchoPlanError: no writer has this ending, or the format cannot hold such a clip.

    Example:
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from echoplan.imageio import Clip, write_clip
        >>> write_clip("clip", Clip(np.zeros((2, 24, 32), np.uint8)))
        >>> sorted(file.name for file in Path("clip").iterdir())
        ['frame_0000.png', 'frame_0001.png']
    """
    path = Path(path)
    known = _writer(path)
    assert known.write is not None
    if not ending(path):
        with naming_full_disk(path):
            known.write(path, clip)  # replaces the folder as a whole by itself
        return
    with atomic_path(path) as temporary:
        known.write(temporary, clip)


def write_mask(path: str | PathLike[str], mask: np.ndarray, *, like: Clip) -> None:
    """Write labels on the grid of `like`, as uint8.

    Args:
        path: .nii.gz, .nii, .mha, .nrrd, .png, or a folder's name.
        mask: (T, H, W) whole numbers in 0..255.
        like: the clip it belongs to; it gives the grid in space, the spacing and the frame time.

    Raises:
        EchoPlanError: the format is not lossless, the shapes differ, or the values are no labels.

    Example:
        >>> import numpy as np
        >>> from echoplan.imageio import Clip, read_mask, write_mask
        >>> clip = Clip(np.zeros((2, 24, 32), np.uint8), spacing_mm=(0.3, 0.3))
        >>> write_mask("mask.nii.gz", clip.frames == 0, like=clip)
        >>> int(read_mask("mask.nii.gz").sum())
        1536
    """
    path = Path(path)
    if _writer(path).read_labels is None:
        raise EchoPlanError("masks are not written as videos", file=path, remedy="use .nii.gz, .mha or .png")
    if mask.shape != like.frames.shape:
        shapes = f"{mask.shape} and its clip {like.frames.shape} (frames, rows, columns)"
        raise EchoPlanError(f"the mask is {shapes}", file=path)
    labels = np.asarray(mask)
    labels = labels.astype(np.uint8) if labels.dtype == bool else labels
    from_labels = Clip(nifti.to_labels(labels, path), like.spacing_mm, like.frame_time_ms, space=like.space)
    write_clip(path, from_labels)


def _writer(path: Path) -> Format:
    found = ending(path)
    if not found and path.suffix and not path.is_dir():
        found = path.suffix.lower()
    for known in FORMATS:
        if found in known.endings and known.write is not None:
            return known
    endings = ", ".join(known for row in FORMATS if row.write is not None for known in row.endings if known)
    raise EchoPlanError(f"clips are not written as {found}", file=path, remedy=f"use one of: {endings}")


def _with_scale(read: _Read, spacing_mm: tuple[float, float] | None, frame_time_ms: float | None, path: Path) -> _Read:
    """With what is known better than the file knows it, and without what no echocardiogram has."""
    spacing, time, note = plausible_scale(
        _checked_spacing(spacing_mm or read.spacing_mm, path), frame_time_ms or read.frame_time_ms
    )
    return replace(read, spacing_mm=spacing, frame_time_ms=time, scale_note=note)


def _checked_spacing(spacing_mm: tuple[float, float] | None, path: Path) -> tuple[float, float] | None:
    if spacing_mm is None:
        return None
    if not usable_spacing(spacing_mm):
        row, column = spacing_mm
        raise EchoPlanError(
            f"the spacing in the header, {row:g} x {column:g} mm, is no length",
            file=path,
            remedy="mend the header, or give spacing_row_mm and spacing_col_mm in cases.csv",
        )
    return float(spacing_mm[0]), float(spacing_mm[1])
