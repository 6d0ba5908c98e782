"""What all commands share: how one is run, how loud it is, and how errors reach the user."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from echoplan.errors import EchoPlanError, Terminated, printable
from echoplan.files import naming_full_disk
from echoplan.options.parser import Parser
from echoplan.paths import Folders

_MAY_NOT = (errno.EACCES, errno.EPERM, errno.EROFS)  # the last: a disk mounted for reading only
_NO_FOLDER = (errno.ENOTDIR, errno.EEXIST)  # a file lies where a folder should be made, or where it should be
# Exit codes, beside 0 and argparse's 2 for a wrong command line; docs/commands.md has them all.
FAILED = 1
INTERRUPTED = 130  # what shells expect after Ctrl-C
READER_GONE = 141  # and after SIGPIPE
RESUMABLE = 75  # sysexits.h: a temporary failure; what was terminated can go on


def command(options: Callable[[], Parser], main: Callable[[argparse.Namespace], int]) -> Callable[..., int]:
    """A console script: the command line as `options` parses it, handed to `main`, which gives the exit status.

    Users' errors become one line on standard error and exit status 1; Ctrl-C exits with 130 and says how to go on;
    SIGTERM, a cluster's way to say that the time is up, exits with 75.
    """

    def run(given: Sequence[str] | None = None) -> int:
        arguments = sys.argv[1:] if given is None else list(given)
        made: Parser | None = None
        _show_text()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
        try:
            with naming_full_disk():  # of logs and temporary files; results name theirs
                made = options()
                chosen = made.parse_args(arguments)
                _show_text(quiet=chosen.quiet, verbose=chosen.verbose)
                return main(chosen)
        except EchoPlanError as error:
            if "--verbose" in arguments:
                traceback.print_exc()
            how = f" {_how_to_go_on(arguments, made)}" if error.fatal else ""
            print(f"error: {error}{how}", file=sys.stderr)
            return FAILED
        except BrokenPipeError:  # what reads our output (head, less) has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
            return READER_GONE
        except OSError as error:
            if error.errno not in (*_MAY_NOT, *_NO_FOLDER):
                raise
            what = "may not be written or read" if error.errno in _MAY_NOT else "lies where a folder should be"
            remedy = "choose a folder of yours" if error.errno in _MAY_NOT else "name another place, or move it away"
            print(f"error: {printable(str(error.filename))} {what}. What to do: {remedy}.", file=sys.stderr)
            return FAILED
        except KeyboardInterrupt:
            print(f"stopped. {_how_to_go_on(arguments, made)}", file=sys.stderr)
            return INTERRUPTED
        except Terminated:
            print(f"terminated. {_how_to_go_on(arguments, made)}", file=sys.stderr)
            return RESUMABLE

    return run


def _how_to_go_on(arguments: Sequence[str], made: Parser | None) -> str:
    """What to type, so that neither a second --overwrite nor a missing option costs what was done."""
    resume = made.resume if made else ()
    needs = resume[0] if resume and not {*resume} & {*arguments} else ""
    spoils = "--overwrite" if "--overwrite" in arguments else ""
    if needs and spoils:
        how = f"with {needs} instead of {spoils}"
    else:
        how = f"with {needs}" if needs else f"without {spoils}" if spoils else "again"
    return f"What is finished is kept; run the same command {how} to go on."


class _Shown(logging.StreamHandler):
    """The log as users see it. Names of files, and what tables say, cannot steer the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


def _show_text(*, quiet: bool = False, verbose: bool = False) -> None:
    """Log to standard error; what a stream's encoding lacks is shown escaped, and ends nothing."""
    logging.basicConfig(level=logging.INFO, handlers=[_Shown(sys.stderr)])
    ours = [handler for handler in logging.getLogger().handlers if isinstance(handler, _Shown)]
    for shown in ours:
        shown.setLevel(logging.WARNING if quiet else logging.NOTSET)
        told = "%(asctime)s %(name)s: %(message)s" if verbose else "%(message)s"
        shown.setFormatter(logging.Formatter(told, datefmt="%H:%M:%S"))
    logging.getLogger("echoplan").setLevel(logging.DEBUG if verbose else logging.NOTSET)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_quiet() -> bool:
    """Whether --quiet was given: then no progress is shown either."""
    shown = [handler for handler in logging.getLogger().handlers if isinstance(handler, _Shown)]
    return any(handler.level > logging.INFO for handler in shown)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def report_failures(failures: Mapping[str, str], *, work: str) -> int:
    """Name each broken case with its reason on standard error; the exit status that a command should return."""
    if not failures:
        return 0
    print(f"{len(failures)} not done ({work}):", file=sys.stderr)
    for case, reason in failures.items():
        print(printable(f"  {case}: {reason}", keep="\n\t"), file=sys.stderr)
    return FAILED


def folders() -> Folders:
    """The three folders, from the environment.

    Raises:
        EchoPlanError: a file lies where one of them, or a folder above it, should be.
    """
    found = Folders.from_environment(os.environ)
    for name, path in vars(found).items():
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not there.is_dir():
            raise EchoPlanError(
                "a file lies where a folder should be, that of the data or one above it",
                file=there,
                remedy=f"set echoplan_{name} or ECHOPLAN_ROOT to a folder, or move the file away",
            )
    return found
