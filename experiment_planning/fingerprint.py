"""The dataset's fingerprint: what a plan needs to know, measured on every training clip."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from echoplan.dataset import Case, EchoDataset
from echoplan.files import plain
from echoplan.imageio.clip import Clip
from echoplan.parallel_map import run_cases
from echoplan.sector import box_share, detect_sector

from ..preprocessing.clip import to_uint8
from ..preprocessing.labels import find_phases, labelled_frames, load_labels
from .summary import summarise

_DENSE = 0.5  # of the frames from end-diastole to end-systole
_INTENSITY_SAMPLE = 200_000  # values that place a clip's percentiles well enough


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
    arguments = {case.case: (replace(dataset, cases=(case,)),) for case in dataset.training_cases()}
    results = run_cases(measure_case, arguments, processes=processes, description="fingerprint")
    cases = {name: results.done[name] for name in sorted(results.done)}
    return {
        "dataset": dataset.folder.name,
        "cases": cases,
        "summary": summarise(cases),
        "failed_cases": dict(sorted(results.failures.items())),
    }


def measure_case(dataset: EchoDataset) -> dict[str, Any]:
    """The fingerprint of the dataset's only case, in plain types; what is unknown is None."""
    (case,) = dataset.cases
    clip = dataset.load_clip(case)
    mask = None if case.label is None else load_labels(dataset, case, clip)
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
    return plain(measured | _intensities(frames, box) | _labels(case, clip, mask, box, target))


def _intensities(frames: np.ndarray, box: tuple[int, int, int, int]) -> dict[str, Any]:
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


def _labels(
    case: Case, clip: Clip, mask: np.ndarray | None, box: tuple[int, int, int, int], target: int
) -> dict[str, Any]:
    end_diastole, end_systole = find_phases(case, mask, target)
    known = end_diastole is not None and end_systole is not None
    distance = abs(end_systole - end_diastole) if known else None
    labelled = [] if mask is None else labelled_frames(mask)
    measured = {
        "ed_frame": end_diastole,
        "es_frame": end_systole,
        "ed_es_distance_frames": distance,
        "ed_es_distance_ms": distance * clip.frame_time_ms if known and clip.frame_time_ms else None,
        "labelled_frames": len(labelled),
        "labelled_share": len(labelled) / len(clip),
        "labelled_pattern": _pattern(labelled, end_diastole, end_systole),
        "target_area_share": None,
        "target_area_mm2": None,
        "target_outside_sector_share": None,
    }
    if labelled:
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
