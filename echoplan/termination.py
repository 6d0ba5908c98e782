"""SIGTERM and Ctrl-C, met where nothing is lost by them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from echoplan.errors import Terminated


class Termination:
    """Inside the block SIGTERM is only noted; a training asks `requested` when it can stop without loss.

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


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold SIGTERM and Ctrl-C back inside the block: a worker that is only half started could not be ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number)) or signal.SIG_DFL
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for missed in came:
            signal.raise_signal(missed)
