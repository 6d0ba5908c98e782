"""What holds for several patients of a report, in a sentence each: for the page, ef_report.json and the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .ejection import NOT_JUDGED, PatientRow

_REASONS_NAMED = 3


def report_notes(rows: Sequence[PatientRow], agreement: Mapping[str, Mapping[str, Any]] | None = None) -> list[str]:
    """Where EF is not what a reader may take it for: given phases, one plane, nothing that could have disagreed.

    Args:
        rows: of `measure_patients`.
        agreement: of `ef_agreement`; None without references.

    Example:
        >>> from echoplan.evaluation import PatientRow, report_notes
        >>> report_notes([PatientRow("p", ef_percent=55.0, single_plane_reason="no A2C clip")])
        ['1 of 1 patients is measured in one plane: no A2C clip (1)']
    """
    measured = [row for row in rows if not row.failure]
    return [*_on_phases(measured, len(rows), agreement or {}), *_on_planes(measured, len(rows)), *_on_quality(rows)]


def counted(reasons: Iterable[str]) -> str:
    """Reasons, the most frequent first, each with how often it is there.

    Example:
        >>> counted(["no A2C clip", "no A4C clip", "no A2C clip"])
        'no A2C clip (2), no A4C clip (1)'
    """
    named = Counter(reasons).most_common()
    more = [f"{len(named) - _REASONS_NAMED} other reasons"] if len(named) > _REASONS_NAMED else []
    return ", ".join([f"{reason} ({count})" for reason, count in named[:_REASONS_NAMED]] + more)


def _on_phases(rows: Sequence[PatientRow], patients: int, agreement: Mapping[str, Mapping[str, Any]]) -> list[str]:
    given = sum("given" in (row.phases or "").split(";") for row in rows)
    if not given:
        return []
    notes = [
        f"EF of {given} of {patients} patients is measured at the end-diastole and end-systole that were given with "
        "the clips (cases.csv), not at those that are found in them; --find_phases passes the given ones over"
    ]
    at_given, at_found = agreement.get("ef_percent"), agreement.get("ef_found_phases_percent")
    if at_given and at_found and None not in (at_given["mae"], at_found["mae"]):
        notes.append(
            f"mean absolute error of EF: {at_given['mae']:.1f} points at the given phases (n = {at_given['n']}), "
            f"{at_found['mae']:.1f} at the phases found (n = {at_found['n']}), as for clips that come without"
        )
    return notes


def _on_planes(rows: Sequence[PatientRow], patients: int) -> list[str]:
    reasons = [row.single_plane_reason for row in rows if row.single_plane_reason]
    if not reasons:
        return []
    verb = "is" if len(reasons) == 1 else "are"
    return [f"{len(reasons)} of {patients} patients {verb} measured in one plane: {counted(reasons)}"]


def _on_quality(rows: Sequence[PatientRow]) -> list[str]:
    reasons = [row.quality_reasons or "" for row in rows if row.quality == NOT_JUDGED]
    return (
        [f"the quality of {len(reasons)} of {len(rows)} patients is not judged: {counted(reasons)}"] if reasons else []
    )
