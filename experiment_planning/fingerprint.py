"""The fingerprint: what a plan needs to know, measured on every training clip, and its summary over all clips."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from echoplan.dataset import Case, EchoDataset
from echoplan.files import plain, read_json
from echoplan.imageio.clip import Clip
from echoplan.multi_dataset import MultiDataset
from echoplan.parallel_map import run_cases
from echoplan.sector import Box, box_share, detect_sector

from ..preprocessing.clip import labelled_frames, phases_from_labels, to_uint8

logger = logging.getLogger(__name__)

_DENSE = 0.5  # of the frames from end-diastole to end-systole
_INTENSITY_SAMPLE = 200_000  # values that place a clip's percentiles well enough
_PERCENTILES = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}


def extract_fingerprint(dataset: EchoDataset, *, processes: int = 0) -> dict[str, Any]:
    """Measure every training clip.

    Args:
        dataset: the raw dataset.
        processes: worker processes; 0: none.

    Returns:
        What dataset_fingerprint.json holds: "dataset", "cases" (per case), "summary" (see `summarise`) and
        "failed_cases" (case -> reason), which the plan leaves out.

    Raises:
        EchoPlanError: an error that no case can escape.
    """
    rowless = replace(dataset, cases=())  # a worker needs no other rows
    arguments = {case.case: (rowless, case) for case in dataset.training_cases()}
    results = run_cases(measure_case, arguments, processes=processes, description="fingerprint")
    cases = {name: results.done[name] for name in sorted(results.done)}
    _warn_of_labels({name: measured["label_note"] for name, measured in cases.items() if "label_note" in measured})
    return {
        "dataset": dataset.folder.name,
        "cases": cases,
        "summary": summarise(cases),
        "failed_cases": dict(sorted(results.failures.items())),
    }


def _warn_of_labels(notes: Mapping[str, str]) -> None:
    """One line, however many cases it concerns."""
    if notes:
        first, more = next(iter(notes)), len(notes) - 1
        logger.warning("%s%s: %s", first, f" and {more} other cases" if more else "", notes[first])


def joint_fingerprint(dataset: MultiDataset, fingerprints: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The fingerprint of several datasets, in the form of `extract_fingerprint`; in the summary each counts alike.

    Args:
        dataset: the datasets.
        fingerprints: source dataset -> its own.
    """
    cases: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for source in dataset.sources:
        own = fingerprints[source.name]
        for case, measured in own["cases"].items():
            cases[source.case_name(case)] = {**measured, "patient": source.case_name(measured["patient"])}
        failed |= {source.case_name(case): reason for case, reason in own["failed_cases"].items()}
    return {
        "dataset": dataset.name,
        "cases": cases,
        "summary": balanced({source.name: fingerprints[source.name]["summary"] for source in dataset.sources}),
        "failed_cases": failed,
    }


def current_fingerprint(file: Path, dataset: EchoDataset) -> dict[str, Any] | None:
    """A dataset's fingerprint where it is there and knows just the cases that the dataset has; else None."""
    if not file.is_file():
        return None
    fingerprint = read_json(file)
    measured = {*fingerprint["cases"], *fingerprint["failed_cases"]}
    return fingerprint if measured == {case.case for case in dataset.training_cases()} else None


def measure_case(dataset: EchoDataset, case: Case) -> dict[str, Any]:
    """The fingerprint of one of a dataset's cases, in plain types; what is unknown is None."""
    clip = dataset.load_clip(case)
    notes: list[str] = []
    mask = None if case.label is None else dataset.load_mask(case, clip=clip, notes=notes)
    frames = to_uint8(clip.frames, source=clip.source)
    box = detect_sector(frames)
    target = dataset.description.labels[dataset.description.target]
    measured = {
        "patient": case.patient,
        "view": case.view,
        "ef_percent": case.ef_percent,
        "frames": len(clip),
        "height_px": clip.frame_shape[0],
        "width_px": clip.frame_shape[1],
        "dtype": str(clip.frames.dtype),
        "spacing_mm": clip.spacing_mm,
        "frame_time_ms": clip.frame_time_ms,
        "frame_rate_hz": 1000.0 / clip.frame_time_ms if clip.frame_time_ms else None,
        "sector_box": box,
        "sector_saved_share": 1.0 - box_share(box, clip.frame_shape),
    }
    noted = {"label_note": notes[0]} if notes else {}
    return plain(measured | _intensities(frames, box) | _labels(case, clip, mask, box, target) | noted)


