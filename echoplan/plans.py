"""The plan as typed objects: decisions with rule and evidence, configurations that inherit, one entry a trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from echoplan.errors import EchoPlanError
from echoplan.files import read_json, write_json

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
    """Named decisions; those of `inherits_from` hold where it does not decide itself."""

    name: str
    decisions: Mapping[str, Decision]
    inherits_from: str | None = None


@dataclass(frozen=True)
class ResolvedPlan:
    """All decisions that hold for one trainer, with inheritance worked out.

    The typed properties are what the stages read; `value(name)` reads any other decision.
    """

    dataset: str
    plans_name: str
    configuration: str
    decisions: Mapping[str, Decision]

    def value(self, name: str) -> Any:
        """The value of a decision; EchoPlanError if the plan does not hold it."""
        if name not in self.decisions:
            raise EchoPlanError(
                f"the plan {self.plans_name} does not decide {name!r} for {self.configuration}",
                remedy=f"plan again: echoplan_plan_experiment -d {self.dataset}",
            )
        return self.decisions[name].value

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the network's input."""
        height, width = self.value("size")
        return int(height), int(width)

    @property
    def frames(self) -> int:
        """T, the frames a clip at training; 1 for frame networks."""
        return int(self.value("frames"))

    @property
    def frame_stride(self) -> int:
        """Frames from one of a clip's frames to the next at inference."""
        return int(self.value("frame_stride"))

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
    def supervision(self) -> str:
        """ "dense" or "ed_es"."""
        return str(self.value("supervision"))

    @property
    def store(self) -> str:
        """The compressed store's folder in the preprocessed dataset; one a grid, shared by all of that grid."""
        height, width = self.size
        protocol = "" if self.protocol == "aspect" else f"_{self.protocol}"
        return f"{self.plans_name}_{height}x{width}{protocol}"

    def to_dict(self) -> dict[str, Any]:
        """As it is stored in checkpoints and model folders."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ResolvedPlan:
        """From `to_dict`'s form."""
        return cls(**{**content, "decisions": _decisions(content["decisions"])})


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
                f"{', '.join(self.trainers)}) and no configuration {configuration}",
                remedy=f"plan again: echoplan_plan_experiment -d {self.dataset}",
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
        for level in reversed(lineage):
            merged.update(level.decisions)
        name = lineage[1].name if len(lineage) > 1 else own.name
        return ResolvedPlan(self.dataset, self.plans_name, name, merged)

    def write(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        write_json(path, asdict(self))

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


def _configuration(content: Mapping[str, Any]) -> Configuration:
    return Configuration(content["name"], _decisions(content["decisions"]), content.get("inherits_from"))


def _decisions(content: Mapping[str, Any]) -> dict[str, Decision]:
    return {name: Decision(**item) for name, item in content.items()}
