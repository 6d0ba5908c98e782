"""The argument parser that all commands have in common."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from echoplan import __version__
from echoplan.errors import printable

_TOLD = "default"  # a help that says it needs no other word on it


class _Help(argparse.RawDescriptionHelpFormatter):
    """Shows a default that says something, and leaves indented lines as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = not (action.default is None or isinstance(action.default, bool) or action.default in ((), [], ""))
        if shown and action.default is not argparse.SUPPRESS and _TOLD not in (action.help or ""):
            return f"{action.help} (default: {_in_words(action.default)})"
        return action.help

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = [[line] if line.startswith(" ") else textwrap.wrap(line, width) or [""] for line in text.splitlines()]
        return "\n".join(indent + line for wrapped in lines for line in wrapped)


def _in_words(default: Any) -> str:
    values = default if isinstance(default, (list, tuple)) else [default]
    return " ".join(map(str, values)).replace("%", "%%")


class Parser(argparse.ArgumentParser):
    """Takes options by their whole name only, and says in one line what is wrong with a command line.

    Attributes:
        checks: called with what was parsed, to settle what takes several options to know; they may call `error`.
        resume: how the option that goes on where the command stopped may be spelled; empty where none is needed.
    """

    def __init__(self, **arguments: Any) -> None:
        self.checks: list[Callable[[argparse.Namespace], None]] = []
        self.resume: tuple[str, ...] = ()
        super().__init__(formatter_class=_Help, allow_abbrev=False, **arguments)

    def parse_args(  # type: ignore[override]  # without overloads for namespaces of other classes
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """What the command line says; options may stand between, before and behind what has no name."""
        chosen: argparse.Namespace = self.parse_intermixed_args(args, namespace)
        for check in self.checks:
            check(chosen)
        return chosen

    def also(self, action: argparse.Action, *spellings: str) -> argparse.Action:
        """Take an option by earlier spellings, too, which the help does not show."""
        self._option_string_actions.update(dict.fromkeys(spellings, action))
        return action

    def error(self, message: str) -> NoReturn:
        """One line; the usage, which may fill a screen, is in --help."""
        unknown = message.partition("unrecognized arguments: ")[2].split(" ")[0]
        near = difflib.get_close_matches(unknown, self._option_string_actions, n=1) if unknown.startswith("-") else []
        meant = f"do you mean {near[0]}? " if near else ""
        line = f"error: {message}. What to do: {meant}{self.prog} --help shows what there is."
        self.exit(2, f"{printable(line)}\n")


def parser(program: str, description: str, *, examples: Sequence[str], more: str = "", docs: str = "") -> Parser:
    """A command's parser, with --version, --quiet and --verbose.

    Args:
        program: the command's name.
        description: what it does.
        examples: whole command lines, for its help.
        more: what else its help says, behind the examples.
        docs: the page that says more.
    """
    parts = ["examples:\n" + "\n".join(f"  {line}" for line in examples)]
    parts += [more] if more else []
    parts.append(f"More: {docs}{' and ' if docs else ''}docs/commands.md (options of all commands, exit codes).")
    made = Parser(prog=program, description=description, epilog="\n\n".join(parts))
    made.add_argument("--version", action="version", version=f"echoplan {__version__}", help="print the version")
    said = made.add_mutually_exclusive_group()
    said.add_argument("--quiet", action="store_true", help="say nothing but results, warnings and errors")
    said.add_argument("--verbose", action="store_true", help="say all: details, when, and of an error where it arose")
    return made
