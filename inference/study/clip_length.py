"""The plan with another clip length T, as a study asks for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from echoplan import layout
from echoplan.files import atomic_path
from echoplan.plans import Configuration, Decision, Plan, ResolvedPlan

from ...training.fold import FoldSetup

_BESIDE_THE_PLAN = (layout.DATASET_FILE, layout.FINGERPRINT_FILE)


def with_clip_length(plan: ResolvedPlan, frames: int) -> ResolvedPlan:
    """The resolved plan with clips of T = `frames`, and the `frame_stride` that follows from them.

    A window of T frames goes on spanning the median distance from end-diastole to end-systole, where that is known.
    """
    asked = Decision(frames, "asked for by the study", {"asked_for": frames, "planned": plan.frames}, kind="fixed")
    decisions = {**plan.decisions, "frames": asked, **_strides(plan.decisions, frames)}
    datasets = {name: {**own, **_strides(own, frames)} for name, own in plan.datasets.items()}
    return replace(plan, decisions=decisions, datasets=datasets)


def _strides(decisions: Mapping[str, Decision], frames: int) -> dict[str, Decision]:
    """`frame_stride` by the rule that the plan made it with; nothing where these decisions do not hold it."""
    planned = decisions.get("frame_stride")
    if planned is None:
        return {}
    distance = planned.evidence.get("ed_es_distance_frames")
    stride = planned.value if distance is None else max(1, round(distance["median"] / (frames - 1)))
    return {"frame_stride": Decision(stride, planned.rule, {**planned.evidence, "frames": frames}, planned.kind)}


def write_plan_folder(folder: Path, trainers: Mapping[str, FoldSetup], frames: int) -> None:
    """Write a dataset's plan, changed for some trainers, and what model folders copy beside it.

    Args:
        folder: for the files.
        trainers: class name -> one of its folds.
        frames: T.

    Raises:
        EchoPlanError: the dataset's plan cannot be read.
    """
    first = next(iter(trainers.values()))
    file = layout.plan_file(first.plan.plans_name)
    plan = Plan.read(first.preprocessed / file)
    changed = {}
    for name, setup in trainers.items():
        own = plan.trainers.get(name) or Configuration(name, {}, inherits_from=setup.plan.configuration)
        asked = with_clip_length(setup.plan, frames)
        changed[name] = replace(own, decisions=asked.decisions, datasets=asked.datasets)
    replace(plan, trainers={**plan.trainers, **changed}).write(folder / file)
    for name in _BESIDE_THE_PLAN:
        if (first.preprocessed / name).is_file():
            with atomic_path(folder / name) as temporary:
                shutil.copyfile(first.preprocessed / name, temporary)
