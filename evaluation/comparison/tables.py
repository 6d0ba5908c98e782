"""Tables for people, in Markdown and LaTeX (booktabs), and the files of a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echoplan.files import write_json, write_text

from .compare import ALL_PATIENTS, FRAMES, VIEW_AND_PHASE, Comparison
from .scores import EF_ERROR, MEASURES, OVERLAPS, records, write_parts

if TYPE_CHECKING:
    import pandas as pd

PHASE_WORDS = {"all": "all", "end_diastole": "ED", "end_systole": "ES", "ed_es": "ED + ES"}
MEASURE_WORDS = {
    "dice": "Dice, %", "iou": "IoU, %", "hd_mm": "HD, mm", "hd95_mm": "HD95, mm", "assd_mm": "ASSD, mm",
    "hd_px": "HD, px", "hd95_px": "HD95, px", "assd_px": "ASSD, px", EF_ERROR: "EF error, points",
}  # fmt: skip
MISSING = "–"
_HIGH, _LOW, _ZERO = "↑", "↓", "→ 0"
_WORSE: dict[str, Callable[[float], float]] = {_HIGH: lambda value: -value, _LOW: lambda value: value, _ZERO: abs}
_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "±": r"$\pm$", "−": "$-$",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$", "≥": r"$\geq$", "–": "--",
})  # fmt: skip


def number(value: float, digits: int) -> str:
    """Rounded, with a real minus sign, and never minus zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def p_text(value: float, digits: int = 3) -> str:
    """A p-value; below what the digits can show, that it is below."""
    least = 10.0**-digits
    return f"< {least:.{digits}f}" if value < least else f"{value:.{digits}f}"


@dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
        heading: what it is, and its unit.
        key: of the rows; "" for an interval alone.
        better: which values are better, as an arrow; "" where none is.
        digits: decimals shown.
        scale: what the value is multiplied by.
        spread: key of the SD shown behind it.
        interval: what keys of an interval's ends begin with, as in `interval_95` of `interval_95_low` and `_high`.
        form: how a number is written.
    """

    heading: str
    key: str = ""
    better: str = ""
    digits: int = 2
    scale: float = 1.0
    spread: str = ""
    interval: str = ""
    form: Callable[[float, int], str] = number

    def text(self, row: Mapping[str, Any]) -> str:
        """The cell: the value, ± its spread, and its interval, where there are such."""
        keys = self.key, self.spread, f"{self.interval}_low", f"{self.interval}_high"
        value, spread, low, high = (self._shown(row.get(key)) for key in keys)
        span = f"{low} to {high}" if low and high else ""
        if not self.key:
            return span or MISSING
        return f"{value or MISSING}{f' ± {spread}' if value and spread else ''}{f' ({span})' if value and span else ''}"

    def _shown(self, value: float | None) -> str:
        return "" if value is None or math.isnan(value) else self.form(self.scale * value, self.digits)

    def marks(self, values: Sequence[float]) -> list[str]:
        """ "best" and "second" by what is shown, so that values shown alike are marked alike."""
        if not self.better:
            return [""] * len(values)
        worse = _WORSE[self.better]
        shown = [worse(round(self.scale * value, self.digits)) for value in values]
        order = sorted({value for value in shown if not math.isnan(value)})
        if len(order) < 2:
            return [""] * len(values)
        second = order[1] if len(values) > 2 and shown.count(order[0]) == 1 else None
        return ["best" if value == order[0] else "second" if value == second else "" for value in shown]


class WordColumn(Column):
    """A column of words."""

    def text(self, row: Mapping[str, Any]) -> str:
        """The cell."""
        return row[self.key]


def measure_column(measure: str, key: str = "", **more: Any) -> Column:
    """The column of one of `MEASURES`, or of the error of EF."""
    overlap = measure in OVERLAPS
    better, scale = (_HIGH, 100.0) if overlap else (_LOW, 1.0)
    return Column(MEASURE_WORDS[measure], key or measure, better, scale=scale, **more)


def filled(columns: Sequence[Column], rows: pd.DataFrame) -> list[Column]:
    """Those columns in which at least one row has a value."""
    return [column for column in columns if column.key in rows and rows[column.key].notna().any()]


@dataclass(frozen=True)
class Table:
    """A table ready to be written.

    Attributes:
        title: what it shows.
        words: how many columns, from the left, hold words.
        cells: the texts.
        marks: of every cell "best", "second" or "".
        block: of every row the number of its block: rows that belong together.
    """

    title: str
    words: int
    cells: pd.DataFrame
    marks: pd.DataFrame
    block: pd.Series[int]

    @property
    def blocks(self) -> Iterator[list[list[tuple[str, str]]]]:
        """The rows of each block, a row's cells as (text, mark)."""
        for index in self.block.groupby(self.block).groups.values():
            rows = zip(self.cells.loc[index].to_numpy(), self.marks.loc[index].to_numpy(), strict=True)
            yield [list(zip(texts, marks, strict=True)) for texts, marks in rows]

    def markdown(self) -> str:
        """The table; the best value bold, the second underlined."""
        cells = self._marked(lambda text: text.replace("|", r"\|"), "**{}**", "<u>{}</u>")
        sides = ["left" if number < self.words else "right" for number in range(len(cells.columns))]
        return cells.to_markdown(index=False, disable_numparse=True, colalign=sides)

    def latex(self) -> str:
        r"""A `table` environment, with a rule between blocks."""
        cells = self._marked(lambda text: text.translate(_LATEX), r"\textbf{{{}}}", r"\underline{{{}}}")
        begins = self.block.ne(self.block.shift()) & self.block.ne(0)
        cells.iloc[:, 0] = cells.iloc[:, 0].mask(begins, "\\midrule\n" + cells.iloc[:, 0])
        layout = "l" * self.words + "r" * (len(cells.columns) - self.words)
        cells.columns = [heading.translate(_LATEX) for heading in cells.columns]
        return cells.style.hide(axis="index").to_latex(
            hrules=True, column_format=layout, caption=self.title.translate(_LATEX), position_float="centering"
        )

    def _marked(self, escape: Callable[[str], str], best: str, second: str) -> pd.DataFrame:
        cells = self.cells.map(escape)
        for mark, form in (("best", best), ("second", second)):
            cells = cells.mask(self.marks == mark, cells.map(form.format))
        return cells


