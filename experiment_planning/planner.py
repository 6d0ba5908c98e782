"""The plan: the fingerprint in, every decision with its reason out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from echoplan.dataset import DatasetDescription
from echoplan.errors import EchoPlanError
from echoplan.plans import Configuration, Decision, Plan

from . import rules
from .gpu_check import CheckedBatch, can_check, check_batch, gpu_here
from .memory import CONTEXT_GB, GIGABYTE, MARGIN, MemoryModel, measure_memory
from .summary import balanced_extents

logger = logging.getLogger(__name__)

DEFAULT_GPU_GB = 8.0
_START = "a start for trainers that the plan does not know"
MeasureMemory = Callable[..., MemoryModel]
CheckBatch = Callable[..., CheckedBatch]


@dataclass(frozen=True)
class Request:
    """What the user asked for, and what the rules need beside the fingerprint.

    Attributes:
        summary: the fingerprint's summary; of a joint, with the extents that each dataset has as it is cropped.
        parts: dataset -> its own summary, in a joint; else the summary alone, under "".
        crops: whether the clips of each of them are cropped.
        classes: K.
        protocol: "aspect" or "stretch".
        size: (H, W) asked for, or None.
        frames: T asked for, or None.
        gpu_memory_gb: the target.
        measure: simulates memory.
        check: takes real steps with a batch that is to fit (see `check_batch`); None: forecasts stand unchecked.
    """

    summary: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Any]]
    crops: Mapping[str, Decision]
    classes: int
    protocol: str
    size: tuple[int, int] | None
    frames: int | None
    gpu_memory_gb: float
    measure: MeasureMemory
    check: CheckBatch | None

    @property
    def crop(self) -> bool:
        """Whether extents are the sector's; in a joint both kinds are the same."""
        return any(crop.value for crop in self.crops.values())

    def apart(self, decide: Callable[[str, Mapping[str, Any]], dict[str, Decision]]) -> dict[str, dict[str, Decision]]:
        """Decisions that each dataset gets by its own rule, by dataset; `decide` takes its name and its summary."""
        return {name: decide(name, summary) for name, summary in self.parts.items()}

    def configuration(
        self,
        name: str,
        decisions: dict[str, Decision],
        apart: Mapping[str, dict[str, Decision]],
        *,
        inherits_from: str | None = None,
    ) -> Configuration:
        """A configuration of what is decided together, and of what `apart` decided."""
        if "" in apart:
            return Configuration(name, {**apart[""], **decisions}, inherits_from)
        together = {
            key: replace(one, rule=f"{one.rule}; of several datasets, the mean of their medians")
            for key, one in decisions.items()
            if key in ("size", "frames") and one.kind == "rule"
        }
        return Configuration(name, {**decisions, **together}, inherits_from, apart)


def plan_experiment(
    fingerprint: Mapping[str, Any],
    description: DatasetDescription,
    *,
    trainers: Mapping[str, Any],
    gpu_memory_gb: float | None = None,
    protocol: str = "aspect",
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    plans_name: str = "EchoPlans",
    measure: MeasureMemory = measure_memory,
    check: CheckBatch | None = check_batch,
) -> Plan:
    """Decide everything that training and inference need to know.

    Args:
        fingerprint: from `extract_fingerprint`.
        description: dataset.json.
        trainers: name -> method, as `method_registry` has them.
        gpu_memory_gb: the GPU to plan for; None: the one found here, else 8 GB.
        protocol: "aspect" (kept, padded) or "stretch" (the papers').
        size: (H, W) for all networks, instead of the rules.
        frames: T for all clip networks, instead of the rules.
        plans_name: the plan's name.
        measure: how memory is simulated (see `measure_memory`).
        check: how forecasts are checked where there is a GPU that is not smaller than the one planned for (see
            `check_batch`); None: not at all.

    Raises:
        EchoPlanError: no case could be measured, none is labelled, or an option is wrong.
    """
    summary = fingerprint["summary"]
    parts = summary.get("datasets", {"": summary})
    for name, own in parts.items():
        if not own["counts"]["labelled_cases"]:
            raise EchoPlanError(
                f"{name or fingerprint['dataset']} has no labelled training case that could be read",
                remedy="run echoplan_plan_and_preprocess with --verify_dataset_integrity to see why",
            )
    gpu = gpu_here()
    hardware = _hardware(gpu, gpu_memory_gb)
    memory_gb = hardware["gpu_memory_target_gb"].value
    crops = {name: rules.crop_rule(own) for name, own in parts.items()}
    if "" not in parts:
        extents = {name: own["sector" if crops[name].value else "whole"] for name, own in parts.items()}
        summary = {**summary, "sector": balanced_extents(extents), "whole": balanced_extents(extents)}
    check = check if can_check(gpu, memory_gb) else None
    request = Request(summary, parts, crops, description.classes, protocol, size, frames, memory_gb, measure, check)
    frame = _frame_configuration(request, description)
    clip = _clip_configuration(request)
    configurations = {"frame": frame, "clip": clip}
    planned = {}
    for name, trainer in trainers.items():
        if description.classes > 1 and not getattr(trainer.requirements, "multi_structure", True):
            logger.info("%s is left out of the plan: it segments one structure, the dataset has several", name)
            continue
        planned[name] = _trainer_configuration(name, trainer, configurations[trainer.configuration], request)
    return Plan(fingerprint["dataset"], plans_name, configurations, planned, hardware)


