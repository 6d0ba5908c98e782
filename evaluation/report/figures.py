"""The report's plots as SVG, drawn by matplotlib: area curves, agreement, and the distribution of EF."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ..measurements import CaseMeasurement
from ..ventricle.cardiac_cycle import Phases
from .thumbnails import ED_COLOUR, ES_COLOUR, INK, LINE, PALE, SOFT, marked_beats

POINTS = 1000  # of a plot; of more, how many lie where is drawn
_POINTS_AN_INCH = 72
_SQUARE, _CURVE = (4.7, 4.1), (7.2, 2.7)  # inches
_CURVE_BOX = (0.075, 0.16, 0.91, 0.7)  # left, bottom, width, height of the axes, as shares of the figure
_DENSITY = LinearSegmentedColormap.from_list("density", ["#cce3f1", ED_COLOUR, "#00263d"])
_CELLS = 48  # hexagons across
_SHARP = 2  # pixels of a density for one of the figure
_CURVE_POINTS = 400  # of an area curve, which is 470 pixels wide
_EF_BIN = 5.0  # points of EF
_DASHED = (0, (4, 3))
# Names of the page's style for what is drawn; without them, as in a notebook, the colours are as they are here.
_PAGE_COLOURS = {"ink": INK, "soft": SOFT, "pale": PALE, "grid": LINE, "ed": ED_COLOUR, "es": ES_COLOUR,
                 "panel": "#ffffff"}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """A figure to put into a page.

    Attributes:
        svg: the <svg> element. Its attribute data-scale has `scale`.
        scale: (x0, dx, y0, dy): the value (u, v) lies at (x0 + u dx, y0 + v dy) of the SVG's view box.
    """

    svg: str
    scale: tuple[float, float, float, float]


def shown_area(measurement: CaseMeasurement) -> tuple[NDArray[np.float64], str]:
    """The area (T,) in the unit that people read: cm² where the spacing is known, else pixels."""
    area = np.asarray(measurement.area, dtype=np.float64)
    return (area / 100, "cm²") if measurement.area_unit == "mm2" else (area, "px")


def area_curve(measurement: CaseMeasurement) -> Plot:
    """The cavity's area over time with every beat's end-diastole and end-systole; the x axis counts frames in `scale`.

    Ticks are in seconds where the frame time is known; `scale` takes frame numbers all the same.
    """
    area, unit = shown_area(measurement)
    step = (measurement.frame_time_ms or 0) / 1000 or 1.0
    time = np.arange(len(area)) * step
    figure = Figure(figsize=_CURVE, dpi=_POINTS_AN_INCH)
    axes = _styled(figure.add_axes(_CURVE_BOX), size=10)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=LINE, linewidth=1)
    axes.set_axisbelow(True)
    axes.set(xlim=(0, time[-1] if len(time) > 1 else step), ylim=(0, float(area.max(initial=0)) * 1.12 or 1.0))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    drawn = _extremes(area)
    axes.plot(time[drawn], area[drawn], color=INK, linewidth=1.5, solid_joinstyle="round", clip_on=False,
              gid="class-area")  # fmt: skip
    if measurement.phases:
        _mark_beats(axes, time, area, measurement.phases)
    axes.annotate(f"area, {unit}", (0, 1), xycoords="axes fraction", xytext=(-28, 14), textcoords="offset points",
                  fontsize=10, color=SOFT)  # fmt: skip
    axes.annotate("seconds" if measurement.frame_time_ms else "frame", (1, 0), xycoords="axes fraction",
                  xytext=(0, -26), textcoords="offset points", ha="right", fontsize=10, color=SOFT)  # fmt: skip
    return _plot(figure, axes, f"area over time of {measurement.name}", x_step=step)


def _extremes(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices of a curve (T,) that give its picture: all, or of a long one the least and most of each short part."""
    if len(values) <= _CURVE_POINTS:
        return np.arange(len(values))
    parts = np.array_split(np.arange(len(values)), _CURVE_POINTS // 2)
    found = [(part[np.argmin(values[part])], part[np.argmax(values[part])]) for part in parts]
    return np.unique([0, len(values) - 1, *(index for pair in found for index in pair)])


def _mark_beats(axes: Axes, time: NDArray[np.floating[Any]], area: NDArray[np.float64], phases: Phases) -> None:
    """End-diastole and end-systole on the curve, by name where there is room for the names of all beats."""
    beats = marked_beats(phases)
    named = beats if len(beats) == len(phases.beats) else [(phases.ed_frame, phases.es_frame)]
    ends = (("ED", ED_COLOUR, "o", 8), ("ES", ES_COLOUR, "s", -17))
    for end, (name, colour, shape, above) in enumerate(ends):
        frames = [beat[end] for beat in beats]
        axes.plot(time[frames], area[frames], shape, color=colour, markersize=7, clip_on=False)
        for beat in named:
            axes.annotate(name, (time[beat[end]], area[beat[end]]), xytext=(0, above), color=colour,
                          textcoords="offset points", ha="center", fontsize=10, fontweight="bold")  # fmt: skip


def scatter(
    predicted: ArrayLike,
    reference: ArrayLike,
    *,
    name: str,
    unit: str,
    intervals: Sequence[tuple[float, float] | None] = (),
) -> Plot:
    """Predicted against reference values (n,), with the identity, the regression line and the values' own intervals.

    Of more than `POINTS` values the density is drawn, without intervals.
    """
    x, y = np.asarray(reference, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    figure, axes = _square()
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.06 * (high - low) or 1.0
    ends = np.array([low - margin, high + margin])
    axes.plot(ends, ends, color=PALE, linewidth=1.2, linestyle=_DASHED, label="identity")
    if len(x) > 2 and np.ptp(x) > 0:
        slope, intercept = np.polyfit(x, y, 1)
        axes.plot(ends, slope * ends + intercept, color=ES_COLOUR, linewidth=1.6,
                  label=f"regression: {slope:.2f} x {intercept:+.1f}")  # fmt: skip
    known = [(place, *interval) for place, interval in zip(x, intervals, strict=False) if interval is not None]
    if known and len(x) <= POINTS:
        axes.vlines(*zip(*known, strict=True), color=ED_COLOUR, alpha=0.35, linewidth=1, capstyle="projecting",
                    label="a patient's interval")  # fmt: skip
    _draw_points(axes, x, y)
    axes.set(xlim=ends, ylim=ends, xlabel=f"reference {name}, {unit}", ylabel=f"predicted {name}, {unit}")
    axes.set_aspect("equal")
    axes.legend(frameon=False, fontsize=9, loc="upper left", labelcolor=INK)
    return _plot(figure, axes, f"predicted against reference {name}")


def bland_altman(predicted: ArrayLike, reference: ArrayLike, *, name: str, unit: str) -> Plot:
    """Differences against means of predicted and reference values (n,), with bias and 95 % limits of agreement.

    Of more than `POINTS` values the density is drawn.
    """
    x, y = np.asarray(reference, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    difference, mean = y - x, (x + y) / 2
    figure, axes = _square()
    axes.axhline(0, color=PALE, linewidth=0.9, label="no difference")
    bias = float(difference.mean())
    lines: list[tuple[float, str, Any]] = [(bias, "bias", "-")]
    if len(x) > 1:
        spread = 1.96 * float(difference.std(ddof=1))
        lines += [(bias + spread, "+1.96 SD", _DASHED), (bias - spread, "−1.96 SD", _DASHED)]
    for level, words, style in lines:
        label = {"bias": "bias", "+1.96 SD": "limits of agreement"}.get(words)
        axes.axhline(level, color=ES_COLOUR, linewidth=1.4, linestyle=style, label=label)
        words = f"{words}\n{round(level, 1) + 0.0:.1f}".replace("-", "−")
        axes.annotate(words, (1, level), xycoords=("axes fraction", "data"), xytext=(4, 0),
                      textcoords="offset points", va="center", fontsize=9, color=ES_COLOUR)  # fmt: skip
    _draw_points(axes, mean, difference)
    axes.margins(y=0.18)
    axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, labelcolor=INK,
                handlelength=1.6, columnspacing=1.2)  # fmt: skip
    axes.set(xlabel=f"mean of both {name}s, {unit}", ylabel=f"predicted − reference, {unit}")
    return _plot(figure, axes, f"Bland-Altman plot of {name}")


def ef_distribution(predicted: ArrayLike, reference: ArrayLike = ()) -> Plot:
    """How many patients have which EF in percent, predicted (n,) as bars and reference (m,) as a line."""
    values, known = np.asarray(predicted, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    both = np.concatenate((values, known))
    low, high = np.floor(both.min() / _EF_BIN) * _EF_BIN, (np.floor(both.max() / _EF_BIN) + 1) * _EF_BIN
    edges = np.arange(low, high + _EF_BIN / 2, _EF_BIN)
    figure, axes = _square()
    axes.hist(values, edges.tolist(), color=ED_COLOUR, alpha=0.35, edgecolor="white", linewidth=1, label="predicted")
    if len(known):
        counts, _ = np.histogram(known, edges)
        there = counts > 0  # an empty bar would leave a line on the axis
        axes.bar(edges[:-1][there] + _EF_BIN / 2, counts[there], 0.6 * _EF_BIN, fill=False, edgecolor=ES_COLOUR,
                 linewidth=1.4, linestyle=_DASHED, label="reference")  # fmt: skip
    axes.legend(frameon=False, fontsize=9, loc="upper left", labelcolor=INK)
    axes.margins(y=0.2)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set(xlabel=f"EF, % (bars of {_EF_BIN:g} points)", ylabel="patients")
    return _plot(figure, axes, "distribution of EF")


def _draw_points(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    """Each point, or as a picture how many there are in each hexagon: a page does not bear many thousand points."""
    if len(x) <= POINTS:
        axes.scatter(x, y, s=24, color=ED_COLOUR, alpha=0.75, linewidths=0, gid="class-points", zorder=3)
        return
    axes.hexbin(x, y, gridsize=_CELLS, mincnt=1, bins="log", cmap=_DENSITY, linewidths=0.2, zorder=0.5, rasterized=True)
    axes.set_title(f"{len(x)} patients, darker where there are more", loc="left", fontsize=9, color=SOFT)


def _square() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SQUARE, dpi=_POINTS_AN_INCH, layout="constrained")
    return figure, _styled(figure.add_subplot(), size=9)


def _styled(axes: Axes, *, size: float) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(color=PALE, labelcolor=SOFT, labelsize=size)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(size=size + 1, color=INK)
    return axes


def _plot(figure: Figure, axes: Axes, name: str, *, x_step: float = 1.0) -> Plot:
    """The figure as SVG, and where values lie in it, which is known once it is drawn."""
    # The salt keeps the ids of several figures in one page apart, and makes the file repeatable.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        stream = io.StringIO()
        raster = {"dpi": _SHARP * _POINTS_AN_INCH} if axes.get_title(loc="left") else {}
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None}, **raster)
    height = figure.get_figheight() * _POINTS_AN_INCH
    (x0, y0), (x1, y1) = axes.transData.transform([(0, 0), (x_step, 1)])
    scale = (float(x0), float(x1 - x0), float(height - y0), float(y0 - y1))
    text = stream.getvalue()
    numbers = " ".join(f"{value:.6g}" for value in scale)
    inside = text[text.index("<svg") + len("<svg") :]
    return Plot(f'<svg role="img" aria-label="{escape(name)}" data-scale="{numbers}"{_for_a_page(inside)}', scale)


def _for_a_page(svg: str) -> str:
    """Without what would act on the whole page (style, ids that nothing points at), and in the page's own font.

    Groups named class-... get a class in their place, and the page may give its own colours, as in the dark.
    """
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(base64,)\s+", r"\1", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", svg)
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="class-([\w-]+)"', r' class="\1"', svg)
    svg = re.sub(r' id="([\w.-]+)"', lambda found: found.group() if found.group(1) in used else "", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "sans-serif", svg)
    for name, colour in _PAGE_COLOURS.items():
        svg = svg.replace(colour.lower(), f"var(--{name}, {colour.lower()})")
    return re.sub(r"\n\s*", " ", svg)
