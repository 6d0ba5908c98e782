"""Figures of subgroups: by view, by image quality, and by class of the reference ejection fraction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from echoplan.dataset import Case

from ..agreement import agreement
from ..metrics import summarise

EF_CLASS = "EF class"
EF_CLASSES = (("< 40 %", -math.inf, 40.0), ("40 to 49 %", 40.0, 50.0), ("≥ 50 %", 50.0, math.inf))
MIXED = "mixed"
AGREEMENT = ("n", "failures", "pearson_r", "bias", "sd_of_differences", "mae")


def ef_class(ef_percent: float | None) -> str:
    """The class of an EF: `EF_CLASSES` names them with their bounds, the upper one outside; "" where it is unknown."""
    if ef_percent is None:
        return ""
    return next((name for name, low, high in EF_CLASSES if low <= ef_percent < high), "")


def subgroup_agreement(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Agreement of EF with its reference, subgroup by subgroup.

    The groupings are the class of the reference EF, the views measured (by the column `method`), and the image quality
    where the rows have `image_quality`. A grouping of one group says nothing new and is left out, except the class of
    the EF.

    Args:
        rows: of `measure_patients`; those without a reference EF do not count.

    Returns:
        one row a subgroup: `by`, `group`, `n` (pairs), `failures` (no EF measured), and of the differences predicted
        minus reference, in EF points, `pearson_r`, `bias`, `sd_of_differences`, `mae`; None where not defined.
    """
    known = {str(index): row for index, row in enumerate(rows) if row["reference_ef_percent"] is not None}
    labels = {
        EF_CLASS: {index: ef_class(row["reference_ef_percent"]) for index, row in known.items()},
        "view": {index: _views(row["method"]) for index, row in known.items()},
        "image quality": {index: row.get("image_quality") or "" for index, row in known.items()},
    }
    result = []
    for by, group, members in _groups(labels):
        chosen = [known[index] for index in members]
        found = agreement(
            [row["ef_percent"] for row in chosen], [row["reference_ef_percent"] for row in chosen], bootstrap=0
        )
        result.append({"by": by, "group": group, **{name: found[name] for name in AGREEMENT}})
    return result


def subgroup_metrics(
    per_case: Mapping[str, Mapping[str, Any]], cases: Iterable[Case], structures: Iterable[str]
) -> list[dict[str, Any]]:
    """Segmentation metrics subgroup by subgroup.

    Args:
        per_case: of `evaluate_folder`.
        cases: what is known of the cases.
        structures: the labels to summarise.

    Returns:
        one row a subgroup: `by`, `group`, `cases` (how many), and `mean` as `evaluate_folder` has it.
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
    about = {case.case: case for case in cases}
    ef: dict[str, float | None] = {}
    for case in about.values():
        if ef.get(case.patient) is None:
            ef[case.patient] = case.ef_percent
    known = [about[name] for name in chosen if name in about]
    return _groups(
        {
            "view": {case.case: case.view for case in known},
            "image quality": {case.case: case.quality for case in known},
            EF_CLASS: {case.case: ef_class(ef[case.patient]) for case in known},
        }
    )


def patient_quality(qualities: Iterable[str]) -> str:
    """The image quality of a patient from that of the clips: their word where they share one, else `MIXED`."""
    words = {word for word in qualities if word}
    return next(iter(words)) if len(words) == 1 else MIXED if words else ""


def _views(method: str | None) -> str:
    """`A2C and A4C` of the method biplane, `A4C` of single_plane_a4c."""
    if method == "biplane":
        return "A2C and A4C"
    return (method or "").removeprefix("single_plane").strip("_").upper()


def _groups(labels: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str, list[str]]]:
    """(grouping, group, members); members without a label are in no group, a single group only of the EF's class."""
    order = [name for name, *_ in EF_CLASSES]
    found = []
    for by, group_of in labels.items():
        members: dict[str, list[str]] = {}
        for member, group in group_of.items():
            if group:
                members.setdefault(group, []).append(member)
        if len(members) < 2 and by != EF_CLASS:
            continue
        names = [name for name in order if name in members] if by == EF_CLASS else sorted(members)
        found += [(by, name, members[name]) for name in names]
    return found
