"""The plan as typed objects: decisions with rule and evidence, configurations that inherit, one entry a trainer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from echoplan.errors import EchoPlanError
from echoplan.files import read_json, write_json
from echoplan.imageio.bounds import MAX_FRAME_PIXELS
from echoplan.paths import dataset_name

KINDS = ("rule", "measured", "fixed")


@dataclass(frozen=True)
class Decision:
    """One decision of the plan.

    Attributes:
        value: what was decided; plain types only.
        rule: why, in words.
        evidence: the numbers the rule looked at.
        kind: "rule" (derived from the fingerprint), "measured" (a measurement itself) or "fixed" (stated by a paper or
            asked for by the user).
    """

    value: Any
    rule: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "rule"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}, not one of {KINDS}")


@dataclass(frozen=True)
class Configuration:
    """Named decisions; those of `inherits_from` hold where it does not decide itself.

    Attributes:
        name: its name.
        decisions: by name.
        inherits_from: another configuration.
        datasets: source dataset -> the decisions that hold for that dataset's cases alone, where there are several.
    """

    name: str
    decisions: Mapping[str, Decision]
    inherits_from: str | None = None
    datasets: Mapping[str, Mapping[str, Decision]] = field(default_factory=dict)


@dataclass(frozen=True)
class ResolvedPlan:
    """All decisions that hold for one trainer, with inheritance worked out.

    The typed properties are what the stages read; `value(name)` reads any other decision. A plan has one source dataset
    or several; what belongs to a dataset (crop, stride, sampling, flips, rotation) is asked of the plan `of` it.

    Attributes:
        dataset: the folder that the plan is of: Dataset001_CAMUS, or CAMUS+EchoNet.
        plans_name, configuration: their names.
        decisions: those that hold for all cases.
        datasets: source dataset -> its own decisions; a single dataset has none beside those that hold for all.
    """

    dataset: str
    plans_name: str
    configuration: str
    decisions: Mapping[str, Decision]
    datasets: Mapping[str, Mapping[str, Decision]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.datasets:
            object.__setattr__(self, "datasets", {dataset_name(Path(self.dataset)): {}})

    @property
    def multi_dataset(self) -> bool:
        """Whether there are several source datasets, which files then tell apart."""
        return len(self.datasets) > 1

    def of(self, dataset: str) -> ResolvedPlan:
        """The plan as it holds for the cases of one of its source datasets.

        Raises:
            EchoPlanError: it has no such dataset.
        """
        if dataset not in self.datasets:
            raise EchoPlanError(
                f"the plan {self.plans_name} of {self.dataset} has no dataset {dataset}, only "
                f"{' and '.join(self.datasets)}",
                remedy=f"plan and preprocess again: echoplan_plan_and_preprocess -d {self.dataset}",
            )
        return replace(self, decisions={**self.decisions, **self.datasets[dataset]}, datasets={dataset: {}})

    def each(self) -> dict[str, ResolvedPlan]:
        """Source dataset -> the plan as it holds for its cases."""
        return {name: self.of(name) for name in self.datasets}

    def value(self, name: str) -> Any:
        """The value of a decision; EchoPlanError if the plan does not hold it."""
        if any(name in own for own in self.datasets.values()):
            raise EchoPlanError(
                f"the plan {self.plans_name} decides {name!r} for each of {', '.join(self.datasets)} apart",
                remedy="ask for it with plan.of(dataset)",
            )
        if name not in self.decisions:
            raise EchoPlanError(
                f"the plan {self.plans_name} does not decide {name!r} for {self.configuration}",
                remedy=f"plan again: echoplan_plan_experiment -d {self.dataset}",
            )
        return self.decisions[name].value

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the network's input."""
        height, width = map(int, self.value("size"))
        if min(height, width) < 1 or height * width > MAX_FRAME_PIXELS:
            raise EchoPlanError(f"the plan {self.plans_name} asks for frames of {height} x {width} pixels")
        return height, width

    @property
    def frames(self) -> int:
        """T, the frames a clip at training; 1 for frame networks."""
        return int(self.value("frames"))

    @property
    def frame_stride(self) -> int:
        """Frames from one of a clip's frames to the next at inference."""
        return int(self.value("frame_stride"))

    @property
    def window_stride(self) -> int:
        """`frame_stride` for networks that see windows of frames; 1 for frame networks, which see every frame."""
        return self.frame_stride if self.frames > 1 else 1

    @property
    def batch_size(self) -> int:
        """Clips (or single frames) a batch."""
        return int(self.value("batch_size"))

    @property
    def crop(self) -> bool:
        """Whether clips are cropped to the sector's box."""
        return bool(self.value("crop"))

    @property
    def protocol(self) -> str:
        """ "aspect" (kept, padded) or "stretch" (as the papers do)."""
        return str(self.value("protocol"))

    @property
    def normalisation(self) -> str:
        """The name of the intensity normalisation."""
        return str(self.value("normalisation"))

    @property
    def mirror_axes(self) -> tuple[str, ...]:
        """ "horizontal", "vertical" or none: the flips that the dataset's orientation allows."""
        return tuple(self.value("mirror_axes"))

    @property
    def rotation_degrees(self) -> float:
        """The largest rotation of the augmentation."""
        return float(self.value("rotation_degrees"))

    @property
    def sampling(self) -> str:
        """How training samples are taken: "labelled_frames", "uniform_ed_es" or "windows"."""
        return str(self.value("sampling"))

    @property
    def split(self) -> str:
        """Whose folds: "folds", EchoPlan's own, or a paper's split: "number" or "official"."""
        return str(self._papers("split", "folds"))

    @property
    def judging(self) -> str:
        """What is judged: "native", all labelled frames on the clip's grid, or "sampled", the papers' frames on the
        network's.
        """
        return str(self._papers("judging", "native"))

    @property
    def settings(self) -> dict[str, Any]:
        """Of the recipe, where the paper's on this dataset are not the recipe's own."""
        return dict(self._papers("settings", {}))

    def _papers(self, name: str, ours: Any) -> Any:
        """What only a plan that follows the papers decides."""
        return self.decisions[name].value if name in self.decisions else ours

    @property
    def store(self) -> str:
        """The compressed store's folder in the preprocessed dataset; one a grid, shared by all of that grid."""
        height, width = self.size
        protocol = "" if self.protocol == "aspect" else f"_{self.protocol}"
        return f"{self.plans_name}_{height}x{width}{protocol}"

    def to_dict(self) -> dict[str, Any]:
        """As it is stored in checkpoints and model folders."""
        content = asdict(self)
        if not any(self.datasets.values()):
            del content["datasets"]
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ResolvedPlan:
        """From `to_dict`'s form."""
        datasets = _datasets(content.get("datasets", {}))
        return cls(**{**content, "decisions": _decisions(content["decisions"]), "datasets": datasets})


