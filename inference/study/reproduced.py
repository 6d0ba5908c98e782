"""What a reproduction found beside what was printed: figures with their noise, efficiency, tables, and what leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from echoplan import layout
from echoplan.files import write_csv, write_text
from echoplan.networks.complexity import count_gmac, count_parameters, seconds_of

from ...evaluation.agreement import agreement
from ...evaluation.comparison.learning_curves import mean_with_interval
from ...evaluation.comparison.scores import (
    DISTANCES,
    EMPTY,
    exact_sd,
    frame_scores,
    read_ef_table,
    read_summary,
    records,
)  # fmt: skip
from ...evaluation.comparison.tables import Column, latex_tables, make_table, markdown_page
from ...evaluation.ventricle.volumes import VOLUME_RULES, VolumeRule
from .paper import ED, ED_AND_ES, EFFICIENCY, ES, OVERALL, PublishedRow, PublishedTable
from .reproduce import Reproduction, tested_folder

if TYPE_CHECKING:
    import pandas as pd

WORDS = {
    "dice": "Dice, %", "iou": "IoU, %", "hd": "HD", "hd95": "HD95", "assd": "ASSD", "ef_r": "EF r, %",
    "ef_bias": "EF bias", "ef_sd": "EF SD of errors", "parameters": "parameters, M", "learning": "of these learn, M",
    "gmac": "GMAC a clip", "frames_per_second": "frames/s",
}  # fmt: skip
_EF = {"ef_r": ("pearson_r", 100.0), "ef_bias": ("bias", 1.0), "ef_sd": ("sd_of_differences", 1.0)}
LEAKS = ("true_point_at_test", "memory_across_clips")  # E3SAM2's settings of that name
_ENDS = ("interval_95_low", "interval_95_high")
_PHASES = {OVERALL: (OVERALL,), ED_AND_ES: (ED, ES), ED: (ED,), ES: (ES,)}
_COLUMNS = (
    Column("published", "published"),
    Column("SD, published", "published_sd"),
    Column("here", "here", spread="seed_sd"),
    Column("SD here", "sd"),
    Column("difference", "difference"),
    Column("95 % interval", interval="interval_95"),
    Column("seeds", "seeds", digits=0),
    Column("frames", "frames", digits=0),
)


def reproduced(reproduction: Reproduction, *, device: torch.device | str = "cpu") -> pd.DataFrame:
    """A row a table, its row and figure: `published`, `here` (the mean over seeds), `seed_sd`, `seeds`, `frames`,
    `difference` with its interval over patients (interval_95_low, interval_95_high), and the SD over frames, as printed
    (`published_sd`) and here (`sd`, the mean over seeds).
    """
    import pandas as pd

    rows, costs = [], {}
    for table, row in reproduction.rows():
        network = row.trainer, row.settings
        if set(row.published) & set(EFFICIENCY) and network not in costs:
            costs[network] = _efficiency(reproduction, row, device)
        measured = dict(costs.get(network, {}))
        tested = [tested_folder(home, table, row) for home in reproduction.homes(row)]
        tested = [folder for folder in tested if (folder / layout.SUMMARY_FILE).is_file()]
        measured |= _measured(reproduction, table, row, tested)
        for name in row.published or ("dice",):
            printed = row.published.get(name, np.nan)
            about: dict[str, Any] = {
                "table": table.number,
                "title": table.title,
                "row": row.name,
                "figure": WORDS[name],
                "published_sd": row.sd.get(name, np.nan),
            }
            here: dict[str, float] = measured.get(name, {})
            ends: dict[str, float] = {end: here[end] - printed for end in _ENDS if end in here}
            difference = here.get("here", np.nan) - printed
            rows.append({**about, "published": printed, "difference": difference, **here, **ends})
    return pd.DataFrame(rows)


def _measured(
    reproduction: Reproduction, table: PublishedTable, row: PublishedRow, folders: Sequence[Path]
) -> dict[str, dict[str, float]]:
    """Figure -> `here`, `seed_sd`, `sd`, `seeds`, `frames` and the interval of the figure itself, of a row's tests."""
    import pandas as pd

    if not folders:
        return {}
    target, tables = reproduction.setup(row).description.target, []
    for seed, folder in enumerate(folders):
        patients, views = _known(folder)
        scores = frame_scores(read_summary(folder / layout.SUMMARY_FILE)["per_case"], patients)
        scores = scores[(scores["structure"] == target) & scores["phase"].isin(_PHASES[row.phase])]
        if row.view:
            scores = scores[scores["case"].map(views) == row.view]
        tables.append(scores.assign(seed=seed))
    scores = pd.concat(tables, ignore_index=True)
    scores["metric"] = scores["metric"].str.replace(r"_(mm|px)$", "", regex=True)
    if not table.empty_count:
        key = ["seed", "case", "frame"]
        empty = scores.loc[(scores["metric"] == EMPTY) & (scores["value"] == 1), key].drop_duplicates()
        marked = scores.merge(empty, on=key, how="left", indicator="which")
        scores = marked[~(marked["metric"].isin(DISTANCES) & (marked["which"] == "both"))].drop(columns="which")
    found = {name: _figure(rows) for name, rows in scores.groupby("metric") if name in WORDS}
    return found | (_ef_figures(folders, table.ef_rule) if set(row.published) & set(_EF) else {})


