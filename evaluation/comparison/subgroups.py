"""Figures of subgroups: by view, by image quality, and by class of the reference ejection fraction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypedDict, cast

from echoplan.dataset import Case

from ..agreement import agreement
from ..metrics import summarise

EF_CLASS = "EF class"
EF_CLASSES = (("< 40 %", -math.inf, 40.0), ("40 to 49 %", 40.0, 50.0), ("≥ 50 %", 50.0, math.inf))
MIXED = "mixed"
AGREEMENT = ("n", "failures", "pearson_r", "bias", "sd_of_differences", "mae")


class MeasuredPatient(Protocol):
    """What is read of a row of an EF table."""

    @property
    def patient(self) -> str: ...
    @property
    def method(self) -> str | None: ...
    @property
    def ef_percent(self) -> float | None: ...
    @property
    def reference_ef_percent(self) -> float | None: ...


class SubgroupAgreement(TypedDict):
    """A subgroup's agreement: pairs, patients without a measured EF, and statistics, None where not defined."""

    by: str
    group: str
    n: int
    failures: int
    pearson_r: float | None
    bias: float | None
    sd_of_differences: float | None
    mae: float | None


class SubgroupMetrics(TypedDict):
    """A subgroup's segmentation: how many cases, and structure -> means as `summarise` gives them."""

    by: str
    group: str
    cases: int
    mean: dict[str, dict[str, Any]]


def ef_class(ef_percent: float | None) -> str:
    """The class of an EF: `EF_CLASSES` names them with their bounds, the upper one outside; "" where it is unknown.

    Example:
        >>> from echoplan.evaluation import ef_class
        >>> ef_class(40.0), ef_class(None)
        ('40 to 49 %', '')
    """
    if ef_percent is None:
        return ""
    return next((name for name, low, high in EF_CLASSES if low <= ef_percent < high), "")


def subgroup_agreement(
    rows: Iterable[MeasuredPatient], *, image_quality: Mapping[str, str] | None = None
) -> list[SubgroupAgreement]:
    """Agreement of EF with its reference, subgroup by subgroup.

    The groupings are the class of the reference EF, the views measured (by the column `method`), and the image quality.
    A grouping of one group says nothing new and is left out, except the class of the EF.

    Args:
        rows: of `measure_patients`; those without a reference EF do not count.
        image_quality: patient -> word.

    Returns:
        one row a subgroup; statistics are of the differences predicted minus reference, in EF points.

    Example:
        >>> from echoplan.evaluation import PatientRow, subgroup_agreement
        >>> rows = [PatientRow("a", ef_percent=35.0, reference_ef_percent=33.0)]
        >>> [(row["group"], row["n"], row["bias"]) for row in subgroup_agreement(rows)]
        [('< 40 %', 1, 2.0)]
    """
    known = [row for row in rows if row.reference_ef_percent is not None]
    labels = {
        EF_CLASS: [ef_class(row.reference_ef_percent) for row in known],
        "view": [_views(row.method) for row in known],
        "image quality": [(image_quality or {}).get(row.patient, "") for row in known],
    }
    table = []
    for by, group, members in _groups(labels):
        pairs = [(known[index].ef_percent, known[index].reference_ef_percent) for index in members]
        found = agreement(*zip(*pairs, strict=True), bootstrap=0)
        row = {"by": by, "group": group, **{name: found[name] for name in AGREEMENT}}
        table.append(cast("SubgroupAgreement", row))
    return table


def subgroup_metrics(
    per_case: Mapping[str, Mapping[str, Any]], cases: Iterable[Case], structures: Iterable[str]
) -> list[SubgroupMetrics]:
    """Segmentation metrics subgroup by subgroup.

    Args:
        per_case: of a summary of `evaluate_cases`.
        cases: what is known of the cases.
        structures: the labels to summarise.

    Example:
        >>> from echoplan.dataset import Case
        >>> from echoplan.evaluation import subgroup_metrics
        >>> frame = {"frame": 0, "LV": {"dice": 0.9, "iou": 0.8, "hd95": 2.0, "assd": 1.0, "predicted_pixels": 9,
        ...                             "reference_pixels": 9}}
        >>> judged = {"distance_unit": "mm", "ed_frame": 0, "es_frame": None, "frames": [frame]}
        >>> cases = [Case("a", "patient1", "a.nii.gz", ef_percent=35.0)]
        >>> (row,) = subgroup_metrics({"a": judged}, cases, ["LV"])
        >>> row["group"], row["mean"]["LV"]["all"]["dice"]["mean"]
        ('< 40 %', 0.9)
    """
    structures = tuple(structures)
    return [
        {
            "by": by,
            "group": group,
            "cases": len(members),
            "mean": {name: summarise([per_case[case] for case in members], name) for name in structures},
        }
        for by, group, members in case_groups(cases, per_case)
    ]


def case_groups(cases: Iterable[Case], chosen: Iterable[str]) -> list[tuple[str, str, list[str]]]:
    """(grouping, group, names) of the chosen cases: by view, image quality, and class of the patient's reference EF."""
    by_name = {case.case: case for case in cases}
    ef: dict[str, float | None] = {}
    for case in by_name.values():
        if ef.get(case.patient) is None:
            ef[case.patient] = case.ef_percent
    known = [by_name[name] for name in chosen if name in by_name]
    labels = {
        "view": [case.view for case in known],
        "image quality": [case.quality for case in known],
        EF_CLASS: [ef_class(ef[case.patient] if case.ef_percent is None else case.ef_percent) for case in known],
    }
    return [(by, group, [known[index].case for index in members]) for by, group, members in _groups(labels)]


def patient_qualities(cases: Iterable[Case]) -> dict[str, str]:
    """Patient -> image quality: the word of the clips where they share one, else `MIXED`."""
    words: dict[str, set[str]] = {}
    for case in cases:
        words.setdefault(case.patient, set()).update(filter(None, [case.quality]))
    return {patient: MIXED if len(own) > 1 else next(iter(own), "") for patient, own in words.items()}


def _views(method: str | None) -> str:
    """`A2C and A4C` of the method biplane, `A4C` of single_plane_a4c."""
    if method == "biplane":
        return "A2C and A4C"
    return (method or "").removeprefix("single_plane").strip("_").upper()


def _groups(labels: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str, list[int]]]:
    """(grouping, group, places of its members); those without a label are in no group, one group alone only of EF."""
    for by, group_of in labels.items():
        order = [name for name, *_ in EF_CLASSES] if by == EF_CLASS else sorted(set(group_of))
        groups = [name for name in order if name and name in group_of]
        if len(groups) > 1 or by == EF_CLASS:
            yield from ((by, name, [i for i, group in enumerate(group_of) if group == name]) for name in groups)
