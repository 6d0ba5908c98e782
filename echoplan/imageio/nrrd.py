"""NRRD clips (.nrrd, and .nhdr with its data file).

Axes are (columns, rows, frames), so the array is (T, H, W); channels come first in the file, and 3D Slicer's sequences
have their time there. Header and pixels are read here, by the same rules as MetaImage's: the data lie in the header's
file, or in one file beside it. The keys in which EchoPlan notes frame time and unknown spacing are MetaImage's, too.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from echoplan.errors import EchoPlanError
from echoplan.imageio import itk_writer
from echoplan.imageio.arrays import as_frames, to_clip_dtype, to_grey, to_labels, usable_time
from echoplan.imageio.blocks import Block, beside
from echoplan.imageio.bounds import check_size, damaged, open_regular
from echoplan.imageio.clip import Clip, ClipInfo
from echoplan.imageio.itk_writer import FRAME_TIME_KEY, NO_SPACING_KEY, SPACING_KEY
from echoplan.imageio.space import Space

_MAGIC = re.compile(rb"NRRD000[1-5]\r?\n")
_END = re.compile(rb"\r?\n\r?\n")
_HEADER_LIMIT = 65536
_C_NAMES = {
    "i1": "signed char,int8,int8_t", "u1": "uchar,unsigned char,uint8,uint8_t",
    "i2": "short,short int,signed short,signed short int,int16,int16_t",
    "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
    "i4": "int,signed int,int32,int32_t", "u4": "uint,unsigned int,uint32,uint32_t",
    "i8": "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t",
    "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t", "f4": "float", "f8": "double",
}  # fmt: skip
_DTYPES = {name: code for code, names in _C_NAMES.items() for name in names.split(",")}
_CHANNELS = {"vector", "rgb-color", "rgba-color", "3-color", "4-color"}  # kinds of an axis that is no time or place
_SEQUENCE = {"list", "time"}
_TO_LPS = {
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1), "right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip
_MM_PER_UNIT = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "µm": 0.001}


@dataclass(frozen=True)
class _Header:
    data: Block  # whose shape is (..., rows, columns) or (..., rows, columns, first axis)
    first: str  # what the file's first axis is: "channels", "frames" or "columns"
    spacing_mm: tuple[float, float] | None
    frame_time_ms: float | None
    space: Space | None

    @property
    def channels(self) -> int:
        return self.data.shape[-1] if self.first == "channels" else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Slowest axis first, without channels."""
        if self.first == "columns":
            return self.data.shape
        inner = self.data.shape[:-1]
        return inner if self.first == "channels" else (self.data.shape[-1], *inner)

    @property
    def info(self) -> ClipInfo:
        frames = math.prod(self.shape[:-2])
        time = self.frame_time_ms if frames > 1 else None
        return ClipInfo((frames, self.shape[-2], self.shape[-1]), self.spacing_mm, time, space=self.space)

    def values(self) -> np.ndarray:
        """(..., T, H, W, channels)"""
        values = self.data.read("NRRD file")
        if self.first == "frames":
            values = np.moveaxis(values, -1, 0)
        return values if self.first == "channels" else values[..., None]


def matches(path: Path, head: bytes) -> bool:
    """Whether the file starts with NRRD's mark."""
    return bool(_MAGIC.match(head))


def read(path: Path) -> Clip:
    """Read a clip; the spacing is the header's, be it sane or not.

    Raises:
        EchoPlanError: the data file is missing, truncated or damaged, or this is no 2D clip.
    """
    header = _read_header(path)
    if header.channels not in (1, 3, 4):
        raise EchoPlanError(f"pixels of {header.channels} channels are not an ultrasound image", file=path)
    values = header.values()
    values = values[..., 0] if header.channels == 1 else to_grey(values[..., :3])
    info = header.info
    frames = to_clip_dtype(as_frames(values, path), path)
    return Clip(frames, info.spacing_mm, info.frame_time_ms, str(path), space=info.space)


def read_labels(path: Path) -> np.ndarray:
    """(T, H, W) uint8 label values.

    Raises:
        EchoPlanError: as `read`, or the values are not labels.
    """
    header = _read_header(path)
    if header.channels != 1:
        raise EchoPlanError("a mask has one channel, this file has several", file=path)
    return to_labels(as_frames(header.values()[..., 0], path), path)


def probe(path: Path) -> ClipInfo:
    """Shape, spacing and frame time from the header alone.

    Raises:
        EchoPlanError: the header cannot be understood, or its data file is missing.
    """
    return _read_header(path).info


def write(path: Path, clip: Clip) -> None:
    """Write the clip as one compressed .nrrd file; the third spacing is the frame time in ms where it is known."""
    itk_writer.write(path, clip, read)


