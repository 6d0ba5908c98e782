"""The plan: the fingerprint in, every decision with its reason out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from echoplan import layout
from echoplan.dataset import DatasetDescription
from echoplan.errors import EchoPlanError
from echoplan.paths import dataset_name
from echoplan.plans import Configuration, Decision, Plan

from ..training.methods import Method
from ..training.recipe import MethodRequirements
from . import rules
from .fingerprint import balanced_extents
from .gpu_check import CheckedBatch, can_check, check_batch, gpu_here
from .memory import CONTEXT_GB, GIGABYTE, MARGIN, MemoryModel, measure_memory
from .rules import Summary

logger = logging.getLogger(__name__)

DEFAULT_GPU_GB = 8.0
_START = "a start for trainers that the plan does not know"
MeasureMemory = Callable[..., MemoryModel]
CheckBatch = Callable[..., CheckedBatch]


def plan_experiment(
    fingerprint: Mapping[str, Any],
    description: DatasetDescription,
    *,
    trainers: Mapping[str, Method[Any]],
    gpu_memory_gb: float | None = None,
    protocol: str = "aspect",
    published: str = "",
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    plans_name: str = layout.DEFAULT_PLANS,
    measure: MeasureMemory = measure_memory,
    check: CheckBatch | None = check_batch,
) -> Plan:
    """Decide everything that training and inference need to know.

    Args:
        fingerprint: from `extract_fingerprint` or `joint_fingerprint`.
        description: dataset.json.
        trainers: name -> method.
        gpu_memory_gb: the GPU to plan for; None: the one found here, else 8 GB.
        protocol: "aspect" (kept, padded), or "stretch": as the papers do, which are followed in all that they say.
        published: the public dataset's name, where it is one; the papers' sizes and splits there then hold.
        size: (H, W) for all networks, instead of the rules.
        frames: T for all clip networks, instead of the rules.
        plans_name: the plan's name.
        measure: how memory is simulated (see `measure_memory`).
        check: how forecasts are checked where there is a GPU that is not smaller than the one planned for (see
            `check_batch`); None: not at all.

    Raises:
        EchoPlanError: no case could be measured, none is labelled, or an option is wrong.
    """
    sources = _summaries_of_sources(fingerprint)
    papers = protocol == "stretch"
    gpu = gpu_here()
    hardware = _hardware(gpu, gpu_memory_gb)
    memory_gb = hardware["gpu_memory_target_gb"].value
    planner = Planner(
        summary=fingerprint["summary"],
        sources=sources,
        crops={name: rules.PAPERS_CROP if papers else rules.crop_rule(own) for name, own in sources.items()},
        classes=description.classes,
        protocol=protocol,
        published=published if papers else "",
        size=size,
        frames=frames,
        memory_gb=memory_gb,
        measure=measure,
        check=check if can_check(gpu, memory_gb) else None,
    )
    configurations = {"frame": planner.frame_configuration(), "clip": planner.clip_configuration()}
    planned = {}
    for name, method in trainers.items():
        if description.classes > 1 and not method.requirements.multi_structure:
            logger.info("%s is left out of the plan: it segments one structure, the dataset has several", name)
            continue
        planned[name] = planner.trainer(name, method, configurations[method.configuration])
    return Plan(fingerprint["dataset"], plans_name, configurations, planned, hardware)


def _summaries_of_sources(fingerprint: Mapping[str, Any]) -> dict[str, Summary]:
    """Source dataset -> its own summary; EchoPlanError where one has no labels."""
    summary = fingerprint["summary"]
    sources: dict[str, Summary] = summary.get("datasets") or {dataset_name(Path(fingerprint["dataset"])): summary}
    for name, own in sources.items():
        if not own["counts"]["labelled_cases"]:
            raise EchoPlanError(
                f"{name} has no labelled training case that could be read",
                remedy="run echoplan_plan_and_preprocess with --verify_dataset_integrity to see why",
            )
    return sources


def _hardware(gpu: Any, gpu_memory_gb: float | None) -> dict[str, Decision]:
    device = Decision(gpu.name if gpu else "none", "the first GPU of the machine that planned", {}, "measured")
    if gpu_memory_gb is not None:
        if gpu_memory_gb <= 0:
            raise EchoPlanError(f"a GPU cannot have {gpu_memory_gb} GB of memory", remedy="give --gpu_memory_target 8")
        memory = Decision(float(gpu_memory_gb), "asked for with --gpu_memory_target", {}, "fixed")
    elif gpu is not None:
        gpu_gb = round(gpu.total_memory / GIGABYTE, 1)
        memory = Decision(gpu_gb, "the memory of the GPU found", {"device": gpu.name}, "measured")
    else:
        memory = Decision(DEFAULT_GPU_GB, "no GPU was found: planned for a common small one", {}, "rule")
    return {"gpu_memory_target_gb": memory, "device": device}


@dataclass(frozen=True)
class Planner:
    """Makes configurations of what was measured and asked for.

    Attributes:
        summary: the fingerprint's, of all source datasets together.
        sources: source dataset -> its own summary.
        crops: source dataset -> whether its clips are cropped.
        classes: K.
        protocol: "aspect" or "stretch".
        published: the public dataset on which the papers are followed; "" for none.
        size: (H, W) asked for, or None.
        frames: T asked for, or None.
        memory_gb: of the GPU planned for.
        measure: simulates memory.
        check: takes real steps with a batch that is to fit (see `check_batch`); None: forecasts stand unchecked.
    """

    summary: Summary
    sources: Mapping[str, Summary]
    crops: Mapping[str, Decision]
    classes: int
    protocol: str
    published: str
    size: tuple[int, int] | None
    frames: int | None
    memory_gb: float
    measure: MeasureMemory
    check: CheckBatch | None

    def frame_configuration(self) -> Configuration:
        """What networks that see one frame at a time start from, and all others too."""
        size = rules.size_rule(self.extents(), crop=self.crop, protocol=self.protocol, square=False, override=self.size)
        decisions = {
            "protocol": rules.protocol_rule(self.protocol),
            "size": self.with_spacing(size),
            "frames": Decision(1, "one frame at a time", kind="fixed"),
            "sampling": rules.FRAME_SAMPLING,
            "normalisation": rules.normalisation_rule(self.summary),
            "batch_size": Decision(8, _START + "; not fitted to a GPU", kind="fixed"),
            "learning_rate": Decision(1e-3, _START, kind="fixed"),
            **({"judging": rules.PAPERS_JUDGING} if self.protocol == "stretch" else {}),
        }
        own = {
            name: {
                "crop": self.crops[name],
                "mirror_axes": rules.mirror_rule(summary),
                "rotation_degrees": rules.rotation_rule(summary),
                **({"typical_clip": rules.typical_clip_rule(summary)} if len(self.sources) > 1 else {}),
            }
            for name, summary in self.sources.items()
        }
        return self.configuration("frame", decisions, own)

    def clip_configuration(self) -> Configuration:
        """What networks that see clips start from."""
        size = rules.size_rule(self.extents(), crop=self.crop, protocol=self.protocol, square=True, override=self.size)
        frames = rules.frames_rule(self.summary, rules.CLIP_FRAMES, override=self.frames)
        decisions = {
            "size": self.with_spacing(size),
            "frames": frames,
            "batch_size": Decision(4, _START + "; not fitted to a GPU", kind="fixed"),
            "learning_rate": Decision(1e-4, _START, kind="fixed"),
        }
        own = {
            name: {
                "frame_stride": rules.stride_rule(summary, frames.value),
                "sampling": rules.sampling_rule(summary),
            }
            for name, summary in self.sources.items()
        }
        return self.configuration("clip", decisions, own, inherits_from="frame")

    def trainer(self, name: str, method: Method[Any], parent: Configuration) -> Configuration:
        """What one method adds to its configuration."""
        paper = method.protocols.get(self.published)
        if paper is not None:
            method = method.with_settings(paper.settings)
        wanted = rules.trainer_size_rule(
            method.requirements,
            self.extents(),
            parent.decisions["size"],
            protocol=self.protocol,
            override=self.size,
            paper=paper,
        )
        size, frames, batch = self.fit(method, wanted)
        decisions = {
            "size": self.with_spacing(size),
            "frames": frames,
            "batch_size": batch,
            "learning_rate": rules.learning_rate_rule(method.requirements, batch.value),
            **({} if paper is None else rules.paper_rules(paper, self.published)),
        }
        if method.recipe.input_normalisation is not None:
            decisions["normalisation"] = Decision(method.recipe.input_normalisation, "the recipe's", kind="fixed")
        own = {
            source: {"frame_stride": rules.stride_rule(summary, frames.value)}
            for source, summary in self.sources.items()
        }
        if frames.value > 1 and parent.name == "frame":  # a method of clips that builds on single frames
            for source, summary in self.sources.items():
                own[source]["sampling"] = rules.sampling_rule(summary)
        return self.configuration(name, decisions, own, inherits_from=parent.name)

    def configuration(
        self,
        name: str,
        decisions: dict[str, Decision],
        own: Mapping[str, dict[str, Decision]],
        *,
        inherits_from: str | None = None,
    ) -> Configuration:
        """A configuration of what is decided for all clips, and of each source dataset's `own` decisions.

        Of a single dataset these hold for all clips too, and its plan's file has one list.
        """
        if len(own) == 1:
            return Configuration(name, {**next(iter(own.values())), **decisions}, inherits_from)
        averaged = {
            key: replace(decision, rule=f"{decision.rule}; of several datasets, the mean of their medians")
            for key, decision in decisions.items()
            if key in ("size", "frames") and decision.kind == "rule"
        }
        return Configuration(name, {**decisions, **averaged}, inherits_from, own)

    @property
    def crop(self) -> bool:
        """Whether the clips of any dataset are cropped."""
        return any(crop.value for crop in self.crops.values())

    def extents_of(self, source: str) -> Summary:
        """How large the clips of a dataset are, as they are cropped."""
        extents: Summary = self.sources[source]["sector" if self.crops[source].value else "whole"]
        return extents

    def extents(self) -> Summary:
        """How large clips are; each dataset counts alike."""
        extents = {name: self.extents_of(name) for name in self.sources}
        return balanced_extents(extents) if len(extents) > 1 else next(iter(extents.values()))

    def with_spacing(self, size: Decision) -> Decision:
        """A size that also says what it makes of the median clip: the mm that a pixel covers, of each dataset."""
        spacings = {
            name: rules.spacing_on_grid(self.extents_of(name), tuple(size.value), protocol=self.protocol)
            for name in self.sources
        }
        spacing = spacings if len(spacings) > 1 else next(iter(spacings.values()))
        return replace(size, evidence={**size.evidence, "target_spacing_mm": spacing})

    def fit(self, method: Method[Any], size: Decision) -> tuple[Decision, Decision, Decision]:
        """Size, frames and batch size that fit the GPU: the batch shrinks first, then T, then the size."""
        needs, target = method.requirements, self.memory_gb
        papers = needs.frames if self.protocol == "stretch" and needs.frames > 1 else None
        wanted = rules.frames_rule(self.summary, needs.frames, override=self.frames, paper=papers)
        try:
            for side, frames in _attempts(size, wanted, needs):
                shape = {"size": side, "frames": frames, "classes": self.classes}
                model = self.measure(method, **shape)
                checked = CheckedBatch(model.largest_batch(target, at_most=needs.batch_size))
                if checked.size and self.check is not None:
                    checked = self.check(checked.size, model, target, method, **shape)
                if checked.size:
                    break
        except EchoPlanError as error:
            logger.warning("%s: %s", method.name, error)
            unknown = Decision(
                needs.batch_size, "the paper's; not fitted to the GPU, for its memory could not be simulated",
                {"reason": str(error)}, kind="fixed",
            )  # fmt: skip
            return size, wanted, unknown
        if not checked.size:
            logger.warning("%s does not fit a GPU of %g GB even at its smallest", method.name, target)
        if list(side) != list(size.value):
            rule = f"{size.rule}; made smaller, for one sample did not fit the GPU"
            size = Decision(list(side), rule, {**size.evidence, "wanted": size.value}, "rule")
        if frames != wanted.value:
            evidence = {**wanted.evidence, "wanted": wanted.value}
            wanted = Decision(frames, "fewer than wanted, for one sample did not fit the GPU", evidence)
        return size, wanted, _batch_decision(checked, needs, model, target)


def _attempts(size: Decision, frames: Decision, needs: MethodRequirements) -> list[tuple[tuple[int, int], int]]:
    """((H, W), T) from what is wanted to the smallest thing that still makes sense; what was asked for stays."""
    height, width = size.value
    most = frames.value
    # A clip needs two frames to show motion.
    shorter = [] if "asked_for" in frames.evidence else [fewer for fewer in (8, 6, 4, 2) if fewer < most]
    attempts = [((height, width), count) for count in (most, *shorter)]
    while size.kind != "fixed" and min(height, width) - needs.size_multiple >= rules.SMALLEST_SIDE:
        height, width = height - needs.size_multiple, width - needs.size_multiple
        attempts.append(((height, width), attempts[-1][1]))
    return attempts


def _batch_decision(checked: CheckedBatch, needs: MethodRequirements, model: MemoryModel, target: float) -> Decision:
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
