"""The one exception a user can act on, and the one that says the machine was asked to stop."""

from __future__ import annotations

import re
from os import PathLike

# Control characters, those that change the direction of writing, and the bytes of file names that are no UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class EchoPlanError(Exception):
    """Something the user can mend: what is wrong, in which file, and what to do.

    Args:
        problem: what is wrong, in one sentence without a full stop.
        file: the file or folder it was found in.
        remedy: what to do about it, in one sentence without a full stop.
        fatal: going on with the next case would meet the same error (a full disk).

    Example:
        >>> str(EchoPlanError("the frame time is zero", file="a.dcm", remedy="give it in cases.csv"))
        'the frame time is zero (a.dcm). What to do: give it in cases.csv.'
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | PathLike[str] | None = None,
        remedy: str | None = None,
        fatal: bool = False,
    ) -> None:
        self.problem = printable(_without_stop(problem), keep="\n\t")
        self.file = None if file is None else printable(str(file))
        self.remedy = None if remedy is None else printable(_without_stop(remedy), keep="\n\t")
        self.fatal = fatal
        super().__init__(str(self))

    def __str__(self) -> str:
        where = f" ({self.file})" if self.file else ""
        return f"{self.problem}{where}.{self._what_to_do()}"

    def _what_to_do(self) -> str:
        if not self.remedy:
            return ""
        # A period behind a command on a line of its own would be copied along with it.
        end = "" if self.remedy.endswith(("?", "...")) or "\n" in self.remedy else "."
        return f" What to do: {self.remedy}{end}"

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default way between worker processes.
        return _rebuild, (self.problem, self.file, self.remedy, self.fatal)


def printable(text: str, *, keep: str = "") -> str:
    r"""The text with what a terminal would obey, and what is no UTF-8, as %XX.

    Args:
        text: what may quote the name of a file, or a table.
        keep: control characters that stay.

    Example:
        >>> printable("M\udcfcller\x1b[2J")
        'M%FCller%1B[2J'
    """
    return _UNPRINTABLE.sub(lambda match: match[0] if match[0] in keep else _percent(match[0]), text)


class Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt it passes by what catches errors, up to the command."""


def _without_stop(sentence: str) -> str:
    return sentence if sentence.endswith("...") else sentence.rstrip(".")


def _percent(character: str) -> str:
    lone_byte = "\udc80" <= character <= "\udcff"  # as Python hands over names that are no UTF-8
    encoded = character.encode("utf-8", "surrogateescape" if lone_byte else "surrogatepass")
    return "".join(f"%{byte:02X}" for byte in encoded)


def _rebuild(problem: str, file: str | None, remedy: str | None, fatal: bool) -> EchoPlanError:
    return EchoPlanError(problem, file=file, remedy=remedy, fatal=fatal)
