"""Is the dataset fit for training? Every problem at once, one line each."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from echoplan.dataset import Case, EchoDataset
from echoplan.errors import EchoPlanError
from echoplan.imageio.clip import Clip
from echoplan.parallel_map import run_cases

from ..preprocessing.clip import labelled_frames, load_labels

_PLAUSIBLE_SPACING_MM = (0.02, 5.0)
_PLAUSIBLE_FRAME_TIME_MS = (1.0, 200.0)


@dataclass(frozen=True)
class Findings:
    """What a check found, one line each: problems that must be mended, and warnings that may be meant so."""

    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def verify_dataset(dataset: EchoDataset, *, processes: int = 0) -> Findings:
    """Check that every clip and label is there, fits, and makes sense.

    Checked: files are readable; labels lie on the clip's grid and hold named values only; every training case has a
    labelled frame; spacing is finite, positive and plausible; ED, ES and labelled frames lie inside the clip; no
    patient is in training and test alike. (`EchoDataset.read` has checked names and numbers of cases.csv before.)

    Args:
        dataset: the raw dataset.
        processes: worker processes; 0: none.
    """
    rowless = replace(dataset, cases=())  # a worker needs no other rows
    arguments = {case.case: (rowless, case) for case in dataset.cases}
    results = run_cases(check_case, arguments, processes=processes, description="checking")
    problems = list(_patients_on_both_sides(dataset.cases))
    if not dataset.training_cases():
        problems.append("the dataset has no training case")
    warnings: list[str] = []
    for case in dataset.cases:
        if case.case in results.failures:
            problems.append(f"{case.case}: {results.failures[case.case]}")
            continue
        findings = results.done[case.case]
        problems += [f"{case.case}: {line}" for line in findings.problems]
        warnings += [f"{case.case}: {line}" for line in findings.warnings]
    return Findings(tuple(problems), tuple(warnings))


def check_case(dataset: EchoDataset, case: Case) -> Findings:
    """Check one of a dataset's cases; lines without the case's name."""
    try:
        clip = dataset.load_clip(case)
    except EchoPlanError as error:
        return Findings((str(error),))
    problems, warnings = _check_clip(clip)
    if case.ed_frame is not None and case.ed_frame == case.es_frame:
        warnings.append(f"end-diastole and end-systole are the same frame ({case.ed_frame})")
    if case.label is None:
        if case.split != "test":
            problems.append("a training case without a label file; give one, or make it a test case (split = test)")
        return Findings(tuple(problems), tuple(warnings))
    try:
        mask = load_labels(dataset, case, clip)
    except EchoPlanError as error:
        return Findings((*problems, str(error)), tuple(warnings))
    labelled = labelled_frames(mask)
    target = dataset.description.target
    if not labelled:
        problems.append("no frame is labelled: all labels are the ignore value or no frame is listed")
    elif not (mask[labelled] == dataset.description.labels[target]).any():
        warnings.append(f"no labelled frame shows {target}")
    return Findings(tuple(problems), tuple(warnings))


def _check_clip(clip: Clip) -> tuple[list[str], list[str]]:
    problems: list[str] = []
    warnings: list[str] = []
    if len(clip) == 1:
        warnings.append("a single frame: enough for frame networks, but it shows no motion to clip networks")
    if clip.spacing_mm is not None:
        spacing = " x ".join(f"{value:g}" for value in clip.spacing_mm)
        if not all(np.isfinite(value) and value > 0 for value in clip.spacing_mm):
            problems.append(f"the spacing is {spacing} mm; it must be finite and more than 0 (mend it in cases.csv)")
        elif not all(_PLAUSIBLE_SPACING_MM[0] <= value <= _PLAUSIBLE_SPACING_MM[1] for value in clip.spacing_mm):
            warnings.append(f"the spacing is {spacing} mm, which is unusual for echocardiography")
    time = clip.frame_time_ms
    if time is not None and not (np.isfinite(time) and time > 0):
        problems.append(f"the frame time is {time:g} ms; it must be finite and more than 0 (mend it in cases.csv)")
    elif time is not None and not _PLAUSIBLE_FRAME_TIME_MS[0] <= time <= _PLAUSIBLE_FRAME_TIME_MS[1]:
        warnings.append(f"the frame time is {time:g} ms, which is unusual (is it given in seconds?)")
    if not np.isfinite(clip.frames).all():
        problems.append("the frames hold NaN or infinite values")
    elif clip.frames.min() == clip.frames.max():
        warnings.append("all pixels of the clip have the same value")
    return problems, warnings


def _patients_on_both_sides(cases: tuple[Case, ...]) -> list[str]:
    sides: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        sides[case.patient].add("test" if case.split == "test" else "train")
    both = sorted(patient for patient, seen in sides.items() if len(seen) == 2)
    return [f"patient {patient} has clips in training and in test" for patient in both]
