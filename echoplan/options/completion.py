"""Shell completion: `echoplan completion bash` and `zsh` print a script, made of the commands' parsers."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from echoplan.options import choices
from echoplan.options.parser import Parser

SHELLS = ("bash", "zsh")
_FUNCTION = """_echoplan_complete() {
    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}"
    local command="${COMP_WORDS[0]##*/}" last="" options="" values="" word place
    if [[ $command == echoplan ]]; then
        if [[ $COMP_CWORD -eq 1 ]]; then
            COMPREPLY=($(compgen -W "@COMMANDS@" -- "$current"))
            return
        fi
        command="echoplan_${COMP_WORDS[1]#echoplan_}"
    fi
    for (( place = 1; place < COMP_CWORD; place++ )); do
        word="${COMP_WORDS[place]}"
        if [[ $word == -* ]]; then last="$word"; fi
    done
    case "$command" in
@OPTIONS@
    esac
    case "$command $last" in  # options of several values, and what has no name
@SEVERAL@
    esac
    case "$command $previous" in
@SINGLE@
    esac
    if [[ $current == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$current"))
    elif [[ -n $values ]]; then
        COMPREPLY=($(compgen -W "$values" -- "$current"))
    else
        COMPREPLY=($(compgen -f -- "$current"))
    fi
}
complete -o filenames -F _echoplan_complete echoplan @SCRIPTS@
"""


def completion(shell: str, parsers: Mapping[str, Parser]) -> str:
    """The script that a shell sources.

    Args:
        shell: one of `SHELLS`.
        parsers: command -> its parser.
    """
    options: list[str] = []
    several: list[str] = []
    single: list[str] = []
    for name, made in parsers.items():
        shown = [spelling for action in made._actions for spelling in action.option_strings]
        options.append(f'        echoplan_{name}) options="{" ".join(shown)}" ;;')
        for action in made._actions:
            if offered := _values(action):
                patterns = "|".join(f'"echoplan_{name} {spelling}"' for spelling in action.option_strings or [""])
                lines = single if action.option_strings and action.nargs is None else several
                lines.append(f'        {patterns}) values="{" ".join(offered)}" ;;')
    parts = {
        "COMMANDS": " ".join([*parsers, "completion"]),
        "SCRIPTS": " ".join(f"echoplan_{name}" for name in parsers),
        "OPTIONS": "\n".join(options),
        "SEVERAL": "\n".join(several),
        "SINGLE": "\n".join(single),
    }
    script = _FUNCTION
    for mark, text in parts.items():
        script = script.replace(f"@{mark}@", text)
    return ("autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "") + script


def _values(action: argparse.Action) -> list[str]:
    """The words that an option takes, or what has no name; none where it takes others."""
    if action.choices:
        return [str(choice) for choice in action.choices]
    known = {"trainer": choices.TRAINERS, "trainers": choices.TRAINERS, "changes": choices.CHANGES}
    return [*known.get(action.dest, ())] if action.option_strings else []
