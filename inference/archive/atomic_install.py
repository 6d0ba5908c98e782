"""Moving several files and folders into a results folder as if in one step: all of them, or none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from echoplan.errors import EchoPlanError
from echoplan.files import read_json, write_json

try:
    import fcntl
except ImportError:  # Windows: what a killed process left is put right by hand
    fcntl: Any = None  # type: ignore[no-redef]

_WORKPLACE = ".installing"
_PIECES, _LOCK = "pieces.json", "lock"


@contextmanager
def workplace(home: Path) -> Iterator[Path]:
    """A hidden folder in `home`, which is made where it is missing; what is made ready in its folder `new` is laid out
    like `home`.

    On an error, Ctrl-C or SIGTERM everything is as it was before. After a kill or a power cut it is so as soon as the
    next block begins.

    Raises:
        EchoPlanError: another process is at work there.
    """
    work = home / _WORKPLACE
    with _take(work):
        try:
            _undo(work)
            (work / "new").mkdir()
            yield work
        finally:
            _undo(work)
            shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):  # others use it
                home.rmdir()


def sweep_workplaces(results: Path) -> None:
    """Put right what installations that were killed left in any dataset's results; those at work are left alone."""
    for work in sorted(results.glob(f"*/{_WORKPLACE}")):
        with suppress(EchoPlanError), workplace(work.parent):
            pass


def move_into_place(work: Path, pieces: Sequence[str], *, overwrite: bool) -> list[str]:
    """Move pieces from `work`/new into place, one after another; those that took the place of another are returned.

    Args:
        work: of `workplace`.
        pieces: files or folders, as paths below the workplace's home.
        overwrite: whether they may take the place of another.

    Raises:
        EchoPlanError: something is there and may not be replaced.
    """
    write_json(work / _PIECES, pieces)  # as long as this is there, `_undo` puts everything back
    replaced = []
    for piece in pieces:
        target, old = work.parent / piece, work / "old" / piece
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(target):
            if not overwrite:
                raise EchoPlanError("this came to be there meanwhile", file=target, remedy="see what it is")
            old.parent.mkdir(parents=True, exist_ok=True)
            os.rename(target, old)
            replaced.append(piece)
        os.rename(work / "new" / piece, target)
    (work / _PIECES).unlink()
    return replaced


def _undo(work: Path) -> None:
    """Put back what was moved, where not all pieces were, and empty the workplace but for its lock."""
    for piece in reversed(read_json(work / _PIECES)) if (work / _PIECES).is_file() else ():
        target, new, old = work.parent / piece, work / "new" / piece, work / "old" / piece
        if not os.path.lexists(new) and os.path.lexists(target):
            os.rename(target, new)
        if os.path.lexists(old):
            os.rename(old, target)
        with suppress(OSError):  # a folder that was made for it, unless others use it
            target.parent.rmdir()
    (work / _PIECES).unlink(missing_ok=True)
    for path in [path for path in work.iterdir() if path.name != _LOCK]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _take(work: Path) -> ExitStack:
    """Hold a workplace until this is closed, or the process ends; on Windows its being there is the lock."""
    with suppress(FileExistsError, FileNotFoundError, BlockingIOError), ExitStack() as stack:
        work.mkdir(parents=True, exist_ok=fcntl is not None)
        if fcntl is not None:
            lock = stack.enter_context(open(work / _LOCK, "w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:  # of a disk that knows no locks all is trusted
                if isinstance(error, BlockingIOError):
                    raise
            if not os.path.samestat(os.fstat(lock.fileno()), os.stat(work / _LOCK)):
                raise FileNotFoundError  # who had it has just removed it
        return stack.pop_all()
    raise EchoPlanError(
        "another installation is at work here",
        file=work,
        remedy="wait for it; if there is none, move what is in the folder old back to its place, and remove this one",
    )
