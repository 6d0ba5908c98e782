"""Named steps that mend predicted masks, and the choice of those that cross-validation says help."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from acvl_utils.morphology.morphology_helper import label_with_component_sizes
from scipy.ndimage import binary_fill_holes

from echoplan.errors import EchoPlanError
from echoplan.files import read_json
from echoplan.labels import IGNORE
from echoplan.parallel_map import run_cases

Step = Mapping[str, Any]

SMOOTHING_MS = 60.0  # about a fifteenth of a beat: flicker goes, systole stays
MINIMAL_GAIN = 1e-4  # mean Dice; less than this is no evidence on a few hundred frames


def largest_component(mask: np.ndarray, labels: Mapping[str, int], *, out: np.ndarray | None = None) -> np.ndarray:
    """Keep each structure's largest 8-connected part in each frame; the rest becomes background.

    Args:
        mask: (T, H, W) uint8 labels.
        labels: structure -> value.
        out: where the result goes, `mask` itself if need be; None: a new array.
    """
    out = np.empty_like(mask) if out is None else out
    for frame, target in zip(mask, out, strict=True):
        kept = np.zeros_like(frame)
        for value in _structures(labels):
            parts, sizes = label_with_component_sizes(frame == value, connectivity=2)
            if sizes:
                kept[parts == max(sizes, key=sizes.__getitem__)] = value
        target[...] = kept
    return out


def fill_holes(mask: np.ndarray, labels: Mapping[str, int], *, out: np.ndarray | None = None) -> np.ndarray:
    """Give background that a structure encloses in a frame to that structure; other structures inside it are kept.

    Args:
        mask, labels, out: as in `largest_component`.
    """
    out = np.empty_like(mask) if out is None else out
    for frame, target in zip(mask, out, strict=True):
        filled = frame.copy()
        for value in _structures(labels):
            inside = binary_fill_holes(frame == value)
            filled[inside & (filled == 0)] = value
        target[...] = filled
    return out


def temporal_smoothing(
    mask: np.ndarray,
    labels: Mapping[str, int],
    *,
    window_ms: float = SMOOTHING_MS,
    frame_time_ms: float | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Give each pixel the label that most frames of a short time window hold; for one structure, a median over time.

    Args:
        mask, labels, out: as in `largest_component`.
        window_ms: the time that the filter looks at.
        frame_time_ms: time between two frames; None takes three frames, whatever they span.
    """
    out = np.empty_like(mask) if out is None else out
    frames = window_ms / frame_time_ms if frame_time_ms else 3.0
    reach = int(frames // 2)  # to either side: an even window would shift the mask in time
    if reach < 1 or len(mask) < 2:
        out[...] = mask
        return out
    values, last = (0, *_structures(labels)), len(mask) - 1
    # How many frames of the window hold each value; counted frame by frame: a long clip's counts would fill the memory.
    around = np.clip(np.arange(-reach, reach + 1), 0, last)
    votes = {value: np.count_nonzero(mask[around] == value, axis=0) for value in values}
    passed: deque[np.ndarray] = deque(maxlen=reach + 1)  # frames as they were: in `mask` they may be overwritten
    for index, target in enumerate(out):
        frame = mask[index].copy()
        if index:
            enters, leaves = mask[min(index + reach, last)], passed[0]
            for value in values:
                votes[value] += enters == value
                votes[value] -= leaves == value
        most = np.zeros_like(votes[0])
        smooth = np.zeros_like(frame)
        for value in values:
            # A tie goes to the label that the frame has itself: a filter must not invent a change.
            better = (votes[value] > most) | ((votes[value] == most) & (frame == value))
            smooth[better] = value
            most[better] = votes[value][better]
        target[...] = smooth
        passed.append(frame)
    return out


_STEPS: dict[str, Callable[..., np.ndarray]] = {  # in the order in which they are applied
    "temporal_smoothing": temporal_smoothing,
    "largest_component": largest_component,
    "fill_holes": fill_holes,
}
STEP_NAMES = tuple(_STEPS)
_SETTINGS: dict[str, tuple[str, ...]] = {"temporal_smoothing": ("window_ms",)}


def apply_postprocessing(
    mask: np.ndarray,
    steps: Iterable[str | Step],
    labels: Mapping[str, int],
    *,
    frame_time_ms: float | None = None,
    in_place: bool = False,
) -> np.ndarray:
    """Apply steps one after another.

    Args:
        mask: (T, H, W) uint8 labels on the native grid.
        steps: names, or {"name": ..., settings}; `STEP_NAMES` lists them.
        labels: structure -> value; the background is left out.
        frame_time_ms: time between two frames, for the steps over time.
        in_place: change `mask` itself, and so take no memory for another.

    Raises:
        EchoPlanError: a step or a setting does not exist.

    Example:
        >>> import numpy as np
        >>> from echoplan.inference import apply_postprocessing
        >>> mask = np.zeros((1, 8, 8), dtype=np.uint8)
        >>> mask[0, 1:6, 1:6] = 1
        >>> mask[0, 3, 3], mask[0, 7, 7] = 0, 1  # a hole, and a speck
        >>> int(apply_postprocessing(mask, ["largest_component", "fill_holes"], {"LV": 1}).sum())
        25
    """
    mended = mask if in_place else None
    for step in check_steps(steps):
        settings = {name: value for name, value in step.items() if name != "name"}
        if step["name"] == "temporal_smoothing":
            settings["frame_time_ms"] = frame_time_ms
        mended = _STEPS[step["name"]](mask if mended is None else mended, labels, out=mended, **settings)
    return mask if mended is None else mended


def check_steps(steps: Iterable[str | Step]) -> tuple[dict[str, Any], ...]:
    """The steps in their full form, {"name": ..., settings}.

    Raises:
        EchoPlanError: a step or a setting does not exist.
    """
    checked = []
    for step in steps:
        full = {"name": step} if isinstance(step, str) else dict(step)
        name = full.get("name")
        if name not in _STEPS:
            raise EchoPlanError(f"there is no postprocessing step {name!r}", remedy=f"choose of {', '.join(_STEPS)}")
        unknown = set(full) - {"name", *_SETTINGS.get(name, ())}
        if unknown:
            raise EchoPlanError(f"the postprocessing step {name} has no setting {', '.join(sorted(unknown))}")
        checked.append(full)
    return tuple(checked)


def read_postprocessing(path: str | Path) -> tuple[dict[str, Any], ...]:
    """The steps of a postprocessing.json.

    Raises:
        EchoPlanError: the file is missing, or holds no valid steps.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("steps"), list):
        raise EchoPlanError('this is no postprocessing file: it has no list "steps"', file=path)
    try:
        return check_steps(content["steps"])
    except EchoPlanError as error:
        raise EchoPlanError(error.problem, file=path, remedy=error.remedy) from error


@dataclass(frozen=True)
class LabelledPrediction:
    """A predicted clip and its reference, both (T, H, W) uint8 on one grid; unlabelled reference pixels are 255."""

    prediction: np.ndarray
    reference: np.ndarray
    frame_time_ms: float | None = None


def determine_postprocessing(
    load: Callable[..., LabelledPrediction],
    cases: Mapping[str, tuple[Any, ...]],
    labels: Mapping[str, int],
    *,
    candidates: Sequence[str | Step] = STEP_NAMES,
    minimal_gain: float = MINIMAL_GAIN,
    processes: int = 0,
) -> dict[str, Any]:
    """Choose the steps that improve cross-validated masks, greedily.

    Every round adds the step that raises the mean Dice (over structures, then over labelled frames of all cases) most;
    it ends when no step raises it by `minimal_gain`. Masks are loaded anew each round, so memory does not grow.

    Args:
        load: a module-level function that loads one case: `load(*cases[case])`.
        cases: case -> arguments of `load`.
        labels: structure -> value.
        candidates: the steps to choose from.
        minimal_gain: in Dice.
        processes: worker processes; 0: none.

    Returns:
        {"steps": [...], "evidence": {...}}, as postprocessing.json holds it: mean Dice before, of every step tried in
        every round, and after.

    Raises:
        EchoPlanError: a case cannot be judged, or no frame is labelled.
    """
    remaining = list(check_steps(candidates))
    chosen: list[dict[str, Any]] = []
    before, *_ = _mean_dice(load, cases, labels, [chosen], processes)
    best, rounds = before, []
    while remaining:
        trials = [sorted([*chosen, step], key=lambda item: STEP_NAMES.index(item["name"])) for step in remaining]
        scores = _mean_dice(load, cases, labels, trials, processes)
        winner = int(np.argmax(scores))
        accepted = scores[winner] - best >= minimal_gain
        tried = [
            {"step": step, "mean_dice": score, "gain": score - best, "kept": accepted and i == winner}
            for i, (step, score) in enumerate(zip(remaining, scores, strict=True))
        ]
        rounds.append(tried)
        if not accepted:
            break
        chosen, best = trials[winner], scores[winner]
        remaining.pop(winner)
    evidence = {
        "cases": len(cases),
        "mean_dice_before": before,
        "mean_dice_after": best,
        "minimal_gain": minimal_gain,
        "rounds": rounds,
    }
    return {"steps": chosen, "evidence": evidence}


def _mean_dice(
    load: Callable[..., LabelledPrediction],
    cases: Mapping[str, tuple[Any, ...]],
    labels: Mapping[str, int],
    trials: Sequence[Sequence[Step]],
    processes: int,
) -> list[float]:
    """The mean Dice under each list of steps."""
    arguments = {case: (load, values, dict(labels), trials) for case, values in cases.items()}
    results = run_cases(_case_dice, arguments, processes=processes, description="postprocessing")
    if results.failures:
        case, reason = next(iter(results.failures.items()))
        raise EchoPlanError(f"{len(results.failures)} cases cannot be judged, {case} first: {reason}")
    frames = np.concatenate([scores for scores in results.done.values() if scores.size] or [np.empty((0, len(trials)))])
    if not len(frames):
        raise EchoPlanError("no frame of the cross-validated cases is labelled", remedy="give labels for some cases")
    return [float(score) for score in frames.mean(axis=0)]


def _case_dice(
    load: Callable[..., LabelledPrediction],
    values: tuple[Any, ...],
    labels: Mapping[str, int],
    trials: Sequence[Sequence[Step]],
) -> np.ndarray:
    """(labelled frames, trials): each frame's Dice, averaged over the structures."""
    item = load(*values)
    known = item.reference != IGNORE
    labelled = np.flatnonzero(known.any(axis=(1, 2)))
    scores = np.empty((len(labelled), len(trials)))
    for column, steps in enumerate(trials):
        if any(step["name"] == "temporal_smoothing" for step in steps):
            mended = apply_postprocessing(item.prediction, steps, labels, frame_time_ms=item.frame_time_ms)[labelled]
        else:  # the other steps work frame by frame, so that the labelled ones will do
            mended = apply_postprocessing(item.prediction[labelled], steps, labels)
        for row, (frame, mask) in enumerate(zip(labelled, mended, strict=True)):
            inside = known[frame]
            scores[row, column] = mean_structure_dice(mask[inside], item.reference[frame][inside], labels)
    return scores


def mean_structure_dice(prediction: np.ndarray, reference: np.ndarray, labels: Mapping[str, int]) -> float:
    """Dice of two label arrays, averaged over the structures; a structure that both lack counts as 1."""
    scores = []
    for value in _structures(labels):
        predicted, truth = prediction == value, reference == value
        size = int(predicted.sum()) + int(truth.sum())
        scores.append(2 * int((predicted & truth).sum()) / size if size else 1.0)
    return float(np.mean(scores))


def _structures(labels: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(value for value in labels.values() if value != 0)
