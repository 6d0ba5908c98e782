"""The one exception a user can act on, and the one that says the machine was asked to stop."""

from __future__ import annotations

from os import PathLike


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
        self.problem = _without_stop(problem)
        self.file = None if file is None else str(file)
        self.remedy = None if remedy is None else _without_stop(remedy)
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


class Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt it passes by what catches errors, up to the command."""


def _without_stop(sentence: str) -> str:
    return sentence if sentence.endswith("...") else sentence.rstrip(".")


def _rebuild(problem: str, file: str | None, remedy: str | None, fatal: bool) -> EchoPlanError:
    return EchoPlanError(problem, file=file, remedy=remedy, fatal=fatal)
