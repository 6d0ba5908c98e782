"""report.html of a study: one page without a network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from echoplan import __version__
from echoplan.files import write_text

from .learning_curves import LearningCurves
from .tables import Table, number

_TEMPLATES = Path(__file__).parents[1] / "report" / "templates"


def write_study_report(
    path: str | Path,
    *,
    title: str,
    curves: LearningCurves,
    figure_svg: str,
    sections: Sequence[tuple[str, Sequence[Table], Sequence[str]]],
    failures: Mapping[str, str],
    details: Mapping[str, Any],
) -> None:
    """Write self-contained HTML: what the curves say, the figure, the tables, what is missing, how it came about.

    Args:
        path: the HTML file.
        title: the heading.
        curves: for the statements on top.
        figure_svg: the figure's SVG.
        sections: (heading, tables, notes) in the order to show.
        failures: what is not done -> reason.
        details: what to record at the foot; plain words and numbers.
    """
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = made.get_template("study.html.j2").render(
        title=title,
        statements=trend_statements(curves),
        figure=base64.b64encode(figure_svg.encode("utf-8")).decode("ascii"),
        figure_words=f"Dice of {curves.structure} over the patients trained on; the tables below hold the figures",
        sections=sections,
        failures=failures,
        details=details,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
    )
    write_text(path, page)


def trend_statements(curves: LearningCurves) -> list[str]:
    """A sentence a line that has a trend."""
    found = []
    for row in curves.trends:
        line = next(line for line in curves.lines if _is(line, row))
        slope = number(100 * row["dice_per_doubling"], 2)
        bounds = row["interval_95"]
        interval = (
            f"95 % interval {number(100 * bounds[0], 2)} to {number(100 * bounds[1], 2)}" if bounds else "no interval"
        )
        word = {"rises": "rises", "falls": "falls"}.get(row["trend"], "has no clear trend")
        found.append(
            f"{line.in_words(curves.lines)} {word}: {slope} points of Dice for twice the patients ({interval}, "
            f"{row['validated_patients']} patients, {row['sizes']} sizes)."
        )
    return found


def _is(line: Any, row: Mapping[str, Any]) -> bool:
    return (line.method, line.frames, line.augmentation) == (row["method"], row["frames"], row["augmentation"])
