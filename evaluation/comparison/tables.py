"""A comparison as tables for people: Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from echoplan.files import write_csv, write_json, write_text

from .compare import ALL_PATIENTS, EF_ERROR, FRAMES, MEASURES, Comparison

_PHASES = {"all": "all", "end_diastole": "ED", "end_systole": "ES"}
_NAMES = {"dice": "Dice, %", "iou": "IoU, %", "hd95_mm": "HD95, mm", "assd_mm": "ASSD, mm", "hd95_px": "HD95, px",
          "assd_px": "ASSD, px", EF_ERROR: "EF error, points"}  # fmt: skip
_HIGH, _LOW, _ZERO = "↑", "↓", "→ 0"
_DISTANCE: dict[str, Callable[[float], float]] = {_HIGH: lambda value: -value, _LOW: lambda value: value, _ZERO: abs}
_LATEX = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
          "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "±": r"$\pm$", "−": "$-$",
          "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$", "≥": r"$\geq$", "–": "--"}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A measured column.

    Attributes:
        key: of the rows.
        heading: what it is, and its unit.
        better: which values are better, as an arrow; "" where none is.
        digits: decimals shown.
        scale: what the value is multiplied by.
        spread: key of the SD shown behind it.
    """

    key: str
    heading: str
    better: str = ""
    digits: int = 2
    scale: float = 1.0
    spread: str = ""

    def text(self, row: Mapping[str, Any]) -> str:
        """The cell: the value, ± its spread where there is one."""
        value, spread = row.get(self.key), row.get(self.spread)
        if value is None:
            return "–"
        shown = number(self.scale * value, self.digits)
        return shown if spread is None else f"{shown} ± {number(self.scale * spread, self.digits)}"


@dataclass(frozen=True)
class Table:
    """A table ready to be written.

    Attributes:
        title: what it shows.
        words: how many columns, from the left, hold words.
        headings: one a column.
        blocks: rows that belong together; a row's cells as (text, mark), the mark "best", "second" or "".
    """

    title: str
    words: int
    headings: tuple[str, ...]
    blocks: tuple[tuple[tuple[tuple[str, str], ...], ...], ...]


_EF_COLUMNS = (
    Column("n", "patients", digits=0),
    Column("failures", "failures", digits=0),
    Column("pearson_r", "Pearson r", _HIGH, 3),
    Column("bias", "bias", _ZERO),
    Column("sd_of_differences", "SD of differences", _LOW),
    Column("mae", "MAE", _LOW),
)


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Segmentation, ejection fraction, tests against the baseline, and the subgroups of both; empty ones left out."""
    measured = [key for key in MEASURES if any(f"{key}_mean" in row for row in comparison.segmentation)]
    columns = (Column("frames", "frames", digits=0), *map(_segmentation_column, measured))
    whole = [{**row, "phase": _PHASES[row["group"]]} for row in comparison.segmentation if row["by"] == FRAMES]
    parts = [row for row in comparison.segmentation if row["by"] != FRAMES]
    ef = [row for row in comparison.ejection if row["by"] == ALL_PATIENTS]
    ef_parts = [row for row in comparison.ejection if row["by"] != ALL_PATIENTS]
    tables = [
        blocks_table(
            f"Segmentation of {comparison.structure}, mean ± SD over frames", whole, columns, ("phase", "method")
        ),
        blocks_table("Ejection fraction, predicted − reference, in points", ef, _EF_COLUMNS, ("method",)),
        _tests_table(comparison),
        blocks_table("Segmentation in subgroups, mean ± SD over frames", parts, columns, ("by", "group", "method")),
        blocks_table("Ejection fraction in subgroups, in points", ef_parts, _EF_COLUMNS, ("by", "group", "method")),
    ]
    return [table for table in tables if table.blocks]


def to_markdown(comparison: Comparison) -> str:
    """The comparison as a Markdown page: the best value bold, the second underlined where there are three or more."""
    introduction = [f"{comparison.cases} clips of {comparison.patients} patients.", ""]
    return markdown_page(
        " and ".join(comparison.methods), introduction, comparison_tables(comparison), _all_notes(comparison)
    )


def to_latex(comparison: Comparison) -> str:
    r"""The tables as LaTeX `table` environments, for `\usepackage{booktabs}`."""
    return latex_tables(comparison_tables(comparison), _all_notes(comparison))


def markdown_page(title: str, introduction: Sequence[str], tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Lines of an introduction, tables under headings, and what a reader must know."""
    lines = [f"# {title}", "", *introduction]
    for table in tables:
        lines += [f"## {table.title}", "", _markdown_row(table.headings)]
        lines.append(_markdown_row("---" if i < table.words else "---:" for i in range(len(table.headings))))
        lines += [_markdown_row(map(_markdown_cell, row)) for block in table.blocks for row in block]
        lines.append("")
    return "\n".join([*lines, *(f"- {note}" for note in notes)]) + "\n"


def latex_tables(tables: Sequence[Table], notes: Sequence[str]) -> str:
    r"""LaTeX `table` environments, for `\usepackage{booktabs}`, with the notes as comments."""
    lines = ["% needs \\usepackage{booktabs}", *(f"% {note}" for note in notes)]
    for table in tables:
        layout = "l" * table.words + "r" * (len(table.headings) - table.words)
        lines += ["", r"\begin{table}", r"\centering", rf"\caption{{{_escaped(table.title)}}}"]
        lines += [rf"\begin{{tabular}}{{{layout}}}", r"\toprule", _latex_row(map(_escaped, table.headings))]
        for block in table.blocks:
            lines += [r"\midrule", *(_latex_row(map(_latex_cell, row)) for row in block)]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _all_notes(comparison: Comparison) -> list[str]:
    return [*_legend(comparison), *comparison.notes]


