"""What a file may ask of the machine, and how its failures are told: sizes, regular files, one kind of error."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from echoplan.errors import EchoPlanError

# Of a clip's pixels as its file holds them: 3,000 colour frames of 1024 x 768 are 7.1 GB.
MAX_CLIP_BYTES = 8 * 10**9
MAX_FRAME_PIXELS = 2**25  # 7680 x 4320 is the largest screen there is to record
_WORDS = {
    errno.ENOENT: "there is no such file or folder",
    errno.ELOOP: "this is a symbolic link that leads to itself",
    errno.ENAMETOOLONG: "the name is too long for the system",
}


def check_size(path: Path, shape: tuple[int, int, int], bytes_per_pixel: float = 1) -> None:
    """Refuse what no clip needs, before memory is asked for that a damaged header made up.

    Args:
        path: the file.
        shape: (T, H, W) that its header tells.
        bytes_per_pixel: of all channels, in the file.

    Raises:
        EchoPlanError: there are no pixels, the frames are larger than any screen, or the clip takes more than
            `MAX_CLIP_BYTES`.
    """
    frames, rows, columns = shape
    if min(shape) < 1:
        raise EchoPlanError(f"{frames} frames of {rows} x {columns} pixels are no clip", file=path)
    if rows * columns > MAX_FRAME_PIXELS:
        raise EchoPlanError(
            f"frames of {rows} x {columns} pixels: at most {MAX_FRAME_PIXELS:,} pixels a frame are read",
            file=path,
            remedy="export it again, in the size it was recorded",
        )
    size = frames * rows * columns * bytes_per_pixel
    if size > MAX_CLIP_BYTES:
        raise EchoPlanError(
            f"{frames} frames of {rows} x {columns} pixels take {size / 1e9:.1f} GB of memory; a clip may take "
            f"{MAX_CLIP_BYTES / 1e9:.0f} GB",
            file=path,
            remedy="cut it into shorter clips",
        )


def open_regular(path: Path) -> BufferedReader:
    """The file, opened for reading; never a device or a pipe, on which reading would not end.

    Raises:
        EchoPlanError: it is something else than a file.
        OSError: as `open`.
    """
    if "\0" in str(path):
        raise EchoPlanError("the name holds a NUL character", file=str(path).replace("\0", "?"))
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    stream = open(path, "rb", opener=lambda name, _: os.open(name, flags))  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise EchoPlanError("this is no file but a folder, a device or a pipe", file=path, remedy="give a clip's file")
    return stream


def damaged(path: Path, what: str = "file") -> EchoPlanError:
    """The error of a file that ends early or whose checksums are wrong."""
    return EchoPlanError(f"the {what} is truncated or damaged", file=path, remedy="copy or download it again")


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file inside becomes an `EchoPlanError` that names it and quotes nothing of it."""
    try:
        yield
    except EchoPlanError:
        raise
    except MemoryError as error:
        raise EchoPlanError(
            "there is not enough memory for this clip",
            file=path,
            remedy="free some memory, or cut it into shorter clips",
        ) from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise EchoPlanError(_WORDS.get(error.errno or 0, f"the file cannot be read: {reason}"), file=path) from error
    except Exception as error:  # what the damage happens to provoke in a library
        raise EchoPlanError(
            f"the file cannot be read ({type(error).__name__})", file=path, remedy="copy it or export it again"
        ) from error
