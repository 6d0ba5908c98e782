"""NIfTI-1 and NIfTI-2 clips in one file (.nii, .nii.gz).

Axes are (columns, rows, frames), so the array is (T, H, W). Only files that EchoPlan wrote say their frame time: it is
the third spacing, in ms, and `descrip` says so. NIfTI itself has units of time for a fourth axis alone, which is read
too (columns, rows, 1, frames); what other programs put in the third spacing is a slice distance, or nothing at all.
`descrip` also says where the spacing is unknown, since a NIfTI file must have one: 1 mm is then only a stopgap. A file
written on the grid of another keeps that grid's header; what is known better of spacing and time `descrip` says too.

Files are parsed here and not by SimpleITK, which reads a truncated file as if zeros followed, turns a spacing of zero
into 1 mm without a word, and takes no file whose name does not end in .nii or .nii.gz. They are written here, because
SimpleITK copies the clip, and on a full disk leaves a short file without a word.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from echoplan.errors import EchoPlanError
from echoplan.imageio.arrays import as_frames, to_clip_dtype, to_grey, to_labels, usable_time
from echoplan.imageio.blocks import DEFLATE_AT_BEST, GZIP, Inflated, Stream, check_end, read_bytes
from echoplan.imageio.bounds import check_size, damaged, open_regular
from echoplan.imageio.clip import Clip, ClipInfo
from echoplan.imageio.space import Space

_FRAME_TIME_NOTE = "EchoPlan: third spacing is the frame time in ms"
_NO_SPACING_NOTE = "EchoPlan: spacing unknown"
_KNOWN_TIME = re.compile(r"EchoPlan: frame time ([-+.e0-9]+) ms")
_KNOWN_SPACING = re.compile(r"EchoPlan: spacing ([-+.e0-9]+) ([-+.e0-9]+) mm")
_GZIP = b"\x1f\x8b"
_DATA_OFFSET = 352  # of the files written here: header, and no extension
_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_RGB24, _RGBA32 = 128, 2304
_HEADER_BYTES, _HEADER_2_BYTES = 348, 540
_LARGEST_OFFSET = 2**26  # of the pixels: what lies between is the header's extension
_COMPRESSION = 3  # of 9: beyond it masks take twice the time, to save some kilobytes
_LONGEST_AXIS = 32767
_MM, _MM_AND_SECONDS = 2, 2 + 8
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown, metre, millimetre, micrometre
_MS_PER_UNIT = {8: 1000.0, 16: 1.0, 24: 0.001}  # second, millisecond, microsecond
_TO_LPS = np.array([-1.0, -1.0, 1.0])  # NIfTI's x goes to the right, y to the front


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]  # fastest axis first, as the file has it
    pixdim: tuple[float, ...]
    dtype: np.dtype
    channels: int  # in each voxel: 3 and 4 for the RGB types
    offset: int
    slope: float
    intercept: float
    units: int
    description: str
    qfac: float  # below 0: the third axis of the first form is mirrored
    codes: tuple[int, int]  # of the two forms of orientation: 0 where it is not given
    turn: tuple[float, ...]  # of the first form: quaternion b, c, d and the offset
    matrix: tuple[float, ...]  # the second form: three rows of four

    @property
    def vector(self) -> int:
        """Components along the fifth axis (a vector image), or 1."""
        return self.shape[4] if len(self.shape) >= 5 else 1

    @property
    def spacing_mm(self) -> tuple[float, float] | None:
        if _NO_SPACING_NOTE in self.description:
            return None
        if better := _KNOWN_SPACING.search(self.description):
            return _number(better[1]), _number(better[2])
        scale = _MM_PER_UNIT.get(self.units & 0x07, 1.0)
        return self.pixdim[1] * scale, self.pixdim[0] * scale

    @property
    def frames(self) -> int:
        return math.prod(self.shape[2:4])

    @property
    def frame_time_ms(self) -> float | None:
        if self.frames < 2:
            return None
        if better := _KNOWN_TIME.search(self.description):
            return usable_time(_number(better[1]))
        if _FRAME_TIME_NOTE in self.description:
            return usable_time(self.pixdim[2])
        if len(self.shape) >= 4 and self.shape[3] > 1:
            return usable_time(self.pixdim[3] * _MS_PER_UNIT.get(self.units & 0x38, 0.0))
        return None

    @property
    def space(self) -> Space | None:
        """The grid as ITK reads it: by the matrix where it can, else by the quaternion."""
        size = list(self.shape[:4])
        while len(size) > 3 and size[-1] == 1:
            size.pop()
        scale = _MM_PER_UNIT.get(self.units & 0x07, 1.0)
        factors = (scale, scale, scale, _MS_PER_UNIT.get(self.units & 0x38, 1000.0) / 1000)
        spacing = [abs(step * factor) or 1.0 for step, factor in zip(self.pixdim, factors, strict=False)][: len(size)]
        matrix = np.array(self.matrix).reshape(3, 4)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            directions = matrix[:, :3] / np.linalg.norm(matrix[:, :3], axis=0)
            square = np.allclose(directions.T @ directions, np.eye(3), atol=1e-4)
        if self.codes[1] > 0 and square and (self.codes[0] == 0 or self.codes[1] == 1):
            offset = matrix[:, 3]
        elif self.codes[0] > 0:
            directions, offset = _rotation(self.turn[:3], mirrored=self.qfac < 0), np.array(self.turn[3:])
        elif self.codes[1] > 0:
            return None  # sheared: no picture's place
        else:
            return Space.of(size, spacing, None, None, stated=False)
        count = min(len(size), 3)
        direction = np.eye(len(size))
        direction[:count, :count] = (_TO_LPS[:, None] * directions)[:count, :count]
        origin = [*(_TO_LPS * offset * scale)[:count].tolist(), 0.0][: len(size)]
        stated = _NO_SPACING_NOTE not in self.description
        return Space.of(size, spacing, origin, direction.ravel().tolist(), stated=stated)


def matches(path: Path, head: bytes) -> bool:
    """Whether the file's content is NIfTI, compressed or not."""
    if head.startswith(_GZIP):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, 352)
        except zlib.error:
            return False
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