def _hardware(found: Any, gpu_memory_gb: float | None) -> dict[str, Decision]:
    device = Decision(found.name if found else "none", "the first GPU of the machine that planned", {}, "measured")
    if gpu_memory_gb is not None:
        if gpu_memory_gb <= 0:
            raise EchoPlanError(f"a GPU cannot have {gpu_memory_gb} GB of memory", remedy="give --gpu_memory_target 8")
        memory = Decision(float(gpu_memory_gb), "asked for with --gpu_memory_target", {}, "fixed")
    elif found is not None:
        found_gb = round(found.total_memory / GIGABYTE, 1)
        memory = Decision(found_gb, "the memory of the GPU found", {"device": found.name}, "measured")
    else:
        memory = Decision(DEFAULT_GPU_GB, "no GPU was found: planned for a common small one", {}, "rule")
    return {"gpu_memory_target_gb": memory, "device": device}


def _frame_configuration(request: Request, description: DatasetDescription) -> Configuration:
    summary, joint = request.summary, "" not in request.parts
    size = rules.size_rule(summary, crop=request.crop, protocol=request.protocol, square=False, override=request.size)
    supervisions = {name: rules.supervision_rule(own) for name, own in request.parts.items()}
    supervision = rules.joint_supervision_rule(supervisions) if joint else supervisions[""]

    def apart(name: str, own: Mapping[str, Any]) -> dict[str, Decision]:
        return {
            "crop": request.crops[name],
            "target_spacing_mm": _spacing(request, size, name),
            "mirror_axes": rules.mirror_rule(own),
            "rotation_degrees": rules.rotation_rule(own),
            **({"typical_clip": rules.typical_clip_rule(own)} if joint else {}),
        }

    decisions = {
        "protocol": rules.protocol_rule(request.protocol),
        "size": size,
        "classes": rules.classes_rule(description),
        "frames": Decision(1, "one frame at a time", kind="fixed"),
        "sampling": Decision("labelled_frames", "every labelled frame is a sample", kind="fixed"),
        "normalisation": rules.normalisation_rule(summary),
        "supervision": supervision,
        "losses": rules.losses_rule(supervision),
        "batch_size": Decision(8, _START + "; not fitted to a GPU", kind="fixed"),
        "learning_rate": Decision(1e-3, _START, kind="fixed"),
    }
    return request.configuration("frame", decisions, request.apart(apart))


def _clip_configuration(request: Request) -> Configuration:
    size = rules.size_rule(
        request.summary, crop=request.crop, protocol=request.protocol, square=True, override=request.size
    )
    frames = rules.frames_rule(request.summary, rules.CLIP_FRAMES, override=request.frames)

    def apart(name: str, own: Mapping[str, Any]) -> dict[str, Decision]:
        return {**_apart(request, name, size, frames), "sampling": rules.sampling_rule(own)}

    decisions = {
        "size": size,
        "frames": frames,
        "batch_size": Decision(4, _START + "; not fitted to a GPU", kind="fixed"),
        "learning_rate": Decision(1e-4, _START, kind="fixed"),
    }
    return request.configuration("clip", decisions, request.apart(apart), inherits_from="frame")


