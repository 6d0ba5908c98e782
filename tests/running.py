"""Commands at work in processes of their own, which tests halt, end and listen to."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from echoplan import scripts

PATIENCE = 600  # seconds; for machines that do much else
DEATH_KNOWN_WITHIN = 200  # seconds from a worker's death to the line that names it, on busy cores


class Command:
    """A command in a process of its own, with a process group of its own.

    It is forked from this process, because a new one would import PyTorch for seconds first.
    """

    def __init__(self, project: Any, words: Sequence[object], heard: Path) -> None:
        heard.touch()
        self.heard = heard
        name, *arguments = map(str, words)
        work = (getattr(scripts, name.removeprefix("echoplan_")), arguments, project.environment, heard)
        self._process = multiprocessing.get_context("fork").Process(target=run_command, args=work)
        self._process.start()
        self.pid = self._process.pid or 0

    def said(self) -> str:
        return self.heard.read_text()

    def ended(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join(PATIENCE)
        return self.ended()


def run_command(
    main: Callable[[list[str]], int], arguments: list[str], environment: dict[str, str], heard: Path
) -> None:
    os.setsid()
    for number, file in ((1, os.devnull), (2, heard)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    logging.getLogger().handlers.clear()
    sys.exit(main(arguments))


@contextmanager
def started(project: Any, *words: object) -> Iterator[Command]:
    """A command at work, of which nothing is left afterwards."""
    with TemporaryDirectory() as folder:
        command = Command(project, words, Path(folder) / "heard")
        try:
            yield command
        finally:
            if command.ended() is None:
                os.kill(command.pid, signal.SIGKILL)
            for pid in processes(lambda _, group: group == command.pid):
                os.kill(pid, signal.SIGKILL)
            command.wait()


def wait_until(condition: Callable[[], Any], command: Command) -> Any:
    """What `condition` says once it says something; the command must go on until then."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        assert command.ended() is None, f"it ended too soon: {command.said()}"
        time.sleep(0.002)
    raise AssertionError("waited in vain")


def stop(command: Command) -> None:
    """Halt it, surely: a signal on its way would let it go on for a moment on a busy machine."""
    os.kill(command.pid, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{command.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", command)


def send(command: Command, number: signal.Signals) -> None:
    """A signal for a command that is halted."""
    os.kill(command.pid, number)
    os.kill(command.pid, signal.SIGCONT)


def told(command: Command, *, status: int) -> str:
    """What the command said, once it has ended as it should."""
    ended, said = command.wait(), command.said()
    assert ended == status, said
    assert "Traceback" not in said
    return said


def kill_and_hear(worker: int, command: Command, words: str) -> None:
    """Kill a worker; the command must say these words soon.

    It takes a fraction of a second on a quiet machine. A loader that waited for the dead one would take 300.
    """
    os.kill(worker, signal.SIGKILL)
    killed, ended = time.monotonic(), None
    while words not in command.said():
        assert time.monotonic() - killed < DEATH_KNOWN_WITHIN and ended is None, command.said()
        ended = command.ended()  # what it said last is read once more
        time.sleep(0.01)


def processes(belong: Callable[[int, int], bool]) -> list[int]:
    """Living processes of which `belong(parent, process group)` holds."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended meanwhile
            continue
        if state not in "ZX" and belong(int(parent), int(group)):
            found.append(int(entry.name))
    return found


def children(command: Command) -> list[int]:
    """Its workers: spawned ones, or copies of the process itself; not Python's own helper."""
    return [pid for pid in processes(lambda parent, _: parent == command.pid) if "resource_tracker" not in words(pid)]


def words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def busy_child(command: Command) -> int | None:
    """A child that has computed for a while."""
    for pid in children(command):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[11]) + int(fields[12]) > 0.3 * os.sysconf("SC_CLK_TCK"):
            return pid
    return None


def assert_none_left(command: Command) -> None:
    """No process of the command's group lives on."""
    deadline = time.monotonic() + 30
    while left := processes(lambda _, group: group == command.pid):
        assert time.monotonic() < deadline, [words(pid) for pid in left]
        time.sleep(0.05)
