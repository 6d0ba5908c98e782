"""Moving several files and folders into place as if in one step: all of them, or none."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from echoplan.errors import EchoPlanError
from echoplan.files import read_json, write_json

try:
    import fcntl
except ImportError:  # Windows: what a killed process left is then put right by hand
    fcntl: Any = None  # type: ignore[no-redef]

logger = logging.getLogger(__name__)

_PREFIX = ".installing-"
_JOURNAL, _LOCK = "pieces.json", "lock"


@dataclass(frozen=True)
class Placing:
    """Things that are made ready beside their final places: `new` is laid out like `root`.

    Attributes:
        root: where the pieces go.
        folder: the hidden folder in it that holds what is new, what was there before, and the journal.
    """

    root: Path
    folder: Path

    @property
    def new(self) -> Path:
        """The folder to make things ready in."""
        return self.folder / "new"

    def commit(self, pieces: Sequence[str], *, overwrite: bool) -> list[str]:
        """Move pieces into place, one after another; those that took the place of another are returned.

        Args:
            pieces: paths below `root` and below `new`; files or folders.
            overwrite: whether they may take the place of another.

        Raises:
            EchoPlanError: something is there and may not be replaced.
        """
        # First what is to be done, so that it can be undone whenever it stops; without this file it is done.
        write_json(self.folder / _JOURNAL, list(pieces))
        replaced = []
        for piece in pieces:
            target, old = self.root / piece, self.folder / "old" / piece
            target.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(target):
                if not overwrite:
                    raise EchoPlanError("this came to be there meanwhile", file=target, remedy="see what it is")
                old.parent.mkdir(parents=True, exist_ok=True)
                os.rename(target, old)
                replaced.append(piece)
            os.rename(self.new / piece, target)
        (self.folder / _JOURNAL).unlink()
        return replaced

    def undo(self) -> None:
        """Put back what the journal says was moved; without a journal there is nothing to undo."""
        journal = self.folder / _JOURNAL
        if not journal.is_file():
            return
        for piece in reversed(read_json(journal)):
            target, new, old = self.root / piece, self.new / piece, self.folder / "old" / piece
            if not os.path.lexists(new) and os.path.lexists(target):
                os.rename(target, new)
            if os.path.lexists(old):
                os.rename(old, target)
            with suppress(OSError):  # a folder that was made for it, unless others use it
                if target.parent != self.root:
                    target.parent.rmdir()
        journal.unlink()


@contextmanager
def placing(root: Path) -> Iterator[Placing]:
    """Inside the block a `Placing` in `root`, which is made where it is missing.

    On an error, Ctrl-C or SIGTERM everything is as it was before. After a kill or a power cut it is so as soon as the
    next block in the same folder begins.
    """
    root.mkdir(parents=True, exist_ok=True)
    put_right(root)
    made = Placing(root, Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root)))
    try:
        made.new.mkdir()
        unlocked = made.folder / f"{_LOCK}.new"
        with open(unlocked, "w") as lock:  # held as long as the folder lives
            _take(lock)
            os.replace(unlocked, made.folder / _LOCK)  # only now others look at it
            try:
                yield made
            finally:
                made.undo()
    finally:
        if not (made.folder / _JOURNAL).exists():  # else it is for the next one to put right
            shutil.rmtree(made.folder, ignore_errors=True)


def put_right(root: Path) -> None:
    """Undo what processes that were killed had begun to place in a folder; those still at work are left alone."""
    for folder in sorted(root.glob(f"{_PREFIX}*")) if fcntl else []:
        with suppress(OSError), open(folder / _LOCK) as lock:
            if not _take(lock):
                continue
            if (folder / _JOURNAL).is_file():
                logger.warning("an installation that was cut off is undone in %s", root)
            Placing(root, folder).undo()
            shutil.rmtree(folder, ignore_errors=True)


def _take(lock: IO[str]) -> bool:
    """Whether the file is this process's own to hold until it is closed, or dies."""
    if not fcntl:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody else's, or a disk that knows no locks
        return False
    return True
