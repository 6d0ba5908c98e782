"""Blocks of pixels as they lie in a file, plain or deflated. Every checksum is verified, and nothing is made up."""

from __future__ import annotations

import io
import math
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from echoplan.errors import EchoPlanError
from echoplan.imageio.bounds import damaged, open_regular

DEFLATE_AT_BEST = 1032  # bytes out of one byte in
RAW, GZIP, EITHER = -15, 31, 47  # zlib's `wbits`: bare, gzip alone, zlib or gzip
_BYTES_IN, _BYTES_OUT = 2**18, 2**22
_BYTES_BEHIND = 2**24  # that may follow the pixels inside a compressed stream


class Inflated(io.RawIOBase):
    """What a zlib or gzip stream holds, in pieces; a file of gzip may have several members, and zeros behind.

    Raises:
        EOFError: it ends early. zlib.error: it is damaged, or something else follows it.
    """

    def __init__(self, stream: BinaryIO, wbits: int) -> None:
        self._stream, self._wbits = stream, wbits
        self._engine = zlib.decompressobj(wbits=wbits)
        self._waiting = b""

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with up to its length; how many bytes, 0 at the end."""
        room = memoryview(buffer).cast("B")
        while len(room):
            if self._engine.eof and not self._next_member():
                return 0
            self._waiting = self._waiting or self._stream.read(_BYTES_IN)
            if not self._waiting:
                raise EOFError
            piece = self._engine.decompress(self._waiting, len(room))
            self._waiting = self._engine.unconsumed_tail
            if piece:
                room[: len(piece)] = piece
                return len(piece)
        return 0

    def _next_member(self) -> bool:
        """Begin the next stream, if there is one behind the one that has ended."""
        if self._wbits != GZIP:
            return False
        waiting = self._engine.unused_data.lstrip(b"\0")
        while not waiting:
            waiting = self._stream.read(_BYTES_IN)
            if not waiting:
                return False
            waiting = waiting.lstrip(b"\0")
        self._engine, self._waiting = zlib.decompressobj(wbits=self._wbits), waiting
        return True

    def close(self) -> None:
        """Close the file beneath, too."""
        self._stream.close()
        super().close()


Stream: TypeAlias = Inflated | io.BufferedReader


@dataclass(frozen=True)
class Block:
    """Where the pixels of an image lie.

    Attributes:
        path: the file that holds them.
        start: where in it they begin; negative: so far before its end.
        shape: slowest axis first.
        dtype: of one value, with its byte order.
        compressed: as zlib or gzip.
        length: how many bytes of the file are theirs where they are compressed; None: all that follow.
    """

    path: Path
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype
    compressed: bool = False
    length: int | None = None

    def read(self, what: str) -> np.ndarray:
        """The values, in the machine's byte order.

        Args:
            what: the format's name, for messages.

        Raises:
            EchoPlanError: the file is too short or damaged, or no file.
        """
        size = math.prod(self.shape) * self.dtype.itemsize
        with open_regular(self.path) as file:
            there = os.fstat(file.fileno()).st_size
            start = self.start if self.start >= 0 else there + self.start
            if start < 0 or size > (there - start) * (DEFLATE_AT_BEST if self.compressed else 1):
                raise damaged(self.path, what)
            file.seek(start)
            stream: Stream = file
            if self.compressed:
                part = file if self.length is None else io.BytesIO(file.read(min(self.length, there - start)))
                stream = Inflated(part, EITHER)
            content = read_bytes(stream, size, self.path, what)
            if self.compressed:
                check_end(stream, self.path, what)
        return content.view(self.dtype).astype(self.dtype.newbyteorder("="), copy=False).reshape(self.shape)


def read_bytes(stream: Stream, length: int, path: Path, what: str) -> np.ndarray:
    """So many bytes, (length,) uint8; they are in memory once, not twice.

    Raises:
        EchoPlanError: there are fewer, or they are damaged.
    """
    content = np.empty(length, np.uint8)
    view = content.data
    done = 0
    try:
        while done < length:
            count = stream.readinto(view[done : done + _BYTES_OUT])
            if not count:
                raise damaged(path, what)
            done += count
    except (EOFError, zlib.error) as error:
        raise damaged(path, what) from error
    return content


def check_end(stream: Stream, path: Path, what: str) -> None:
    """Read to the end of a compressed stream, where its checksum stands.

    Raises:
        EchoPlanError: the checksum is wrong, or far more follows than the header tells.
    """
    behind = 0
    try:
        while piece := stream.read(2**20):
            behind += len(piece)
            if behind > _BYTES_BEHIND:
                raise EchoPlanError(
                    f"the {what} holds far more than its header tells", file=path, remedy="export it again"
                )
    except (EOFError, zlib.error) as error:
        raise damaged(path, what) from error


def beside(path: Path, name: str) -> Path:
    """The file of that plain name in the folder of `path`.

    Raises:
        EchoPlanError: the name is a path, a list or a pattern, or there is no such file.
    """
    plain = name not in ("", ".", "..", "LIST") and not name.startswith("LIST ") and name.isprintable()
    if not plain or re.search(r"[/\\%:]", name) or len(name) > 255:
        raise EchoPlanError(
            "the header's data file is no plain file name: lists, patterns and other folders are not followed",
            file=path,
            remedy="put all pixels into one file beside the header, or save it as .mha",
        )
    data = path.parent / name
    if not data.is_file():
        raise EchoPlanError(
            f"the header's data file {name} is missing",
            file=path,
            remedy=f"put {name} beside it; the header's file holds no pixels itself",
        )
    return data
