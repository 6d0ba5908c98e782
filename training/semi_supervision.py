"""Learning from frames that nobody labelled: schedules, pseudo-labels, and what is worth watching about them.

A method brings probabilities for the unlabelled frames, from wherever it has them. Here they become labels where they
are sure enough, and 255 elsewhere, so that every loss of this package can be taken over them: a pixel of 255 has
neither weight nor gradient. Pseudo-labels are integers, so no gradient ever runs through them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from echoplan.errors import EchoPlanError
from echoplan.labels import IGNORE

from .losses import soft_dice_loss

_SURE = 50.0  # a logit whose probability is 1 in float32
_SMOOTH = 1e-3  # pixels: far too little to change a Dice, enough to make two empty masks agree


@dataclass(frozen=True)
class FlameRise:
    """EchoForge's schedules: the pseudo-labels' weight rises and the confidence they need falls.

    Equations 7 and 8 for the epoch e in [1, E], with r = (e - E0) / (E1 - E0):
    lambda(e) = 0 up to E0, weight * r up to E1, then weight;
    tau(e) = first_threshold up to E0, first_threshold - (first_threshold - last_threshold) r up to E1, then
    last_threshold.

    Attributes:
        epochs: E.
        start, end: E0 and E1 as shares of E. Both 0 gives the last values from the first epoch on.
        weight: lambda_max.
        first_threshold, last_threshold: tau_0 and tau_1, in [0, 1].

    Raises:
        EchoPlanError: the shares are not 0 <= start <= end <= 1, or a value is out of its range.
    """

    epochs: int
    start: float = 0.1
    end: float = 0.6
    weight: float = 1.0
    first_threshold: float = 0.95
    last_threshold: float = 0.80

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise EchoPlanError(
                f"pseudo-labels cannot rise from {self.start} to {self.end} of the epochs",
                remedy="give two shares in [0, 1], the first not above the second",
            )
        for threshold in (self.first_threshold, self.last_threshold):
            if not 0 <= threshold <= 1:
                raise EchoPlanError(f"a confidence threshold lies in [0, 1], not at {threshold}")
        if self.weight < 0:
            raise EchoPlanError(f"the weight of pseudo-labels cannot be negative, as {self.weight} is")

    def weight_at(self, epoch: int) -> float:
        """lambda(e), the epochs counting from 1."""
        return self.weight * self._risen(epoch)

    def threshold_at(self, epoch: int) -> float:
        """tau(e), the epochs counting from 1."""
        return self.first_threshold - (self.first_threshold - self.last_threshold) * self._risen(epoch)

    def _risen(self, epoch: int) -> float:
        """0 up to E0, 1 after E1, linear between."""
        first, last = self.start * self.epochs, self.end * self.epochs
        if epoch <= first:
            return 0.0
        return 1.0 if epoch > last else (epoch - first) / (last - first)


def pseudo_labels(probabilities: Tensor, labels: Tensor, *, threshold: float) -> Tensor:
    """Labels for the unlabelled pixels that are sure enough.

    Args:
        probabilities: ``(B, T, K, H, W)`` in [0, 1]; K = 1 is one structure, else one map a label. The confidence is
            the larger of p and 1 - p, or the largest of the K.
        labels: ``(B, T, H, W)``, 255 where nobody labelled.
        threshold: the confidence a pixel needs.

    Returns:
        ``(B, T, H, W)`` uint8: 255 where a pixel is labelled already, or not sure.
    """
    probabilities = probabilities.detach()
    if probabilities.shape[2] == 1:
        inside = probabilities[:, :, 0]
        confidence, made = torch.maximum(inside, 1 - inside), inside >= 0.5
    else:
        confidence, made = probabilities.max(dim=2)
    taught = (labels == IGNORE) & (confidence >= threshold)
    return torch.where(taught, made.to(torch.uint8), IGNORE)


def confident_share(pseudo: Tensor, labels: Tensor) -> Tensor:
    """The share of the unlabelled pixels that got a pseudo-label; NaN where everything is labelled.

    Args:
        pseudo, labels: ``(B, T, H, W)``, see `pseudo_labels`.
    """
    unlabelled = (labels == IGNORE).sum()
    return torch.where(unlabelled > 0, (pseudo != IGNORE).sum() / unlabelled.clamp_min(1), math.nan)


@torch.no_grad()
def hidden_dice(probabilities: Tensor, hidden: Tensor) -> Tensor:
    """Mean Dice of masks with truth that the training does not see; NaN where there is none.

    For watching only: it has no gradient, and nothing may learn from it.

    Args:
        probabilities: ``(B, T, K, H, W)``, as for `pseudo_labels`; the masks are where they decide.
        hidden: ``(B, T, H, W)``, 255 elsewhere.
    """
    if probabilities.shape[2] == 1:
        decided = probabilities >= 0.5
    else:
        decided = probabilities == probabilities.amax(dim=2, keepdim=True)
    logits = _SURE * (2 * decided.float() - 1)
    dice = 1 - soft_dice_loss(logits, hidden, smooth=_SMOOTH)
    return torch.where((hidden != IGNORE).any(), dice, math.nan)
