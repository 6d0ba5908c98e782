"""Is the dataset fit for training? Every problem at once, one line each."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from echoplan.dataset import Case, EchoDataset
from echoplan.errors import EchoPlanError
from echoplan.imageio.clip import Clip, plausible_scale
from echoplan.parallel_map import run_cases
from echoplan.references import impossible_references

from ..preprocessing.clip import labelled_frames


@dataclass(frozen=True)
class Findings:
    """What a check found, one line each: problems that must be mended, and warnings that may be meant so.

    Attributes:
        problems, warnings: the lines.
        pixels: of one case: a name for its frames' content, "" where all pixels are alike.
        shows_target: of one case: whether a labelled frame shows the structure that is measured.
    """

    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    pixels: str = ""
    shows_target: bool = False


def verify_dataset(dataset: EchoDataset, *, processes: int = 0) -> Findings:
    """Check that every clip and label is there, fits, and makes sense.

    Checked: files are readable; labels lie on the clip's grid and hold named values only; every training case has a
    labelled frame, and one of them shows the target; spacing is finite, positive and plausible; ED, ES and labelled
    frames lie inside the clip; EF is in percent and fits EDV and ESV; no patient is in training and test alike, and no
    clip is two patients'. (`EchoDataset.read` has checked names and numbers of cases.csv before.)

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
    problems += _across_cases(dataset, results.done)
    return Findings(tuple(problems), tuple(warnings))


def check_case(dataset: EchoDataset, case: Case) -> Findings:
    """Check one of a dataset's cases; lines without the case's name."""
    try:
        clip = dataset.load_clip(case)
    except EchoPlanError as error:
        return Findings((str(error),))
    problems, warnings = _check_clip(clip)
    problems += filter(None, [case.reference_note])  # as cases.csv was read
    problems += dict.fromkeys(impossible_references(case.ef_percent, case.edv_ml, case.esv_ml).values())
    alike = clip.frames.min() == clip.frames.max()
    pixels = "" if alike else hashlib.sha256(np.ascontiguousarray(clip.frames).data).hexdigest()
    if case.ed_frame is not None and case.ed_frame == case.es_frame:
        warnings.append(f"end-diastole and end-systole are the same frame ({case.ed_frame})")
    if case.label is None:
        if case.split != "test":
            problems.append("a training case without a label file; give one, or make it a test case (split = test)")
        return Findings(tuple(problems), tuple(warnings), pixels)
    try:
        mask = dataset.load_mask(case, clip=clip, notes=warnings)
    except EchoPlanError as error:
        return Findings((*problems, str(error)), tuple(warnings), pixels)
    labelled = labelled_frames(mask)
    target = dataset.description.target
    shown = bool((mask[labelled] == dataset.description.labels[target]).any())
    if not labelled:
        problems.append("no frame is labelled: all labels are the ignore value or no frame is listed")
    elif not shown:
        warnings.append(f"no labelled frame shows {target}")
    return Findings(tuple(problems), tuple(warnings), pixels, shown)


def _check_clip(clip: Clip) -> tuple[list[str], list[str]]:
    problems: list[str] = []
    warnings: list[str] = []
    if len(clip) == 1:
        warnings.append("a single frame: enough for frame networks, but it shows no motion to clip networks")
    if clip.spacing_mm is not None:
        spacing = " x ".join(f"{value:g}" for value in clip.spacing_mm)
        if not all(np.isfinite(value) and value > 0 for value in clip.spacing_mm):
            problems.append(f"the spacing is {spacing} mm; it must be finite and more than 0 (mend it in cases.csv)")
    time = clip.frame_time_ms
    if time is not None and not (np.isfinite(time) and time > 0):
        problems.append(f"the frame time is {time:g} ms; it must be finite and more than 0 (mend it in cases.csv)")
    note = clip.scale_note or plausible_scale(clip.spacing_mm, clip.frame_time_ms)[2]
    warnings += [f"{note} (mend it in cases.csv)"] if note else []
    if not np.isfinite(clip.frames).all():
        problems.append("the frames hold NaN or infinite values")
    elif clip.frames.min() == clip.frames.max():
        warnings.append("all pixels of the clip have the same value")
    return problems, warnings


def _across_cases(dataset: EchoDataset, found: Mapping[str, Findings]) -> list[str]:
    """What only shows when cases are seen together."""
    problems = []
    target, training = dataset.description.target, [case.case for case in dataset.training_cases()]
    labelled = [name for name in training if name in found and not found[name].problems]
    if labelled and not any(found[name].shows_target for name in labelled):
        problems.append(f"no label of a training case shows {target}: nothing can be learned")
    clips: dict[str, list[Case]] = defaultdict(list)
    for case in dataset.cases:
        if case.case in found and found[case.case].pixels:
            clips[found[case.case].pixels].append(case)
    for same in clips.values():
        patients = sorted({case.patient for case in same})
        if len(patients) > 1:
            cases = ", ".join(case.case for case in same)
            problems.append(
                f"{cases} are one clip, pixel by pixel, under the patients {', '.join(patients)}: training would see "
                "what it is tested on"
            )
    return problems


def _patients_on_both_sides(cases: tuple[Case, ...]) -> list[str]:
    sides: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        sides[case.patient].add("test" if case.split == "test" else "train")
    both = sorted(patient for patient, seen in sides.items() if len(seen) == 2)
    return [f"patient {patient} has clips in training and in test" for patient in both]