def make_table(
    title: str, rows: pd.DataFrame, words: Sequence[str], columns: Sequence[Column], *, by: Sequence[str] = ()
) -> Table:
    """A table in which rows that agree in `by` make a block; the best of a block are marked.

    Args:
        title: what it shows.
        rows: what `words`, `columns` and `by` name.
        words: columns shown as they are.
        columns: figures.
        by: nothing makes one block.
    """
    import pandas as pd

    rows = rows.reset_index(drop=True)
    block = rows.groupby(list(by), sort=False).ngroup() if by and len(rows) else pd.Series(0, rows.index)
    cells = rows[list(words)].astype(str)
    marks = pd.DataFrame("", rows.index, cells.columns)
    for column in columns:
        heading = f"{column.heading} {column.better}".strip()
        cells[heading] = [column.text(row) for row in records(rows)]
        marks[heading] = ""
        if column.better:
            for index in block.groupby(block).groups.values():
                marks.loc[index, heading] = column.marks(rows.loc[index, column.key].astype(float).to_list())
    return Table(title, len(words), cells, marks, block)


def markdown_page(title: str, introduction: Sequence[str], tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Lines of an introduction, tables under headings, and what a reader must know."""
    lines = [f"# {title}", "", *introduction]
    for table in tables:
        lines += [f"## {table.title}", "", table.markdown(), ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes)]) + "\n"


def latex_tables(tables: Sequence[Table], notes: Sequence[str]) -> str:
    r"""LaTeX `table` environments, for `\usepackage{booktabs}`, with the notes as comments."""
    head = ["% needs \\usepackage{booktabs}", *(f"% {note}" for note in notes)]
    return "\n".join([*head, "", "\n".join(table.latex() for table in tables)])


_EF_COLUMNS = (
    Column("patients", "n", digits=0),
    Column("failures", "failures", digits=0),
    Column("Pearson r", "pearson_r", _HIGH, 3),
    Column("bias", "bias", _ZERO),
    Column("SD of differences", "sd_of_differences", _LOW),
    Column("MAE", "mae", _LOW),
)


def columns_of_tests(
    difference: str = "mean difference", *, corrected: bool = True, rank_sum: bool = False
) -> list[Column]:
    """The columns of rows of `compare_with_baseline`."""
    columns = [
        Column("patients", "n", digits=0),
        Column(difference, "mean_difference"),
        Column("95 % interval", interval="interval_95"),
        Column("rank-biserial r", "rank_biserial"),
        Column("p, signed-rank", "p_signed_rank", digits=3, form=p_text),
    ]
    columns += [Column("p, Holm", "p_signed_rank_holm", digits=3, form=p_text)] if corrected else []
    return columns + ([Column("p, rank-sum", "p_rank_sum", digits=3, form=p_text)] if rank_sum else [])


def in_units_shown(tests: pd.DataFrame) -> pd.DataFrame:
    """Tests with the differences of Dice and IoU in percent, and `measure` in words."""
    scale = tests["measure"].isin(OVERLAPS).map({True: 100.0, False: 1.0})
    differences = ["mean_difference", "interval_95_low", "interval_95_high"]
    scaled = {name: scale * tests[name] for name in differences}
    return tests.assign(measure=tests["measure"].map(MEASURE_WORDS), **scaled)


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Segmentation, ejection fraction, tests against the baseline, and the subgroups of both; empty ones left out."""
    segmentation, ef = comparison.segmentation, comparison.ejection
    whole, every = segmentation["by"] == FRAMES, ef["by"] == ALL_PATIENTS
    columns = [Column("frames", "frames", digits=0)]
    columns += [measure_column(name, f"{name}_mean", spread=f"{name}_sd") for name in MEASURES]
    phases = segmentation[whole].assign(phase=segmentation["group"].map(PHASE_WORDS))
    group, subgroup = ["by", "group"], ["by", "group", "method"]
    several = len(comparison.methods) > 2
    tests = in_units_shown(comparison.tests)
    phased = tests["by"] == VIEW_AND_PHASE
    tables = [
        make_table(f"Segmentation of {comparison.structure}, mean ± SD over frames", phases, ["phase", "method"],
                   filled(columns, phases), by=group),
        make_table("Ejection fraction, predicted − reference, in points", ef[every], ["method"],
                   filled(_EF_COLUMNS, ef[every]), by=group),
        make_table(f"Difference from {comparison.baseline}, on the means of patients", tests[~phased],
                   ["measure", "method"], columns_of_tests(corrected=several, rank_sum=True), by=["measure"]),
        make_table(f"Difference from {comparison.baseline} by view and phase, on the means of patients", tests[phased],
                   ["group", "measure", "method"], columns_of_tests(corrected=several, rank_sum=True),
                   by=["group", "measure"]),
        make_table("Segmentation in subgroups, mean ± SD over frames", segmentation[~whole], subgroup,
                   filled(columns, segmentation[~whole]), by=group),
        make_table("Ejection fraction in subgroups, in points", ef[~every], subgroup, filled(_EF_COLUMNS, ef[~every]),
                   by=group),
    ]  # fmt: skip
    return [table for table in tables if len(table.cells)]


def to_markdown(comparison: Comparison) -> str:
    """The comparison as a Markdown page: the best value bold, the second underlined where there are three or more."""
    introduction = [f"{comparison.cases} clips of {comparison.patients} patients.", ""]
    notes = [*_legend(comparison), *comparison.notes]
    return markdown_page(" and ".join(comparison.methods), introduction, comparison_tables(comparison), notes)


def write_comparison(folder: str | Path, comparison: Comparison) -> None:
    """Write comparison.md, .tex, .csv and .json into a folder.

    The CSV has a row a group and method, told apart by `table` (segmentation, ejection_fraction, paired_test); cells
    that a table does not have are empty. Dice and IoU are shares of 1 in CSV and JSON.

    Example:
        >>> from pathlib import Path
        >>> from echoplan.evaluation import MethodResults, compare_methods, write_comparison
        >>> from echoplan.evaluation.comparison.scores import frame_scores, read_ef_table
        >>> def method(name, dice):
        ...     figures = {"dice": dice, "iou": dice / (2 - dice), "hd95": 3.0, "assd": 1.0, "predicted_pixels": 9,
        ...                "reference_pixels": 9}
        ...     case = {"distance_unit": "mm", "ed_frame": 0, "es_frame": None, "frames": [{"frame": 0, "LV": figures}]}
        ...     return MethodResults(name, Path(), frame_scores({"a": case}), read_ef_table(Path()))
        >>> comparison = compare_methods([method("unet", 0.8), method("sam", 0.9)], structure="LV")
        >>> write_comparison("comparison", comparison)
        >>> sorted(path.name for path in Path("comparison").iterdir())
        ['comparison.csv', 'comparison.json', 'comparison.md', 'comparison.tex']
    """
    folder = Path(folder)
    write_text(folder / "comparison.md", to_markdown(comparison))
    notes = [*_legend(comparison), *comparison.notes]
    write_text(folder / "comparison.tex", latex_tables(comparison_tables(comparison), notes))
    parts = {"segmentation": comparison.segmentation, "ejection_fraction": comparison.ejection,
             "paired_test": comparison.tests}  # fmt: skip
    write_parts(folder / "comparison.csv", "table", parts)
    write_json(folder / "comparison.json", comparison.to_dict())


def _legend(comparison: Comparison) -> list[str]:
    several = len(comparison.methods) > 2
    second = " and the second underlined" if several else ""
    lines = [
        f"The best value is bold{second}, among the methods of one group. SD of segmentation: over frames, n − 1.",
        f"Differences: method − {comparison.baseline}, of each patient's mean over frames; EF error: the absolute "
        "error of EF. Negative is better for distances and EF error.",
        "Signed-rank: Wilcoxon's test of the paired values. Rank-sum: Wilcoxon's test as the papers report it, which "
        "leaves the pairing out.",
    ]
    if several:
        lines.append("Holm: the signed-rank p, corrected over the methods compared on one measure.")
    return lines
