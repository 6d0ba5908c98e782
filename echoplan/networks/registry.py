"""Networks by name."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from echoplan.errors import EchoPlanError

# name -> (module, class or function). Imported when asked for: one method's libraries are no burden to the others.
_BUILDERS: dict[str, tuple[str, str]] = {
    "deeplabv3": ("echoplan.networks.deeplabv3", "DeepLabV3"),
    "echoforge": ("echoplan.networks.echoforge", "EchoForge"),
    "e3sam2": ("echoplan.networks.e3sam2", "E3SAM2"),
    "pkechonet": ("echoplan.networks.pkechonet", "PKEchoNet"),
    "sam": ("echoplan.networks.sam", "SAM"),
    "sam2": ("echoplan.networks.e3sam2", "plain_sam2"),
    "unet": ("echoplan.networks.unet", "FrameUNet"),
    "unet_2dt": ("echoplan.networks.unet", "SpaceTimeUNet"),
}


def network_names() -> list[str]:
    """The names `build_network` knows, sorted."""
    return sorted(_BUILDERS)


def build_network(
    name: str,
    *,
    size: tuple[int, int],
    classes: int = 1,
    pretrained: bool | str | Path = False,
    **settings: Any,
) -> nn.Module:
    """Build a network whose ``forward`` takes a clip ``(B, T, C, H, W)`` and gives logits ``(B, T, classes, H, W)``.

    Args:
        name: one of `network_names`.
        size: the frames' height and width in pixels.
        classes: number of output channels: 1 for one structure (sigmoid), else the number of labels (softmax).
        pretrained: True looks for the method's pretrained weights (see `echoplan.networks.weights.find_weights`); a
            path names the file.
        settings: the network's own settings.

    Raises:
        EchoPlanError: unknown name or setting, a size the network cannot take, or weights that cannot be had.

    Example:
        >>> network = build_network("pkechonet", backbone="resnet18", size=(256, 256), classes=1)
    """
    if name not in _BUILDERS:
        raise EchoPlanError(
            f"there is no network called {name!r}{_nearest(name, _BUILDERS)}",
            remedy=f"choose one of {', '.join(network_names())}",
        )
    if classes < 1:
        raise EchoPlanError(f"a network needs at least one output channel, not {classes}")
    module, attribute = _BUILDERS[name]
    builder = getattr(importlib.import_module(module), attribute)
    known = [p.name for p in inspect.signature(builder).parameters.values() if p.kind is p.KEYWORD_ONLY]
    own = [parameter for parameter in known if parameter not in ("size", "classes", "pretrained")]
    for setting in settings:
        if setting not in own:
            raise EchoPlanError(
                f"the network {name} has no setting {setting!r}{_nearest(setting, own)}",
                remedy=f"its settings are {', '.join(own) or 'none'}",
            )
    if "pretrained" in known:
        settings["pretrained"] = pretrained
    elif pretrained:
        raise EchoPlanError(f"there are no pretrained weights for the network {name}", remedy="leave `pretrained` off")
    return builder(size=tuple(size), classes=classes, **settings)


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