def _figure(rows: pd.DataFrame) -> dict[str, float]:
    """Of one measure: mean and SD over frames of each seed, and the interval over patients of the mean."""
    scale = 100.0 if rows["metric"].iloc[0] in ("dice", "iou") else 1.0
    seeds = scale * rows.groupby("seed")["value"].agg(fmean)
    spread = scale * rows.groupby("seed")["value"].agg(exact_sd).mean()
    patients = rows.groupby("patient")["value"].agg(fmean).to_numpy()
    (middle,), (low,), (high,) = mean_with_interval(scale * patients[:, None])
    here = fmean(seeds)
    ends = {"interval_95_low": here + low - middle, "interval_95_high": here + high - middle}
    counts = {"seeds": len(seeds), "frames": len(rows) / len(seeds)}
    return {"here": here, "seed_sd": exact_sd(seeds), "sd": spread, **counts, **ends}


def _known(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Case -> patient, and case -> view, of a test."""
    summary = read_summary(folder / layout.SUMMARY_FILE)
    return summary["patients"], summary["views"]


def _ef_figures(folders: Sequence[Path], rule: VolumeRule) -> dict[str, dict[str, float]]:
    """The agreement of EF with that of the reference masks by the same rule."""
    import pandas as pd

    found: dict[str, list[float]] = {name: [] for name in _EF}
    for folder in folders:
        table = read_ef_table(folder, rule)
        agreed = agreement(table["ef_percent"].to_list(), table["reference_ef_percent"].to_list(), bootstrap=0)
        for name, (key, scale) in _EF.items():
            if agreed[key] is not None:
                found[name].append(scale * agreed[key])
    return {
        name: {"here": fmean(values), "seed_sd": exact_sd(pd.Series(values)), "seeds": len(values)}
        for name, values in found.items()
        if values
    }


def _efficiency(
    reproduction: Reproduction, row: PublishedRow, device: torch.device | str
) -> dict[str, dict[str, float]]:
    """The sizes of a row's network, and the frames a second that it gives on the device, a clip at a time."""
    setup, method = reproduction.setup(row), reproduction.method(row)
    shape = (1, setup.plan.frames, 1, *setup.plan.size)
    with torch.device("meta"):
        network = method.build_network(size=setup.plan.size, classes=setup.description.classes)
    learning = count_parameters(network, trainable_only=True)
    sizes = {"parameters": count_parameters(network) / 1e6, "learning": learning / 1e6}
    figures = {**sizes, "gmac": count_gmac(network, shape)}
    network = method.build_network(size=setup.plan.size, classes=setup.description.classes).to(device).eval()
    figures["frames_per_second"] = setup.plan.frames / seconds_of(network, torch.zeros(shape, device=device))
    return {name: {"here": value} for name, value in figures.items()}


def write_results(reproduction: Reproduction, rows: pd.DataFrame, failures: Mapping[str, str]) -> str:
    """Write reproduced.csv, .md and .tex into the study's folder; returns the Markdown.

    Args:
        reproduction: what was trained.
        rows: of `reproduced`.
        failures: what is not done -> reason.
    """
    folder, tables = reproduction.study.folder, []
    for (number, title), own in rows.groupby(["table", "title"], sort=False):
        printed = own["published_sd"].notna().any()
        columns = [column for column in _COLUMNS if printed or column.key not in ("published_sd", "sd")]
        tables.append(make_table(f"Table {number}, {title}", own, ["row", "figure"], columns, by=["row"]))
    notes = notes_of(reproduction, rows, failures)
    page = markdown_page(reproduction.paper.citation, [], tables, notes)
    write_csv(folder / "reproduced.csv", records(rows), list(rows.columns))
    write_text(folder / "reproduced.md", page)
    write_text(folder / "reproduced.tex", latex_tables(tables, notes))
    return page


def notes_of(reproduction: Reproduction, rows: pd.DataFrame, failures: Mapping[str, str]) -> list[str]:
    """What a reader of the tables must know."""
    notes = [f"What leaks in the published figures: {leak}" for leak in reproduction.paper.leaks]
    notes += [f"Table {table.number}: {table.note}." for table in reproduction.tables if table.note]
    notes += list(reproduction.paper.missing)
    asked = reproduction.study.request
    set_here = {**asked.settings, **{key: own[key] for own in asked.trainer_settings.values() for key in own}}
    notes += [f"What leaks here, too, as it was asked for: {name}" for name in LEAKS if set_here.get(name)]
    if any(set(table.figures) & set(EFFICIENCY) for table in reproduction.tables):
        notes.append("frames/s: a clip at a time on the device here, not on the papers'. GMAC: of a clip.")
    for table in reproduction.tables:
        if set(table.figures) & set(_EF):
            notes.append(
                f"Table {table.number}: EF by the rule {table.ef_rule} ({VOLUME_RULES[table.ef_rule]}), against the "
                "reference masks' by the same."
            )
        notes += noise_of(table, rows[(rows["table"] == table.number) & (rows["title"] == table.title)])
    notes.append(
        "here: the mean over seeds ± their SD; difference: here - published, its interval from the patients tested "
        "here, for of the published figures none is known. SD: over frames (here n - 1, and the mean over seeds)."
    )
    return notes + [f"Not done: {name}: {reason}" for name, reason in failures.items()]


def noise_of(table: PublishedTable, rows: pd.DataFrame) -> list[str]:
    """Whether the published gaps between a table's rows are larger than what another seed changes here.

    Rows of other data or phases are not compared.
    """
    dice = rows[rows["figure"] == WORDS["dice"]].set_index("row")
    noise = dice["seed_sd"].max() if "seed_sd" in dice else np.nan
    judged = {row.name: f"{row.tested_on} {row.view} {row.phase}" for row in table.rows}
    alike = dice["published"].groupby([judged[name] for name in dice.index], sort=False)
    gaps = np.concatenate([[], *(np.abs(np.diff(printed.to_numpy())) for _, printed in alike)])
    if not len(gaps) or np.isnan(gaps).all() or "here" not in dice:
        return []
    if np.isnan(noise):
        return [f"Table {table.number}: one seed, so nothing is known of what another one changes."]
    below = int((gaps < noise).sum())
    return [
        f"Table {table.number}: the published gaps of Dice from row to row are {gaps.min():.2f} to {gaps.max():.2f} "
        f"points; one seed's SD here is up to {noise:.2f}: {below} of {len(gaps)} gaps are below it."
    ]
