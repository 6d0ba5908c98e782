"""What commands on Ray have in common: the disk that tasks share with them, how a death is told, and SIGTERM."""

from __future__ import annotations

import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from echoplan import __version__
from echoplan.errors import EchoPlanError, Terminated
from echoplan.files import naming_full_disk
from echoplan.paths import Folders

ATTEMPTS = 3  # before work that kills its workers is given up
_PATIENCE_SECONDS = 20.0  # network disks show a new file late


@dataclass(frozen=True)
class SharedDisk:
    """What a task must see as the command sees it.

    Attributes:
        token: a file that only this run has, where tasks write.
        folders: what tasks read.
        version: EchoPlan's, of the command.
    """

    token: Path
    folders: tuple[Path, ...] = ()
    version: str = __version__

    def check(self, patience_s: float = _PATIENCE_SECONDS) -> None:
        """Raise an EchoPlanError that names this node if it sees other files, or has another EchoPlan."""
        node = socket.gethostname()
        if self.version != __version__:
            raise EchoPlanError(
                f"the node {node} has EchoPlan {__version__}, the command {self.version}",
                remedy="install one version on all nodes",
            )
        missing = [folder for folder in self.folders if not folder.exists()]
        deadline = time.monotonic() + patience_s
        while not missing and not self.token.exists():
            if time.monotonic() > deadline:
                missing = [self.token.parent]
            time.sleep(0.2)
        if missing:
            raise EchoPlanError(
                f"the node {node} does not see what the command sees",
                file=missing[0],
                remedy="what is read and written must lie on a disk that all nodes share, under the same path",
            )


@contextmanager
def shared_disk(written: Path, *read: Path) -> Iterator[SharedDisk]:
    """A `SharedDisk` of a folder that tasks write to and of those they read, all absolute; its token ends with it."""
    token = written / f".run-{uuid.uuid4().hex}"
    with naming_full_disk(written):
        written.mkdir(parents=True, exist_ok=True)
        token.touch()
    try:
        yield SharedDisk(token, read)
    finally:
        token.unlink(missing_ok=True)


@contextmanager
def noting_sigterm() -> Iterator[Callable[[], None]]:
    """A function that raises Terminated if SIGTERM has come since the block began; for between two calls of Ray.

    Inside a call of Ray, which is no Python code, an exception of a signal's handler would become another one.
    """
    came: list[int] = []

    def check() -> None:
        if came:
            raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        yield check
    finally:
        signal.signal(signal.SIGTERM, before)


def absolute(where: Folders) -> Folders:
    """The three folders as processes with another working directory find them."""
    return Folders(where.raw.absolute(), where.preprocessed.absolute(), where.results.absolute())


def own_error(error: Exception) -> Exception | None:
    """What a task's code raised; None where the code had no say: its worker or its node died, or memory ran out."""
    from ray.exceptions import RayTaskError

    return error.cause if isinstance(error, RayTaskError) else None


def last_words(error: Exception) -> str:
    """One line of what Ray says of a worker's death."""
    from ray.exceptions import NodeDiedError, OutOfMemoryError

    if isinstance(error, OutOfMemoryError):
        return "its node ran out of memory"
    return "its node died" if isinstance(error, NodeDiedError) else "its worker died"
