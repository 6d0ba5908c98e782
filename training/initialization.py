"""Intermediate adaptation: a training that starts from what the same method learned from other data."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from echoplan.errors import EchoPlanError

from .checkpoint import load_checkpoint
from .recipe import Recipe

if TYPE_CHECKING:
    from .methods.base import EchoTrainer

RANDOM, PUBLISHED, CHECKPOINT = "random weights", "published weights", "checkpoint"
_NAMED = 8  # tensors named in a log line


# Where a network's weights were from before the first step, as debug.json and checkpoints keep it: "kind" ("random
# weights", "published weights" or "checkpoint") and "file", where the user named one; of a checkpoint also "trainer",
# "dataset", "epochs", "size", "classes", and "left_new", the tensors that it could not fill.
Start = dict[str, Any]


def describe_start(start: Start) -> str:
    """In one line, for a log."""
    text = f"started from {start['kind']}" + (f" {start['file']}" if start["file"] else "")
    if start["kind"] == CHECKPOINT:
        text += f" ({start['trainer']}, {start['epochs']} epochs, {start['dataset'] or 'other data'})"
        if left := start["left_new"]:
            more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
            text += f", but for what depends on input size or number of classes: {', '.join(left[:_NAMED])}{more}"
    return text


def is_checkpoint(path: Path) -> bool:
    """Whether a file of weights was written by a training of EchoPlan; its tensors are not read."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # a file that is no checkpoint can make the unpickler stumble in any way
        return False
    return isinstance(content, dict) and {"format", "trainer", "network"} <= content.keys()


def build_started(trainer: EchoTrainer, *, resume: bool = False) -> tuple[nn.Module, Start]:
    """The network of a training that begins, on the CPU, with the weights it is to start from.

    A checkpoint of EchoPlan takes the place of published weights, which are then not read. Where a training is resumed
    nothing is: its own checkpoint will say how it began.

    Raises:
        EchoPlanError: the weights cannot be had, or are of another trainer, or of other settings of this one.
    """
    weights, size = None if resume else trainer.weights, trainer.setup.plan.size
    known = {"size": size, "classes": trainer.classes, "settings": trainer.recipe.to_dict()}
    if weights is not None and is_checkpoint(weights):
        network = trainer.build_network(**known)
        return network, fill_from_checkpoint(network, weights, trainer)
    published = not resume and (weights or bool(getattr(trainer.recipe, "pretrained", False)))
    network = trainer.build_network(**known, pretrained=published)
    return network, {"kind": PUBLISHED if published else RANDOM, "file": None if weights is None else str(weights)}


def fill_from_checkpoint(network: nn.Module, file: Path, trainer: EchoTrainer) -> Start:
    """Fill a network with the weights of a checkpoint of the same trainer, trained on other data.

    What depends on the input's size or on the number of classes stays at its new values where these differ: position
    tables, and the last layer.

    Args:
        network: built with the trainer's settings; changed in place.
        file: any of a fold's checkpoints.
        trainer: whose network it is.

    Raises:
        EchoPlanError: the checkpoint is of another trainer, or of settings that make another network.
    """
    state = load_checkpoint(file)
    name = type(trainer).__name__
    if state["trainer"] != name:
        raise EchoPlanError(
            f"this checkpoint was trained by {state['trainer']}, not by {name}",
            file=file,
            remedy=f"start from a checkpoint of {name}, or train {state['trainer']}",
        )
    learned: dict[str, Tensor] = state["network"]
    with torch.device("meta"):  # what the network is where the checkpoint was made, without its values
        twin = trainer.build_network(
            size=tuple(state["size"]), classes=state["classes"], settings=trainer.recipe.to_dict()
        ).state_dict()
    if _shapes(twin) != _shapes(learned):
        raise EchoPlanError(
            f"the checkpoint is of another network: {_difference(twin, learned)}; {_other_settings(trainer, state)}",
            file=file,
            remedy="train with the settings of the checkpoint (--set), or start from another one",
        )
    own = network.state_dict()
    fitting = {key: value for key, value in learned.items() if key in own and own[key].shape == value.shape}
    network.load_state_dict(fitting, strict=False)
    about = {key: state.get(key) for key in ("trainer", "dataset", "epochs", "size", "classes")}
    return {"kind": CHECKPOINT, "file": str(file), **about, "left_new": [key for key in own if key not in fitting]}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def _difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    for key, value in expected.items():
        if key not in found:
            return f"it lacks {key}"
        if found[key].shape != value.shape:
            return f"{key} is {tuple(found[key].shape)} instead of {tuple(value.shape)}"
    return f"it has {next(key for key in found if key not in expected)} besides"


def _other_settings(trainer: EchoTrainer, state: Mapping[str, Any]) -> str:
    """The settings of the method, not of its training, in which the checkpoint differs."""
    common = {field.name for field in fields(Recipe)} | {"pretrained"}
    mine, theirs = trainer.recipe.to_dict(), type(trainer.recipe)().to_dict() | state["settings"]
    other = [
        f"{name}={theirs[name]} there, {mine[name]} here"
        for name in mine
        if name not in common and theirs[name] != mine[name]
    ]
    return f"its settings differ ({'; '.join(other)})" if other else "it was made by another version of EchoPlan"
