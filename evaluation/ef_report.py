"""ef_report.csv and ef_report.json: the rows, their agreement with references, and what holds for several of them."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from echoplan import __version__, layout
from echoplan.files import write_json

from .agreement import agreement
from .comparison.subgroups import subgroup_agreement
from .ejection import PatientRow, write_rows
from .report_notes import report_notes
from .ventricle.volumes import DISCS, VOLUME_RULES, VolumeRule


def write_ef_report(
    folder: str | Path,
    rows: Sequence[PatientRow],
    *,
    method: VolumeRule = "simpson",
    details: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write ef_report.csv and ef_report.json into `folder`; returns what the JSON holds.

    The JSON has `volume_rule`, `methods` (rows of each), `notes` (those given behind those of `report_notes`),
    `agreement` (of EF, EDV and ESV; null without references), `phase_finding` (found against given phases, null where
    none can be compared),
    `subgroups` (of EF, see `subgroup_agreement`; empty without references), `versions`, the caller's `details`, `rows`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from echoplan.evaluation import PatientRow, write_ef_report
        >>> with TemporaryDirectory() as folder:
        ...     write_ef_report(folder, [PatientRow("patient1", failure="no mask")])["methods"]
        {'failed': 1}
    """
    used: dict[str, int] = {}
    for row in rows:
        name = "failed" if row.failure else row.method or "failed"
        used[name] = used.get(name, 0) + 1
    agreed = ef_agreement(rows)
    content = {
        "notes": [*report_notes(rows, agreed), *notes],
        "volume_rule": {"name": method, "meaning": VOLUME_RULES[method], "discs": DISCS},
        "methods": used,
        "failures": {row.name: row.failure for row in rows if row.failure},
        "agreement": agreed,
        "phase_finding": phase_finding(rows),
        "subgroups": subgroup_agreement(rows),
        "versions": {"echoplan": __version__, "python": platform.python_version(), "numpy": np.__version__},
        "details": dict(details or {}),
        "rows": [row.to_row() for row in rows],
    }
    folder = Path(folder)
    write_rows(folder / layout.EF_REPORT_CSV, rows)
    write_json(folder / layout.EF_REPORT_JSON, content)
    return content


def ef_agreement(rows: Sequence[PatientRow]) -> dict[str, dict[str, Any]] | None:
    """`agreement` of EF, EDV and ESV with the references there are; None where no row has one.

    "ef_found_phases_percent", where rows have it, is that of EF at the phases found in the same patients.

    Example:
        >>> from echoplan.evaluation import PatientRow, ef_agreement
        >>> rows = [PatientRow("a", ef_percent=60.0, reference_ef_percent=58.0)]
        >>> ef_agreement(rows)["ef_percent"]["bias"]
        2.0
    """
    statistics = {}
    for name in ("ef_percent", "edv_ml", "esv_ml"):
        reference = [getattr(row, f"reference_{name}") for row in rows]
        if any(value is not None for value in reference):
            statistics[name] = agreement([row.measured(name) for row in rows], reference)
    found = [row.ef_found_phases_percent for row in rows]
    if any(value is not None for value in found):
        references = [None if row.ef_found_phases_percent is None else row.reference_ef_percent for row in rows]
        statistics["ef_found_phases_percent"] = agreement(found, references)
    return statistics or None


def phase_finding(rows: Iterable[PatientRow]) -> dict[str, dict[str, float]] | None:
    """`n`, `mean`, `mean_absolute`, `largest_absolute` of the rows' phase errors in ms; None where there are none."""
    rows = list(rows)
    statistics = {}
    for column in ("ed_error_ms", "es_error_ms"):
        values = [float(value) for row in rows for value in (getattr(row, column) or "").split(";") if value]
        if values:
            absolute = [abs(value) for value in values]
            statistics[column] = {
                "n": len(values),
                "mean": fmean(values),
                "mean_absolute": fmean(absolute),
                "largest_absolute": max(absolute),
            }
    return statistics or None