def _intensities(frames: np.ndarray, box: Box) -> dict[str, Any]:
    r0, r1, c0, c1 = box
    crop = frames[:, r0:r1, c0:c1]
    inside = crop[:, crop.max(axis=0) > 0]
    values = (inside if inside.size else crop).reshape(-1)
    values = values[:: max(1, values.size // _INTENSITY_SAMPLE)].astype(np.float64)
    low, median, high = np.percentile(values, (0.5, 50, 99.5))
    return {
        "intensity_mean": values.mean(),
        "intensity_std": values.std(),
        "intensity_p0_5": low,
        "intensity_median": median,
        "intensity_p99_5": high,
    }


def _labels(case: Case, clip: Clip, mask: np.ndarray | None, box: Box, target: int) -> dict[str, Any]:
    end_diastole, end_systole = phases_from_labels(case, mask, target)
    distance = None if end_diastole is None or end_systole is None else abs(end_systole - end_diastole)
    labelled = [] if mask is None else labelled_frames(mask)
    measured = {
        "ed_frame": end_diastole,
        "es_frame": end_systole,
        "ed_es_distance_frames": distance,
        "ed_es_distance_ms": distance * clip.frame_time_ms if distance is not None and clip.frame_time_ms else None,
        "labelled_frames": len(labelled),
        "labelled_share": len(labelled) / len(clip),
        "labelled_pattern": _pattern(labelled, end_diastole, end_systole),
        "target_area_share": None,
        "target_area_mm2": None,
        "target_outside_sector_share": None,
    }
    if mask is not None and labelled:
        structure = mask[labelled] == target
        pixels = structure.sum(axis=(1, 2))
        r0, r1, c0, c1 = box
        measured["target_area_share"] = float(pixels.mean()) / structure[0].size
        if clip.spacing_mm is not None:
            measured["target_area_mm2"] = float(pixels.mean()) * clip.spacing_mm[0] * clip.spacing_mm[1]
        if pixels.sum() > 0:
            measured["target_outside_sector_share"] = 1.0 - structure[:, r0:r1, c0:c1].sum() / pixels.sum()
    return measured


def _pattern(labelled: list[int], end_diastole: int | None, end_systole: int | None) -> str:
    """ "none", "ed_es" (at most two frames), "dense" (most frames between the phases) or "other"."""
    if not labelled:
        return "none"
    ends = labelled if end_diastole is None or end_systole is None else (end_diastole, end_systole)
    first, last = min(ends), max(ends)
    between = sum(first <= frame <= last for frame in labelled)
    if len(labelled) > 2 and between >= _DENSE * (last - first + 1):
        return "dense"
    return "ed_es" if len(labelled) <= 2 else "other"


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
    measured = {name: values for name, values in own.items() if values is not None}
    if not measured:
        return None
    each = list(measured.values())
    means = {name: float(np.mean([values[name] for values in each])) for name in ("mean", "p5", "median", "p95")}
    spread = np.mean([values["std"] ** 2 for values in each]) + np.var([values["mean"] for values in each])
    return {
        "n": sum(values["n"] for values in each),
        **{name: _round(value) for name, value in means.items()},
        "std": _round(np.sqrt(spread)),
        "min": min(values["min"] for values in each),
        "max": max(values["max"] for values in each),
        "by_dataset": {name: values["median"] for name, values in measured.items()},
    }


def percentiles(values: Iterable[float | None]) -> dict[str, float] | None:
    """n, mean, std, minimum, 5th, 50th and 95th percentile and maximum of the known values; None if there are none."""
    numbers = np.array([value for value in values if value is not None], dtype=np.float64)
    if numbers.size == 0:
        return None
    spread = {name: _round(np.percentile(numbers, q)) for name, q in _PERCENTILES.items()}
    return {"n": int(numbers.size), "mean": _round(numbers.mean()), "std": _round(numbers.std()), **spread}


def _extents(sides: Iterable[tuple[int, int, tuple[float, float] | None]]) -> dict[str, Any]:
    clips = list(sides)
    spacings = [spacing or (1.0, 1.0) for _, _, spacing in clips]
    with_spacing = [(height, width, spacing) for height, width, spacing in clips if spacing is not None]
    return {
        "height_px": percentiles(height for height, _, _ in clips),
        "width_px": percentiles(width for _, width, _ in clips),
        "long_side_px": percentiles(max(height, width) for height, width, _ in clips),
        "height_mm": percentiles(height * spacing[0] for height, _, spacing in with_spacing),
        "width_mm": percentiles(width * spacing[1] for _, width, spacing in with_spacing),
        "aspect": percentiles(
            height * spacing[0] / (width * spacing[1])
            for (height, width, _), spacing in zip(clips, spacings, strict=True)
        ),
    }


def _box_sides(box: Box) -> tuple[int, int]:
    return box[1] - box[0], box[3] - box[2]


def _count(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))


def _share(truths: Iterable[bool]) -> float:
    answers = list(truths)
    return _round(sum(answers) / len(answers)) if answers else 0.0


def _round(number: float) -> float:
    return float(f"{number:.6g}")
