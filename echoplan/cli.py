"""What all commands share: the parser, the common options, and how errors reach the user."""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from echoplan import __version__, layout
from echoplan.errors import EchoPlanError, Terminated, printable
from echoplan.files import naming_full_disk
from echoplan.paths import Folders

_MAY_NOT = (errno.EACCES, errno.EPERM, errno.EROFS)  # the last: a disk mounted for reading only
_NO_FOLDER = (errno.ENOTDIR, errno.EEXIST)  # a file lies where a folder should be made, or where it should be
INTERRUPTED = 130  # what shells expect after Ctrl-C
READER_GONE = 141  # and after SIGPIPE
RESUMABLE = 75  # sysexits.h: a temporary failure; what was terminated can go on


def command(*, resume: str = "") -> Callable[[Callable[[Sequence[str]], int]], Callable[..., int]]:
    """Turn `main(arguments) -> exit status` into a console script.

    Users' errors become one line on standard error and exit status 1; Ctrl-C exits with 130 and says how to go on;
    SIGTERM, a cluster's way to say that the time is up, exits with 75.

    Args:
        resume: the option with which the command goes on where it stopped, if it needs one.
    """
    return lambda main: _run(main, resume)


def _run(main: Callable[[Sequence[str]], int], resume: str) -> Callable[..., int]:
    @wraps(main)
    def run(given: Sequence[str] | None = None) -> int:
        arguments = sys.argv[1:] if given is None else list(given)
        _show_text()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
        try:
            with naming_full_disk():  # of logs and temporary files; results name theirs
                return main(arguments)
        except EchoPlanError as error:
            print(f"error: {error}{f' {_how_to_go_on(arguments, resume)}' if error.fatal else ''}", file=sys.stderr)
            return 1
        except BrokenPipeError:  # what reads our output (head, less) has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
            return READER_GONE
        except OSError as error:
            if error.errno not in (*_MAY_NOT, *_NO_FOLDER):
                raise
            what = "may not be written or read" if error.errno in _MAY_NOT else "lies where a folder should be"
            remedy = "choose a folder of yours" if error.errno in _MAY_NOT else "name another place, or move it away"
            print(f"error: {printable(str(error.filename))} {what}. What to do: {remedy}.", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"stopped. {_how_to_go_on(arguments, resume)}", file=sys.stderr)
            return INTERRUPTED
        except Terminated:
            print(f"terminated. {_how_to_go_on(arguments, resume)}", file=sys.stderr)
            return RESUMABLE

    return run


def _how_to_go_on(arguments: Sequence[str], resume: str) -> str:
    """What to type, so that neither a second --overwrite nor a missing option costs what was done."""
    needs = resume if resume not in arguments else ""
    spoils = "--overwrite" if "--overwrite" in arguments else ""
    if needs and spoils:
        how = f"with {needs} instead of {spoils}"
    else:
        how = f"with {needs}" if needs else f"without {spoils}" if spoils else "again"
    return f"What is finished is kept; run the same command {how} to go on."


