"""report.html: pages without a network, for people who look at hearts."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import count
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from echoplan import __version__, layout
from echoplan.files import write_text

from ..comparison.subgroups import subgroup_agreement
from ..ef_report import ef_agreement
from ..ejection import CHECK, NOT_JUDGED, PatientRow
from ..measurements import CaseMeasurement
from ..report_notes import report_notes
from ..ventricle.contour import Points
from ..ventricle.volumes import VOLUME_RULES
from . import formats
from .thumbnails import PICTURES, Film, Marks, Sheet, Still, marked_beats

CASES_A_PAGE = 100
_FEWEST_PAIRS, _FEWEST_OF_A_DISTRIBUTION = 3, 5  # patients; of fewer the table says more than a plot
TABLE_ROWS = 1000  # of more patients the table shows a part at a time
_TEMPLATES = Path(__file__).parent / "templates"
_MEASURES = {"ef_percent": ("EF", "%"), "edv_ml": ("EDV", "mL"), "esv_ml": ("ESV", "mL")}
_HEADS = {key: f"{name}, {unit}" for key, (name, unit) in _MEASURES.items()} | {
    "ef_found_phases_percent": "EF at found phases, %"
}
_STATISTICS = {
    "pearson_r": "Pearson r",
    "spearman_r": "Spearman r",
    "icc_2_1": "ICC(2,1)",
    "bias": "Bias",
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
    rows: Sequence[PatientRow],
    measurements: Sequence[CaseMeasurement] = (),
    films: Sequence[Film] = (),
    title: str = "Ejection fraction report",
    subtitle: str = "",
    agreement: Mapping[str, Mapping[str, Any]] | None = None,
    notes: Sequence[str] = (),
    details: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write self-contained HTML: summary, agreement, patient table, and each clip's player and area curve.

    The first page has the summary and the table of all patients; each page has 100 clips, in less than 30 MB, and the
    pages after the first, <name>_2.html and so on, are linked with it both ways. Pages that a larger report left are
    removed. Of more than 1000 patients the table shows 200 rows at a time, sorted and searched all together, and clips
    begin on the second page. Plots of more than 1000 points show how many lie where.

    Args:
        path: the HTML file.
        rows: of `measure_patients`; intervals (`ef_low_percent` ...) and `quality` are shown where they are there.
        measurements: of `measure_case`, a clip each, in the order to show.
        films: of `make_film`, at most one a clip.
        title, subtitle: the page's heading.
        agreement: of `ef_agreement`; worked out from the rows if not given.
        notes: what else holds for several patients, behind what `report_notes` says.
        details: what else to record at the foot, such as the model's name; plain words and numbers.

    Returns:
        the files written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from echoplan.evaluation import PatientRow, write_report
        >>> with TemporaryDirectory() as folder:
        ...     [file.name for file in write_report(f"{folder}/report.html", rows=[PatientRow("p", failure="no mask")])]
        ['report.html']
    """
    path = Path(path)
    agreement = ef_agreement(rows) if agreement is None else agreement
    shown = measurements[:PICTURES]
    parts = _pages(len(shown), len(rows))
    files = [path, *(_page_file(path, number) for number in range(2, len(parts) + 1))]
    content = {
        "title": title,
        "subtitle": subtitle,
        "pages": [file.name for file in files],
        "shown": len(shown),
        "left_out": len(measurements) - len(shown),
        "rules": [f"{name}: {VOLUME_RULES[name]}" for name in sorted({row.volume_rule for row in rows})],
        "details": dict(details or {}),
        "csv": layout.EF_REPORT_CSV if path.with_name(layout.EF_REPORT_CSV).is_file() else "",
        "scripts": [_source("table.js"), _source("player.js")],
        **_summary(rows, agreement, _links(shown, parts, files)),
        "notes": [*report_notes(rows, agreement), *notes],
    }
    _write_pages(dict(zip(files, parts, strict=True)), content, shown, films, rows)
    _remove_later_pages(path, len(parts))
    return files


def notebook_view(measured: CaseMeasurement, film: Film, line: str, reasons: Sequence[str]) -> str:
    """A clip's stills, area curve, figures in a line, and why to check them, as HTML for a notebook's page."""
    from .figures import area_curve

    curve = Markup(area_curve(measured).svg) if len(measured.area) else ""
    return page_template("notebook.html.j2").render(film=film, curve=curve, line=line, reasons=reasons)


def _write_pages(
    files: Mapping[Path, range],
    content: Mapping[str, Any],
    shown: Sequence[CaseMeasurement],
    films: Sequence[Film],
    rows: Sequence[PatientRow],
) -> None:
    """Write each page with its clips; those of one page are in memory at a time."""
    template = page_template("report.html.j2")
    by_case, by_exam = {film.case: film for film in films}, {(row.patient, row.exam): row for row in rows}
    for page, (file, places) in enumerate(files.items()):
        clips = [_clip(place + 1, shown[place], by_case.get(shown[place].name), by_exam) for place in places]
        write_text(file, template.render(content, page=page, clips=clips))


