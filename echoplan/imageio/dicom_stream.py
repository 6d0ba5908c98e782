"""The bytes of a DICOM file as pydicom is given them: inflated where they are deflated, and not without end."""

from __future__ import annotations

import io
from typing import BinaryIO

from echoplan.imageio.blocks import RAW, Inflated

_MOST_READS = 200_000  # that parsing may take: two or three an element
_HEADER_BYTES = 2**26  # that a deflated header may hold
_DEFLATED = b"\x02\x00\x10\x00UI\x16\x001.2.840.10008.1.2.1.99"
_PLAIN = b"\x02\x00\x10\x00UI\x16\x001.2.840.10008.1.2.1\0\0\0"


class MeteredHeader:
    """A file that ends with an error after so many reads: damaged or hostile headers hold elements without end."""

    def __init__(self, stream: BinaryIO | _Unpacked) -> None:
        self._stream, self._left = stream, _MOST_READS
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int = -1) -> bytes:
        """As a file does.

        Raises:
            ValueError: it was read too often.
        """
        self._left -= 1
        if self._left < 0:
            raise ValueError("a header without end")
        return self._stream.read(size)


class _Unpacked:
    """The start of a file as it is, and what follows inflated, as far as it is asked for."""

    def __init__(self, start: bytes, rest: Inflated, limit: int) -> None:
        self._content, self._rest, self._limit = bytearray(start), rest, limit
        self._place = 0

    def read(self, size: int = -1) -> bytes:
        """As a file does.

        Raises:
            ValueError: it is longer than it may be.
        """
        end = self._place + size if size >= 0 else self._limit + 1
        while len(self._content) < end and (piece := self._rest.read(2**20)):
            self._content += piece
            if len(self._content) > self._limit:
                raise ValueError("more than a clip may take")
        content = bytes(self._content[self._place : end])
        self._place += len(content)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As a file does, but not from its end."""
        if whence == io.SEEK_END:
            raise ValueError("the end is not known")
        self._place = max(0, offset + (self._place if whence == io.SEEK_CUR else 0))
        return self._place

    def tell(self) -> int:
        """Where the next read begins."""
        return self._place

    def close(self) -> None:
        """Nothing is open here."""


def unpacked(file: BinaryIO, most_pixels: int) -> BinaryIO | _Unpacked:
    """The file itself, or what a deflated one would be undeflated.

    Args:
        file: at its start.
        most_pixels: how many bytes may follow the header.
    """
    head = file.read(4096)
    file.seek(0)
    place = head.find(_DEFLATED)
    if head[128:132] != b"DICM" or place < 0:
        return file
    end = 144 + int.from_bytes(head[140:144], "little")  # behind the file meta information, by its own length
    start = head[:end].replace(_DEFLATED, _PLAIN)
    file.seek(end)
    return _Unpacked(start, Inflated(file, RAW), most_pixels + _HEADER_BYTES)
