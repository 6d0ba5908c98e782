"""A network that a method's authors published, made a model folder like a trained one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echoplan import layout
from echoplan.dataset import DatasetDescription
from echoplan.errors import EchoPlanError
from echoplan.files import write_json
from echoplan.paths import Folders, dataset_name
from echoplan.plans import Configuration, Decision, Plan

from ...training.checkpoint import ModelState, plain_settings
from ...training.initialization import PUBLISHED
from ...training.methods import Method, find_method, method_registry
from ...training.resume_check import plan_basis
from .atomic_install import move_into_place, sweep_workplaces, workplace

_PLANS_NAME = "Published"


def install_published(
    file: Path,
    folders: Folders,
    *,
    trainer: str,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    size: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Make the authors' file of weights a model folder, <Trainer>__Published__<configuration>, of one fold.

    The file is read as tensors and plain types, and must have each tensor of the network and no other.

    Args:
        file: a state dict, or a dict that holds one under "state_dict" or "model".
        folders: where results lie.
        trainer: whose network it is.
        name: what the dataset that it was trained on is to be called here; None: as the method has it.
        settings: of the recipe, where they differ from those of the published network.
        size: the side of the frames that the network saw; None: as the method has it.
        overwrite: whether a published network that is there may be replaced.

    Returns:
        the model folder.

    Raises:
        EchoPlanError: the method's authors published no network, the file is not theirs, or one is there already.
    """
    method = find_method(trainer)
    about = method.published
    if about is None:
        known = ", ".join(other for other, own in method_registry().items() if own.published is not None)
        alone = " --set trainable=locator" if hasattr(method.recipe, "locator_learning_rate") else ""
        raise EchoPlanError(
            f"{trainer} has no published network that predicts by itself; those of {known} do",
            remedy=f"train what it lacks: echoplan_train DATASET 0 -tr {trainer} --weights {file}{alone}",
        )
    home = folders.home_of_installed(f"Dataset001_{about.dataset}", name=name)
    method = method.with_settings({**about.settings, **(settings or {})})
    paper = method.protocols.get(dataset_name(home))
    values = {"protocol": "stretch" if paper is None else paper.fit, **about.plan}
    values |= {} if size is None else {"size": [size, size]}
    plan = _plan(home.name, method.name, method.configuration, values)
    state = _state(method, plan, file, source=trainer)
    model = f"{method.name}__{_PLANS_NAME}__{method.configuration}"
    sweep_workplaces(folders.results)
    with workplace(home) as work:
        if (home / model).exists() and not overwrite:
            raise EchoPlanError(
                "this model is there already", file=home / model, remedy="replace it with --overwrite, or name -d"
            )
        made = work / "new" / model
        plan.write(made / layout.MODEL_PLAN_FILE)
        write_json(made / layout.DATASET_FILE, DatasetDescription(dataset_name(home)).to_dict())
        state.write(made / layout.fold_folder(0) / layout.checkpoint_file("final"))
        move_into_place(work, [model], overwrite=overwrite)
    return home / model


def _state(method: Method[Any], plan: Plan, file: Path, *, source: str) -> ModelState:
    """The checkpoint: the network with the file's weights."""
    resolved = plan.resolve(method.name, configuration=method.configuration)
    network = method.build_network(size=resolved.size, classes=1, pretrained=file)
    return ModelState(
        trainer=method.name,
        trainer_source=source,
        settings=plain_settings(method.recipe.to_dict()),
        size=resolved.size,
        classes=1,
        network=network.state_dict(),
        plan=plan_basis(resolved),
        dataset=dataset_name(Path(plan.dataset)),
        started_from={"kind": PUBLISHED, "file": file.name},
    )


def _plan(dataset: str, trainer: str, configuration: str, values: Mapping[str, Any]) -> Plan:
    """A plan of what prediction asks of one."""
    common = {"crop": False, "frames": 1, "frame_stride": 1, "mirror_axes": [], "batch_size": 1}
    decisions = {key: Decision(value, "the authors'", kind="fixed") for key, value in {**common, **values}.items()}
    return Plan(
        dataset,
        _PLANS_NAME,
        {configuration: Configuration(configuration, decisions)},
        {trainer: Configuration(trainer, {}, inherits_from=configuration)},
    )
