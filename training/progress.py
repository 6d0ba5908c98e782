"""One line a fold that trains: its epoch and its validation Dice, read from what the training writes."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from echoplan import layout
from echoplan.parallel_map import progress

from .metrics import read_metrics


class FoldView:
    """Bars on a terminal, and nothing elsewhere; messages that are logged inside the block do not break them."""

    def __init__(self) -> None:
        self._bars: dict[str, tuple[Any, Path]] = {}
        self._read: dict[str, int] = {}
        self._redirected = logging_redirect_tqdm()

    def __enter__(self) -> FoldView:
        self._redirected.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._bars):
            self.end(name)
        self._redirected.__exit__(kind, error, trace)

    def begin(self, name: str, folder: Path, epochs: int) -> None:
        """Show a fold.

        Args:
            name: its label.
            folder: where its metrics.jsonl is or will be.
            epochs: how many there will be.
        """
        self.end(name)
        self._bars[name] = progress([], description=name, total=epochs, unit="epoch"), folder

    def end(self, name: str) -> None:
        """Take a fold's line away."""
        bar, _ = self._bars.pop(name, (None, None))
        self._read.pop(name, None)
        if bar is not None:
            bar.close()

    def look(self) -> None:
        """Read what is new."""
        for name, (bar, folder) in self._bars.items():
            if bar.disable:
                continue
            try:
                size = (folder / layout.METRICS_FILE).stat().st_size
            except FileNotFoundError:
                continue
            if size == self._read.get(name):
                continue
            self._read[name] = size
            entries = read_metrics(folder)
            dice = entries[-1].get("val_dice") if entries else None
            bar.n = len(entries)
            bar.set_postfix_str("" if dice is None else f"Dice {dice:.4f}")
