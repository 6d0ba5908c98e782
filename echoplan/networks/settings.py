"""A network's settings as one frozen dataclass, and what every change of settings is checked for."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, get_args, get_type_hints

from echoplan.errors import EchoPlanError


@dataclass(frozen=True)
class NetworkSettings:
    """The settings of one network: a dataclass beside it derives from this one and says names, kinds and defaults.

    Values that the network cannot take are refused as soon as settings are made. What depends on the data (frame size,
    number of classes) and the weights to start from are no settings.
    """


def setting_kinds(settings: type) -> dict[str, Any]:
    """The names of a settings dataclass, each with the type of its values."""
    return get_type_hints(settings)


def check_kinds(changes: Mapping[str, Any], kinds: Mapping[str, Any], *, of: str = "") -> None:
    """Refuse settings that do not exist, have another type, or are no finite numbers.

    Args:
        changes: setting -> value.
        kinds: of the settings there are, see `setting_kinds`.
        of: whose settings they are, for the message.

    Raises:
        EchoPlanError: a setting does not exist (the nearest names are offered), or its value is of another type.
    """
    for name, value in changes.items():
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(kinds) or 'none'}"
            raise EchoPlanError(f"there is no setting {name!r}{f' of {of}' if of else ''}", remedy=hint)
        if not _fits(value, kinds[name]):
            expected = getattr(kinds[name], "__name__", kinds[name])
            raise EchoPlanError(f"the setting {name} must be {expected}, not {value!r}")
        if isinstance(value, float) and not isfinite(value):
            raise EchoPlanError(f"the setting {name} must be a finite number, not {value}")


def check_choice(setting: str, value: str, choices: Collection[str]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        EchoPlanError: it is not; the choices are named.
    """
    if value not in choices:
        raise EchoPlanError(f"{setting} cannot be {value!r}", remedy=f"choose one of {', '.join(choices)}")


def check_range(setting: str, value: float, least: float, most: float | None = None) -> None:
    """Refuse a number below `least` or, where there is one, above `most`.

    Raises:
        EchoPlanError: it is; what is allowed is named.
    """
    if not (value >= least and (most is None or value <= most)):  # as NaN is not
        allowed = f"{least} or more" if most is None else f"from {least} to {most}"
        raise EchoPlanError(f"{setting} must be {allowed}, not {value}")


def _fits(value: Any, kind: Any) -> bool:
    allowed = get_args(kind) or (kind,)
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, allowed) or (float in allowed and isinstance(value, int))
