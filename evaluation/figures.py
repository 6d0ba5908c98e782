"""The report's pictures: outlines over frames as JPEG, area curves and agreement plots as SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw
from skimage.measure import find_contours

from .ejection import CaseMeasurement
from .geometry import Landmarks

# Okabe and Ito's palette: told apart with every common kind of colour blindness.
OUTLINE, AXIS, ED_COLOUR, ES_COLOUR, INK, PALE = "#E69F00", "#56B4E9", "#0072B2", "#D55E00", "#1f2933", "#9aa5b1"
_OVERLAY_PIXELS = 300
_CURVE_WIDTH, _CURVE_HEIGHT = 520, 190
_CURVE_LEFT, _CURVE_RIGHT, _CURVE_TOP, _CURVE_BOTTOM = 52, 14, 36, 34


@dataclass(frozen=True)
class Overlay:
    """One frame with its outline, ready to show.

    Attributes:
        case: the clip's name.
        phase: "end-diastole" or "end-systole".
        frame: its number in the clip.
        jpeg: the picture.
    """

    case: str
    phase: str
    frame: int
    jpeg: bytes


def make_overlays(
    measurement: CaseMeasurement, frames: NDArray[Any], mask: NDArray[Any], spacing_mm: Sequence[float] | None = None
) -> list[Overlay]:
    """The end-diastolic and end-systolic frame of a clip with outline, mitral plane and long axis.

    Args:
        measurement: `measure_case` of this clip.
        frames: (T, H, W), any range of values.
        mask: (T, H, W), 0 is background.
        spacing_mm: (row, col), so that the heart keeps its proportions.
    """
    phases = measurement.phases
    if phases is None:
        return []
    chosen = (phases.ed_frame, phases.es_frame)
    # Beats that could not be measured have no landmarks, and then the numbering of the others does not fit.
    measured = len(measurement.beats) == len(phases.beats)
    marks = measurement.beats[phases.beats.index(chosen)] if measured and chosen in phases.beats else (None, None)
    names = ("end-diastole", "end-systole")
    return [
        Overlay(measurement.case, name, frame, draw_overlay(frames[frame], mask[frame], spacing_mm, landmarks))
        for name, frame, landmarks in zip(names, chosen, marks, strict=True)
    ]


def draw_overlay(
    frame: NDArray[Any], mask: ArrayLike, spacing_mm: Sequence[float] | None, landmarks: Landmarks | None
) -> bytes:
    """A (H, W) frame with the outline of its (H, W) mask and the landmarks, as JPEG bytes."""
    row_mm, col_mm = spacing_mm or (1.0, 1.0)
    height, width = frame.shape[0] * row_mm, frame.shape[1] * col_mm
    scale = _OVERLAY_PIXELS / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    values = np.asarray(frame, dtype=np.float32)
    low, high = np.percentile(values, (0.5, 99.8))
    grey = np.clip((values - low) / max(float(high - low), 1e-6), 0, 1) * 255
    picture = Image.fromarray(grey.astype(np.uint8)).resize(size, Image.Resampling.LANCZOS).convert("RGB")
    pen = ImageDraw.Draw(picture)

    def place(points: NDArray[np.float64]) -> list[tuple[float, float]]:
        # Pixel centres lie at whole numbers in the mask and at halves in the picture.
        return [((col + col_mm / 2) * scale, (row + row_mm / 2) * scale) for row, col in points]

    for line in find_contours(np.pad(np.asarray(mask) != 0, 1).astype(np.float32), 0.5):
        pen.line(place((line - 1) * (row_mm, col_mm)), fill=OUTLINE, width=2, joint="curve")
    if landmarks is not None:
        pen.line(place(landmarks.hinges), fill=AXIS, width=2)
        pen.line(place(np.stack([landmarks.base_middle, landmarks.apex])), fill=AXIS, width=2)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=82, optimize=True)
    return stream.getvalue()


def area_curve_svg(measurement: CaseMeasurement) -> str:
    """The cavity's area over time with every beat's end-diastole and end-systole, as an inline SVG."""
    area = np.asarray(measurement.area, dtype=np.float64)
    seconds = measurement.frame_time_ms
    time = np.arange(len(area)) * (seconds / 1000 if seconds else 1)
    shown, unit = (area / 100, "cm²") if measurement.area_unit == "mm2" else (area, "px")
    top = float(shown.max(initial=0)) * 1.08 or 1.0
    span = float(time[-1]) if len(time) > 1 else 1.0
    width, height = _CURVE_WIDTH - _CURVE_LEFT - _CURVE_RIGHT, _CURVE_HEIGHT - _CURVE_TOP - _CURVE_BOTTOM
    x = _CURVE_LEFT + time / span * width
    y = _CURVE_TOP + (1 - shown / top) * height
    floor, right = _CURVE_TOP + height, _CURVE_LEFT + width
    parts = [f'<svg class="curve" viewBox="0 0 {_CURVE_WIDTH} {_CURVE_HEIGHT}" role="img" aria-label="area over time">']
    for tick in _ticks(top):
        level = _CURVE_TOP + (1 - tick / top) * height
        parts.append(f'<line x1="{_CURVE_LEFT}" x2="{right}" y1="{level:.1f}" y2="{level:.1f}" class="grid"/>')
        parts.append(f'<text x="{_CURVE_LEFT - 6}" y="{level + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(span):
        place = _CURVE_LEFT + tick / span * width
        parts.append(f'<text x="{place:.1f}" y="{floor + 15}" text-anchor="middle">{tick:g}</text>')
    label = "seconds" if seconds else "frame"
    parts.append(f'<text x="{right}" y="{_CURVE_HEIGHT - 4}" text-anchor="end">{label}</text>')
    parts.append(f'<text x="{_CURVE_LEFT}" y="11">area, {unit}</text>')
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    parts.append(f'<polyline points="{points}" fill="none" stroke="{INK}" stroke-width="1.6" stroke-linejoin="round"/>')
    for beat in measurement.phases.beats if measurement.phases else ():
        for frame, name, colour in zip(beat, ("ED", "ES"), (ED_COLOUR, ES_COLOUR), strict=True):
            at = f"{x[frame]:.1f}", f"{y[frame]:.1f}"
            parts.append(f'<circle cx="{at[0]}" cy="{at[1]}" r="4.5" fill="{colour}"/>')
            offset = -9 if name == "ED" else 17
            words = f'text-anchor="middle" fill="{colour}" class="mark">{name}'
            parts.append(f'<text x="{at[0]}" y="{y[frame] + offset:.1f}" {words}</text>')
    return "".join(parts) + "</svg>"


def scatter_svg(predicted: ArrayLike, reference: ArrayLike, *, name: str, unit: str) -> str:
    """Predicted against reference values (n,), with the identity and the regression line."""
    x, y = np.asarray(reference, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    figure, axes = _axes()
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.06 * (high - low) or 1.0
    ends = np.array([low - margin, high + margin])
    axes.plot(ends, ends, color=PALE, linewidth=1.2, linestyle=(0, (4, 3)), label="identity")
    if len(x) > 2 and np.ptp(x) > 0:
        slope, intercept = np.polyfit(x, y, 1)
        axes.plot(ends, slope * ends + intercept, color=ES_COLOUR, linewidth=1.6,
                  label=f"regression: {slope:.2f} x {intercept:+.1f}")  # fmt: skip
    axes.scatter(x, y, s=26, color=ED_COLOUR, alpha=0.75, linewidths=0)
    axes.set(xlim=ends, ylim=ends, xlabel=f"reference {name}, {unit}", ylabel=f"predicted {name}, {unit}")
    axes.set_aspect("equal")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return _svg(figure, f"scatter {name}")


def bland_altman_svg(predicted: ArrayLike, reference: ArrayLike, *, name: str, unit: str) -> str:
    """Differences against means of predicted and reference values (n,), with bias and 95 % limits of agreement."""
    x, y = np.asarray(reference, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    difference, mean = y - x, (x + y) / 2
    figure, axes = _axes()
    axes.axhline(0, color=PALE, linewidth=0.9)
    bias = float(difference.mean())
    lines = [(bias, "bias", "-")]
    if len(x) > 1:
        spread = 1.96 * float(difference.std(ddof=1))
        lines += [(bias + spread, "+1.96 SD", (0, (4, 3))), (bias - spread, "−1.96 SD", (0, (4, 3)))]
    for level, words, style in lines:
        axes.axhline(level, color=ES_COLOUR, linewidth=1.4, linestyle=style)
        words = f"{words} {level:.1f}".replace("-", "−")
        axes.annotate(words, (1, level), xycoords=("axes fraction", "data"), xytext=(-4, 4),
                      textcoords="offset points", ha="right", fontsize=9, color=ES_COLOUR)  # fmt: skip
    axes.scatter(mean, difference, s=26, color=ED_COLOUR, alpha=0.75, linewidths=0)
    axes.margins(y=0.18)
    axes.set(xlabel=f"mean of both {name}s, {unit}", ylabel=f"predicted − reference, {unit}")
    return _svg(figure, f"bland-altman {name}")


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.9, 4.3), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(color=PALE, labelcolor=INK, labelsize=9)
    return figure, axes


def _svg(figure: Figure, salt: str) -> str:
    # The salt keeps the ids of several figures in one page apart, and makes the file repeatable.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _ticks(top: float) -> list[float]:
    """A few round numbers from 0 to `top`."""
    raw = top / 4
    power = 10 ** np.floor(np.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    return [float(round(value, 10)) for value in np.arange(0, top * 1.0001, step)]