def read(path: Path) -> Clip:
    """Read a clip; the spacing is the header's, be it sane or not.

    Raises:
        EchoPlanError: the file is truncated or damaged, or is no 2D clip.
    """
    header, values = _load(path)
    components = header.channels * header.vector
    if components in (3, 4):
        values = to_grey(values[..., :3])
    elif components == 1:
        values = values[..., 0]
    else:
        raise EchoPlanError(f"pixels of {components} channels are not an ultrasound image", file=path)
    return Clip(
        frames=to_clip_dtype(as_frames(values, path), path),
        spacing_mm=header.spacing_mm,
        frame_time_ms=header.frame_time_ms,
        source=str(path),
        space=header.space,
    )


def read_labels(path: Path) -> np.ndarray:
    """(T, H, W) uint8 label values.

    Raises:
        EchoPlanError: the file is damaged, or its values are not labels.
    """
    header, values = _load(path)
    if header.channels * header.vector != 1:
        raise EchoPlanError("a mask has one channel, this file has several", file=path)
    return to_labels(as_frames(values[..., 0], path), path)


def probe(path: Path) -> ClipInfo:
    """Shape, spacing and frame time from the header alone."""
    with _open(path) as stream:
        header, _ = _read_header(stream, path)
    columns, rows = header.shape[:2]
    return ClipInfo((header.frames, rows, columns), header.spacing_mm, header.frame_time_ms, space=header.space)


def write(path: Path, clip: Clip) -> None:
    """Write the clip; the third spacing is the frame time in ms where it is known.

    Raises:
        EchoPlanError: the clip is too large for NIfTI-1.
    """
    frames = clip.frames.astype(clip.frames.dtype.newbyteorder("<"), copy=False)
    if max(frames.shape) > _LONGEST_AXIS:
        raise EchoPlanError(
            f"{len(frames)} frames of {clip.frame_shape} pixels: NIfTI-1 holds at most {_LONGEST_AXIS} along an axis",
            file=path,
            remedy="cut the clip into shorter ones",
        )
    with ExitStack() as stack:
        stream: Any = stack.enter_context(open(path, "wb"))
        if path.name.endswith(".gz"):
            # Without name and time the same clip makes the same bytes.
            stream = stack.enter_context(gzip.GzipFile("", "wb", _COMPRESSION, stream, mtime=0))
        stream.write(_header_of(clip))
        for frame in frames:  # one by one: there is no second clip in memory
            stream.write(np.ascontiguousarray(frame).data)


