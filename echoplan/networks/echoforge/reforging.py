"""Continuous pseudo-label reforging (CPR): an unlabelled frame's mask, made anew from a labelled frame's features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from echoplan.labels import IGNORE
from echoplan.networks.echoforge.parts import conv_norm


class Reforging(nn.Module):
    """Channel attention from a labelled frame to another one, and the mask of what it rebuilds.

    Equations 5 and 6: A = softmax(IN(Q^T K)), F^ = A V^T, with Q = flatten(F_L) W_q, K = flatten(F_U) W_k and
    V = flatten(F_U) W_v. A is C x C: row i says of which channels of the unlabelled frame channel i is rebuilt.

    The semantic alignment is ours, the paper names it only: a 1 x 1 convolution with its norm, the residual to F_U,
    ReLU, and a 1 x 1 convolution to the mask.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        # Affine: over hundreds of channels a softmax of scores with variance one is nearly flat; the scale is learned.
        self.norm = nn.InstanceNorm2d(1, affine=True)
        self.align = conv_norm(channels, channels, kernel=1)
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, labelled: Tensor, other: Tensor) -> Tensor:
        """F_L and F_U, both ``(N, C, h, w)`` -> the mask's logits in F_U's place ``(N, 1, h, w)``."""
        return self.masks(self.queries(labelled).unsqueeze(1), other).squeeze(1)

    def queries(self, labelled: Tensor) -> Tensor:
        """What a labelled frame asks of every other one, F_L ``(N, C, h, w)`` -> Q^T / P ``(N, C, P)``, P = h w."""
        # The mean over the pixels in place of the sum: IN takes the factor out, and half precision does not overflow.
        return (self.query(_flat(labelled)) / labelled[0, 0].numel()).transpose(1, 2)

    def masks(self, queries: Tensor, other: Tensor) -> Tensor:
        """The masks that S labelled frames make of each other frame.

        Args:
            queries: theirs, ``(N, S, C, P)``.
            other: F_U ``(N, C, h, w)``.

        Returns:
            logits ``(N, S, 1, h, w)``.
        """
        # W_v and the alignment's convolution are as linear as A: put together, only one product is over the pixels.
        convolution, norm = self.align
        rebuild = cast(Tensor, convolution.weight).flatten(1) @ self.attention(queries, other) @ self.value.weight
        aligned = norm((rebuild @ other.flatten(2).unsqueeze(1)).flatten(0, 1).unflatten(2, other.shape[2:]))
        rebuilt = torch.relu(other.repeat_interleave(queries.shape[1], dim=0) + aligned)
        return self.head(rebuilt).unflatten(0, queries.shape[:2])

    def attention(self, queries: Tensor, other: Tensor) -> Tensor:
        """Equation 5: queries ``(N, S, C, P)`` and F_U ``(N, C, h, w)`` -> A ``(N, S, C, C)``; rows sum to one."""
        scores = queries @ _flat(other).unsqueeze(1) @ self.key.weight.T
        return (
            self.norm(scores.float().flatten(0, 1).unsqueeze(1)).squeeze(1).softmax(-1).unflatten(0, scores.shape[:2])
        )


def _flat(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class LabelledEnds:
    """The first and the last labelled frame of each clip: end-diastole and end-systole where only those have labels.

    Attributes:
        index: ``(B, 2)``, places in the clip; the clip's own ends where no frame has a label.
        found: ``(B,)``, whether any frame has a label.
    """

    index: Tensor
    found: Tensor

    @classmethod
    def of(cls, labels: Tensor) -> LabelledEnds:
        """From labels ``(B, T, H, W)``; a frame that is 255 everywhere has none."""
        labelled = (labels != IGNORE).flatten(2).any(dim=2)
        first = labelled.int().argmax(dim=1)
        last = labels.shape[1] - 1 - labelled.flip(1).int().argmax(dim=1)
        return cls(torch.stack([first, last], dim=1), labelled.any(dim=1))

    def of_clip(self, values: Tensor) -> Tensor:
        """The two frames' entries of ``(B, T, ...)``: ``(B, 2, ...)``."""
        rows = torch.arange(len(self.index), device=values.device).unsqueeze(1)
        return values[rows, self.index]

    def reference_for(self, frame: int, draws: Tensor, *, share: float) -> tuple[Tensor, Tensor]:
        """Which of the two serves a frame as reference, and whether it does.

        A frame is never its own reference: its label would give away what it is asked for.

        Args:
            frame: its place in the clip.
            draws: ``(2, B)``, uniform in [0, 1): for the choice of the two, and for whether to take it.
            share: of the clips whose reference is a labelled frame.

        Returns:
            ``(B,)`` 0 or 1, and ``(B,)`` bool.
        """
        which = (draws[0] < 0.5).long()
        which = torch.where(self._place(which) == frame, 1 - which, which)
        return which, self.found & (self._place(which) != frame) & (draws[1] < share)

    def _place(self, which: Tensor) -> Tensor:
        return self.index.gather(1, which.unsqueeze(1)).squeeze(1)
