"""Worker processes: each does one task at a time through a pipe of its own, and its death costs that task alone."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

from echoplan.errors import EchoPlanError
from echoplan.termination import undisturbed

logger = logging.getLogger(__name__)
_END_SECONDS = 1.0  # for a process to end that is told to
_GIVEN_UP = "the work was given up"
_CHUNK = 2**20  # bytes of an array that are on their way at once: what receives them needs no second copy of it all
_Task = tuple[Callable[..., Any], tuple[Any, ...]]


class WorkerPool:
    """Processes that do tasks; each is watched by a thread, so that this process need not wait for them.

    A worker that dies (killed, out of memory, broken by a library) fails the task that it was at, and another takes its
    place.

    Args:
        count: of processes.
    """

    def __init__(self, count: int) -> None:
        self._idle: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()  # None: there will be no more
        self._changing = threading.Lock()  # the workers that there are
        self._count = count
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="echoplan-worker")
        self._workers: list[_Worker] = []
        self._ending = self._proven = False  # proven: that workers start here
        with undisturbed():
            for _ in range(count):
                self._start()

    def submit(self, name: str, function: Callable[..., Any], *values: Any) -> Future[Any]:
        """Have `function(*values)` done; the future raises what it raises, and `EchoPlanError` where its worker dies.

        Args:
            name: of the task, for the message then.
            function: a module-level function.
            values: what can be pickled; arrays are not copied for that.
        """
        return self._threads.submit(self._do, name, (function, values))

    def close(self) -> None:
        """End the workers, whatever they are at; files that they were writing are removed."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with undisturbed():
            with self._changing:  # none starts any more that would not be seen below
                self._ending = True
            for _ in range(self._count):
                self._idle.put(None)
            for worker in list(self._workers):
                worker.process.terminate()
            for worker in list(self._workers):
                worker.end()

    def _start(self) -> None:
        with self._changing:
            if self._ending:
                return
            worker = _Worker()
            self._workers.append(worker)
        self._idle.put(worker)

    def _take(self) -> _Worker:
        """A worker that has nothing to do: there are as many as threads, until the end."""
        worker = self._idle.get()
        if worker is None:
            raise EchoPlanError(_GIVEN_UP, fatal=True)
        return worker

    def _do(self, name: str, task: _Task) -> Any:
        """In a thread: have a worker do a task."""
        worker = self._take()
        if worker.ready and not worker.process.is_alive():  # killed while it had nothing to do
            self._workers.remove(worker)
            self._start()
            worker = self._take()
        try:
            done, value = worker.ask(task)
        except (EOFError, OSError) as error:
            worker.process.join(_END_SECONDS)
            self._workers.remove(worker)
            raise self._died(worker, name) from error
        self._proven = True
        self._idle.put(worker)
        if done:
            return value
        raise value

    def _died(self, worker: _Worker, name: str) -> EchoPlanError:
        if self._ending:
            return EchoPlanError(_GIVEN_UP, fatal=True)
        why = how_it_ended(worker.process)
        if not (worker.ready or self._proven):
            return EchoPlanError(
                f"a worker process ended while it started: {why}", remedy="work without (-np 0)", fatal=True
            )
        self._start()
        message = f"a worker process died while working on {name}: {why}"
        logger.warning("%s", message)
        return EchoPlanError(
            message,
            remedy="it may have run out of memory, or the file breaks the library that reads it: go on with fewer "
            "workers (-np); what is finished is kept",
        )


def how_it_ended(process: BaseProcess) -> str:
    """A process's end in words; empty while it lives."""
    status = process.exitcode
    if status is None:
        return ""
    return f"exit status {status}" if status >= 0 else signal.strsignal(-status) or f"signal {-status}"


class _Worker:
    """A worker as its parent sees it."""

    def __init__(self) -> None:
        # Spawned, not forked: a fork of a process that runs threads (torch, blosc2) can hang.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False

    def ask(self, task: _Task) -> tuple[bool, Any]:
        """Whether the task was done, and its value or what it raised; EOFError or OSError if the worker dies."""
        message = _packed(task)  # raises what cannot be pickled before anything is sent
        if not self.ready:
            receive(self.connection)
            self.ready = True
        _send_packed(self.connection, message)
        answer: tuple[bool, Any] = receive(self.connection)
        return answer

    def end(self) -> None:
        """Wait for its end, which it was told, and see to it."""
        self.process.join(_END_SECONDS)
        self.process.kill()
        self.process.join()


def _work(connection: Connection) -> None:
    """What a worker does: task after task, till its parent closes the pipe."""
    _obey_parent()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when the first task has PyTorch imported: there are others
    with suppress(EOFError, ConnectionError):  # the parent is gone
        send(connection, "ready")
        while True:
            function, values = receive(connection)
            try:
                answer = _packed((True, function(*values)))
            except Exception as error:  # of the function, or of a value that cannot be sent
                answer = _packed((False, error))
            del function, values
            _send_packed(connection, answer)
            del answer


def send(connection: Connection, content: Any) -> None:
    """Send what can be pickled; the bytes of arrays go as they lie in memory, a part at a time."""
    _send_packed(connection, _packed(content))


def receive(connection: Connection) -> Any:
    """What `send` sent at the pipe's other end; EOFError or OSError if that breaks off."""
    head, sizes = connection.recv()
    buffers = [bytearray(size) for size in sizes]
    for buffer in buffers:
        view = memoryview(buffer)
        for first in range(0, len(buffer), _CHUNK):
            connection.recv_bytes_into(view[first : first + _CHUNK])
    return ForkingPickler.loads(head, buffers=buffers)


def _packed(content: Any) -> tuple[bytes, list[memoryview]]:
    head = io.BytesIO()
    buffers: list[Any] = []
    ForkingPickler(head, 5, True, buffers.append).dump(content)
    return head.getvalue(), [buffer.raw() for buffer in buffers]


def _send_packed(connection: Connection, packed: tuple[bytes, list[memoryview]]) -> None:
    head, views = packed
    connection.send((head, [view.nbytes for view in views]))
    for view in views:
        for first in range(0, view.nbytes, _CHUNK):
            connection.send_bytes(view[first : first + _CHUNK])


def _obey_parent() -> None:
    """In a worker: Ctrl-C is the parent's to handle, and when it ends a worker, half-written files are removed.

    A worker ends with its parent too: one whose parent was killed would go on with a task for which nobody waits.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _leave(*_: Any) -> None:
    raise SystemExit(1)
