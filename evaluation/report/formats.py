"""Values of a patient's row as a page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..ejection import CHECK, NO_WARNING, PatientRow

_NOTE_LETTERS = 600


def difference(row: PatientRow) -> float | None:
    """Predicted minus reference EF, in points."""
    predicted, reference = row.ef_percent, row.reference_ef_percent
    return None if predicted is None or reference is None else predicted - reference


def flag(row: PatientRow) -> tuple[str, str, str]:
    """(class, words, reason) of what is said of a row in the last column; empty where there is nothing to say."""
    if row.failure:
        return "flag", "▲ Not measured", row.failure
    if to_check(row):
        return "flag", "▲ Check", row.quality_reasons or ""
    if row.quality == NO_WARNING:
        return "good", f"✓ {row.quality}", ""
    return "", row.quality or "", ""  # why a row is not judged, the notes say once for all


def to_check(row: PatientRow) -> bool:
    """Whether somebody should look at the row."""
    return bool(row.failure) or row.quality == CHECK


def bounds(row: PatientRow, measure: str) -> tuple[float, float] | None:
    """The interval of a row's "ef_percent", "edv_ml" or "esv_ml", where it has one."""
    name, _, unit = measure.partition("_")
    low, high = (getattr(row, f"{name}_{end}_{unit}", None) for end in ("low", "high"))
    return None if low is None or high is None else (low, high)


def interval(row: PatientRow, measure: str) -> str:
    """`45.1 to 60.3`; empty where the row has no interval of it."""
    ends = bounds(row, measure)
    return "" if ends is None else f"{number(ends[0])} to {number(ends[1])}"


def bootstrap(statistics: Mapping[str, Any], key: str, digits: int) -> str:
    """The bootstrap interval of one of the statistics of `agreement`; empty where it has none."""
    ends = statistics["intervals_95"].get(key)
    return f"{number(ends[0], digits)} to {number(ends[1], digits)}" if ends else ""


def number(value: float | None, digits: int = 1) -> str:
    """`−3.1`; a dash for what is unknown."""
    if value is None:
        return "–"
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")  # adding 0 makes -0.0 a plain 0


def method(name: str | None) -> str:
    """`single plane A4C` of single_plane_a4c."""
    words = (name or "–").replace("_", " ")
    return words.replace(" a2c", " A2C").replace(" a4c", " A4C")


def frames(numbers: str | None) -> str:
    """`3 · 21` of 3;21."""
    return (numbers or "–").replace(";", " · ")


def unsaid(note: str | None, reasons: str | None) -> str:
    """The parts of a note that reasons beside it do not say already."""
    return "; ".join(part for part in (note or "").split("; ") if part not in (reasons or ""))


def reasons_of(row: PatientRow, case: str) -> str:
    """Why to look at a row again, without what is said of the patient's other clips."""
    others = tuple(f"{name}: " for name in row.cases.split(";") if name != case)
    parts = [part for part in (row.quality_reasons or "").split("; ") if not part.startswith(others)]
    return "; ".join(part.removeprefix(f"{case}: ") for part in parts)


def brief(words: str | None) -> str:
    """A note without what makes it longer than a page can bear; the whole is in ef_report.csv."""
    words = words or ""
    return words if len(words) <= _NOTE_LETTERS else words[:_NOTE_LETTERS].rstrip() + "… (shortened)"
