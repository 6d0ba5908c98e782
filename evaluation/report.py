"""report.html: one page without a network, for people who look at hearts."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from echoplan import __version__
from echoplan.files import write_text

from .ejection import VOLUME_RULES, CaseMeasurement, ef_agreement
from .figures import Overlay, area_curve_svg, bland_altman_svg, scatter_svg

CASES_SHOWN = 200  # with pictures; the table has them all
_AGREEMENT_NAMES = {"ef_percent": ("EF", "%"), "edv_ml": ("EDV", "mL"), "esv_ml": ("ESV", "mL")}
_STATISTICS = {
    "pearson_r": "Pearson r",
    "spearman_r": "Spearman r",
    "icc_2_1": "ICC(2,1)",
    "bias": "Bias (predicted − reference)",
    "sd_of_differences": "SD of differences",
    "limits_of_agreement_low": "Lower limit of agreement",
    "limits_of_agreement_high": "Upper limit of agreement",
    "mae": "Mean absolute error",
    "rmse": "Root mean square error",
}
_UNITLESS = ("pearson_r", "spearman_r", "icc_2_1")


def write_report(
    path: str | Path,
    *,
    rows: Sequence[Mapping[str, Any]],
    measurements: Sequence[CaseMeasurement] = (),
    overlays: Sequence[Overlay] = (),
    title: str = "Ejection fraction report",
    subtitle: str = "",
    agreement: Mapping[str, Mapping[str, Any]] | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write a self-contained HTML page: summary, agreement, patient table, and each clip's curve and pictures.

    Args:
        path: the HTML file.
        rows: of `measure_patients`.
        measurements: of `measure_case`, a clip each, in the order to show.
        overlays: of `make_overlays`, any number a clip.
        title, subtitle: the page's heading.
        agreement: of `ef_agreement`; worked out from the rows if not given.
        details: what else to record at the foot, such as the model's name; plain words and numbers.
    """
    found = ef_agreement(rows) if agreement is None else agreement
    pictures: dict[str, list[dict[str, Any]]] = {}
    for overlay in overlays:
        source = "data:image/jpeg;base64," + base64.b64encode(overlay.jpeg).decode("ascii")
        pictures.setdefault(overlay.case, []).append({"phase": overlay.phase, "frame": overlay.frame, "source": source})
    clips = [
        {"measured": measured, "curve": Markup(area_curve_svg(measured)), "pictures": pictures.get(measured.case, ())}
        for measured in measurements[:CASES_SHOWN]
    ]
    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    page = environment.get_template("report.html.j2").render(
        title=title,
        subtitle=subtitle,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        tiles=_tiles(rows, found),
        rows=rows,
        rules=[f"{name}: {VOLUME_RULES[name]}" for name in sorted({row["volume_rule"] for row in rows})],
        with_references=found is not None,
        agreement=_agreement_table(found or {}),
        figures=_figures(rows),
        clips=clips,
        clips_left_out=len(measurements) - len(clips),
        details=dict(details or {}),
    )
    write_text(path, page)


def _tiles(
    rows: Sequence[Mapping[str, Any]], agreement: Mapping[str, Mapping[str, Any]] | None
) -> list[tuple[str, str, str]]:
    """(figure, what it is, small print) of the summary."""
    ef = [row["ef_percent"] for row in rows if row["ef_percent"] is not None]
    methods = Counter(row["method"] for row in rows if row["method"])
    words = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in methods.most_common())
    tiles = [(str(len(rows)), "patient" if len(rows) == 1 else "patients", words)]
    if ef:
        small = f"SD {stdev(ef):.1f}, range {min(ef):.0f} to {max(ef):.0f}" if len(ef) > 1 else ""
        tiles.append((f"{fmean(ef):.1f} %", "mean ejection fraction", small))
    failed = sum(1 for row in rows if row["failure"])
    tiles.append((str(failed), "not measurable", "reasons in the table" if failed else ""))
    statistics = (agreement or {}).get("ef_percent")
    if statistics and statistics["mae"] is not None:
        tiles.append((f"{statistics['mae']:.1f}", "mean absolute error, EF points", f"n = {statistics['n']}"))
        if statistics["pearson_r"] is not None:
            tiles.append((f"{statistics['pearson_r']:.3f}", "Pearson r, EF", _interval(statistics, "pearson_r", 3)))
    return tiles


def _agreement_table(agreement: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Column headings, and one line a statistic with its value and interval in each column."""
    lines = []
    for key, words in _STATISTICS.items():
        digits = 3 if key in _UNITLESS else 1
        cells = [(_number(values[key], digits), _interval(values, key, digits)) for values in agreement.values()]
        lines.append((words, cells))
    heads = [
        f"{_AGREEMENT_NAMES[name][0]}, {_AGREEMENT_NAMES[name][1]} (n = {values['n']}, failures {values['failures']})"
        for name, values in agreement.items()
    ]
    return {"heads": heads, "lines": lines}


def _figures(rows: Sequence[Mapping[str, Any]]) -> list[Markup]:
    figures = []
    for key, (name, unit) in _AGREEMENT_NAMES.items():
        pairs = [(row[key], row[f"reference_{key}"]) for row in rows]
        pairs = [pair for pair in pairs if None not in pair]
        if pairs:
            predicted, reference = zip(*pairs, strict=True)
            for draw in (scatter_svg, bland_altman_svg):
                figures.append(Markup(draw(predicted, reference, name=name, unit=unit)))
    return figures


def _interval(statistics: Mapping[str, Any], key: str, digits: int) -> str:
    bounds = statistics["intervals_95"].get(key)
    return f"95 % CI {_number(bounds[0], digits)} to {_number(bounds[1], digits)}" if bounds else ""


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")
