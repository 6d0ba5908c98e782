"""The models that come with EchoPlan, each in a folder of its own with its card (MODEL_CARD.md) and its licence.

models/<name>/<Trainer>__<Plans>__<configuration>/    a model folder like any other
"""

from __future__ import annotations

from pathlib import Path

from echoplan import layout

DEFAULT = "default"
_HOME = Path(__file__).resolve().parent


def shipped_model(name: str = DEFAULT) -> Path | None:
    """The model folder of one of the models that come with EchoPlan; None where none of them has that name.

    Example:
        >>> from echoplan.models import shipped_model
        >>> shipped_model().name
        'UNetTrainer__EchoPlans__frame'
    """
    found = layout.model_folders(_HOME / name) if name.isidentifier() else ()
    return next(iter(found), None)


def card_of(model: Path) -> Path | None:
    """The card of a model that comes with EchoPlan; None of any other model."""
    home = model.resolve().parent
    return home / layout.SHIPPED_CARD_FILE if home.parent == _HOME else None