def _header_of(clip: Clip) -> bytes:
    """NIfTI-1's, on the clip's own grid; where none is known, as ITK has an upright picture."""
    (frames, rows, columns), kind = clip.frames.shape, clip.frames.dtype
    (code,) = (code for code, name in _DTYPES.items() if np.dtype(name) == kind.newbyteorder("="))
    row_mm, column_mm = clip.spacing_mm or (1.0, 1.0)
    upright = Space.of((columns, rows, frames), (column_mm, row_mm, clip.frame_time_ms or 1.0), None, None)
    space = (None if clip.space is None else clip.space.with_frames(clip.frames.shape)) or upright
    if space is None:
        raise EchoPlanError(f"spacing {clip.spacing_mm} and frame time {clip.frame_time_ms} are no lengths")
    count = min(len(space.size), 3)
    directions = np.eye(3)
    directions[:count, :count] = np.array(space.direction).reshape((len(space.size),) * 2)[:count, :count]
    directions = _TO_LPS[:, None] * directions + 0.0
    turn, mirrored = _quaternion(directions)
    offset = _TO_LPS * [*space.origin[:count], *[0.0] * (3 - count)] + 0.0
    spacing = [*space.spacing, *[1.0, 0.0][len(space.spacing) - 2 :]]
    matrix = np.c_[directions * spacing[:3], offset]
    # Along a fourth axis a time is in seconds; where it is unknown, the header must not say so.
    in_seconds = len(space.size) < 4 or math.isclose(clip.frame_time_ms or 0.0, 1000 * spacing[3], rel_tol=1e-6)
    header = bytearray(_DATA_OFFSET)
    fields: tuple[tuple[Any, ...], ...] = (
        ("i", 0, 348),
        ("c", 38, b"r"),  # "regular", as every reader expects
        ("8h", 40, len(space.size), *space.size, *[1] * (7 - len(space.size))),
        ("2h", 70, code, 8 * kind.itemsize),
        ("5f", 76, -1.0 if mirrored else 1.0, *spacing),
        ("3f", 108, _DATA_OFFSET, 1.0, 0.0),  # and a scale of 1
        ("B", 123, _MM_AND_SECONDS if in_seconds else _MM),
        ("80s", 148, _description(clip, space).encode()),
        ("2h", 252, 1, 1),  # the orientation comes in both of its forms: a quaternion ...
        ("6f", 256, *turn, *offset),
        ("12f", 280, *matrix.ravel()),  # ... and a matrix
        ("4s", 344, b"n+1"),
    )
    for form, offset_in_file, *values in fields:
        struct.pack_into(f"<{form}", header, offset_in_file, *values)
    return bytes(header)


def _description(clip: Clip, space: Space) -> str:
    """What is known of spacing and time beside the header's own numbers."""
    notes = []
    if clip.frame_time_ms and len(space.size) == 3 and math.isclose(space.spacing[2], clip.frame_time_ms, rel_tol=1e-6):
        notes.append(_FRAME_TIME_NOTE)
    elif clip.frame_time_ms:
        notes.append(f"EchoPlan: frame time {clip.frame_time_ms:.7g} ms")
    if clip.spacing_mm is None:
        notes.append(_NO_SPACING_NOTE)
    elif not np.allclose(clip.spacing_mm, space.spacing[1::-1], rtol=1e-6, atol=0):
        row, column = clip.spacing_mm
        notes = [f"EchoPlan: frame time {clip.frame_time_ms:.7g} ms"] if notes else []
        notes.append(f"EchoPlan: spacing {row:.7g} {column:.7g} mm")
    return "; ".join(notes)


def _rotation(turn: tuple[float, ...], *, mirrored: bool) -> np.ndarray:
    """(3, 3) of a quaternion's b, c and d."""
    b, c, d = turn
    rest = 1.0 - (b * b + c * c + d * d)
    if rest < 1e-7:  # a turn by half: a rounds to 0
        length = math.sqrt(b * b + c * c + d * d)
        a, b, c, d = 0.0, b / length, c / length, d / length
    else:
        a = math.sqrt(rest)
    matrix = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
    ])  # fmt: skip
    return matrix * [1.0, 1.0, -1.0] if mirrored else matrix


