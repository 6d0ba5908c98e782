"""Scores as one long table, which every comparison and every study groups in its own way.

A row is one figure of one frame, or of one patient. The columns:

    structure  whose masks; "" where the figure is of none: the number of judged frames, the error of EF
    case       the clip; "" of a patient's figure
    patient    of the clip
    phase      "all"; the rows of a frame at end-diastole or end-systole come again under that phase, and under "ed_es"
               where a case has other frames, too
    frame      its number in the clip; -1 of a clip's or a patient's figure
    metric     of a frame `MEASURES` (shares of 1, distances by their unit), `REFERENCE_PIXELS`, and `EMPTY`, 1 where
               a structure that is there was predicted empty; of a clip `JUDGED_FRAMES`; of a patient `EF_ERROR`, points
    value      the figure

Who puts several tables together adds columns that say whose they are: `method`; of a study's trainings those of
`learning_curves` and `cross_dataset`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from echoplan import layout
from echoplan.errors import EchoPlanError
from echoplan.files import from_cell, read_json, write_csv

from ..metrics import phases_of
from ..ventricle.volumes import VolumeRule

if TYPE_CHECKING:  # pandas takes half a second to import, which commands that compare nothing need not wait for
    import pandas as pd
    from pandas.api.typing import SeriesGroupBy

COLUMNS = ("structure", "case", "patient", "phase", "frame", "metric", "value")
OVERLAPS = ("dice", "iou")
DISTANCES = ("hd", "hd95", "assd")
MEASURES = ("dice", "iou", "hd_mm", "hd95_mm", "assd_mm", "hd_px", "hd95_px", "assd_px")
FIGURES = ("dice", "iou", "hd_mm", "hd_px", "hd95_mm", "hd95_px", "assd_mm", "assd_px")  # of summary.json's means
REFERENCE_PIXELS, EMPTY, JUDGED_FRAMES, EF_ERROR = "reference_pixels", "empty", "judged_frames", "ef_absolute_error"
EF_FILES = (layout.EF_REPORT_CSV, layout.EF_FILE)
MASKS, TABLE = "masks", "table"  # where a reference EF is from
_MASK_EF = "reference_mask_ef_percent"

Statistic = Callable[["pd.Series[float]"], float]


def frame_scores(
    per_case: Mapping[str, Mapping[str, Any]], patient_of: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """The long table of what summary.json holds of some cases.

    Args:
        per_case: of a summary.json. Those of before there was a measure do not have it.
        patient_of: case -> patient; a case without one counts as its own.
    """
    import pandas as pd

    rows = _frame_rows(per_case, patient_of or {})
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": float})


def _frame_rows(
    per_case: Mapping[str, Mapping[str, Any]], patient_of: Mapping[str, str]
) -> Iterator[tuple[str, str, str, str, int, str, float]]:
    numbers = (({case["ed_frame"], case["es_frame"]}, frame["frame"]) for case in per_case.values()
               for frame in case["frames"])  # fmt: skip
    left_out = {"ed_es"} if all(number in phases for phases, number in numbers) else set()
    for name, case in per_case.items():
        patient = patient_of.get(name, name)
        yield "", name, patient, "all", -1, JUDGED_FRAMES, len(case["frames"])
        for frame in case["frames"]:
            number = frame["frame"]
            phases = [phase for phase in phases_of(number, case) if phase not in left_out]
            for structure in (key for key in frame if key != "frame"):
                values = _measures(frame[structure], case["distance_unit"])
                for phase, (metric, value) in product(phases, values.items()):
                    yield structure, name, patient, phase, number, metric, value


def _measures(judged: Mapping[str, Any], unit: str) -> dict[str, float]:
    values = {name: judged[name] for name in OVERLAPS}
    values |= {f"{name}_{unit}": judged[name] for name in DISTANCES if name in judged}
    if REFERENCE_PIXELS in judged:
        pixels = judged[REFERENCE_PIXELS]
        values |= {REFERENCE_PIXELS: pixels, EMPTY: judged["predicted_pixels"] == 0 < pixels}
    return values


def read_scores(
    folder: Path,
    patient_of: Mapping[str, str],
    structure: str,
    *,
    rule: VolumeRule | None = None,
    reference: str = MASKS,
) -> pd.DataFrame:
    """The scores of one structure and the errors of EF that a folder of evaluated masks holds.

    Args:
        folder: with summary.json, and an EF table where there is one.
        patient_of: case -> patient.
        structure: whose masks.
        rule, reference: of EF, as `read_ef_table` takes them.

    Raises:
        EchoPlanError: a file is missing or something else.
    """
    import pandas as pd

    scores = frame_scores(read_summary(folder / layout.SUMMARY_FILE)["per_case"], patient_of)
    tables = [scores[scores["structure"].isin(("", structure))], ef_scores(read_ef_table(folder, rule, reference))]
    return pd.concat(tables, ignore_index=True)


def ef_scores(table: pd.DataFrame) -> pd.DataFrame:
    """The long table of the patients' absolute errors of EF, where EF and its reference are known.

    Args:
        table: of `read_ef_table`.
    """
    errors = (table["ef_percent"] - table["reference_ef_percent"]).abs()
    scores = table[["patient"]].assign(structure="", case="", phase="all", frame=-1, metric=EF_ERROR, value=errors)
    return scores[list(COLUMNS)].dropna(subset="value")


def figures(
    scores: pd.DataFrame, by: Sequence[str], measures: Sequence[str], *, mean: Statistic, sd: Statistic
) -> pd.DataFrame:
    """A row a group of frames: `frames`, `empty_predictions`, and of each measure that there is `_mean` and `_sd`.

    Args:
        scores: of one structure.
        by: columns that tell the groups apart; they become the index, in the order in which groups come.
        measures: in the order of the columns.
        mean, sd: over the frames of a group; NaN where not defined.
    """

    def groups(metric: str) -> SeriesGroupBy:
        return scores[scores["metric"] == metric].groupby(list(by), sort=False)["value"]

    table = groups(OVERLAPS[0]).size().to_frame("frames")
    table["empty_predictions"] = groups(EMPTY).sum().astype(int)
    for name in measures:
        values = groups(name)
        if values.ngroups:
            table[f"{name}_mean"], table[f"{name}_sd"] = values.agg(mean), values.agg(sd)
    return table


def patient_means(scores: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """The long table of the means over each patient's frames: columns `by`, patient, phase, metric, value."""
    known = scores[scores["metric"].isin((*MEASURES, EF_ERROR))]
    return known.groupby([*by, "patient", "phase", "metric"], sort=False)["value"].agg(fmean).reset_index()


