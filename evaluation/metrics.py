"""How well predicted masks fit their references: Dice, IoU, HD, HD95 and ASSD of a frame, and means over frames."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, generate_binary_structure

from echoplan.errors import EchoPlanError
from echoplan.labels import IGNORE

METRICS = ("dice", "iou", "hd", "hd95", "assd")
PHASES = ("all", "end_diastole", "end_systole", "ed_es")
_FOUR_NEIGHBOURS = generate_binary_structure(2, 1)


def segmentation_metrics(
    prediction: ArrayLike, reference: ArrayLike, spacing_mm: Sequence[float] | None = None
) -> dict[str, float]:
    """Dice, IoU, HD, HD95 and ASSD of two masks of one frame, defined as in medpy, the peers' evaluation code.

    The surface is the mask minus its 4-connected erosion; what lies beyond the image counts as outside. HD is the
    largest of both directed distance sets, HD95 the 95th percentile of both pooled, ASSD the mean of the two directed
    means. (MONAI's HD95 is the larger of two percentiles, so figures differ.)

    Args:
        prediction: (H, W), bool or integer; every value but 0 is foreground.
        reference: (H, W), likewise.
        spacing_mm: (row, col) size of a pixel. Distances are in mm if it is given, else in pixels.

    Returns:
        {"dice", "iou", "hd", "hd95", "assd"}. Both masks empty: 1, 1, 0, 0, 0. One empty: 0, 0 and, for all distances,
        the image's diagonal.

    Raises:
        EchoPlanError: the masks are not two-dimensional or differ in shape, or the spacing is not positive.

    Example:
        >>> import numpy as np
        >>> from echoplan.evaluation import segmentation_metrics
        >>> truth = np.zeros((64, 64), dtype=bool)
        >>> truth[20:40, 20:40] = True
        >>> found = segmentation_metrics(np.roll(truth, 2, axis=1), truth, spacing_mm=(0.5, 0.5))
        >>> round(found["dice"], 2), found["hd95"]
        (0.9, 1.0)
    """
    predicted, truth = np.asarray(prediction) != 0, np.asarray(reference) != 0
    if predicted.ndim != 2 or predicted.shape != truth.shape:
        raise EchoPlanError(
            f"the masks have the shapes {predicted.shape} and {truth.shape}; two frames of one shape are needed",
            remedy="compare frame by frame, on the reference's own grid",
        )
    spacing = check_spacing(spacing_mm) or (1.0, 1.0)
    sizes = int(predicted.sum()), int(truth.sum())
    if max(sizes) == 0:
        return {"dice": 1.0, "iou": 1.0, "hd": 0.0, "hd95": 0.0, "assd": 0.0}
    if min(sizes) == 0:
        diagonal = math.hypot(predicted.shape[0] * spacing[0], predicted.shape[1] * spacing[1])
        return {"dice": 0.0, "iou": 0.0, "hd": diagonal, "hd95": diagonal, "assd": diagonal}
    overlap = int((predicted & truth).sum())
    forth, back = surface_distances(predicted, truth, spacing)
    both = np.concatenate((forth, back))
    return {
        "dice": 2.0 * overlap / sum(sizes),
        "iou": overlap / (sum(sizes) - overlap),
        "hd": float(both.max()),
        "hd95": float(np.percentile(both, 95)),
        "assd": float((forth.mean() + back.mean()) / 2),
    }


def score_frames(
    predicted: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    labels: Mapping[str, int],
    spacing: tuple[float, float] | None,
) -> Iterator[dict[str, Any]]:
    """Every labelled frame of two masks (T, H, W) of one clip: its number in `frame`, and the metrics of each label.

    Frames that hold the ignore label alone are passed over, and ignored pixels elsewhere count neither way. Beside
    `segmentation_metrics` a label has `predicted_pixels` and `reference_pixels`.
    """
    for number, (guess, answer) in enumerate(zip(predicted, truth, strict=True)):
        labelled = answer != IGNORE
        if labelled.any():
            yield {
                "frame": number,
                **{
                    name: _frame_metrics((guess == value) & labelled, (answer == value) & labelled, spacing)
                    for name, value in labels.items()
                },
            }


def _frame_metrics(predicted: np.ndarray, truth: np.ndarray, spacing: tuple[float, float] | None) -> dict[str, Any]:
    values: dict[str, Any] = dict(segmentation_metrics(predicted, truth, spacing))
    values["predicted_pixels"], values["reference_pixels"] = int(predicted.sum()), int(truth.sum())
    return values


def summarise(cases: Iterable[Mapping[str, Any]], label: str) -> dict[str, Any]:
    """Means over all frames, and over the end-diastolic and end-systolic ones where they are known.

    Args:
        cases: of `Evaluation.per_case`.
        label: whose metrics.

    Returns:
        "all" | "end_diastole" | "end_systole" | "ed_es", both together where "all" has others beside them ->
        `frames`, `empty_predictions`, and `mean` and `sd` (over frames, n - 1, None for a single one) of `dice`, `iou`,
        `hd_mm`, `hd95_mm`, `assd_mm`, `hd_px`, `hd95_px`, `assd_px`. `both_empty` counts
        the frames where neither mask shows the label, whose Dice is 1; where there are any, `dice_of_others` is the
        Dice without them.
    """
    groups: dict[str, list[tuple[str, Mapping[str, Any]]]] = {phase: [] for phase in PHASES}
    for case in cases:
        for frame in case["frames"]:
            for phase in phases_of(frame["frame"], case):
                groups[phase].append((case["distance_unit"], frame[label]))
    if len(groups["ed_es"]) == len(groups["all"]):
        del groups["ed_es"]
    return {name: _mean_and_sd(entries) for name, entries in groups.items() if entries}


def phases_of(frame: int, case: Mapping[str, Any]) -> list[str]:
    """Those of `PHASES` that a frame of a judged case belongs to."""
    own = [name for name, place in (("end_diastole", case["ed_frame"]), ("end_systole", case["es_frame"]))
           if place == frame]  # fmt: skip
    return ["all", *own, *(["ed_es"] if own else [])]


def _mean_and_sd(entries: list[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    empty = sum(1 for _, values in entries if values["predicted_pixels"] == 0 < values["reference_pixels"])
    shown = [values["dice"] for _, values in entries if values["predicted_pixels"] or values["reference_pixels"]]
    both_empty = len(entries) - len(shown)
    result: dict[str, Any] = {"frames": len(entries), "empty_predictions": empty, "both_empty": both_empty}
    for metric in METRICS:
        if metric in ("dice", "iou"):
            sorts = {metric: [values[metric] for _, values in entries]}
        else:  # a mean over mm and pixels would mean nothing
            sorts = {
                f"{metric}_{unit}": [
                    values[metric] for own_unit, values in entries if own_unit == unit and metric in values
                ]
                for unit in ("mm", "px")
            }
        for name, values in sorts.items():
            if values:
                result[name] = _spread(values)
    if both_empty and shown:
        result["dice_of_others"] = _spread(shown)
    return result


def _spread(values: Sequence[float]) -> dict[str, Any]:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd}


def surface_distances(
    first: NDArray[np.bool_], second: NDArray[np.bool_], spacing: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances of each surface pixel of `first` to the surface of `second`, and the other way round.

    Both masks are (H, W) and not empty; `spacing` (row, col) sets the unit.
    """
    box = _bounding_box(first | second)  # both surfaces lie inside it, so distances within the crop are exact
    edges = [mask[box] & ~binary_erosion(mask[box], _FOUR_NEIGHBOURS, border_value=0) for mask in (first, second)]
    to_first, to_second = (distance_transform_edt(~edge, sampling=spacing) for edge in edges)
    return to_second[edges[0]], to_first[edges[1]]


def check_spacing(spacing_mm: Sequence[float] | None) -> tuple[float, float] | None:
    """The spacing as (row, col) floats, None staying None.

    Raises:
        EchoPlanError: it is not two positive finite numbers.
    """
    if spacing_mm is None:
        return None
    values = tuple(float(value) for value in spacing_mm)
    if len(values) != 2 or not all(math.isfinite(value) and value > 0 for value in values):
        raise EchoPlanError(
            f"the pixel spacing {values} is not two positive numbers",
            remedy="give (row, col) in mm, or none where it is unknown",
        )
    return values[0], values[1]


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
