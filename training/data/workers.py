"""Processes that work ahead of whoever takes what they make, and whose death is told with what they were at."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize, get_temp_dir
from typing import Any

import torch

from echoplan.errors import EchoPlanError
from echoplan.termination import undisturbed
from echoplan.workers import how_it_ended

HANGS_AFTER_SECONDS = 300.0  # without a batch
_AHEAD = 2  # batches that a worker may have ready
_END_SECONDS = 1.0  # for a worker to finish what it is at
_MORE, _END = b"more", b""  # what a worker is told
_Make = Callable[[int, int, Callable[[int], None]], Iterator[Any]]


class Workers:
    """The batches of a stream in their order, made in processes: of n, the k-th makes every n-th from the k-th on.

    Each worker has a pipe of its own and shares no lock or queue with others, so that nobody waits for a dead one:
    its end of the pipe closes with it, at whatever place of a message it was.

    Args:
        make: `make(k, n, begin)` makes the k-th worker's batches, and calls `begin` with the number of each sample.
        count: of workers.
        name: what to call the sample of a number.
    """

    def __init__(self, make: _Make, count: int, name: Callable[[int], str]) -> None:
        self._name = name
        self._taken = 0
        self._workers: list[_Worker] = []
        # With this object, or before Python's end waits for all children: an error's traceback may keep it till then.
        Finalize(self, _end, (self._workers,), exitpriority=0)
        get_temp_dir()  # where workers have their sockets: removed by this process, whatever ends them
        for number in range(count):
            self._workers.append(_Worker(make, number, count))

    def __next__(self) -> Any:
        """The next batch.

        Raises:
            EchoPlanError: a worker died or hangs.
        """
        worker = self._workers[self._taken % len(self._workers)]
        sentinels = {each.process.sentinel: each for each in self._workers}
        ready = wait([worker.connection, *sentinels], HANGS_AFTER_SECONDS)
        for sentinel in sentinels.keys() & set(ready):
            raise self._told(sentinels[sentinel])
        if not ready:
            raise self._told(worker)
        try:
            batch = worker.connection.recv()
            worker.connection.send_bytes(_MORE)
        except Exception as error:  # a death breaks the hand-over at any place and in any way
            raise self._told(worker, str(error)) from error
        self._taken += 1
        return batch

    def close(self) -> None:
        """End the workers."""
        _end(self._workers)

    def _told(self, worker: _Worker, why: str = "") -> EchoPlanError:
        worker.process.join(_END_SECONDS)
        why = how_it_ended(worker.process) or why
        sample = worker.at.value
        return EchoPlanError(
            f"a data-loading worker died or hangs{f' while reading {self._name(sample)}' if sample >= 0 else ''}: "
            f"{why or f'no batch for {HANGS_AFTER_SECONDS:.0f} s'}",
            remedy="resume with --c, with fewer workers (-np), or with -np 0 to read in the training process",
        )


class _Worker:
    """A worker as its parent sees it."""

    def __init__(self, make: _Make, number: int, count: int) -> None:
        self.at = multiprocessing.RawValue("q", -1)  # without a lock, which a killed worker could leave locked
        self.connection, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(
            target=_work, args=(make, number, count, self.at, theirs, self.connection), daemon=True
        )
        self.process.start()
        theirs.close()


def _work(make: _Make, number: int, count: int, at: Any, connection: Connection, parents: Connection) -> None:
    """What a worker does: for each batch that is taken it makes another one."""
    # Ctrl-C is for the parent to handle. A cluster terminates all processes of a job at once: the training saves itself
    # and then ends its workers.
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    parents.close()  # so that this worker, too, sees it closed when the parent is killed
    torch.set_num_threads(1)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        for made, batch in enumerate(make(number, count, lambda sample: setattr(at, "value", sample)), 1):
            _hand_over(batch, connection)
            if made >= _AHEAD and connection.recv_bytes() == _END:
                return
        while connection.recv_bytes() != _END:  # the last batches' memory lives until they are taken
            pass


def _hand_over(batch: Any, connection: Connection) -> None:
    try:
        connection.send(batch)
    except RuntimeError as error:  # PyTorch's, before anything is sent
        connection.send(
            EchoPlanError(
                f"a data-loading worker cannot hand its batch over in shared memory: {error}",
                remedy="give more (/dev/shm; docker run --shm-size), or use fewer workers (-np), or none (-np 0)",
            )
        )


def _end(workers: list[_Worker]) -> None:
    """End workers: those that wait, by a word; those that are at something, soon."""
    with undisturbed():
        for worker in workers:
            with suppress(OSError):  # it is dead
                worker.connection.send_bytes(_END)
        deadline = time.monotonic() + _END_SECONDS
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()
            worker.process.join()
            worker.connection.close()
        workers.clear()
