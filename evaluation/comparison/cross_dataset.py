"""Networks on datasets that they never saw, beside their cross-validation: figures, and paired tests between methods.

The tables of Chao et al. 2025 (Foundation versus domain-specific models for left ventricular segmentation on cardiac
ultrasound, npj Digital Medicine): Dice, IoU, HD and ASD (here ASSD) over all labelled frames, at end-diastole and at
end-systole, as mean and SD, with paired Wilcoxon tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING

from ..metrics import PHASES
from .learning_curves import CURVE, Line
from .paired import compare_with_baseline
from .scores import EF_ERROR, JUDGED_FRAMES, MEASURES, exact_sd, figures, patient_means

if TYPE_CHECKING:
    import pandas as pd

PLACE = ["trained_on", "tested_on"]
_FIGURE = ["method", "case", "patient", "phase", "frame", "metric"]


@dataclass(frozen=True)
class CrossDataset:
    """What the networks of several methods do on one dataset or more.

    Attributes:
        rows: a row a dataset tested on, phase and method: networks, frames, patients, and mean and SD over frames of
            each measure, the networks' figures of a frame averaged first; at phase "all" the mean EF error.
        tests: a row a dataset, phase, measure and method: `paired_test` against the first method on the means of the
            patients that both have, with the correction of Holm over the methods.
    """

    rows: pd.DataFrame
    tests: pd.DataFrame


def cross_dataset(scores: pd.DataFrame, *, bootstrap: int = 2000, seed: int = 0) -> CrossDataset:
    """Summarise tested networks.

    Args:
        scores: of the structure judged, the long tables of `frame_scores` and `ef_scores` with the columns `method`,
            `frames` (T), `augmentation`, `size`, `fold`, `seed` of the network, `trained_on` and `tested_on`, and
            `within`, whether it was tested by cross-validation on the dataset it was trained on. A method's networks
            of several folds and seeds are averaged frame by frame.
        bootstrap, seed: of the intervals.
    """
    import pandas as pd

    scores = scores.assign(method=_names(scores))
    rows, tests = [], []
    for within in (True, False):
        for place, own in scores[scores["within"] == within].groupby(PLACE, sort=False):
            about = pd.DataFrame([place], columns=PLACE)
            frames = own.groupby(_FIGURE, sort=False)["value"].agg(fmean).reset_index()
            rows.append(about.merge(_figures(own, frames), how="cross"))
            tests.append(about.merge(_tests(frames, bootstrap, seed), how="cross"))
    return CrossDataset(pd.concat(rows, ignore_index=True), pd.concat(tests, ignore_index=True))


def _names(scores: pd.DataFrame) -> list[str]:
    """The line of every row in words, and the training size where there are several."""
    methods = scores[[*CURVE, "size"]].apply(tuple, axis=1)
    lines = {method: Line(*method[:-1]) for method in methods.unique()}
    several = len({size for *_, size in lines}) > 1
    names = {
        method: line.in_words(lines.values()) + (f", {method[-1]} patients" if several else "")
        for method, line in lines.items()
    }
    return [names[method] for method in methods]


def _figures(scores: pd.DataFrame, frames: pd.DataFrame) -> pd.DataFrame:
    """A row a phase and method.

    Args:
        scores: of all networks.
        frames: each method's networks averaged.
    """
    methods = scores.groupby("method", sort=False)
    table = figures(frames, ["phase", "method"], MEASURES, mean=fmean, sd=exact_sd)
    order = [key for key in product(PHASES, methods.groups) if key in table.index]
    table = table.loc[order].drop(columns="empty_predictions").reset_index()
    networks = methods[["fold", "seed"]].apply(lambda rows: len(rows.drop_duplicates()))
    table.insert(2, "networks", table["method"].map(networks))
    judged = scores[scores["metric"] == JUDGED_FRAMES].groupby("method")["patient"].nunique()
    table.insert(4, "patients", table["method"].map(judged))
    errors = frames[frames["metric"] == EF_ERROR].groupby("method")["value"].agg(fmean)
    table[EF_ERROR] = table["method"].map(errors).where(table["phase"] == "all")
    return table


def _tests(frames: pd.DataFrame, bootstrap: int, seed: int) -> pd.DataFrame:
    methods = frames["method"].unique()
    means = patient_means(frames, ["method"]).set_index(["patient", "method"]).groupby(["phase", "metric"])["value"]
    tables = {key: values.unstack("method").reindex(columns=methods) for key, values in means}
    families = [(key, tables[key]) for key in product(PHASES, MEASURES) if key in tables]
    return compare_with_baseline(families, ["phase", "measure"], methods[0], bootstrap=bootstrap, seed=seed)
