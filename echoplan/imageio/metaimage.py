"""MetaImage clips (.mha, and .mhd with its .raw).

Axes are (columns, rows, frames), so the array is (T, H, W). Files that EchoPlan wrote hold the frame time as the third
spacing, in ms, and once more under the key `FrameTimeMs`; a third spacing without that key is not taken for a time.
`SpacingUnknown = True` says that the spacing written is a stopgap.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from echoplan.errors import EchoPlanError
from echoplan.imageio.arrays import as_frames, to_clip_dtype, to_grey, to_labels, usable_spacing, usable_time
from echoplan.imageio.clip import Clip, ClipInfo

_FRAME_TIME_KEY = "FrameTimeMs"
_NO_SPACING_KEY = "SpacingUnknown"
_FIRST_LINE = re.compile(rb"\s*(ObjectType|ObjectSubType|NDims|Comment|Name|ID)\s*=", re.IGNORECASE)
_HEADER_LIMIT = 65536
_BYTES = {"MET_UCHAR": 1, "MET_CHAR": 1, "MET_USHORT": 2, "MET_SHORT": 2, "MET_UINT": 4, "MET_INT": 4, "MET_FLOAT": 4,
          "MET_DOUBLE": 8}  # fmt: skip


def matches(path: Path, head: bytes) -> bool:
    """Whether the file starts with a MetaImage text header."""
    return bool(_FIRST_LINE.match(head)) and b"NDims" in head


def read(path: Path) -> Clip:
    """Read a clip; the spacing is the header's, be it sane or not.

    Raises:
        EchoPlanError: the data file is missing, truncated or damaged, or this is no 2D clip.
    """
    info, image = _load(path)
    values = sitk.GetArrayFromImage(image)
    components = image.GetNumberOfComponentsPerPixel()
    if components in (3, 4):
        values = to_grey(values[..., :3])
    elif components != 1:
        raise EchoPlanError(f"pixels of {components} channels are not an ultrasound image", file=path)
    frames = to_clip_dtype(as_frames(values, path), path)
    return Clip(frames, info.spacing_mm, info.frame_time_ms, str(path))


def read_labels(path: Path) -> np.ndarray:
    """(T, H, W) uint8 label values.

    Raises:
        EchoPlanError: as `read`, or the values are not labels.
    """
    _, image = _load(path)
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise EchoPlanError("a mask has one channel, this file has several", file=path)
    return to_labels(as_frames(sitk.GetArrayFromImage(image), path), path)


def probe(path: Path) -> ClipInfo:
    """Shape, spacing and frame time from the header alone.

    Raises:
        EchoPlanError: the header cannot be understood, or its data file is missing or too short.
    """
    try:
        return _interpret(_read_header(path), path)
    except (ValueError, KeyError) as error:
        raise EchoPlanError(f"the MetaImage header cannot be understood: {error}", file=path) from error


def _interpret(header: dict[str, str], path: Path) -> ClipInfo:
    _check_data_file(path, header)
    size = [int(value) for value in header["DimSize"].split()]
    if len(size) < 2 or sum(length != 1 for length in size[2:]) > 1:
        raise EchoPlanError(f"an image of size {header['DimSize']} is no 2D clip", file=path)
    spacing = None if _NO_SPACING_KEY in header else header.get("ElementSpacing") or header.get("ElementSize")
    column, row = (float(value) for value in spacing.split()[:2]) if spacing else (None, None)
    frames = int(np.prod(size[2:], dtype=int))
    time = usable_time(float(header.get(_FRAME_TIME_KEY, "nan"))) if frames > 1 else None
    return ClipInfo((frames, size[1], size[0]), None if row is None else (row, column), time)


def write(path: Path, clip: Clip) -> None:
    """Write the clip as one compressed .mha file; the third spacing is the frame time in ms where it is known."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(clip.frames))
    row, column = clip.spacing_mm or (1.0, 1.0)
    image.SetSpacing((float(column), float(row), float(clip.frame_time_ms or 1.0)))
    if clip.frame_time_ms:
        image.SetMetaData(_FRAME_TIME_KEY, repr(float(clip.frame_time_ms)))
    if clip.spacing_mm is None:
        image.SetMetaData(_NO_SPACING_KEY, "True")
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
        _load(path)  # on a full disk the writer may leave a short file without a word
    except RuntimeError as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    except EchoPlanError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def _load(path: Path) -> tuple[ClipInfo, sitk.Image]:
    info = probe(path)
    try:
        with _readable_by_simpleitk(path, info) as readable:
            return info, sitk.ReadImage(str(readable), imageIO="MetaImageIO")
    except RuntimeError as error:
        raise EchoPlanError(
            "the MetaImage is truncated or damaged", file=path, remedy="copy or download it again"
        ) from error


def _header_text(path: Path) -> bytes:
    """The header's bytes, its last line (ElementDataFile) included."""
    with open(path, "rb") as stream:
        head = stream.read(_HEADER_LIMIT)
    end = re.search(rb"^ElementDataFile\s*=[^\n]*\n?", head, re.MULTILINE)
    if end is None:
        raise EchoPlanError("the MetaImage header has no ElementDataFile", file=path, remedy="copy it again")
    return head[: end.end()]


def _read_header(path: Path) -> dict[str, str]:
    lines = _header_text(path).decode("latin-1").splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _check_data_file(path: Path, header: dict[str, str]) -> None:
    name = header["ElementDataFile"]
    if name == "LOCAL" or name.startswith("LIST") or "%" in name:
        return
    data = path.parent / name
    if not data.is_file():
        raise EchoPlanError(
            f"the header's data file {name} is missing",
            file=path,
            remedy=f"put {name} beside it; a .mhd file holds no pixels itself",
        )
    if header.get("CompressedData", "False").lower() == "true" or header.get("ElementType") not in _BYTES:
        return
    values = int(np.prod([int(length) for length in header["DimSize"].split()], dtype=int))
    expected = values * _BYTES[header["ElementType"]] * int(header.get("ElementNumberOfChannels", 1))
    if data.stat().st_size < expected:
        raise EchoPlanError(
            f"the data file {name} is truncated: {data.stat().st_size} bytes of {expected}",
            file=path,
            remedy="copy or download it again",
        )


@contextmanager
def _readable_by_simpleitk(path: Path, info: ClipInfo) -> Iterator[Path]:
    """The file itself, or a copy with a mended header where SimpleITK would refuse its name or its spacing."""
    spacing = info.spacing_mm or (1.0, 1.0)
    if path.suffix.lower() in (".mha", ".mhd") and usable_spacing(spacing):
        yield path
        return
    header = _header_text(path)
    mended = re.sub(rb"^(ElementSpacing|ElementSize)\s*=[^\n]*\n", b"", header, flags=re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "clip.mha"
        if re.search(rb"ElementDataFile\s*=\s*LOCAL", mended):
            copy.write_bytes(mended + path.read_bytes()[len(header) :])
        else:
            beside = str(path.parent.resolve()).encode() + b"/"
            copy.write_bytes(re.sub(rb"(ElementDataFile\s*=\s*)", lambda found: found[1] + beside, mended))
        yield copy
