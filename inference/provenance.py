"""What a result was made from: tells results that still hold from those of another model or of a clip that changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from echoplan.errors import EchoPlanError
from echoplan.files import plain
from echoplan.plans import ResolvedPlan

# Of a plan, what a clip meets on its way to the mask and back.
_DECISIONS = ("size", "protocol", "crop", "normalisation", "frames", "frame_stride", "mirror_axes")


def digest(content: Any) -> str:
    """A short name for plain content (numbers, texts, lists, mappings): other content, another name."""
    packed = json.dumps(plain(content), sort_keys=True, allow_nan=False).encode()
    return hashlib.sha256(packed).hexdigest()[:20]


def digest_of_weights(network: nn.Module) -> str:
    """A short name for a network's parameters and buffers, the same on every device and machine."""
    found = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:20]


def deciding(plan: ResolvedPlan) -> dict[str, Any]:
    """Of a plan, the decisions that a mask depends on, for each dataset of a joint."""
    return {str(name): {key: own.value(key) for key in _DECISIONS} for name, own in plan.each().items()}


def files_as_they_are(path: Path) -> list[Any]:
    """Size and time of a file, or of every file in a folder: what changes when somebody puts another clip there.

    Raises:
        EchoPlanError: there is nothing.
    """
    files: Iterable[Path] = sorted(item for item in path.iterdir() if item.is_file()) if path.is_dir() else (path,)
    try:
        status = [file.stat() for file in files]
    except FileNotFoundError as error:
        raise EchoPlanError("the clip is gone", file=path) from error
    return [[item.st_size, item.st_mtime_ns] for item in status]