@dataclass(frozen=True)
class Plan:
    """The plan of a dataset: what EchoPlans.json holds."""

    dataset: str
    plans_name: str
    configurations: Mapping[str, Configuration]
    trainers: Mapping[str, Configuration]
    hardware: Mapping[str, Decision] = field(default_factory=dict)

    def resolve(self, trainer: str, *, configuration: str | None = None) -> ResolvedPlan:
        """The decisions for a trainer.

        Args:
            trainer: the trainer class's name.
            configuration: what a trainer the plan does not know (a user's own) builds on.

        Raises:
            EchoPlanError: neither the trainer nor the configuration is in the plan.
        """
        if trainer in self.trainers:
            own = self.trainers[trainer]
        elif configuration in self.configurations:
            own = Configuration(trainer, {}, inherits_from=configuration)
        else:
            raise EchoPlanError(
                f"the plan {self.plans_name} of {self.dataset} has no trainer {trainer} (it has: "
                f"{', '.join(self.trainers)})",
                remedy=f"run echoplan_plan_and_preprocess -d {self.dataset} -tr {trainer}; what is there stays",
            )
        lineage = [own]
        while lineage[-1].inherits_from is not None:
            parent = self.configurations.get(lineage[-1].inherits_from)
            if parent is None or parent in lineage:
                raise EchoPlanError(
                    f"{lineage[-1].name} inherits from {lineage[-1].inherits_from!r}, which the plan does not hold or "
                    "which inherits from itself",
                    remedy=f"plan again: echoplan_plan_experiment -d {self.dataset}",
                )
            lineage.append(parent)
        merged: dict[str, Decision] = {}
        datasets: dict[str, dict[str, Decision]] = {}
        for level in reversed(lineage):
            merged.update(level.decisions)
            for dataset, decisions in level.datasets.items():
                datasets.setdefault(dataset, {}).update(decisions)
        name = lineage[1].name if len(lineage) > 1 else own.name
        return ResolvedPlan(self.dataset, self.plans_name, name, merged, datasets)

    def with_trainers_of(self, earlier: Plan) -> Plan:
        """Also the trainers of an earlier plan that rests on the same decisions and hardware; else just this plan."""
        ours, theirs = ((_decided(plan.configurations), _decided(plan.hardware)) for plan in (self, earlier))
        return replace(self, trainers={**earlier.trainers, **self.trainers}) if ours == theirs else self

    def to_dict(self) -> dict[str, Any]:
        """As the plan's file holds it."""
        content = asdict(self)
        for group in ("configurations", "trainers"):
            content[group] = {name: _without_empty_datasets(item) for name, item in content[group].items()}
        return content

    def write(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        write_json(path, self.to_dict())

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Read a plan.

        Raises:
            EchoPlanError: the file is missing or is no plan.
        """
        if not Path(path).is_file():
            raise EchoPlanError("there is no plan", file=path, remedy="run echoplan_plan_and_preprocess first")
        content = read_json(path)
        try:
            return cls(
                dataset=content["dataset"],
                plans_name=content["plans_name"],
                configurations={name: _configuration(item) for name, item in content["configurations"].items()},
                trainers={name: _configuration(item) for name, item in content["trainers"].items()},
                hardware=_decisions(content.get("hardware", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EchoPlanError(f"this is not a plan: {error!r}", file=path, remedy="plan again") from error


def _decided(parts: Mapping[str, Any]) -> Any:
    """As a file would hold it, where tuples are lists."""
    return json.loads(json.dumps({name: asdict(part) for name, part in parts.items()}))


def _configuration(content: Mapping[str, Any]) -> Configuration:
    decisions, datasets = _decisions(content["decisions"]), _datasets(content.get("datasets", {}))
    return Configuration(content["name"], decisions, content.get("inherits_from"), datasets)


def _decisions(content: Mapping[str, Any]) -> dict[str, Decision]:
    return {name: Decision(**item) for name, item in content.items()}


def _datasets(content: Mapping[str, Any]) -> dict[str, dict[str, Decision]]:
    return {name: _decisions(item) for name, item in content.items()}


def _without_empty_datasets(content: dict[str, Any]) -> dict[str, Any]:
    """Plans of a single dataset, which are most, need no such key."""
    return {name: item for name, item in content.items() if name != "datasets" or item}
