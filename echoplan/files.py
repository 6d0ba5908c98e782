"""Files that are whole or not there: written beside their name, then moved into place."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from echoplan.errors import EchoPlanError

_FULL = ("the disk is full", "free some space")
_NO_ROOM = {  # what is wrong, and what to do
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: ("the file becomes larger than the system or its disk allows", "see `ulimit -f`, or use another disk"),
}
_PARTIAL = ".partial-"
_LONG_NAME = 120  # bytes; with the prefix of a partial file it still is a name
# What spreadsheets calculate or run, and cells that only look like that: numbers, or lists of them.
_FORMULA = re.compile(r"'*[=+\-@＝＋－＠\t\r\n]")
_NUMBERS_IN_LINES = re.compile(r"\[\n[-+.,\w\s]*\]")  # a list of numbers in JSON; a text has no line's end in it
_NUMBERS = re.compile(r"[-+]?\d+(\.\d+)?(;([-+]?\d+(\.\d+)?)?)*")


@contextmanager
def naming_full_disk(path: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Turn the operating system's error about a full disk into one for people.

    Raises:
        EchoPlanError: the disk, or the user's share of it, is full, or takes no file as large.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        problem, remedy = _NO_ROOM[error.errno]
        raise EchoPlanError(
            problem,
            file=path or error.filename,
            remedy=remedy,
            fatal=True,
        ) from error


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside `path` to write to; move it into place when the block ends well.

    The temporary name keeps all suffixes of `path`, because writers choose a format by them. Missing folders are made.
    On any error, an interruption included, the temporary file is removed and `path` stays as it was.

    Raises:
        EchoPlanError: the disk, or the user's share of it, is full.
    """
    target = Path(path)
    name = os.fsencode(target.name)
    short = target.name if len(name) <= _LONG_NAME else hashlib.sha256(name).hexdigest()[:16] + target.name[-20:]
    temporary = target.with_name(partial_prefix() + short)
    try:
        with naming_full_disk(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb+") as stream:  # Windows flushes no file that is open for reading alone
                os.fsync(stream.fileno())  # a crash after the move must not leave an empty file under the final name
            os.replace(temporary, target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def sweep_partial_files(folder: str | os.PathLike[str], *, below: bool = True) -> int:
    """Remove what processes of this machine that live no more had begun to write or to remove; how many.

    `atomic_path` removes its temporary file itself, unless its process is killed on the spot. Files of other machines,
    which may write to the same disk just now, are left alone.

    Args:
        folder: where to look.
        below: whether to look in its folders too; not where others may remove those just now.
    """
    swept = 0
    mine = f"{_PARTIAL}{_machine()}-"
    for file in list(Path(folder).glob(f"{'**/' if below else ''}{mine}*")):
        process = file.name.removeprefix(mine).partition("-")[0]
        if process.isdigit() and not _lives(int(process)):
            with suppress(FileNotFoundError):  # somebody else sweeps, too
                shutil.rmtree(file) if file.is_dir() else file.unlink()
                swept += 1
    return swept


def partial_prefix() -> str:
    """What the names of files begin with that this process has not finished; readers pass over names with a dot."""
    return f"{_PARTIAL}{_machine()}-{os.getpid()}-"


def _machine() -> str:
    """Where a process's number means something: the machine, on Linux with its namespace of numbers (a container)."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    return f"{socket.gethostname()}.{space}"


def _lives(process: int) -> bool:
    if os.name == "nt":  # where asking would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` (UTF-8) atomically; bytes of file names that are no UTF-8 stand there as JSON has them, \\udcfc."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as JSON, indented, a list of numbers in one line; NumPy scalars and paths are converted, NaN and
    infinity become null."""
    text = json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, _NUMBERS_IN_LINES.sub(lambda match: f"[{' '.join(match[0][1:-1].split())}]", text) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        EchoPlanError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EchoPlanError("the file is missing", file=path) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise EchoPlanError(f"this is not valid JSON: {error}", file=path, remedy="mend or remove the file") from error


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file in hexadecimal; 1 s for 500 MB."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def write_csv(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows as CSV with the given columns; None and NaN become empty cells; see `as_cell` for formulas.

    Raises:
        ValueError: a row has a key that is not a column.
    """
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        writer = csv.DictWriter(stream, fieldnames=list(columns), restval="", extrasaction="raise")
        writer.writeheader()
        for row in rows:
            values = plain(dict(row))
            writer.writerow({key: "" if value is None else as_cell(value) for key, value in values.items()})


def as_cell(value: Any) -> Any:
    """A cell's value as a spreadsheet shows it and does not run it: text that begins like a formula gets an apostrophe.

    Example:
        >>> as_cell("=HYPERLINK(1)"), as_cell("-3;12"), as_cell(-3.0)
        ("'=HYPERLINK(1)", '-3;12', -3.0)
    """
    formula = isinstance(value, str) and _FORMULA.match(value) and not _NUMBERS.fullmatch(value)
    return f"'{value}" if formula else value


def from_cell(text: str) -> str:
    """The text that `as_cell` made safe."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def plain(value: Any) -> Any:
    """The value with plain Python types only, as JSON and CSV want them: NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # NumPy arrays and scalars, torch tensors
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