class _Printable(logging.Formatter):
    """Names of files, and what tables say, cannot steer the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


def _show_text() -> None:
    """Log to standard error; what a stream's encoding lacks is shown escaped, and ends nothing."""
    shown = logging.StreamHandler(sys.stderr)
    shown.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[shown])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def script(target: str) -> Callable[..., int]:
    """A console script for the command `module:function`, imported when it runs.

    Importing PyTorch takes seconds; Ctrl-C in them is met like Ctrl-C later on.
    """

    @command()
    def run(arguments: Sequence[str]) -> int:
        module, _, function = target.partition(":")
        return getattr(import_module(module), function)(arguments)

    return run


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line; the usage, which may fill a screen, is in --help."""

    def error(self, message: str) -> NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2].split(" ")[0]
        near = difflib.get_close_matches(unknown, self._option_string_actions, n=1) if unknown.startswith("-") else []
        meant = f"do you mean {near[0]}? " if near else ""
        line = f"error: {message}. What to do: {meant}{self.prog} --help shows what there is."
        self.exit(2, f"{printable(line)}\n")


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """An argument parser that takes options by their whole name only, and shows the defaults."""
    made = _Parser(
        prog=program,
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"echoplan {__version__}")
    return made


def add_ef_options(options: argparse.ArgumentParser, rules: Iterable[str]) -> None:
    """Options for what EF is compared with, and how it is measured in masks: `ef_method`, `ef_reference`.

    Args:
        options: gets them.
        rules: those that volumes can follow.
    """
    options.add_argument("--ef_method", choices=sorted(rules), help="the rule for volumes; simpson if not given")
    options.add_argument("--ef_reference", choices=("masks", "table"), default="masks",
                         help="the reference EF: that of the reference masks by the same rule where there are such, or "
                         "always the dataset's own")  # fmt: skip


def add_processes(to: argparse.ArgumentParser) -> None:
    """-np: how many worker processes; 0 works in this process."""
    default = min(8, os.cpu_count() or 1)
    to.add_argument("-np", type=_count, default=default, metavar="N", help="worker processes; 0: none")


def add_folds(to: argparse.ArgumentParser, *options: str, help: str) -> None:
    """The option that names folds: numbers as a sorted tuple; "all", like nothing, as None."""
    to.add_argument(*options, dest="folds", nargs="+", metavar="FOLD", type=_fold, action=_Folds, help=help)


def add_trust_code(to: argparse.ArgumentParser) -> None:
    """--trust_code: of commands that take a model folder from anywhere."""
    to.add_argument("--trust_code", action="store_true", help="with -m: run the code of a trainer that the model "
                    "names, where its folder is none of your results")  # fmt: skip


def add_device(to: argparse.ArgumentParser) -> None:
    """--device: where networks run."""
    to.add_argument("--device", "-device", type=_device, default="auto", metavar="DEVICE",
                    help="auto (a GPU where there is one), cpu, mps, cuda, or one of several GPUs: cuda:1")  # fmt: skip


def add_plans_name(to: argparse.ArgumentParser, *, default: str = layout.DEFAULT_PLANS) -> None:
    """-p: which plan of the dataset, where there are several."""
    to.add_argument("-p", "--plans_name", default=default, metavar="NAME", help="the plan's name")


def report_failures(failures: Mapping[str, str], *, work: str) -> int:
    """Name each broken case with its reason on standard error; the exit status that a command should return."""
    if not failures:
        return 0
    print(f"{len(failures)} not done ({work}):", file=sys.stderr)
    for case, reason in failures.items():
        print(printable(f"  {case}: {reason}", keep="\n\t"), file=sys.stderr)
    return 1


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


def fold_text(text: str) -> str:
    """An argparse type: FOLD, of whose number the plan knows more; not what nnU-Net's users are used to type there."""
    if re.fullmatch(r"[23]d(_\w+)?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no fold but a configuration, which is not named here: each trainer has its own; give the "
            "dataset and a fold's number, or all"
        )
    return text


def existing_path(text: str) -> Path:
    """An argparse type: a path that must exist."""
    path = Path(text).expanduser()
    if not path.exists():
        what = "is a link that leads nowhere" if path.is_symlink() else "does not exist"
        raise argparse.ArgumentTypeError(f"{text} {what}")
    return path


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, cpu, mps, cuda or cuda:1")
    return text


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not 0, 1, 2, ...")
    return int(text)


def positive_count(text: str) -> int:
    """An argparse type: 1, 2, 3, ..."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1, 2, 3, ...")
    return int(text)


def _fold(text: str) -> int | str:
    if text == "all":
        return text
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a fold: give numbers from 0, or all")
    return int(text)


class _Folds(argparse.Action):
    def __call__(
        self, to: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if "all" in values and len(values) > 1:
            to.error(f"{option}: give numbers or all, not both")
        setattr(namespace, self.dest, None if "all" in values else tuple(sorted(set(values))))
