"""What a network may return besides its logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class ClipOutput:
    """A network's answer in training mode.

    Attributes:
        logits: ``(B, T, K, H, W)``, the answer the network also gives in evaluation mode.
        auxiliary: what only the loss needs, by name. Used by the networks here: ``"deep_supervision"``, a list of
            ``(B, T, K, h, w)`` at ever lower resolution; ``"stages"``, a list of ``(B, T, K, H, W)``, the earliest
            stage first and without the last, which `logits` holds.
    """

    logits: Tensor
    auxiliary: dict[str, Any] = field(default_factory=dict)
