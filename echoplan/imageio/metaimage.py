"""MetaImage clips (.mha, and .mhd with its .raw or .zraw).

Axes are (columns, rows, frames), so the array is (T, H, W). Files that EchoPlan wrote hold the frame time as the third
spacing, in ms, and once more under the key `FrameTimeMs`; a third spacing without that key is not taken for a time.
`SpacingUnknown = True` says that the spacing written is a stopgap, `SpacingMm` (row, column) what is known better.

The format's own library follows a header wherever it points (patterns of file names, lists, other folders, devices),
believes its numbers, and reads damaged or short data without a word. So header and pixels are read here: the data lie
in the header's file, or in one file beside it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from echoplan.errors import EchoPlanError
from echoplan.imageio import itk_writer
from echoplan.imageio.arrays import as_frames, to_clip_dtype, to_grey, to_labels, usable_time
from echoplan.imageio.blocks import Block, beside
from echoplan.imageio.bounds import check_size, damaged, open_regular
from echoplan.imageio.clip import Clip, ClipInfo
from echoplan.imageio.itk_writer import FRAME_TIME_KEY, NO_SPACING_KEY, SPACING_KEY
from echoplan.imageio.space import Space

_FIRST_LINE = re.compile(rb"\s*(ObjectType|ObjectSubType|NDims|Comment|Name|ID)\s*=", re.IGNORECASE)
_LAST_LINE = re.compile(rb"^ElementDataFile\s*=[^\n]*\n?", re.MULTILINE)
_HEADER_LIMIT = 65536
_DTYPES = {
    "MET_UCHAR": "u1", "MET_CHAR": "i1", "MET_USHORT": "u2", "MET_SHORT": "i2", "MET_UINT": "u4", "MET_INT": "i4",
    "MET_ULONG": "u4", "MET_LONG": "i4", "MET_ULONG_LONG": "u8", "MET_LONG_LONG": "i8",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip


@dataclass(frozen=True)
class _Header:
    size: tuple[int, ...]  # fastest axis first, as the file has it
    channels: int
    spacing_mm: tuple[float, float] | None
    frame_time_ms: float | None
    space: Space | None
    data: Block

    @property
    def info(self) -> ClipInfo:
        shape = (math.prod(self.size[2:]), self.size[1], self.size[0])
        return ClipInfo(shape, self.spacing_mm, self.frame_time_ms if shape[0] > 1 else None, space=self.space)


def matches(path: Path, head: bytes) -> bool:
    """Whether the file starts with a MetaImage text header."""
    return bool(_FIRST_LINE.match(head)) and b"NDims" in head


def read(path: Path) -> Clip:
    """Read a clip; the spacing is the header's, be it sane or not.

    Raises:
        EchoPlanError: the data file is missing, truncated or damaged, or this is no 2D clip.
    """
    header = _read_header(path)
    if header.channels not in (1, 3, 4):
        raise EchoPlanError(f"pixels of {header.channels} channels are not an ultrasound image", file=path)
    values = header.data.read("MetaImage")
    values = values[..., 0] if header.channels == 1 else to_grey(values[..., :3])
    frames = to_clip_dtype(as_frames(values, path), path)
    return Clip(frames, header.info.spacing_mm, header.info.frame_time_ms, str(path), space=header.space)


def read_labels(path: Path) -> np.ndarray:
    """(T, H, W) uint8 label values.

    Raises:
        EchoPlanError: as `read`, or the values are not labels.
    """
    header = _read_header(path)
    if header.channels != 1:
        raise EchoPlanError("a mask has one channel, this file has several", file=path)
    return to_labels(as_frames(header.data.read("MetaImage")[..., 0], path), path)


def probe(path: Path) -> ClipInfo:
    """Shape, spacing and frame time from the header alone.

    Raises:
        EchoPlanError: the header cannot be understood, or its data file is missing or too short.
    """
    return _read_header(path).info


def write(path: Path, clip: Clip) -> None:
    """Write the clip as one compressed .mha file; the third spacing is the frame time in ms where it is known."""
    itk_writer.write(path, clip, read)


def _read_header(path: Path) -> _Header:
    with open_regular(path) as stream:
        head = stream.read(_HEADER_LIMIT)
    last = _LAST_LINE.search(head)
    if last is None:
        raise EchoPlanError("the MetaImage header has no ElementDataFile", file=path, remedy="copy it again")
    lines = head[: last.end()].decode("utf-8", "surrogateescape").split("\n")
    fields = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    size = _size(fields, path)
    channels = _number(fields, "ElementNumberOfChannels", 1, path)
    kind = _DTYPES.get(fields.get("ElementType", ""))
    if kind is None:
        raise EchoPlanError("the MetaImage header names no known ElementType", file=path, remedy="save it as MET_UCHAR")
    dtype = np.dtype(kind).newbyteorder(">" if _flag(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB") else "<")
    if not _flag(fields, "BinaryData", default=True):
        raise EchoPlanError("pixels written as words are not read", file=path, remedy="save it with BinaryData = True")
    check_size(path, (math.prod(size[2:]), size[1], size[0]), channels * dtype.itemsize)
    shape = (*size[::-1], channels)
    data = _data(path, fields, shape, dtype, last.end())
    words = "" if NO_SPACING_KEY in fields else fields.get("ElementSpacing") or fields.get("ElementSize") or ""
    try:
        spacing = [float(value) for value in words.split()]
        time = usable_time(float(fields.get(FRAME_TIME_KEY, "nan")))
    except ValueError:
        raise _not_understood(path, "ElementSpacing") from None
    if words and len(spacing) < 2:
        raise _not_understood(path, "ElementSpacing")
    space = _space(fields, size, path)
    if SPACING_KEY in fields:
        spacing = _numbers(fields[SPACING_KEY], SPACING_KEY, path)[::-1]
    return _Header(size, channels, (spacing[1], spacing[0]) if words else None, time, space, data)


def _space(fields: dict[str, str], size: tuple[int, ...], path: Path) -> Space | None:
    """The grid as ITK reads it; the matrix's rows are the file's axes."""
    spacing = _numbers(fields.get("ElementSpacing") or fields.get("ElementSize") or "", "ElementSpacing", path)
    origin, direction = (
        _numbers(next((fields[key] for key in keys if key in fields), ""), keys[0], path)
        for keys in (("Offset", "Origin", "Position"), ("TransformMatrix", "Rotation", "Orientation"))
    )
    if direction and len(direction) == len(size) ** 2:
        direction = np.reshape(direction, (len(size),) * 2).T.ravel().tolist()
    stated = bool(origin or direction) and NO_SPACING_KEY not in fields
    return Space.of(size, spacing or [1.0] * len(size), origin, direction, stated=stated)


def _numbers(text: str, key: str, path: Path) -> list[float]:
    try:
        return [float(word) for word in text.split()]
    except ValueError:
        raise _not_understood(path, key) from None


def _size(fields: dict[str, str], path: Path) -> tuple[int, ...]:
    """(columns, rows, ...) of an image that is 2D over time."""
    words = fields.get("DimSize", "").split()
    if not all(re.fullmatch("[0-9]{1,9}", word) for word in words) or fields.get("NDims") != str(len(words)):
        raise _not_understood(path, "DimSize")
    size = tuple(map(int, words))
    if len(size) < 2 or sum(length != 1 for length in size[2:]) > 1:
        raise EchoPlanError(f"an image of size {' x '.join(words)} is no 2D clip", file=path)
    return size


def _data(path: Path, fields: dict[str, str], shape: tuple[int, ...], dtype: np.dtype, header_end: int) -> Block:
    """Where the pixels lie: behind the header, or in a file beside it.

    Raises:
        EchoPlanError: there is no such file, it is too short, or the header points elsewhere.
    """
    name = fields["ElementDataFile"]
    compressed = _flag(fields, "CompressedData")
    skip = _number(fields, "HeaderSize", 0, path)
    size = math.prod(shape) * dtype.itemsize
    if name.lower() == "local":
        file, start = path, skip or header_end
    else:
        file, start = beside(path, name), skip
    if skip < 0:
        start = -size
    length = _number(fields, "CompressedDataSize", 0, path) if compressed else 0
    if length < 0 or skip < -1 or (skip < 0 and compressed):
        raise _not_understood(path, "HeaderSize" if skip < 0 else "CompressedDataSize")
    there, expected = file.stat().st_size, max(start, 0) + (length if compressed else size)
    if there < expected:
        if file == path:
            raise damaged(path, "MetaImage")
        raise EchoPlanError(
            f"the data file {name} is truncated: {there} bytes of {expected}",
            file=path,
            remedy="copy or download it again",
        )
    return Block(file, start, shape, dtype, compressed, length or None)


def _number(fields: dict[str, str], key: str, default: int, path: Path) -> int:
    word = fields.get(key, str(default))
    if not re.fullmatch("-?[0-9]{1,18}", word):
        raise _not_understood(path, key)
    return int(word)


def _flag(fields: dict[str, str], *keys: str, default: bool = False) -> bool:
    """True, true, T and 1 alike, as the format's library has it; of several keys the first that is there."""
    word = next((fields[key] for key in keys if key in fields), str(default))
    return word[:1] in ("T", "t", "1")


def _not_understood(path: Path, key: str) -> EchoPlanError:
    return EchoPlanError(f"the MetaImage header cannot be understood: {key}", file=path, remedy="export it again")
