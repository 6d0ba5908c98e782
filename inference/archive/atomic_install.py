"""Moving several files and folders into place as if in one step: all of them, or none."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
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


class Placing:
    """A folder beside the final places, in which files are made ready; `commit` moves them into place.

    On an error, Ctrl-C or SIGTERM everything is as it was before. After a kill or a power cut it is so as soon as the
    next `Placing` in the same folder begins.

    Args:
        root: where the pieces go; made where it is missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def new(self) -> Path:
        """The folder to make things ready in, laid out like the root."""
        return self._folder / "new"

    def __enter__(self) -> Placing:
        self.root.mkdir(parents=True, exist_ok=True)
        put_right(self.root)
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self.root))
        try:
            self.new.mkdir()
            unlocked = self._folder / f"{_LOCK}.new"
            self._lock = open(unlocked, "w")  # held as long as the folder lives
            _take(self._lock)
            os.replace(unlocked, self._folder / _LOCK)  # only now others look at it
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return self

    def commit(self, pieces: Sequence[str], *, overwrite: bool) -> list[str]:
        """Move pieces into place, one after another; those that took the place of another are returned.

        Args:
            pieces: paths below the root and below `new`; files or folders.
            overwrite: whether they may take the place of another.

        Raises:
            EchoPlanError: something is there and may not be replaced.
        """
        # First what is to be done, so that it can be undone whenever it stops; without this file it is done.
        write_json(self._folder / _JOURNAL, list(pieces))
        replaced = []
        for piece in pieces:
            target, old = self.root / piece, self._folder / "old" / piece
            target.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(target):
                if not overwrite:
                    raise EchoPlanError("this came to be there meanwhile", file=target, remedy="see what it is")
                old.parent.mkdir(parents=True, exist_ok=True)
                os.rename(target, old)
                replaced.append(piece)
            os.rename(self.new / piece, target)
        (self._folder / _JOURNAL).unlink()
        return replaced

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            _undo(self._folder, self.root)
        finally:
            self._lock.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def put_right(root: Path) -> None:
    """Undo what processes that were killed had begun to place in a folder; those still at work are left alone."""
    for folder in sorted(root.glob(f"{_PREFIX}*")) if fcntl else []:
        with suppress(OSError), open(folder / _LOCK) as lock:
            if not _take(lock):
                continue
            if (folder / _JOURNAL).is_file():
                logger.warning("an installation that was cut off is undone in %s", root)
            _undo(folder, root)
            shutil.rmtree(folder, ignore_errors=True)


def _undo(folder: Path, root: Path) -> None:
    """Put back what the journal says was moved; without a journal there is nothing to undo."""
    journal = folder / _JOURNAL
    if not journal.is_file():
        return
    for piece in reversed(read_json(journal)):
        target, new, old = root / piece, folder / "new" / piece, folder / "old" / piece
        if not os.path.lexists(new) and os.path.lexists(target):
            os.rename(target, new)
        if os.path.lexists(old):
            os.rename(old, target)
        with suppress(OSError):  # a folder that was made for it, unless others use it
            if target.parent != root:
                target.parent.rmdir()
    journal.unlink()


def _take(lock: IO[str]) -> bool:
    """Whether the file is this process's own to hold until it is closed, or dies."""
    if not fcntl:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody else's, or a disk that knows no locks
        return False
    return True