def _trainer_configuration(name: str, trainer: Any, parent: Configuration, request: Request) -> Configuration:
    needs = trainer.requirements
    size = rules.trainer_size_rule(
        needs,
        request.summary,
        parent.decisions["size"],
        crop=request.crop,
        protocol=request.protocol,
        override=request.size,
    )
    size, frames, batch = _fit(name, trainer, size, request)
    decisions = {
        "size": size,
        "frames": frames,
        "batch_size": batch,
        "learning_rate": rules.learning_rate_rule(needs, batch.value),
    }
    apart = request.apart(lambda part, _: _apart(request, part, size, frames))
    return request.configuration(name, decisions, apart, inherits_from=parent.name)


def _apart(request: Request, part: str, size: Decision, frames: Decision) -> dict[str, Decision]:
    """What size and frames mean for the clips of one dataset."""
    return {
        "target_spacing_mm": _spacing(request, size, part),
        "frame_stride": rules.stride_rule(request.parts[part], frames.value),
    }


def _spacing(request: Request, size: Decision, part: str) -> Decision:
    return rules.target_spacing_rule(
        request.parts[part], tuple(size.value), crop=request.crops[part].value, protocol=request.protocol
    )


def _fit(name: str, trainer: Any, size: Decision, request: Request) -> tuple[Decision, Decision, Decision]:
    """Size, frames and batch size that fit the GPU: the batch shrinks first, then T, then the size."""
    needs, target = trainer.requirements, request.gpu_memory_gb
    wanted = rules.frames_rule(request.summary, needs.frames, override=request.frames)
    tried = None
    try:
        for side, frames in _attempts(size, wanted, needs):
            model = request.measure(trainer, size=side, frames=frames, classes=request.classes)
            checked = CheckedBatch(model.largest_batch(target, at_most=needs.batch_size))
            if checked.size and request.check is not None:
                checked = request.check(
                    checked.size, model, target, trainer, size=side, frames=frames, classes=request.classes
                )
            tried = (side, frames, checked, model)
            if checked.size:
                break
    except EchoPlanError as error:
        logger.warning("%s: %s", name, error)
        unknown = Decision(
            needs.batch_size, "the paper's; not fitted to the GPU, for its memory could not be simulated",
            {"reason": str(error)}, kind="fixed",
        )  # fmt: skip
        return size, wanted, unknown
    side, frames, checked, model = tried
    if not checked.size:
        logger.warning("%s does not fit a GPU of %g GB even at its smallest", name, target)
    if list(side) != list(size.value):
        rule = f"{size.rule}; made smaller, for one sample did not fit the GPU"
        size = Decision(list(side), rule, {**size.evidence, "wanted": size.value}, "rule")
    if frames != wanted.value:
        evidence = {**wanted.evidence, "wanted": wanted.value}
        wanted = Decision(frames, "fewer than wanted, for one sample did not fit the GPU", evidence)
    return size, wanted, _batch_decision(checked, needs, model, target)


def _attempts(size: Decision, frames: Decision, needs: Any) -> list[tuple[tuple[int, int], int]]:
    """((H, W), T) from what is wanted to the smallest thing that still makes sense; what was asked for stays."""
    wanted, most = tuple(size.value), frames.value
    # A clip needs two frames to show motion.
    shorter = [] if "asked_for" in frames.evidence else [fewer for fewer in (8, 6, 4, 2) if fewer < most]
    attempts = [(wanted, count) for count in (most, *shorter)]
    height, width = wanted
    while size.kind != "fixed" and min(height, width) - needs.size_multiple >= rules.SMALLEST_SIDE:
        height, width = height - needs.size_multiple, width - needs.size_multiple
        attempts.append(((height, width), attempts[-1][1]))
    return attempts


def _batch_decision(checked: CheckedBatch, needs: Any, model: MemoryModel, target: float) -> Decision:
    batch = checked.size
    sizes = sorted(
        {size for size in (1, 2, 4, 8, 16, 32, needs.batch_size, batch) if 1 <= size <= 2 * needs.batch_size}
    )
    evidence = {
        "paper_batch_size": needs.batch_size,
        "gpu_memory_target_gb": target,
        "margin_share": MARGIN,
        "context_gb": CONTEXT_GB,
        "precision": model.precision,
        "fixed_gb": round(model.fixed_gb, 2),
        "memory_gb_by_batch_size": {str(size): round(model.gb(size), 2) for size in sizes},
        "fits": batch > 0,
        "depends_on": "hardware.gpu_memory_target_gb",
        **checked.evidence,
    }
    rule = (
        "the largest up to the paper's whose simulated memory (weights, gradients, optimiser, activations, "
        f"context) leaves {MARGIN:.0%} of the GPU free{checked.words}"
    )
    return Decision(max(1, batch), rule, evidence)
