"""The option that names folds, as several commands take it."""

from __future__ import annotations

import argparse
from typing import Any


def add_folds(to: argparse.ArgumentParser, *options: str, help: str) -> None:
    """Numbers as a sorted tuple; "all", like nothing, as None."""
    to.add_argument(*options, dest="folds", nargs="+", metavar="FOLD", type=_fold, action=_Folds, help=help)


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
