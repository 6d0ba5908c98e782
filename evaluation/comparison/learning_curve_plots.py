"""The figure of a study: Dice over training patients, and over clip lengths where there are several."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ..report.thumbnails import INK, LINE, PALE, SOFT
from .learning_curves import CURVE, DICE, LearningCurves, Line

if TYPE_CHECKING:
    import pandas as pd

_Style = str | tuple[float, Sequence[float]]

# Okabe and Ito's palette; markers and line styles say the same without colour.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLES: tuple[_Style, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_PANEL = (4.6, 4.5)  # inches
_DOTS_AN_INCH = 150


def draw_learning_curves(curves: LearningCurves) -> Figure:
    """A panel an augmentation: Dice over training patients, a line a method and clip length, with 95 % intervals.

    A last panel shows Dice at the most patients over the clip length, where clips of several lengths were trained;
    methods on single frames are flat lines in it.
    """
    policies = tuple(dict.fromkeys(line.augmentation for line in curves.lines))
    methods = tuple(dict.fromkeys(line.method for line in curves.lines))
    by_length = _several_lengths(curves.lines)
    count = len(policies) + by_length
    figure = Figure(figsize=(_PANEL[0] * count, _PANEL[1]), layout="constrained")
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for axes, policy in zip(panels, policies, strict=False):
        _draw_sizes(axes, curves, policy, methods)
        axes.set_title("" if len(policies) == 1 else f"augmentation: {policy}", fontsize=10, color=INK, loc="left")
    if by_length:
        _draw_lengths(panels[-1], curves, methods)
    panels[0].set_ylabel(f"Dice of {curves.structure}, %", color=INK)
    return figure


def as_svg(figure: Figure) -> str:
    """The figure as an SVG file's text, the same every time."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "learning curves"}):
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG file's content."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DOTS_AN_INCH)
    return stream.getvalue()


def _draw_sizes(axes: Axes, curves: LearningCurves, policy: str, methods: Sequence[str]) -> None:
    _style(axes)
    lines = [line for line in curves.lines if line.augmentation == policy]
    sizes: set[float] = set()
    for index, line in enumerate(lines):
        points = curves.points[(curves.points[CURVE] == list(line)).all(axis=1)].dropna(subset=DICE)
        # A little apart, so that intervals do not hide one another.
        shift = 2 ** (0.05 * (index - (len(lines) - 1) / 2))
        sizes |= set(points["patients"])
        colour, marker, style = _look(line, lines, methods)
        axes.errorbar(
            points["patients"] * shift, 100 * points[DICE], yerr=_ends(points), color=colour, marker=marker,
            linestyle=style, markersize=6, linewidth=1.7, elinewidth=1, capsize=3, label=line.in_words(lines),
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.set_xlabel("patients to train on", color=INK)
    _add_legend(axes)


def _draw_lengths(axes: Axes, curves: LearningCurves, methods: Sequence[str]) -> None:
    _style(axes)
    policies = tuple(dict.fromkeys(line.augmentation for line in curves.lines))
    ticks = sorted({line.frames for line in curves.lines if line.frames > 1})
    largest = curves.points.loc[curves.points.groupby(CURVE, sort=False)["patients"].idxmax()].sort_values("frames")
    for method, policy in product(methods, policies):
        most = largest[(largest["method"] == method) & (largest["augmentation"] == policy)]
        if most.empty:
            continue
        index = methods.index(method) % len(_COLOURS)
        colour, style = _COLOURS[index], _STYLES[policies.index(policy) % len(_STYLES)]
        label = method if len(policies) == 1 else f"{method}, {policy}"
        if most["frames"].iloc[0] == 1:
            height = 100 * most[DICE].iloc[0]
            axes.axhline(height, label=f"{label} (single frames)", linewidth=1.7, color=colour, linestyle=style)
            continue
        axes.errorbar(
            most["frames"], 100 * most[DICE], yerr=_ends(most), label=label, linewidth=1.7, color=colour,
            linestyle=style, marker=_MARKERS[index], capsize=3, elinewidth=1,
        )  # fmt: skip
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.set_xlabel("frames a clip (T), at the most patients", color=INK)
    axes.set_title("clip length", fontsize=10, color=INK, loc="left")
    _add_legend(axes)


def _several_lengths(lines: Sequence[Line]) -> bool:
    return len({line.frames for line in lines if line.frames > 1}) > 1


def _look(line: Line, lines: Sequence[Line], methods: Sequence[str]) -> tuple[str, str, _Style]:
    """Colour and marker say the method, the style its clip length."""
    index = methods.index(line.method) % len(_COLOURS)
    lengths = sorted({other.frames for other in lines if other.method == line.method}, reverse=True)
    return _COLOURS[index], _MARKERS[index], _STYLES[lengths.index(line.frames) % len(_STYLES)]


def _ends(points: pd.DataFrame) -> list[pd.Series[float]]:
    """How far the intervals reach below and above, in percent; NaN where there is none."""
    below = points[DICE] - points[f"{DICE}_95_low"]
    above = points[f"{DICE}_95_high"] - points[DICE]
    return [100 * below.clip(lower=0), 100 * above.clip(lower=0)]


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(color=PALE, labelcolor=SOFT, labelsize=9)
    axes.grid(axis="y", color=LINE, linewidth=1)
    axes.set_axisbelow(True)


def _add_legend(axes: Axes) -> None:
    """Below the panel, where no interval lies under it."""
    axes.legend(
        frameon=False, fontsize=8.5, labelcolor=INK, handlelength=3, loc="upper left", bbox_to_anchor=(0, -0.14)
    )
