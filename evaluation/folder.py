"""Predicted masks against reference masks, folder against folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from echoplan.errors import EchoPlanError
from echoplan.files import write_json
from echoplan.imageio import FORMATS, ending, probe_clip, read_mask
from echoplan.parallel_map import run_cases

from .metrics import segmentation_metrics

METRICS = ("dice", "iou", "hd95", "assd")
MASK_ENDINGS = tuple(end for row in FORMATS if row.read_labels is not None for end in row.endings if end)


def evaluate_folder(
    predictions: str | Path,
    references: str | Path,
    *,
    labels: Mapping[str, int],
    cases: Iterable[str] | None = None,
    ignore_label: int = 255,
    phases: Mapping[str, tuple[int | None, int | None]] | None = None,
    output: str | Path | None = None,
    processes: int = 0,
) -> dict[str, Any]:
    """Metrics of every labelled frame of every reference mask in a folder, and their means.

    Predictions are found by the references' names, whatever the ending. Distances are in mm where the reference's
    header gives a spacing, else in pixels; the summary keeps both sorts apart. Frames that hold the ignore label alone
    are passed over, and ignored pixels elsewhere count neither way. A missing or broken prediction is counted and
    listed, and never stops the rest; an empty one has Dice 0 and the image's diagonal as distance, and is counted too.

    Args:
        predictions, references: folders of masks.
        labels: structure -> value; the background, 0, is passed over.
        cases: only these; None for every reference mask.
        ignore_label: value of pixels nobody labelled.
        phases: case -> (end-diastolic, end-systolic) frame, for means of ED and ES apart.
        output: a file to write the summary to, as JSON.
        processes: worker processes; 0 works in this one.

    Returns:
        `labels`, `cases`, `frames`, `missing`, `failures`;
        `mean`: label -> "all" | "end_diastole" | "end_systole" -> `frames`, `empty_predictions`, and `mean` and `sd`
        (over frames, n - 1, None for a single one) of `dice`, `iou`, `hd95_mm`, `assd_mm`, `hd95_px`, `assd_px`;
        `per_case`: case -> `spacing_mm`, `distance_unit`, `ed_frame`, `es_frame` and `frames`, each frame with its
        number and, for each label, `segmentation_metrics`.

    Raises:
        EchoPlanError: a folder is missing, there is no reference mask, or no label to evaluate.
    """
    structures = {name: int(value) for name, value in labels.items() if value != 0}
    if not structures:
        raise EchoPlanError("there is no label to evaluate", remedy="name one, as in LV=1")
    truths, found = find_masks(references), find_masks(predictions)
    if not truths:
        raise EchoPlanError("there is no reference mask here", file=references)
    wanted = set(truths) if cases is None else set(truths) & set(cases)
    both = sorted(wanted & set(found))
    arguments = {case: (found[case], truths[case], structures, ignore_label) for case in both}
    results = run_cases(evaluate_case, arguments, processes=processes, description="evaluating")
    judged = _with_phases(results.done, phases or {})
    summary = {
        "labels": structures,
        "cases": len(judged),
        "frames": sum(len(case["frames"]) for case in judged.values()),
        "missing": sorted(wanted - set(found)),
        "failures": dict(sorted(results.failures.items())),
        "mean": {name: summarise(judged.values(), name) for name in structures},
        "per_case": judged,
    }
    if output is not None:
        write_json(output, summary)
    return summary


def _with_phases(
    done: Mapping[str, Mapping[str, Any]], phases: Mapping[str, tuple[int | None, int | None]]
) -> dict[str, dict[str, Any]]:
    judged = {}
    for case, values in sorted(done.items()):
        ed, es = phases.get(case, (None, None))
        judged[case] = {"ed_frame": ed, "es_frame": es, **values}
    return judged


def evaluate_case(
    prediction: Path, reference: Path, labels: Mapping[str, int], ignore_label: int = 255
) -> dict[str, Any]:
    """{"spacing_mm", "distance_unit", "frames"} of one case; each frame has its number and the metrics of each label.

    Raises:
        EchoPlanError: a file cannot be read, or the grids differ.
    """
    truth = read_mask(reference)
    predicted = read_mask(prediction, frames_shape=truth.shape)
    spacing = probe_clip(reference).spacing_mm
    frames = []
    for number, (guess, answer) in enumerate(zip(predicted, truth, strict=True)):
        known = answer != ignore_label
        if known.any():
            metrics = {
                name: _frame_metrics((guess == value) & known, (answer == value) & known, spacing)
                for name, value in labels.items()
            }
            frames.append({"frame": number, **metrics})
    return {"spacing_mm": spacing, "distance_unit": "px" if spacing is None else "mm", "frames": frames}


def find_masks(folder: str | Path) -> dict[str, Path]:
    """Case name -> file of every mask in a folder.

    Raises:
        EchoPlanError: there is no such folder, or two files name one case.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EchoPlanError("there is no such folder", file=folder)
    masks: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        end = ending(path)
        if end not in MASK_ENDINGS or path.name.startswith(".") or not path.is_file():
            continue
        case = path.name[: -len(end)]
        if case in masks:
            raise EchoPlanError(f"both {masks[case].name} and {path.name} are masks of {case}", file=folder)
        masks[case] = path
    return masks


def _frame_metrics(predicted: np.ndarray, truth: np.ndarray, spacing: tuple[float, float] | None) -> dict[str, Any]:
    values: dict[str, Any] = dict(segmentation_metrics(predicted, truth, spacing))
    values["predicted_pixels"], values["reference_pixels"] = int(predicted.sum()), int(truth.sum())
    return values


def summarise(cases: Iterable[Mapping[str, Any]], label: str) -> dict[str, Any]:
    """Means over all frames, and over the end-diastolic and end-systolic ones where they are known."""
    groups: dict[str, list[tuple[str, Mapping[str, Any]]]] = {"all": [], "end_diastole": [], "end_systole": []}
    for case in cases:
        for frame in case["frames"]:
            entry = case["distance_unit"], frame[label]
            groups["all"].append(entry)
            if frame["frame"] == case["ed_frame"]:
                groups["end_diastole"].append(entry)
            if frame["frame"] == case["es_frame"]:
                groups["end_systole"].append(entry)
    return {name: _mean_and_sd(entries) for name, entries in groups.items() if entries}


def _mean_and_sd(entries: list[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    empty = sum(1 for _, values in entries if values["predicted_pixels"] == 0 < values["reference_pixels"])
    result: dict[str, Any] = {"frames": len(entries), "empty_predictions": empty}
    for metric in METRICS:
        if metric in ("dice", "iou"):
            sorts = {metric: [values[metric] for _, values in entries]}
        else:  # a mean over mm and pixels would mean nothing
            sorts = {
                f"{metric}_{unit}": [values[metric] for own, values in entries if own == unit] for unit in ("mm", "px")
            }
        for name, values in sorts.items():
            if values:
                sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
                result[name] = {"mean": float(np.mean(values)), "sd": sd}
    return result
