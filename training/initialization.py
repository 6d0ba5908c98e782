"""Intermediate adaptation: a training that starts from what the same method learned from other data."""

from __future__ import annotations

import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from echoplan.errors import EchoPlanError
from echoplan.networks.weights import finite_variances

from .checkpoint import ModelState, unusable
from .methods import Method
from .recipe import Recipe

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


def initial_network(
    method: Method[Any], *, size: tuple[int, int], classes: int, weights: Path | None = None, resume: bool = False
) -> tuple[nn.Module, Start]:
    """The network of a training that begins, on the CPU, with the weights it is to start from.

    A checkpoint of EchoPlan takes the place of published weights, which are then not read. Where a training is resumed
    nothing is: its own checkpoint will say how it began.

    Args:
        method: whose network.
        size: (H, W) of the input.
        classes: K output channels.
        weights: published ones, or a checkpoint of the same method; None looks for published ones in the usual places.
        resume: whether a training is resumed.

    Raises:
        EchoPlanError: the weights cannot be had, or are of another method, or of other settings of this one.
    """
    weights = None if resume else weights
    if weights is not None and is_checkpoint(weights):
        network = method.build_network(size=size, classes=classes)
        return network, fill_from_checkpoint(network, weights, method)
    published = not resume and (weights or bool(getattr(method.recipe, "pretrained", False)))
    network = method.build_network(size=size, classes=classes, pretrained=published)
    return network, {"kind": PUBLISHED if published else RANDOM, "file": None if weights is None else str(weights)}


def network_settings_of(file: Path, method: Method[Any]) -> dict[str, Any]:
    """The settings that make the network in a checkpoint of a method; empty of other files of weights.

    Args:
        file: weights that a training is to start from.
        method: which is to be trained.

    Raises:
        EchoPlanError: the checkpoint cannot be read.
    """
    if not is_checkpoint(file):
        return {}
    state = ModelState.read(file, mapped=True)
    names = {item.name for item in fields(method.recipe.network)} - {"pretrained"}
    return {name: state.settings[name] for name in names & {*state.settings}} if state.trainer == method.name else {}


def fill_from_checkpoint(network: nn.Module, file: Path, method: Method[Any]) -> Start:
    """Fill a network with the weights of a checkpoint of the same method, trained on other data.

    What depends on the input's size or on the number of classes stays at its new values where these differ: position
    tables, and the last layer.

    Args:
        network: built with the method's settings; changed in place.
        file: any of a fold's checkpoints.
        method: whose network it is.

    Raises:
        EchoPlanError: the checkpoint is of another method, or of settings that make another network.
    """
    state = ModelState.read(file)
    state.check_content(file)
    if state.trainer != method.name:
        raise EchoPlanError(
            f"this checkpoint was trained by {state.trainer}, not by {method.name}",
            file=file,
            remedy=f"start from a checkpoint of {method.name}, or train {state.trainer}",
        )
    if difference := difference_from(method, state):
        raise EchoPlanError(
            f"the checkpoint is of another network: {difference}; {_other_settings(method, state)}",
            file=file,
            remedy="train with the settings of the checkpoint (--set), or start from another one",
        )
    new, old = network.state_dict(), finite_variances(state.network, file)
    fitting = {key: value for key, value in old.items() if key in new and new[key].shape == value.shape}
    network.load_state_dict(fitting, strict=False)
    return {
        "kind": CHECKPOINT,
        "file": str(file),
        "trainer": state.trainer,
        "dataset": state.dataset,
        "epochs": state.epochs,
        "size": list(state.size),
        "classes": state.classes,
        "left_new": [key for key in new if key not in fitting],
    }


def with_trained_settings(method: Method[Any], state: ModelState, file: Path) -> Method[Any]:
    """A method of the project's own with the settings of a checkpoint, once they are sure to make the network in it.

    Settings are checked as those of a command line are, and the network's shape before it is built: a few bytes could
    ask for any memory.

    Args:
        method: as it is by itself.
        state, file: the checkpoint.

    Raises:
        EchoPlanError: a setting is not possible, or makes another network.
    """
    try:
        method = method.with_settings(method.recipe.complete(state.settings))
        difference = difference_from(method, state)
    except EchoPlanError as error:
        raise unusable(file, error.problem) from error
    if difference:
        raise EchoPlanError(
            f"the weights do not fit the network of {method.name}: {difference}",
            file=file,
            remedy="use the EchoPlan that trained it, or train again",
        )
    return method


def difference_from(method: Method[Any], state: ModelState) -> str:
    """In what the network in a checkpoint differs from the method's of its size and classes; empty if in nothing."""
    with torch.device("meta"):  # without its values
        expected = method.build_network(size=state.size, classes=state.classes).state_dict()
    there = state.network
    for key, value in expected.items():
        if key not in there:
            return f"it lacks {key}"
        if there[key].shape != value.shape:
            return f"{key} is {tuple(there[key].shape)} instead of {tuple(value.shape)}"
    more = [key for key in there if key not in expected]
    return f"it has {more[0]} besides" if more else ""


def _other_settings(method: Method[Any], state: ModelState) -> str:
    """The settings of the method, not of its training, in which the checkpoint differs."""
    common = {field.name for field in fields(Recipe)} | {"pretrained"}
    mine, theirs = method.recipe.to_dict(), method.defaults.complete(state.settings)
    other = [
        f"{name}={theirs[name]} there, {mine[name]} here"
        for name in mine
        if name not in common and theirs[name] != mine[name]
    ]
    return f"its settings differ ({'; '.join(other)})" if other else "it was made by another version of EchoPlan"
