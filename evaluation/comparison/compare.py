"""Two or more methods on the same cases: figures as the papers report them, subgroups, and paired tests."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from echoplan import __version__
from echoplan.dataset import Case
from echoplan.errors import EchoPlanError
from echoplan.files import plain

from ..agreement import agreement
from ..ejection import names_of_cases
from ..metrics import PHASES
from .method_results import MethodResults, check_same_frames
from .paired import compare_with_baseline
from .scores import (
    EF_ERROR,
    FIGURES,
    MASKS,
    MEASURES,
    figures,
    mean_over_frames,
    patient_means,
    records,
    sd_over_frames,
)
from .subgroups import AGREEMENT, MeasuredPatient, case_groups, patient_qualities, subgroup_agreement

if TYPE_CHECKING:
    import pandas as pd

ALL_PATIENTS = "all patients"
FRAMES = "frames"
VIEW_AND_PHASE = "view and phase"
_PHASES_OF_VIEWS = {"end_diastole": "ED", "end_systole": "ES"}
_TESTED = (*(name for name in MEASURES if name in FIGURES), EF_ERROR)
_GROUP = ["by", "group", "method"]
_EF_VALUES = ["ef_percent", "reference_ef_percent", EF_ERROR]
_MEAN_OF = {f"{name}_{end}": f"{name}_mean" for name in FIGURES for end in ("mean", "sd")}


@dataclass(frozen=True)
class Comparison:
    """What a comparison found; rows of its tables name their group in `by` and `group`.

    Attributes:
        structure: whose masks were compared.
        methods: their names, in the order to show; `sources` their folders.
        baseline: the method that the others are tested against.
        cases, patients: how many.
        segmentation: a row a group of frames and method: `frames`, `empty_predictions`, and mean and SD over frames of
            each measure (`dice_mean`, `dice_sd`, ...). Grouped by frames (all, end_diastole, end_systole, and ed_es
            where there are others beside), then, over all labelled frames, by subgroup, and by view and phase.
        ejection: a row a group of patients and method: n, failures, and agreement of EF with the reference, with the
            ends of intervals as `mae_95_low`.
        tests: a row a measure and method, of all patients and by view and phase: `paired_test` against the baseline on
            per-patient means, and `p_signed_rank_holm` over the methods tested on one measure.
        per_patient: a row a patient and method, its index: mean over frames of each measure, EF, reference EF and
            absolute error; NaN where there is none.
        notes: what a reader must know.
    """

    structure: str
    methods: tuple[str, ...]
    sources: dict[str, str]
    baseline: str
    cases: int
    patients: int
    segmentation: pd.DataFrame
    ejection: pd.DataFrame
    tests: pd.DataFrame
    per_patient: pd.DataFrame
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As comparison.json holds it: rows without what their group does not have, intervals as [low, high]."""
        segmentation = [
            {name: row[name] for name in row if not np.isnan(row.get(_MEAN_OF.get(name, ""), 0))}
            for row in records(self.segmentation)
        ]
        ejection = [
            _with_intervals(row) if row["by"] == ALL_PATIENTS else {name: row[name] for name in (*_GROUP, *AGREEMENT)}
            for row in records(self.ejection)
        ]
        per_patient: dict[str, dict[str, dict[str, float]]] = {}
        for (patient, method), row in zip(self.per_patient.index, records(self.per_patient), strict=True):
            known = {name: row[name] for name in FIGURES if not np.isnan(row.get(name, np.nan))}
            if not np.isnan(row.get("reference_ef_percent", np.nan)):
                known |= {name: row[name] for name in _EF_VALUES}
            per_patient.setdefault(patient, {})[method] = known
        return {
            **vars(self),
            "segmentation": segmentation,
            "ejection": ejection,
            "tests": [_with_intervals(row) for row in records(self.tests)],
            "per_patient": per_patient,
            "versions": {"echoplan": __version__},
        }


