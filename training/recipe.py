"""A method's recipe as settings: stated by its trainer, changed by `--set key=value`, kept in every checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from echoplan.errors import EchoPlanError
from echoplan.networks.settings import NetworkSettings, check_kinds, setting_kinds

from ..preprocessing.clip import NORMALISATIONS
from .augmentation import augmentation_parts

Made = TypeVar("Made", bound="Recipe")


@dataclass(frozen=True)
class MethodRequirements:
    """What a method asks of the plan.

    Attributes:
        batch_size: the paper's batch, in samples (frames for a frame network, clips for a clip network).
        learning_rate: the paper's learning rate at that batch.
        frames: T of a training sample; 1 for a frame network.
        paper_size: the paper's input side in pixels; None takes the configuration's.
        square: the network takes square inputs only.
        size_multiple: both sides must be a multiple of this.
        multi_structure: it can segment several structures at once.
    """

    batch_size: int
    learning_rate: float
    frames: int = 1
    paper_size: int | None = None
    square: bool = False
    size_multiple: int = 32
    multi_structure: bool = True


@dataclass(frozen=True)
class PublishedProtocol:
    """How a paper trained and tested its method on a public dataset; `--protocol paper` has the plan say so.

    Attributes:
        size: the side of the square that frames were stretched to.
        split: "number", the patients in the order of their numbers in the ratio 7 : 1 : 2; or "official", the
            dataset's own train, val and test.
        settings: of the recipe, where the paper's on this dataset are not the recipe's own.
        fit: "stretch", or "nearest" for frames that were stretched by the nearest pixel.
    """

    size: int
    split: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    fit: str = "stretch"


@dataclass(frozen=True)
class PublishedNetwork:
    """How the network that a method's authors published saw its frames; `echoplan_install_model -tr` goes by it.

    Attributes:
        dataset: on which it was trained.
        plan: decisions of the plan: "size" and "normalisation", and others than stretched single frames.
        settings: of the recipe, where the published network's are not the recipe's own.
    """

    dataset: str
    plan: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """Settings every trainer has; a method's own recipe adds to them.

    Attributes:
        epochs: passes, or as many rounds of `iterations_per_epoch`.
        iterations_per_epoch: batches an epoch; None is one pass over the training samples.
        batch_size: samples a batch; None takes the plan's.
        optimiser: "sgd" (Nesterov), "adam" or "adamw".
        learning_rate: at the start; None takes the plan's.
        final_learning_rate: at the end; 0 falls all the way.
        warmup_iterations: steps in which the learning rate first rises in a straight line. The fall then begins, as
            slow as without them, and is not at its end when the training is.
        momentum, weight_decay: the optimiser's.
        nesterov: whether SGD's momentum is Nesterov's.
        poly_power: the learning rate falls as (1 - iteration / iterations) ** poly_power; 0 keeps it constant.
        gradient_clip: the largest gradient norm; None does not clip.
        augmentation: "strong", "moderate", "light", "none", "ultrasound" or parts joined by "+", see
            `augmentation_parts`; as a changed setting also "generic", the method's own.
        precision: of forward passes: "auto" (half where the device computes in it), "float32", "bfloat16", "float16".
        channels_last: memory layout of convolutions on a GPU; on CPUs it slows bfloat16 down.
        compile: whether torch.compile makes the training steps faster; where it fails, training goes on without it.
        deterministic: whether a GPU, too, computes the same to the bit in every run, which is slower; operations that
            cannot are refused. CPUs always do.
        supervision: "all" labels there are, or "ed_es": those of other frames are hidden from the training, the papers'
            semi-supervised protocol on densely labelled clips. Cases without known phases keep theirs.
        keep_epoch: which epoch's weights the fold ends with: "last", "best_dice" (highest validation Dice) or
            "lowest_loss" (lowest validation loss, see `Method.validation_loss`). Of equal ones the first is kept.
        patience: epochs without a better validation (by `keep_epoch`'s measure; with "last" the smoothed Dice) after
            which the training ends before its last epoch; 0: never.
        normalisation: of intensities: "zscore_sector", "unit" or "grey", see `preprocessing.clip.normalise`; None takes
            the plan's.
        drop_last: whether an epoch leaves out the samples that do not fill a batch; a single batch is never left out.
        balance: of several source datasets, "datasets" (an epoch has as many samples of each) or "samples" (each sample
            once, so that the largest dataset has the most).
        network: the settings of the method's network. `with_settings` and `to_dict` know them by their own names,
            beside the others.
    """

    epochs: int = 50
    iterations_per_epoch: int | None = None
    batch_size: int | None = None
    optimiser: str = "adam"
    learning_rate: float | None = None
    final_learning_rate: float = 0.0
    warmup_iterations: int = 0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0
    poly_power: float = 0.9
    gradient_clip: float | None = None
    augmentation: str = "light"
    precision: str = "auto"
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False
    supervision: str = "all"
    keep_epoch: str = "last"
    patience: int = 0
    normalisation: str | None = None
    drop_last: bool = False
    balance: str = "datasets"
    network: NetworkSettings = field(default_factory=NetworkSettings)

    def __post_init__(self) -> None:
        for name in ("epochs", "iterations_per_epoch", "batch_size", "learning_rate"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise EchoPlanError(f"the setting {name} must be more than 0, not {value}")
        for name in ("warmup_iterations", "patience"):
            if getattr(self, name) < 0:
                raise EchoPlanError(f"the setting {name} must be at least 0, not {getattr(self, name)}")
        choices = {
            "optimiser": ("sgd", "adam", "adamw"),
            "precision": ("auto", "float32", "bfloat16", "float16"),
            "supervision": ("all", "ed_es"),
            "keep_epoch": ("last", "best_dice", "lowest_loss"),
            "balance": ("datasets", "samples"),
            "normalisation": (None, *NORMALISATIONS),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise EchoPlanError(
                    f"the setting {name} must be one of {', '.join(map(str, allowed))}, not {getattr(self, name)!r}"
                )
        augmentation_parts(self.augmentation)

    @property
    def input_normalisation(self) -> str | None:
        """How the network wants intensities, of `NORMALISATIONS`; None: as the plan says."""
        return self.normalisation

    def rate_factors(self) -> dict[str, float]:
        """Beginnings of parameters' names -> by how much their learning rate differs from the others'."""
        return {}

    def with_settings(self: Made, settings: Mapping[str, Any]) -> Made:
        """The recipe with some settings changed.

        Raises:
            EchoPlanError: a setting does not exist (the nearest names are offered) or has another type.
        """
        kinds, of_network = setting_kinds(type(self)), setting_kinds(type(self.network))
        del kinds["network"]
        check_kinds(settings, kinds | of_network)
        if settings.get("augmentation") == "generic":
            # Named in full from here on: a checkpoint says what was done. A method without its own takes nnU-Net's.
            generic = type(self)().augmentation
            settings = {**settings, "augmentation": "strong" if generic == "none" else generic}
        network = replace(self.network, **{name: settings[name] for name in settings if name in of_network})
        return replace(self, network=network, **{name: settings[name] for name in settings if name in kinds})

    def network_settings(self) -> NetworkSettings:
        """What the network is built with: `network`, with what follows from the other settings."""
        return self.network

    def to_dict(self) -> dict[str, Any]:
        """As checkpoints keep it: every setting by its name, the network's too."""
        settings = asdict(self)
        of_network = settings.pop("network")
        return settings | of_network

    def complete(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """All settings of a checkpoint, of which an earlier EchoPlan may have written fewer.

        One that it does not name has the recipe's own value; or, where the field's metadata has "before", that: as it
        was before it became a setting.
        """
        kinds = (type(self), type(self.network))
        before = {
            item.name: item.metadata["before"] for kind in kinds for item in fields(kind) if "before" in item.metadata
        }
        return {**self.to_dict(), **before, **settings}


def parse_settings(assignments: Iterable[str]) -> dict[str, Any]:
    """`["epochs=5", "optimiser=adamw"]` as a dictionary; a value is read as JSON where it is JSON, else as text.

    Raises:
        EchoPlanError: an assignment has no "=".
    """
    settings = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator:
            raise EchoPlanError(f"--set takes key=value, not {assignment!r}")
        try:
            settings[name.strip()] = json.loads(text if text not in ("None", "True", "False") else _JSON_WORDS[text])
        except json.JSONDecodeError:
            settings[name.strip()] = text
    return settings


_JSON_WORDS = {"None": "null", "True": "true", "False": "false"}
