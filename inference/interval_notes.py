"""What intervals rest on: how many patients, to which side measurements err, and why some have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation.conformal import EF, QUANTITIES, Interval, coverage_range, two_sided_sample
from ..evaluation.report.formats import method
from ..evaluation.report_notes import counted
from .conformal import phases_of
from .uncertainty import Assessment, TrustSettings

_FEW = 50  # patients; the share that 90 % intervals hold is then known to within 8 points or so
_NO_BIAS = 0.5  # points of EF


@dataclass(frozen=True)
class Basis:
    """What the intervals of one quantity, measured in one way, rest on; the bias is `Interval`'s."""

    quantity: str
    method: str
    phases: str
    patients: int
    too_low: int
    too_high: int
    median_error: float

    def to_dict(self, coverage: float) -> dict[str, Any]:
        """As ef_report.json holds it."""
        low, high = coverage_range(self.patients, coverage)
        return {
            "quantity": self.quantity,
            "method": self.method,
            "phases": self.phases,
            "patients": self.patients,
            "measured_too_low_in": self.too_low,
            "measured_too_high_in": self.too_high,
            "median_of_reference_less_measured": self.median_error,
            "unit": "points" if self.quantity == EF else "percent",
            "holds_percent_of_further_patients": [100 * low, 100 * high],
        }


def bases_of(assessments: Sequence[Assessment]) -> list[Basis]:
    """What the intervals of some patients rest on, each basis once."""
    found: dict[Basis, None] = {}
    for quantity in QUANTITIES:
        for item in assessments:
            if (interval := item.intervals.get(quantity)) is not None:
                found[_basis(item, quantity, interval)] = None
    return list(found)


def interval_notes(assessments: Sequence[Assessment], settings: TrustSettings) -> list[str]:
    """Sentences on the intervals of EF for the reader of a report.

    Args:
        assessments: of the patients that were measured.
        settings: what intervals were made with.
    """
    measured = [item for item in assessments if not item.row.failure]
    if settings.calibration is None:
        return [f"no intervals of EF and volumes: {settings.why_none}"] if measured else []
    notes = [_on_basis(basis, settings.coverage) for basis in bases_of(measured) if basis.quantity == EF]
    one_sided = [item for item in measured if EF in item.intervals and _ends_at_estimate(item)]
    if one_sided:
        notes.append(
            f"{len(one_sided)} of {len(measured)} intervals of EF begin or end at the estimate itself: so nearly all "
            "cross-validated patients erred to one side that the reference is hardly expected on the other"
        )
    missing = [item.no_interval[EF] for item in measured if EF in item.no_interval]
    if missing:
        notes.append(f"{len(missing)} of {len(measured)} patients have no interval of EF: {counted(missing)}")
    return notes


def _basis(item: Assessment, quantity: str, interval: Interval) -> Basis:
    about = interval.patients, interval.too_low, interval.too_high, interval.median_error
    return Basis(quantity, item.row.method or "", phases_of(item.row), *about)


def _on_basis(basis: Basis, coverage: float) -> str:
    way = f"{method(basis.method)}, phases {basis.phases}"
    words = f"{100 * coverage:g} % intervals of EF ({way}) rest on {basis.patients} cross-validated patients"
    if abs(basis.median_error) < _NO_BIAS:
        words += f", whose EF was measured without bias (median {basis.median_error:+.1f} points)"
    else:
        low = basis.median_error > 0
        number, side, expected = (basis.too_low, "low", "above") if low else (basis.too_high, "high", "below")
        words += (
            f"; EF was too {side} in {number} of them, by {abs(basis.median_error):.1f} points in the median, so the "
            f"reference is rather to be expected {expected} the estimate"
        )
    if basis.patients >= _FEW:
        return words
    low_share, high_share = coverage_range(basis.patients, coverage)
    words += (
        f". They are few: by chance such intervals hold {100 * low_share:.0f} to {100 * high_share:.0f} % of further "
        "patients"
    )
    least = two_sided_sample(coverage)
    return f"{words}, and below {least} they reach equally far to both sides" if basis.patients < least else words


def _ends_at_estimate(item: Assessment) -> bool:
    interval, value = item.intervals[EF], item.row.ef_percent
    return value in (interval.low, interval.high) and 0 < (value or 0) < 100


def trust_of(settings: TrustSettings, assessments: Mapping[str, Assessment]) -> dict[str, Any]:
    """What ef_report.json holds of intervals and flags: what they were made with, and each patient's reasons."""
    bases = [basis.to_dict(settings.coverage) for basis in bases_of([*assessments.values()])]
    about = {"intervals": bases, "patients": {name: item.to_dict() for name, item in assessments.items()}}
    return settings.to_dict() | about
