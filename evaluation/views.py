"""The two apical views of a patient side by side: do they tell of the same heart, beating at the same rate?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from .measurements import CaseMeasurement

# The single planes of one heart differ by their cut as much as by error; beyond this one of them deserves a look.
LARGEST_EF_DIFFERENCE_POINTS = 15.0
LARGEST_RATE_DIFFERENCE_PERCENT = 15.0


def view_columns(used: Sequence[CaseMeasurement]) -> dict[str, Any]:
    """The report's columns on the views one by one: single-plane EF, heart rate, found against given phases.

    Phase errors are listed in the order of `cases`, in ms; None where nothing could be compared.
    """
    rates = [rate for measured in used if (rate := _heart_rate(measured)) is not None]
    errors = [measured.phase_errors for measured in used]
    ed = [None if error is None else error.ed_ms for error in errors]
    es = [None if error is None else error.es_ms for error in errors]
    return {
        **{f"ef_{m.view.lower()}_percent": m.ef_percent for m in used if m.view in ("A2C", "A4C")},
        "heart_rate_bpm": fmean(rates) if rates else None,
        "ed_error_ms": _listed(ed),
        "es_error_ms": _listed(es),
    }


def view_notes(a2c: CaseMeasurement, a4c: CaseMeasurement) -> list[str]:
    """What a reader should know of two views that do not agree."""
    notes = []
    if None not in (a2c.ef_percent, a4c.ef_percent):
        difference = abs(a2c.ef_percent - a4c.ef_percent)
        if difference > LARGEST_EF_DIFFERENCE_POINTS:
            notes.append(
                f"the single planes differ by {difference:.0f} EF points: A2C {a2c.ef_percent:.0f} %, "
                f"A4C {a4c.ef_percent:.0f} %"
            )
    rates = _heart_rate(a2c), _heart_rate(a4c)
    if None not in rates and 100 * abs(rates[0] - rates[1]) > LARGEST_RATE_DIFFERENCE_PERCENT * max(rates):
        notes.append(f"the heart beats at {rates[0]:.0f} a minute in A2C and at {rates[1]:.0f} in A4C")
    return notes


def phase_finding(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]] | None:
    """`n`, `mean`, `mean_absolute`, `largest_absolute` of the rows' phase errors in ms; None where there are none."""
    rows = list(rows)
    found = {}
    for column in ("ed_error_ms", "es_error_ms"):
        values = [float(value) for row in rows for value in (row.get(column) or "").split(";") if value]
        if values:
            absolute = [abs(value) for value in values]
            found[column] = {
                "n": len(values),
                "mean": fmean(values),
                "mean_absolute": fmean(absolute),
                "largest_absolute": max(absolute),
            }
    return found or None


def _heart_rate(measured: CaseMeasurement) -> float | None:
    return measured.phases.heart_rate_bpm if measured.phases else None


def _listed(values: Sequence[float | None]) -> str | None:
    if all(value is None for value in values):
        return None
    return ";".join("" if value is None else f"{value:.0f}" for value in values)