def _pages(clips: int, patients: int) -> list[range]:
    """The clips on each page, by their places; where the table is long, the first page has none."""
    parts = [range(clips)[start : start + CASES_A_PAGE] for start in range(0, clips, CASES_A_PAGE)]
    return parts if parts and patients <= TABLE_ROWS else [range(0), *parts]


def _links(shown: Sequence[CaseMeasurement], parts: Sequence[range], files: Sequence[Path]) -> dict[str, str]:
    """Patient -> where the first of the patient's clips is, as seen from the first page."""
    links: dict[str, str] = {}
    for page, places in enumerate(parts):
        for place in places:
            links.setdefault(shown[place].patient, f"{files[page].name if page else ''}#case-{place + 1}")
    return links


def _summary(
    rows: Sequence[PatientRow], agreement: Mapping[str, Mapping[str, Any]] | None, links: Mapping[str, str]
) -> dict[str, Any]:
    """What the first page shows before the clips."""
    long = len(rows) > TABLE_ROWS
    return {
        "rows": rows,
        "links": links,
        "table": _table(rows, links, with_references=agreement is not None) if long else None,
        "tiles": _tiles(rows, agreement),
        "flagged": sum(formats.to_check(row) for row in rows),
        "with_references": agreement is not None,
        "agreement": _agreement_table(agreement or {}),
        "subgroups": _subgroups(rows) if agreement else [],
        "figures": _figures(rows),
    }


def _page_file(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}_{number}{path.suffix}")


def _remove_later_pages(path: Path, pages: int) -> None:
    for number in count(pages + 1):
        file = _page_file(path, number)
        if not file.is_file():
            return
        file.unlink()


def page_template(name: str) -> Template:
    """One of the templates of pages; all know `written`, `version` and `style`."""
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        name: getattr(formats, name)
        for name in ("number", "interval", "method", "flag", "frames", "brief", "difference", "unsaid", "reasons_of")
    } | {"data_uri": _data_uri, "line": _line}
    made.tests["to_check"] = formats.to_check
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    made.globals |= {"written": written, "version": __version__, "style": _source("report.css")}
    return made.get_template(name)


def _source(name: str) -> Markup:
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


def _clip(
    number: int, measured: CaseMeasurement, film: Film | None, rows: Mapping[tuple[str, str | None], PatientRow]
) -> dict[str, Any]:
    """What the template shows of one clip."""
    from .figures import area_curve

    curve = area_curve(measured) if len(measured.area) else None
    return {
        "number": number,
        "measured": measured,
        "marked": len(marked_beats(measured.phases)),
        "row": rows.get((measured.patient, None)) or rows.get((measured.patient, measured.case.exam)),
        "curve": None if curve is None else Markup(curve.svg),
        "stills": [] if film is None else film.stills,
        "film": film,
        "sheet": None if film is None or film.sheet is None else _base64(film.sheet.webp),
        "player": None if film is None or film.sheet is None else _player(measured, film, film.sheet),
    }


def _player(measured: CaseMeasurement, film: Film, sheet: Sheet) -> dict[str, Any]:
    """What the player's script reads; the sheet itself stands apart, so that it is decoded only when it is needed."""
    from .figures import shown_area

    area, unit = shown_area(measured)
    return {
        "width": film.width,
        "height": film.height,
        "sheet": {"columns": sheet.columns, "width": sheet.width, "height": sheet.height},
        "frames": sheet.frames,
        "outlines": _base64(sheet.outlines),
        "marks": {str(frame): _lines(marks) for frame, marks in film.marks.items()},
        "beats": marked_beats(measured.phases),
        "frame_time_ms": measured.frame_time_ms,
        "area": [round(float(area[frame]), 3) for frame in sheet.frames] if len(area) else [],
        "unit": unit,
    }


def _lines(marks: Marks) -> dict[str, Any]:
    return {name: getattr(marks, name).round(1).tolist() for name in ("base", "axis", "discs")}


def _tiles(rows: Sequence[PatientRow], agreement: Mapping[str, Mapping[str, Any]] | None) -> list[tuple[str, str, str]]:
    """(figure, what it is, small print) of the summary."""
    ef = [row.ef_percent for row in rows if row.ef_percent is not None]
    methods = Counter(row.method for row in rows if row.method)
    words = ", ".join(f"{number} {formats.method(name)}" for name, number in methods.most_common())
    tiles = [(str(len(rows)), "patient" if len(rows) == 1 else "patients", words)]
    if ef:
        small = f"SD {stdev(ef):.1f}, range {min(ef):.0f} to {max(ef):.0f}" if len(ef) > 1 else ""
        tiles.append((f"{fmean(ef):.1f} %", "mean ejection fraction" if len(ef) > 1 else "ejection fraction", small))
    failed = sum(1 for row in rows if row.failure)
    tiles.append((str(failed), "not measurable", "reasons in the table" if failed else ""))
    if any(row.quality for row in rows):
        doubtful = sum(1 for row in rows if row.quality == CHECK)
        unknown = sum(1 for row in rows if row.quality == NOT_JUDGED)
        words = "reasons below" if doubtful else "nothing stood out"
        tiles.append((str(doubtful), "to check by eye", f"{words}; {unknown} not judged" if unknown else words))
    statistics = (agreement or {}).get("ef_percent")
    if statistics and statistics["mae"] is not None:
        found = (agreement or {}).get("ef_found_phases_percent")
        words = "" if found is None or found["mae"] is None else f", given ED and ES; {found['mae']:.1f} at those found"
        error = "mean absolute error, EF points" if statistics["n"] > 1 else "absolute error, EF points"
        tiles.append((f"{statistics['mae']:.1f}", error, f"n = {statistics['n']}{words}"))
        if statistics["pearson_r"] is not None:
            tiles.append(
                (f"{statistics['pearson_r']:.3f}", "Pearson r, EF", formats.bootstrap(statistics, "pearson_r", 3))
            )
    return tiles


