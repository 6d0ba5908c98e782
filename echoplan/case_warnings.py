"""Warnings about cases: held back while a case is worked on, and said once for all cases of a kind."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

CaseWarnings = Sequence[tuple[str, str]]  # (kind: the message before its values are put in, the message)
_NAMED = 3  # of the cases of a kind


class _HeldBack(logging.Handler):
    """Stands between the package's logger and what shows its messages; keeps the warnings of threads that hold back."""

    def __init__(self) -> None:
        super().__init__()
        self.of_thread: dict[int, list[logging.LogRecord]] = {}
        self.guard = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        kept = self.of_thread.get(threading.get_ident())
        if kept is not None and record.levelno == logging.WARNING:
            kept.append(record)
        else:
            logging.getLogger().callHandlers(record)


_holder = _HeldBack()
_package = logging.getLogger("echoplan")


@contextmanager
def held_back() -> Iterator[list[logging.LogRecord]]:
    """Yield a list that takes the warnings which this thread logs in the block; they are not shown."""
    thread = threading.get_ident()
    with _holder.guard:
        before = _holder.of_thread.get(thread)
        if not _holder.of_thread:
            _package.addHandler(_holder)
            _package.propagate = False
        kept: list[logging.LogRecord] = []
        _holder.of_thread[thread] = kept
    try:
        yield kept
    finally:
        with _holder.guard:
            del _holder.of_thread[thread]
            if before is not None:
                _holder.of_thread[thread] = before
            if not _holder.of_thread:
                _package.removeHandler(_holder)
                _package.propagate = True


def log_failures(logger: logging.Logger, failures: Mapping[str, str], words: str, *, of: int) -> None:
    """Log in one line what became of the cases that failed, with the reason of the first."""
    for line in lines_of({case: [(words, f"{words}: {reason}")] for case, reason in failures.items()}, of=of):
        logger.warning("%s", line)


def lines_of(warnings: Mapping[str, CaseWarnings], *, of: int) -> list[str]:
    """One line for each kind of warning.

    Args:
        warnings: case -> what was said of it.
        of: how many cases there are.

    Example:
        >>> said = [("%d of its frames are traced", "1 of its frames are traced")]
        >>> lines_of({"a": said, "b": said}, of=9)
        ['2 of 9 cases (a, b): 1 of its frames are traced']
    """
    kinds: dict[str, dict[str, str]] = defaultdict(dict)
    for case, said in warnings.items():
        for kind, message in said:
            kinds[kind].setdefault(case, message)
    lines = []
    for messages in kinds.values():
        case, message = next(iter(messages.items()))
        lines.append(f"{f'{len(messages)} of {of} cases ({few(messages)})' if len(messages) > 1 else case}: {message}")
    return lines


def few(names: Iterable[str]) -> str:
    """The first names and how many more there are.

    Example:
        >>> few(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
