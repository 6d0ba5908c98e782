"""progress.png: how a training went, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echoplan import layout
from echoplan.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREEN, _PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # told apart by colour-blind eyes, too


def draw_progress(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Draw a fold's progress.png into its folder.

    Args:
        folder: the fold's.
        history: the entries of metrics.jsonl, one an epoch; at least one.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = progress_figure(history, title=f"{folder.parent.name}, {folder.name.replace('_', ' ')}")
    with atomic_path(folder / layout.PROGRESS_FILE) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


def progress_figure(history: Sequence[Mapping[str, Any]], *, title: str) -> Figure:
    """Loss, Dice, learning rate and time over the epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 10), layout="constrained")
    loss, dice, rate, seconds = figure.subplots(4, 1, sharex=True)
    figure.suptitle(title)
    _panel(loss, "Training loss", "loss (mean of the epoch)")
    _draw(loss, history, "train_loss", _BLUE)
    _panel(dice, "Validation Dice, on the network's grid", "Dice (0 to 1)")
    _draw(dice, history, "val_dice", _ORANGE, label="each epoch")
    _draw(dice, history, "val_dice_smooth", "black", label="smoothed", linestyle=":", marker="")
    _panel(rate, "Learning rate at the epoch's end", "learning rate")
    _draw(rate, history, "learning_rate", _GREEN)
    _panel(seconds, "Time", "seconds an epoch")
    _draw(seconds, history, "seconds", _PURPLE, label="in all")
    _draw(seconds, history, "data_seconds", "black", label="waiting for data", linestyle=":", marker="")
    seconds.set_ylim(bottom=0)
    for axes in (dice, seconds):  # beside the title, where no curve comes
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0.1)
    seconds.set_xlabel("epoch")
    seconds.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _panel(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize="medium")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.25)


def _draw(axes: Axes, history: Sequence[Mapping[str, Any]], name: str, color: str, **style: Any) -> None:
    values = [float("nan") if entry.get(name) is None else entry[name] for entry in history]
    few = "o" if len(values) < 30 else ""  # a single epoch is a point, of which a line shows nothing
    axes.plot([entry["epoch"] for entry in history], values, color=color, **{"marker": few, "markersize": 3, **style})