def _agreement_table(agreement: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Column headings, and one line a statistic with its value and interval in each column."""
    lines = []
    for key, words in _STATISTICS.items():
        digits = 3 if key in _UNITLESS else 1
        cells = [
            (formats.number(values[key], digits), formats.bootstrap(values, key, digits))
            for values in agreement.values()
        ]
        lines.append((words, cells))
    heads = [(_HEADS[name], _counts(values)) for name, values in agreement.items()]
    return {"heads": heads, "lines": lines}


def _counts(statistics: Mapping[str, Any]) -> str:
    failures = statistics["failures"]
    return f"n = {statistics['n']}" + (f", {failures} not measured" if failures else "")


def _subgroups(rows: Sequence[PatientRow]) -> list[tuple[str, str, list[str]]]:
    """(grouping, group, cells): n and the statistics of EF."""
    lines = []
    for group in subgroup_agreement(rows):
        cells = [formats.number(value) for value in (group["bias"], group["sd_of_differences"], group["mae"])]
        lines.append((group["by"], group["group"], [str(group["n"]), formats.number(group["pearson_r"], 3), *cells]))
    return lines


def _figures(rows: Sequence[PatientRow]) -> list[dict[str, Any]]:
    """Agreement plots of every measure with references, and the distribution of EF; `patients` names the points."""
    from .figures import POINTS, bland_altman, ef_distribution, scatter

    figures = []
    for key, (name, unit) in _MEASURES.items():
        pairs = [row for row in rows if None not in (row.measured(key), getattr(row, f"reference_{key}"))]
        if len(pairs) >= _FEWEST_PAIRS:
            predicted, reference = ([getattr(row, column) for row in pairs] for column in (key, f"reference_{key}"))
            bounds = [formats.bounds(row, key) for row in pairs]
            patients = [row.patient for row in pairs] if len(pairs) <= POINTS else []
            for plot in (
                scatter(predicted, reference, name=name, unit=unit, intervals=bounds),
                bland_altman(predicted, reference, name=name, unit=unit),
            ):
                figures.append(_figure(plot.svg, key, patients))
    ef = [row.ef_percent for row in rows if row.ef_percent is not None]
    if len(ef) >= _FEWEST_OF_A_DISTRIBUTION:
        known = [row.reference_ef_percent for row in rows if row.reference_ef_percent is not None]
        place = 2 if figures and figures[0]["measure"] == "ef_percent" else 0
        figures.insert(place, _figure(ef_distribution(ef, known).svg, "ef_percent", []))
    return figures


def _figure(svg: str, measure: str, patients: list[str]) -> dict[str, Any]:
    return {"svg": Markup(svg), "measure": measure, "patients": patients}


def _table(rows: Sequence[PatientRow], links: Mapping[str, str], *, with_references: bool) -> dict[str, Any]:
    """What table.js makes the rows of: the patient, its clips, whether to check it, and every cell as it is shown.

    A cell is its text, or its text and the small print; the last one has a flag, what was flagged, and the note.
    """

    def cell(row: PatientRow, measure: str) -> str | tuple[str, str]:
        text, interval = formats.number(getattr(row, measure)), formats.interval(row, measure)
        return (text, interval) if interval else text

    lines = []
    for row in rows:
        cells = [cell(row, "ef_percent")]
        if with_references:
            cells += [cell(row, "reference_ef_percent"), formats.number(formats.difference(row))]
        cells += [cell(row, "edv_ml"), cell(row, "esv_ml"), formats.method(row.method), str(row.beats or "–")]
        cells += [formats.frames(row.ed_frames), formats.frames(row.es_frames)]
        _, flag, reason = formats.flag(row)
        last = (flag, formats.brief(reason), formats.brief(formats.unsaid(row.note, reason)))
        lines.append((row.patient, row.cases, int(formats.to_check(row)), *cells, last))
    return {"links": links, "rows": lines}


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _data_uri(still: Still) -> str:
    return f"data:image/webp;base64,{_base64(still.webp)}"


def _line(points: Sequence[Points] | Points, *, closed: bool = False) -> str:
    """An SVG path through each of several lines (N, 2)."""
    return "".join("M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in line) + ("Z" if closed else "") for line in points)
