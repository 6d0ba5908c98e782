"""The fingerprint's summary: percentiles and counts over all cases, which is all that the planner reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_PERCENTILES = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}


def summarise(cases: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Summarise the cases of a fingerprint.

    Args:
        cases: case -> what `measure_case` found.

    Returns:
        "counts"; "views" and "labelled_patterns" (counts by name); "known_share" (of spacing, frame time, phases, EF);
        "whole" and "sector" (sides in pixels and, where known, mm; "aspect" is physical height over width);
        and percentiles of every other number, None where no case has it.
    """
    rows = list(cases.values())
    plain_numbers = (
        "frames", "frame_rate_hz", "sector_saved_share", "ed_es_distance_frames", "ed_es_distance_ms",
        "labelled_frames", "labelled_share", "target_area_share", "target_area_mm2", "target_outside_sector_share",
        "ef_percent",
        "intensity_mean", "intensity_std", "intensity_p0_5", "intensity_median", "intensity_p99_5",
    )  # fmt: skip
    return {
        "counts": {
            "cases": len(rows),
            "patients": len({row["patient"] for row in rows}),
            "labelled_cases": sum(row["labelled_frames"] > 0 for row in rows),
            "labelled_frames": sum(row["labelled_frames"] for row in rows),
        },
        "views": _count(row["view"] or "unknown" for row in rows),
        "labelled_patterns": _count(row["labelled_pattern"] for row in rows),
        "dtypes": _count(row["dtype"] for row in rows),
        "known_share": {
            "spacing": _share(row["spacing_mm"] is not None for row in rows),
            "frame_time": _share(row["frame_time_ms"] is not None for row in rows),
            "phases": _share(row["ed_es_distance_frames"] is not None for row in rows),
            "ef": _share(row["ef_percent"] is not None for row in rows),
        },
        "whole": _extents((row["height_px"], row["width_px"], row["spacing_mm"]) for row in rows),
        "sector": _extents((*_box_sides(row["sector_box"]), row["spacing_mm"]) for row in rows),
        "spacing_row_mm": percentiles(row["spacing_mm"][0] for row in rows if row["spacing_mm"]),
        "spacing_column_mm": percentiles(row["spacing_mm"][1] for row in rows if row["spacing_mm"]),
        **{name: percentiles(row[name] for row in rows) for name in plain_numbers},
    }


def balanced(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The summary of several datasets together, in which each counts alike however many clips it has.

    Args:
        summaries: dataset -> what `summarise` gives.

    Returns:
        as `summarise`: counts are added, shares averaged; of a number, mean and percentiles are the means of the
        datasets' own (known ones), min and max the least and largest, and "by_dataset" has the medians. "datasets" has
        the summaries themselves.
    """
    parts = list(summaries.values())
    together: dict[str, Any] = {"datasets": dict(summaries)}
    for key in parts[0]:
        own = {name: summary[key] for name, summary in summaries.items()}
        if key in ("counts", "views", "labelled_patterns", "dtypes"):
            names = sorted({name for counts in own.values() for name in counts}) if key != "counts" else parts[0][key]
            together[key] = {name: sum(counts.get(name, 0) for counts in own.values()) for name in names}
        elif key == "known_share":
            together[key] = {
                name: _round(sum(share[name] for share in own.values()) / len(own)) for name in parts[0][key]
            }
        elif key in ("whole", "sector"):
            together[key] = balanced_extents(own)
        else:
            together[key] = _balanced_percentiles(own)
    return together


def balanced_extents(extents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The extents ("whole" or "sector" of a summary) of several datasets together, each counting alike."""
    first = next(iter(extents.values()))
    return {side: _balanced_percentiles({name: own[side] for name, own in extents.items()}) for side in first}


def _balanced_percentiles(own: Mapping[str, dict[str, float] | None]) -> dict[str, Any] | None:
    known = {name: values for name, values in own.items() if values is not None}
    if not known:
        return None
    each = list(known.values())
    means = {name: float(np.mean([values[name] for values in each])) for name in ("mean", "p5", "median", "p95")}
    spread = np.mean([values["std"] ** 2 for values in each]) + np.var([values["mean"] for values in each])
    return {
        "n": sum(values["n"] for values in each),
        **{name: _round(value) for name, value in means.items()},
        "std": _round(np.sqrt(spread)),
        "min": min(values["min"] for values in each),
        "max": max(values["max"] for values in each),
        "by_dataset": {name: values["median"] for name, values in known.items()},
    }


def percentiles(values: Iterable[float | None]) -> dict[str, float] | None:
    """n, mean, std, minimum, 5th, 50th and 95th percentile and maximum of the known values; None if there are none."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if known.size == 0:
        return None
    measured = {name: _round(np.percentile(known, q)) for name, q in _PERCENTILES.items()}
    return {"n": int(known.size), "mean": _round(known.mean()), "std": _round(known.std()), **measured}


def _extents(sides: Iterable[tuple[int, int, tuple[float, float] | None]]) -> dict[str, Any]:
    known = list(sides)
    spacings = [spacing or (1.0, 1.0) for _, _, spacing in known]
    with_spacing = [(height, width, spacing) for height, width, spacing in known if spacing is not None]
    return {
        "height_px": percentiles(height for height, _, _ in known),
        "width_px": percentiles(width for _, width, _ in known),
        "long_side_px": percentiles(max(height, width) for height, width, _ in known),
        "height_mm": percentiles(height * spacing[0] for height, _, spacing in with_spacing),
        "width_mm": percentiles(width * spacing[1] for _, width, spacing in with_spacing),
        "aspect": percentiles(
            height * spacing[0] / (width * spacing[1])
            for (height, width, _), spacing in zip(known, spacings, strict=True)
        ),
    }


def _box_sides(box: tuple[int, int, int, int]) -> tuple[int, int]:
    return box[1] - box[0], box[3] - box[2]


def _count(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))


def _share(truths: Iterable[bool]) -> float:
    known = list(truths)
    return _round(sum(known) / len(known)) if known else 0.0


def _round(number: float) -> float:
    return float(f"{number:.6g}")
