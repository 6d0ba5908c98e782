"""What a training rests on beside its recipe: plan, data and fold, which a resumed one must find unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from echoplan.files import plain

if TYPE_CHECKING:
    from .trainers.base import EchoTrainer

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
_MOST_LETTERS = 60  # of a value in a message


def training_basis(trainer: EchoTrainer) -> dict[str, Any]:
    """What `trainer` trains on, in plain types, as a checkpoint keeps it; in a joint, some of it by dataset."""
    setup, recipe = trainer.setup, trainer.recipe
    plan, parts = setup.plan, setup.plan.each()
    basis: dict[str, Any] = {}
    for name in _DECISIONS:
        values = {part: own.decisions[name].value for part, own in parts.items() if name in own.decisions}
        if values:
            basis[name] = values.get(None, values)  # by dataset in a joint
    if plan.frames == 1:
        basis.pop("frame_stride", None)  # between frames that a frame network never sees together
    if not recipe.batch_size:  # else it is the recipe's, which is compared with all its settings
        basis["batch_size"] = plan.batch_size
    if not recipe.learning_rate:
        basis["learning_rate"] = plan.value("learning_rate")
    return plain(
        {
            **basis,
            "store": setup.store.folder.name,
            "classes": trainer.classes,
            "labels": setup.description.labels,
            "train": setup.train,
            "val": setup.val,
        }
    )


def basis_changes(trainer: EchoTrainer, state: Mapping[str, Any]) -> list[str]:
    """In words, what `trainer` would train on otherwise than the training whose state this is.

    What the state does not know, for an earlier EchoPlan wrote it, is not compared.
    """
    before = {name: state[name] for name in ("size", "classes") if name in state} | state.get("basis", {})
    now = training_basis(trainer)
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
