"""Networks by name."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from echoplan.errors import EchoPlanError
from echoplan.networks.deeplabv3 import DeepLabV3Settings
from echoplan.networks.e3sam2.settings import E3SAM2Settings, SAM2Settings
from echoplan.networks.echoforge.settings import EchoForgeSettings
from echoplan.networks.pkechonet.settings import PKEchoNetSettings
from echoplan.networks.resunet import ResUNetSettings
from echoplan.networks.sam.settings import SAMSettings
from echoplan.networks.settings import NetworkSettings, check_kinds, setting_kinds
from echoplan.networks.unet import SpaceTimeUNetSettings, UNetSettings


class _Entry(NamedTuple):
    """A network's module, its class there, its settings, and whether weights are published."""

    module: str
    network: str
    settings: type[NetworkSettings]
    has_weights: bool = True


# The classes are imported when asked for: one method's libraries are no burden to the others.
_NETWORKS: dict[str, _Entry] = {
    "deeplabv3": _Entry("echoplan.networks.deeplabv3", "DeepLabV3", DeepLabV3Settings),
    "e3sam2": _Entry("echoplan.networks.e3sam2.model", "E3SAM2", E3SAM2Settings),
    "echoforge": _Entry("echoplan.networks.echoforge.model", "EchoForge", EchoForgeSettings),
    "pkechonet": _Entry("echoplan.networks.pkechonet.model", "PKEchoNet", PKEchoNetSettings),
    "resunet": _Entry("echoplan.networks.resunet", "ResUNet", ResUNetSettings),
    "sam": _Entry("echoplan.networks.sam.model", "SAM", SAMSettings),
    "sam2": _Entry("echoplan.networks.e3sam2.model", "E3SAM2", SAM2Settings),
    "unet": _Entry("echoplan.networks.unet", "FrameUNet", UNetSettings, has_weights=False),
    "unet_2dt": _Entry("echoplan.networks.unet", "SpaceTimeUNet", SpaceTimeUNetSettings, has_weights=False),
}


def network_names() -> list[str]:
    """The names `build_network` knows, sorted.

    Example:
        >>> from echoplan.networks import network_names
        >>> network_names()
        ['deeplabv3', 'e3sam2', 'echoforge', 'pkechonet', 'resunet', 'sam', 'sam2', 'unet', 'unet_2dt']
    """
    return sorted(_NETWORKS)


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
        settings: the network's own settings, those of its dataclass (`UNetSettings`, `PKEchoNetSettings`, ...).

    Raises:
        EchoPlanError: unknown name or setting, a value or a size the network cannot take, or weights that cannot be
            had.

    Example:
        >>> import torch
        >>> from echoplan.networks import build_network
        >>> network = build_network("pkechonet", backbone="resnet18", size=(64, 64), classes=3)
        >>> network.eval()(torch.zeros(1, 2, 1, 64, 64)).shape
        torch.Size([1, 2, 3, 64, 64])
    """
    if name not in _NETWORKS:
        near = difflib.get_close_matches(name, _NETWORKS, n=3, cutoff=0.5)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise EchoPlanError(
            f"there is no network called {name!r}{hint}",
            remedy=f"choose one of {', '.join(network_names())}",
        )
    if classes < 1:
        raise EchoPlanError(f"a network needs at least one output channel, not {classes}")
    entry = _NETWORKS[name]
    check_kinds(settings, setting_kinds(entry.settings), of=f"the network {name}")
    if pretrained and not entry.has_weights:
        raise EchoPlanError(f"there are no pretrained weights for the network {name}", remedy="leave `pretrained` off")
    network = getattr(importlib.import_module(entry.module), entry.network)
    weights = {"pretrained": pretrained} if entry.has_weights else {}
    return network(entry.settings(**settings), size=tuple(size), classes=classes, **weights)