def _read_header(path: Path) -> _Header:
    with open_regular(path) as stream:
        head = stream.read(_HEADER_LIMIT)
    end = _END.search(head)
    text = head[: end.start() if end else len(head)].decode("utf-8", "surrogateescape")
    fields: dict[str, str] = {}  # of the format, and what else programs note
    notes: dict[str, str] = {}
    for line in text.splitlines()[1:]:
        key, _, value = line.partition(":")
        if value.startswith("="):
            notes[key] = value[1:].strip()
        elif not line.startswith("#"):
            fields[key.strip().lower()] = value.strip()
    sizes = _sizes(fields, path)
    kind = _DTYPES.get(fields.get("type", "").lower())
    if kind is None:
        raise EchoPlanError("the NRRD header names no known type", file=path, remedy="save it as unsigned char")
    dtype = np.dtype(kind).newbyteorder(_byte_order(fields, path))
    first = _first_axis(fields, sizes)
    data = _data(path, fields, sizes[::-1], dtype, end.end() if end else None)
    spacing = None if NO_SPACING_KEY in notes else _spacing(fields, len(sizes), 0 if first == "columns" else 1, path)
    in_space = sizes if first == "columns" else sizes[1:]
    space = None if first == "frames" else _space(fields, in_space, stated=NO_SPACING_KEY not in notes)
    try:
        time = usable_time(float(notes.get(FRAME_TIME_KEY, "nan")))
        if SPACING_KEY in notes:
            row, column = map(float, notes[SPACING_KEY].split())
            spacing = row, column
    except ValueError:
        raise _not_understood(path, FRAME_TIME_KEY) from None
    header = _Header(data, first, spacing, time, space)
    if len(header.shape) < 2 or sum(length != 1 for length in header.shape[:-2]) > 1:
        raise EchoPlanError(f"an array of shape {header.shape} (slowest axis first) is no 2D clip", file=path)
    check_size(path, header.info.shape, header.channels * dtype.itemsize)
    return header


def _sizes(fields: dict[str, str], path: Path) -> tuple[int, ...]:
    """Lengths of the axes, fastest first."""
    words = fields.get("sizes", "").split()
    if not 2 <= len(words) <= 6 or not all(re.fullmatch("[0-9]{1,9}", word) for word in words):
        raise _not_understood(path, "sizes")
    if fields.get("dimension") != str(len(words)):
        raise _not_understood(path, "dimension")
    return tuple(map(int, words))


def _byte_order(fields: dict[str, str], path: Path) -> Literal["<", ">"]:
    order = fields.get("endian", "little").lower()
    if order not in ("little", "big"):
        raise _not_understood(path, "endian")
    return "<" if order == "little" else ">"


def _first_axis(fields: dict[str, str], sizes: tuple[int, ...]) -> str:
    kind = (fields.get("kinds", "").lower().split() or [""])[0]
    if kind in _CHANNELS:
        return "channels"
    if kind in _SEQUENCE and len(sizes) > 2:
        return "frames"
    outside_space = fields.get("space directions", "").lower().startswith("none")
    return "channels" if outside_space and sizes[0] in (1, 3, 4) else "columns"


def _data(path: Path, fields: dict[str, str], shape: tuple[int, ...], dtype: np.dtype, behind: int | None) -> Block:
    """Where the pixels lie.

    Raises:
        EchoPlanError: they are written in a way that is not read, or elsewhere.
    """
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise EchoPlanError("the NRRD file is not written as raw or gzip", file=path, remedy="save it as gzip")
    if any(fields.get(key, "0") != "0" for key in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise EchoPlanError("NRRD files that skip lines or bytes are not read", file=path, remedy="save it again")
    name = fields.get("data file", fields.get("datafile"))
    if name is None and behind is None:
        raise damaged(path, "NRRD file")
    file, start = (path, behind or 0) if name is None else (beside(path, name), 0)
    return Block(file, start, shape, dtype, compressed=encoding != "raw")


def _spacing(fields: dict[str, str], axes: int, columns: int, path: Path) -> tuple[float, float] | None:
    """(row, column) in mm, of the axes `columns` and the one behind it."""
    directions = re.findall(r"none|\([^)]*\)", fields.get("space directions", ""))
    words = fields.get("spacings", "").split()
    scale = _MM_PER_UNIT.get((re.findall(r'"([^"]*)"', fields.get("space units", "")) or ["mm"])[0], 1.0)
    try:
        if len(directions) == axes:
            column, row = (_length(directions[axis]) * scale for axis in (columns, columns + 1))
        elif len(words) == axes:
            column, row = float(words[columns]), float(words[columns + 1])
        else:
            return None
    except ValueError:
        raise _not_understood(path, "space directions") from None
    return row, column


def _space(fields: dict[str, str], sizes: tuple[int, ...], *, stated: bool) -> Space | None:
    """The grid, of axes that lie in space."""
    vectors = [_vector(word) for word in re.findall(r"\([^)]*\)", fields.get("space directions", ""))]
    signs = _TO_LPS.get(fields.get("space", "").lower(), (1, 1, 1))
    scale = _MM_PER_UNIT.get((re.findall(r'"([^"]*)"', fields.get("space units", "")) or ["mm"])[0], 1.0)
    steps = [math.hypot(*vector) for vector in vectors]
    if (
        not vectors
        or len(vectors) != len(sizes)
        or any(len(vector) != len(sizes) for vector in vectors)
        or not all(steps)
    ):
        return None
    if len(sizes) == 2 and fields.get("space dimension") == "2":
        signs = (1, 1, 1)
    columns = [[part * sign / step for part, sign in zip(vector, (*signs, 1), strict=False)]
               for vector, step in zip(vectors, steps, strict=True)]  # fmt: skip
    origin = _vector(fields.get("space origin", "")) or [0.0] * len(sizes)
    return Space.of(
        sizes,
        [step * scale for step in steps],
        [part * sign * scale for part, sign in zip(origin, (*signs, 1), strict=False)],
        np.array(columns).T.ravel().tolist(),
        stated=stated,
    )


def _length(vector: str) -> float:
    return math.hypot(*_vector(vector))


def _vector(text: str) -> list[float]:
    return [float(word) for word in text.strip("()").split(",")] if text else []


def _not_understood(path: Path, key: str) -> EchoPlanError:
    return EchoPlanError(f"the NRRD header cannot be understood: {key}", file=path, remedy="export it again")