def mean_over_frames(values: pd.Series[float]) -> float:
    """As `summarise` rounds it, so that tables and summary.json agree to the last digit."""
    return float(np.mean(values.to_numpy()))


def sd_over_frames(values: pd.Series[float]) -> float:
    """As `summarise` rounds it: n - 1, NaN of a single frame."""
    return float(np.std(values.to_numpy(), ddof=1)) if len(values) > 1 else np.nan


def exact_sd(values: pd.Series[float]) -> float:
    """SD with n - 1 of exact sums, as `fmean`; NaN of a single value."""
    return stdev(values) if len(values) > 1 else np.nan


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows by column."""
    return cast("list[dict[str, Any]]", table.to_dict("records"))


def read_summary(file: Path) -> dict[str, Any]:
    """A summary.json.

    Raises:
        EchoPlanError: it is missing or something else.
    """
    content = read_json(file)
    if not isinstance(content, dict) or not {"labels", "per_case", "missing", "failures"} <= set(content):
        raise EchoPlanError(
            "this is no summary of an evaluation", file=file, remedy="remove it, and validate or evaluate again"
        )
    return content


def read_ef_table(folder: Path, rule: VolumeRule | None = None, reference: str = MASKS) -> pd.DataFrame:
    """A row a patient of the EF table in a folder, without rows where there is none.

    The columns are patient, cases, method, volume_rule and phases, "" where the table has none, and as numbers
    ef_percent and reference_ef_percent; `reference` is where the latter is from, `MASKS` or `TABLE`.

    Args:
        folder: of a validation, a prediction or the like.
        rule: by which volumes are to be; None: as the folder's usual table has them.
        reference: `MASKS` takes the EF of the reference masks by the same rule where there is one; `TABLE` never.

    Raises:
        EchoPlanError: the table lacks a column or holds something else, or there is none by this rule.
    """
    import pandas as pd

    words, numbers = ["patient", "cases", "method", "volume_rule", "phases"], ["ef_percent", "reference_ef_percent"]
    names = EF_FILES if rule is None else [layout.ef_file(rule)]
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None and rule is not None and any((folder / name).is_file() for name in EF_FILES):
        raise EchoPlanError(
            f"there is no EF by the rule {rule} here", file=folder, remedy="validate or evaluate again (--val)"
        )
    if file is None:
        return pd.DataFrame(columns=[*words, *numbers, "reference"]).astype(dict.fromkeys(numbers, float))
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig").fillna("")
        table[table.columns] = table.map(from_cell)
        table = table.drop_duplicates("patient", keep="last")
        values = {name: [float(text or "nan") for text in table[name]] for name in numbers}
        of_masks = [float(text or "nan") for text in table.get(_MASK_EF, [""] * len(table))]
        found = table.reindex(columns=words, fill_value="").assign(**values, reference=TABLE)
        if reference == MASKS:
            there = ~np.isnan(of_masks)
            found.loc[there, "reference_ef_percent"] = np.array(of_masks)[there]
            found.loc[there, "reference"] = MASKS
        return found
    except (KeyError, ValueError) as error:
        raise EchoPlanError(f"this is no EF table: {error!r}", file=file, remedy="make the report again") from error


def write_parts(path: Path, name: str, parts: Mapping[str, pd.DataFrame]) -> None:
    """Write tables one below the other as CSV, told apart by the first column; cells that one does not have are empty.

    Args:
        path: the file.
        name: of the first column.
        parts: what stands there -> table.
    """
    import pandas as pd

    # As objects whole numbers stay whole beside empty cells.
    whole = pd.concat({part: table.astype(object) for part, table in parts.items() if len(table)}, names=[name, None])
    table = whole.reset_index(level=0)
    write_csv(path, records(table), list(table.columns))