def _with_intervals(row: dict[str, Any]) -> dict[str, Any]:
    """The ends of intervals as [low, high]: under `interval_95` that of a test, else by name under `intervals_95`."""
    names = [name.removesuffix("_95_low") for name in row if name.endswith("_95_low")]
    ends = {name: plain([row[f"{name}_95_low"], row[f"{name}_95_high"]]) for name in names}
    intervals = {name: None if None in bounds else bounds for name, bounds in ends.items()}
    rest = {name: value for name, value in row.items() if not name.endswith(("_95_low", "_95_high"))}
    return rest | ({"interval_95": intervals["interval"]} if "interval" in intervals else {"intervals_95": intervals})


def compare_methods(
    methods: Sequence[MethodResults],
    *,
    structure: str,
    cases: Iterable[Case] = (),
    baseline: str | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Comparison:
    """Compare methods that were judged on the same frames.

    Segmentation is summarised over frames, as papers do, and tested on patients, because the frames of a patient are
    not independent. Patients come from `cases`, else from the EF tables, else each case is a patient of its own.

    Args:
        methods: two or more, of different names.
        structure: the label whose masks are compared.
        cases: what is known of the cases: patient, view, quality, reference EF.
        baseline: a method's name; None: the first.
        bootstrap, seed: of the intervals.
        notes: said beside those found here.

    Raises:
        EchoPlanError: fewer than two methods, one name twice, no such baseline, or the frames judged differ.

    Example:
        >>> from pathlib import Path
        >>> from echoplan.evaluation import MethodResults, compare_methods
        >>> from echoplan.evaluation.comparison.scores import frame_scores, read_ef_table
        >>> def method(name, dice):
        ...     own = {"frame": 0, "LV": {"dice": dice, "iou": dice / 2, "predicted_pixels": 9, "reference_pixels": 9}}
        ...     case = {"distance_unit": "mm", "ed_frame": 0, "es_frame": None, "frames": [own]}
        ...     return MethodResults(name, Path(), frame_scores({"a": case}), read_ef_table(Path()))
        >>> comparison = compare_methods([method("unet", 0.8), method("sam", 0.9)], structure="LV")
        >>> [(row.measure, round(row.mean_difference, 2)) for row in comparison.tests.itertuples()]
        [('dice', 0.1), ('iou', 0.05)]
    """
    names = tuple(method.name for method in methods)
    baseline = _checked_baseline(names, baseline)
    check_same_frames(methods, structure)
    known = {case.case: case for case in cases}
    patients, unknown = _patients(methods, known)
    scores = _scores(methods, structure, patients)
    ef, ef_notes = _comparable_ef(_ef_tables(methods, known.values()), names)
    per_patient = _per_patient(scores, ef, patients.values(), names)
    segmentation = _segmentation(scores, names, groups := _subgroups(scores, case_groups(known.values(), patients)))
    return Comparison(
        structure=structure,
        methods=names,
        sources={method.name: str(method.source) for method in methods},
        baseline=baseline,
        cases=len(patients),
        patients=len(set(patients.values())),
        segmentation=segmentation,
        ejection=_ejection(ef, patient_qualities(known.values()), bootstrap, seed),
        tests=_tests(per_patient, groups[groups["by"] == VIEW_AND_PHASE], baseline, bootstrap, seed),
        per_patient=per_patient,
        notes=[*notes, *unknown, *ef_notes, *_empty_notes(segmentation), *_unjudged_notes(methods)],
    )


def _checked_baseline(names: Sequence[str], baseline: str | None) -> str:
    if len(names) < 2:
        raise EchoPlanError(f"a comparison needs two methods, not {len(names)}")
    if len(set(names)) < len(names):
        raise EchoPlanError(f"two methods have one name ({', '.join(names)})", remedy="name each differently")
    if baseline not in (None, *names):
        raise EchoPlanError(f"there is no method {baseline!r} to be the baseline", remedy=f"use {', '.join(names)}")
    return baseline or names[0]


def _patients(methods: Sequence[MethodResults], known: Mapping[str, Case]) -> tuple[dict[str, str], list[str]]:
    """case -> patient, and a note where some are not known."""
    judged = set(methods[0].cases)
    of_ef = {
        case: patient
        for method in methods
        for patient, cases in zip(method.ef["patient"], method.ef["cases"], strict=True)
        for case in names_of_cases(cases, judged)
    }
    found = {case: known[case].patient if case in known else of_ef.get(case) for case in methods[0].cases}
    alone = sum(patient is None for patient in found.values())
    note = f"The patient of {alone} cases is not known: each counts as one. Name the dataset with -d."
    return {case: patient or case for case, patient in found.items()}, [note] if alone else []


def _scores(methods: Sequence[MethodResults], structure: str, patients: Mapping[str, str]) -> pd.DataFrame:
    import pandas as pd

    scores = pd.concat([method.scores.assign(method=method.name) for method in methods], ignore_index=True)
    return scores[scores["structure"] == structure].assign(patient=scores["case"].map(patients))


def _subgroups(scores: pd.DataFrame, subgroups: Iterable[tuple[str, str, list[str]]]) -> pd.DataFrame:
    """The scores of each subgroup, over all labelled frames; and of each view at ED and at ES."""
    import pandas as pd

    groups = pd.DataFrame(
        [(by, group, case) for by, group, members in subgroups for case in members], columns=["by", "group", "case"]
    )
    parts = groups.merge(scores[scores["phase"] == "all"], on="case")
    phased = groups[groups["by"] == "view"].merge(scores[scores["phase"].isin(_PHASES_OF_VIEWS)], on="case")
    words = phased["group"] + ", " + phased["phase"].map(_PHASES_OF_VIEWS)
    phased = phased.assign(by=VIEW_AND_PHASE, group=words).sort_values("group", kind="stable")
    return pd.concat([parts, phased], ignore_index=True)


def _segmentation(scores: pd.DataFrame, names: Sequence[str], subgroups: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    whole = figures(scores, ["phase", "method"], FIGURES, mean=mean_over_frames, sd=sd_over_frames)
    whole = whole.loc[[key for key in product(PHASES, names) if key in whole.index]].reset_index(names=_GROUP[1:])
    parts = figures(subgroups, _GROUP, FIGURES, mean=mean_over_frames, sd=sd_over_frames)
    return pd.concat([whole.assign(by=FRAMES).set_index(_GROUP), parts]).reset_index()


def _ef_tables(methods: Sequence[MethodResults], cases: Collection[Case]) -> pd.DataFrame:
    """The rows of the EF tables under their methods' names, with the dataset's reference EF where it knows it."""
    import pandas as pd

    ef = pd.concat({method.name: method.ef for method in methods}, names=["name", None])
    exams: dict[str, set[str]] = {}
    for case in cases:
        exams.setdefault(case.patient, set()).add(case.exam)
    reference = {
        case.patient: case.ef_percent
        for case in cases
        if case.ef_percent is not None and len(exams[case.patient] - {""}) < 2  # of several exams the rows know theirs
    }
    known = ef["patient"].map(reference).astype(float).where(ef["reference"] != MASKS)
    return ef.assign(reference_ef_percent=known.fillna(ef["reference_ef_percent"]))


def _comparable_ef(ef: pd.DataFrame, names: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """The rows with a reference if the EF tables can be compared, else none and a note on the reason."""
    nothing = ef.iloc[:0]
    if ef.empty:
        return nothing, ["No EF is compared: no method has an EF table (ef.csv, ef_report.csv)."]
    lacking = [name for name in names if name not in ef.index]
    if lacking:
        return nothing, [f"No EF is compared: {', '.join(lacking)} has no EF table (ef.csv, ef_report.csv)."]
    tables = ef.groupby("name", sort=False)
    rules = {str(name): sorted(set(table["volume_rule"].replace("", "?"))) for name, table in tables}
    if len(set().union(*rules.values())) > 1:
        each = ", ".join(f"{name}: {' and '.join(own)}" for name, own in rules.items())
        return nothing, [f"No EF is compared: the rules for volumes differ ({each})."]
    if len({frozenset(table["patient"]) for _, table in tables}) > 1:
        return nothing, ["No EF is compared: the EF tables do not have the same patients."]
    with_reference = ef[ef["reference_ef_percent"].notna()]
    if with_reference.empty:
        return nothing, ["No EF is compared: no reference EF is known."]
    ways = sorted({"given", "found"} & set(";".join(ef["phases"]).split(";")))
    phases = f"end-diastole and end-systole {' or '.join(ways)}" if ways else "phases not recorded"
    of_masks = int((with_reference.loc[[names[0]], "reference"] == MASKS).sum())
    several = len(with_reference.loc[[names[0]]])
    source = "the reference masks by the same rule" if of_masks else "the dataset's table"
    if 0 < of_masks < several:
        source += f" ({of_masks} of {several} patients; else from the dataset's table)"
    return with_reference, [f"EF by the rule {rules[names[0]][0]}; {phases}; reference EF from {source}."]


def _per_patient(scores: pd.DataFrame, ef: pd.DataFrame, patients: Iterable[str], names: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    means = patient_means(scores[scores["phase"] == "all"], ["method"])
    means = means.pivot(index=["patient", "method"], columns="metric", values="value")
    means = means[[name for name in FIGURES if name in means]]
    errors = ef.assign(**{EF_ERROR: (ef["ef_percent"] - ef["reference_ef_percent"]).abs()})
    errors = errors[["patient", *_EF_VALUES]].droplevel(1).rename_axis("method").set_index("patient", append=True)
    if not errors.index.is_unique:  # a row an exam
        errors = errors.groupby(level=["method", "patient"], sort=False).mean()
    order = pd.MultiIndex.from_product([dict.fromkeys(patients), names], names=["patient", "method"])
    return means.join(errors).reindex(order)


def _tests(per_patient: pd.DataFrame, phased: pd.DataFrame, baseline: str, bootstrap: int, seed: int) -> pd.DataFrame:
    methods = per_patient.index.get_level_values("method").unique()
    means = [((ALL_PATIENTS, "", name), per_patient[name].unstack("method", sort=False))
             for name in _TESTED if name in per_patient]  # fmt: skip
    for (group, name), values in phased.groupby(["group", "metric"], sort=False):
        if name in _TESTED:
            table = values.pivot_table("value", "patient", "method", sort=False).reindex(columns=methods)
            means.append(((VIEW_AND_PHASE, str(group), str(name)), table))
    return compare_with_baseline(means, [*_GROUP[:2], "measure"], baseline, bootstrap=bootstrap, seed=seed)


def _ejection(ef: pd.DataFrame, image_quality: Mapping[str, str], bootstrap: int, seed: int) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for name, table in ef.groupby("name", sort=False):
        found = agreement(*(table[key].to_list() for key in _EF_VALUES[:2]), bootstrap=bootstrap, seed=seed)
        ends = {
            f"{statistic}_95_{end}": bound
            for statistic, bounds in found.pop("intervals_95").items()
            for end, bound in zip(("low", "high"), bounds or (np.nan, np.nan), strict=True)
        }
        rows.append({"by": ALL_PATIENTS, "group": "", "method": name, **found, **ends})
        patients = cast("Iterable[MeasuredPatient]", table.itertuples(index=False))
        groups = subgroup_agreement(patients, image_quality=image_quality)
        rows += [{"method": name, **group} for group in groups]
    whole = pd.DataFrame(rows, columns=None if rows else [*_GROUP, *AGREEMENT])
    return whole.iloc[whole.groupby(_GROUP[:2], sort=False).ngroup().argsort(kind="stable")]


def _empty_notes(segmentation: pd.DataFrame) -> list[str]:
    whole = segmentation[(segmentation["by"] == FRAMES) & (segmentation["group"] == "all")]
    empty = [f"{row.method} {row.empty_predictions}" for row in whole.itertuples() if row.empty_predictions]
    return [f"Frames predicted empty (Dice 0, distance the image's diagonal): {', '.join(empty)}."] if empty else []


def _unjudged_notes(methods: Sequence[MethodResults]) -> list[str]:
    why = {case: reason for method in reversed(methods) for case, reason in method.unjudged.items()}
    if not why:
        return []
    first = min(why)
    return [
        f"Cases without a usable prediction of any method, left out: {', '.join(sorted(why))}.",
        f"{first}: {why[first]}",
    ]