def write_comparison(folder: str | Path, comparison: Comparison) -> None:
    """Write comparison.md, .tex, .csv and .json into a folder.

    The CSV has a row a group and method, told apart by `table` (segmentation, ejection_fraction, paired_test); cells
    that a table does not have are empty. Dice and IoU are shares of 1 in CSV and JSON.
    """
    folder = Path(folder)
    write_text(folder / "comparison.md", to_markdown(comparison))
    write_text(folder / "comparison.tex", to_latex(comparison))
    tables = {
        "segmentation": comparison.segmentation,
        "ejection_fraction": comparison.ejection,
        "paired_test": comparison.tests,
    }
    rows = [{"table": name, **_bounds_apart(row)} for name, content in tables.items() for row in content]
    write_csv(folder / "comparison.csv", rows, list(dict.fromkeys(key for row in rows for key in row)))
    write_json(folder / "comparison.json", comparison.to_dict())


def number(value: float, digits: int) -> str:
    """Rounded, with a real minus sign, and never minus zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def _segmentation_column(key: str) -> Column:
    better, scale = (_HIGH, 100.0) if key in ("dice", "iou") else (_LOW, 1.0)
    return Column(f"{key}_mean", _NAMES[key], better, scale=scale, spread=f"{key}_sd")


def blocks_table(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[Column],
    words: Sequence[str],
    *,
    by: Sequence[str] = ("by", "group"),
) -> Table:
    """A table in which rows that agree in `by` make a block; the best of a block are marked."""
    shown = [column for column in columns if any(row.get(column.key) is not None for row in rows)]
    blocks = []
    for _, block in groupby(rows, key=lambda row: tuple(row[name] for name in by)):
        own = list(block)
        marks = [rank_marks([row.get(column.key) for row in own], column) for column in shown]
        blocks.append(
            tuple(
                (
                    *((row[word], "") for word in words),
                    *((column.text(row), mark[index]) for column, mark in zip(shown, marks, strict=True)),
                )
                for index, row in enumerate(own)
            )
        )
    headings = (*words, *(f"{column.heading} {column.better}".strip() for column in shown))
    return Table(title, len(words), headings, tuple(blocks))


def rank_marks(values: Sequence[float | None], column: Column) -> list[str]:
    """ "best" and "second" by what is shown, so that values shown alike are marked alike."""
    if not column.better:
        return [""] * len(values)
    worse = _DISTANCE[column.better]
    shown = [None if value is None else worse(round(column.scale * value, column.digits)) for value in values]
    order = sorted({value for value in shown if value is not None})
    if len(order) < 2:
        return [""] * len(values)
    second = order[1] if len(values) > 2 and shown.count(order[0]) == 1 else None
    return ["" if value is None else "best" if value == order[0] else "second" if value == second else ""
            for value in shown]  # fmt: skip


def _tests_table(comparison: Comparison) -> Table:
    several = len(comparison.methods) > 2
    headings = [
        "measure",
        "method",
        "patients",
        "mean difference",
        "95 % interval",
        "rank-biserial r",
        "p, signed-rank",
    ]
    headings += ["p, Holm"] if several else []
    blocks = []
    for measure, rows in groupby(comparison.tests, key=lambda row: row["measure"]):
        scale = 100.0 if measure in ("dice", "iou") else 1.0
        block = []
        for row in rows:
            bounds = row["interval_95"]
            cells = [
                _NAMES[measure],
                row["method"],
                str(row["n"]),
                number(scale * row["mean_difference"], 2),
                f"{number(scale * bounds[0], 2)} to {number(scale * bounds[1], 2)}" if bounds else "–",
                number(row["rank_biserial"], 2),
                p_text(row["p_signed_rank"]),
                *([p_text(row["p_signed_rank_holm"])] if several else []),
                p_text(row["p_rank_sum"]),
            ]
            block.append(tuple((cell, "") for cell in cells))
        blocks.append(tuple(block))
    title = f"Difference from {comparison.baseline}, on the means of patients"
    return Table(title, 2, (*headings, "p, rank-sum"), tuple(blocks))


def p_text(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _legend(comparison: Comparison) -> list[str]:
    second = " and the second underlined" if len(comparison.methods) > 2 else ""
    lines = [
        f"The best value is bold{second}, among the methods of one group. SD of segmentation: over frames, n − 1.",
        f"Differences: method − {comparison.baseline}, of each patient's mean over frames; EF error: the absolute "
        "error of EF. Negative is better for distances and EF error.",
        "Signed-rank: Wilcoxon's test of the paired values. Rank-sum: Wilcoxon's test as the papers report it, which "
        "leaves the pairing out.",
    ]
    if len(comparison.methods) > 2:
        lines.append("Holm: the signed-rank p, corrected over the methods compared on one measure.")
    return lines


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(cell: tuple[str, str]) -> str:
    text, mark = cell
    text = text.replace("|", r"\|")
    return f"**{text}**" if mark == "best" else f"<u>{text}</u>" if mark == "second" else text


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(cell: tuple[str, str]) -> str:
    text, mark = _escaped(cell[0]), cell[1]
    return rf"\textbf{{{text}}}" if mark == "best" else rf"\underline{{{text}}}" if mark == "second" else text


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _bounds_apart(row: Mapping[str, Any]) -> dict[str, Any]:
    """[low, high] as two cells."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if key == "interval_95":
            flat["interval_95_low"], flat["interval_95_high"] = value or (None, None)
        elif key == "intervals_95":
            for name, bounds in value.items():
                flat[f"{name}_95_low"], flat[f"{name}_95_high"] = bounds or (None, None)
        else:
            flat[key] = value
    return flat
