"""A cluster's SIGTERM, met between two steps of a training instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from echoplan.errors import Terminated


class Termination:
    """Inside the block SIGTERM is only noted; the training asks `requested` when it can stop without loss.

    Raises:
        Terminated: at the block's end, where SIGTERM came and nobody asked any more.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> Termination:
        # Only the main thread may set handlers; a training in another thread ends as its process does.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if self.requested and kind is None:
            raise Terminated

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
