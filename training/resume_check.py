"""What a training rests on beside its recipe: plan, data and fold, which a resumed one must find unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from echoplan import layout
from echoplan.errors import EchoPlanError
from echoplan.files import plain
from echoplan.plans import ResolvedPlan

from .checkpoint import ModelState, TrainingState, plain_settings
from .fold import FoldSetup
from .methods.method import Method
from .recipe import Recipe

# Of the plan's decisions those that change a training, with the words for them.
_DECISIONS = {
    "size": "the input size (H, W)",
    "frames": "the frames of a clip",
    "frame_stride": "the stride between the frames of a clip",
    "crop": "the crop to the sector",
    "protocol": "how clips are fitted to the input",
    "normalisation": "the normalisation",
    "mirror_axes": "the flips of the augmentation",
    "rotation_degrees": "the rotation of the augmentation",
    "sampling": "how training samples are taken",
}
_WORDS = {
    **_DECISIONS,
    "batch_size": "the batch size",
    "learning_rate": "the learning rate",
    "store": "the preprocessed store",
    "classes": "the network's classes",
    "labels": "the labels",
    "train": "the training cases",
    "val": "the validation cases",
}
_OF_TRAINING_ALONE = ("mirror_axes", "rotation_degrees", "sampling")
_MOST_LETTERS = 60  # of a value in a message


def plan_basis(plan: ResolvedPlan) -> dict[str, Any]:
    """The plan's decisions that change a training, in plain types; of several datasets, by dataset."""
    basis: dict[str, Any] = {}
    for name in _DECISIONS:
        plans = plan.each().items()
        values = {dataset: each.decisions[name].value for dataset, each in plans if name in each.decisions}
        if values:
            basis[name] = values if plan.multi_dataset else next(iter(values.values()))
    if plan.frames == 1:
        basis.pop("frame_stride", None)  # between frames that a frame network never sees together
    return plain(basis)


def training_basis(setup: FoldSetup, recipe: Recipe) -> dict[str, Any]:
    """What a fold's training rests on, in plain types, as a checkpoint keeps it; some of it by dataset, if several."""
    basis = plan_basis(setup.plan)
    if not recipe.batch_size:  # else it is the recipe's, which is compared with all its settings
        basis["batch_size"] = setup.plan.batch_size
    if not recipe.learning_rate:
        basis["learning_rate"] = setup.plan.value("learning_rate")
    return plain(
        {
            **basis,
            "store": setup.store.folder.name,
            "classes": setup.description.classes,
            "labels": setup.description.labels,
            "train": setup.train,
            "val": setup.val,
        }
    )


def as_started(file: Path, method: Method[Any], named: Mapping[str, Any], seed: int | None) -> tuple[Method[Any], int]:
    """The method and the seed of a fold's training as it was started, so that nobody need name its settings again.

    Args:
        file: a checkpoint of the training.
        method: of its trainer; its settings do not matter.
        named: settings that the user names all the same.
        seed: the same; None names none.

    Raises:
        EchoPlanError: what is named is not what the training was started with; each is told with both values.
    """
    state = ModelState.read(file, mapped=True)
    started = method.with_settings(method.defaults.complete(state.settings))
    seeds = state.seed, state.seed if seed is None else seed
    changed = _settings_changes(started.recipe.to_dict(), started.with_settings(named).recipe.to_dict(), seeds)
    if changed:
        raise EchoPlanError(
            f"this training was started with other settings: {', '.join(changed)}",
            file=file.parent,
            remedy="--c needs no settings: it takes those of the start; --overwrite starts again with others",
        )
    return started, state.seed


def _settings_changes(before: Mapping[str, Any], now: Mapping[str, Any], seeds: tuple[int, int]) -> list[str]:
    was, asked = plain_settings({**before, "seed": seeds[0]}), plain_settings({**now, "seed": seeds[1]})
    return [f"{name} {_difference(was[name], value)}" for name, value in asked.items() if was[name] != value]


def check_resume(
    state: TrainingState, setup: FoldSetup, recipe: Recipe, *, defaults: Recipe, seed: int, processes: int
) -> None:
    """Whether a training goes on with the settings, plan and data that it was started with.

    Args:
        state: the checkpoint that it goes on from.
        setup, recipe, seed, processes: what it would train with now.
        defaults: of the recipe, for settings that the state does not know (`Recipe.complete`).

    Raises:
        EchoPlanError: something differs; it is named.
    """
    changed = _settings_changes(defaults.complete(state.settings), recipe.to_dict(), (state.seed, seed))
    if len(state.random) != processes:
        changed.append(f"number of processes (torchrun) {len(state.random)} then, {processes} now")
    if changed:
        raise EchoPlanError(
            f"the training to resume was started with other settings: {', '.join(changed)}",
            file=setup.folder,
            remedy="resume with the same settings, seed and processes, or start again with --overwrite",
        )
    if changed := basis_changes(state, training_basis(setup, recipe)):
        raise EchoPlanError(
            f"the training to resume rests on another plan or other data: {', '.join(changed)}",
            file=setup.folder,
            remedy="plan and preprocess as before and resume, or start this fold again with --overwrite",
        )


def basis_changes(state: TrainingState, now: Mapping[str, Any]) -> list[str]:
    """In words, where a `training_basis` differs from that of the training whose state this is.

    What the state does not know, for an earlier EchoPlan wrote it, is not compared.
    """
    return _changes({"size": list(state.size), "classes": state.classes} | state.basis, now)


def plan_changes(state: ModelState, plan: ResolvedPlan) -> list[str]:
    """In words, where `plan` would show a network other input than the training whose state this is did."""
    now = {name: value for name, value in plan_basis(plan).items() if name not in _OF_TRAINING_ALONE}
    return _changes({"size": list(state.size)} | state.plan, now)


def folds_of_other_plans(model_folder: Path, plan: ResolvedPlan) -> dict[int, str]:
    """The finished folds in a model's folder that were trained on another plan than `plan`, and where it differs.

    A dataset that is planned anew while some folds are trained leaves such a folder: each fold brings its own plan.
    """
    finished = layout.folds_with(model_folder, layout.checkpoint_file("final"))
    changes = {fold: plan_changes(ModelState.read(file, mapped=True), plan) for fold, file in finished}
    return {fold: ", ".join(changed) for fold, changed in changes.items() if changed}


def warnings_of_other_plans(model_folder: Path, plan: ResolvedPlan) -> list[str]:
    """The same in words, for who trains a fold on `plan`."""
    return [
        f"warning: fold {fold} was trained on another plan ({difference}) and cannot be used together with this one; "
        "train it again with --overwrite"
        for fold, difference in folds_of_other_plans(model_folder, plan).items()
    ]


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{words} ({_difference(before[name], now[name])})"
        for name, words in _WORDS.items()
        if name in before and name in now and before[name] != now[name]
    ]


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, list) and isinstance(now, list) and all(isinstance(item, str) for item in before + now):
        return _other_members(before, now)
    return f"{_short(before)} then, {_short(now)} now"


def _other_members(before: Sequence[str], now: Sequence[str]) -> str:
    """Cases are many: only how many are new or gone, and one of each."""
    told = []
    for members, others, word in ((now, before, "new"), (before, now, "gone")):
        if other := [item for item in members if item not in set(others)]:
            told.append(f"{len(other)} {word}, {other[0]}{' ...' if len(other) > 1 else ''}")
    return "; ".join(told) or "another order"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."