def _quaternion(directions: np.ndarray) -> tuple[tuple[float, float, float], bool]:
    """b, c and d of a rotation (3, 3), and whether its third axis had to be mirrored to make it one."""
    mirrored = bool(np.linalg.det(directions) < 0)
    matrix = directions * [1.0, 1.0, -1.0] if mirrored else directions
    # The eigenvector of the largest eigenvalue (Bar-Itzhack, J. Guid. Control Dyn. 23:1085, 2000): exact at every turn.
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = matrix
    symmetric = np.array([
        [xx + yy + zz, zy - yz, xz - zx, yx - xy],
        [zy - yz, xx - yy - zz, xy + yx, xz + zx],
        [xz - zx, xy + yx, yy - xx - zz, yz + zy],
        [yx - xy, xz + zx, yz + zy, zz - xx - yy],
    ])  # fmt: skip
    vector = np.linalg.eigh(symmetric)[1][:, -1]
    first = vector[0] if abs(vector[0]) > 1e-9 else vector[np.flatnonzero(np.abs(vector) > 1e-9)[-1]]
    _, b, c, d = (vector * math.copysign(1.0, first) + 0.0).tolist()
    return (b, c, d), mirrored


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def _load(path: Path) -> tuple[_Header, np.ndarray]:
    """The header, and the values as (..., T, H, W, components) with the intensity scale applied."""
    with _open(path) as stream:
        header, done = _read_header(stream, path)
        length = math.prod(header.shape) * header.channels * header.dtype.itemsize
        compressed = isinstance(stream, Inflated)
        if length > path.stat().st_size * (DEFLATE_AT_BEST if compressed else 1):
            raise damaged(path, "NIfTI file")  # before memory is asked for that a damaged header made up
        read_bytes(stream, header.offset - done, path, "NIfTI file")
        content = read_bytes(stream, length, path, "NIfTI file")
        if compressed:
            check_end(stream, path, "NIfTI file")
    values = content.view(header.dtype).astype(header.dtype.newbyteorder("="), copy=False)
    if header.channels > 1:
        values = values.reshape(*header.shape[::-1], header.channels)
    else:
        vector_last = np.moveaxis(values.reshape(header.vector, -1), 0, -1)
        values = vector_last.reshape(*header.shape[:4][::-1], header.vector)
    if (header.slope, header.intercept) != (1.0, 0.0):
        with np.errstate(over="ignore", invalid="ignore"):  # infinities are told of further on
            values = values.astype(np.float32) * np.float32(header.slope) + np.float32(header.intercept)
    return header, values


def _open(path: Path) -> Stream:
    stream = open_regular(path)
    compressed = stream.read(2) == _GZIP
    stream.seek(0)
    return Inflated(stream, GZIP) if compressed else stream


def _read_header(stream: Stream, path: Path) -> tuple[_Header, int]:
    """The header, and how many bytes it took."""
    head = read_bytes(stream, _HEADER_BYTES, path, "NIfTI file").tobytes()
    if head[4:8] in (b"n+2\0", b"ni2\0"):
        head += read_bytes(stream, _HEADER_2_BYTES - _HEADER_BYTES, path, "NIfTI file").tobytes()
    if b"ni1\0" in head[344:348] or b"ni2\0" in head[4:8]:
        raise EchoPlanError("NIfTI in two files (.hdr and .img) is not read", file=path, remedy="save it as .nii.gz")
    order: Literal["<", ">"] = "<" if struct.unpack_from("<i", head)[0] in (348, 540) else ">"

    def get(code: str, offset: int) -> tuple:
        return struct.unpack_from(order + code, head, offset)

    if head[4:8] == b"n+2\0":
        dim, pixdim, (datatype,) = get("8q", 16), get("8d", 104), get("h", 12)
        (offset,), scale, (units,), description = get("q", 168), get("2d", 176), get("i", 500), head[240:320]
        codes, turn, matrix = get("2i", 344), get("6d", 352), get("12d", 400)
    else:
        dim, pixdim, (datatype,) = get("8h", 40), get("8f", 76), get("h", 70)
        (offset,), scale, (units,), description = get("f", 108), get("2f", 112), get("B", 123), head[148:228]
        codes, turn, matrix = get("2h", 252), get("6f", 256), get("12f", 280)
    if not 2 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1 or max(dim[6 : dim[0] + 1], default=1) > 1:
        raise EchoPlanError(f"the header names impossible dimensions {dim}", file=path, remedy="export it again")
    if not len(head) <= offset <= _LARGEST_OFFSET:  # NaN included
        raise EchoPlanError("the header puts the pixels where none can be", file=path, remedy="export it again")
    channels = {_RGB24: 3, _RGBA32: 4}.get(datatype, 1)
    code = "u1" if channels > 1 else _DTYPES.get(datatype)
    if code is None:
        raise EchoPlanError(f"NIfTI data type {datatype} is no image", file=path, remedy="save it as uint8 or float32")
    usable = bool(np.isfinite(scale).all()) and scale[0] != 0  # a slope of 0 means: no scaling
    slope, intercept = scale if usable else (1.0, 0.0)
    dtype, shape = np.dtype(code).newbyteorder(order), tuple(int(length) for length in dim[1 : dim[0] + 1])
    vector = math.prod(shape[4:])
    check_size(path, (math.prod(shape[2:4]), shape[1], shape[0]), dtype.itemsize * channels * vector)
    header = _Header(
        shape=shape,
        pixdim=tuple(float(value) for value in pixdim[1:]),
        dtype=dtype,
        channels=channels,
        offset=int(offset),
        slope=float(slope),
        intercept=float(intercept),
        units=int(units),
        description=description.split(b"\0")[0].decode("latin-1"),
        qfac=float(pixdim[0]),
        codes=codes,
        turn=turn,
        matrix=matrix,
    )
    return header, len(head)
