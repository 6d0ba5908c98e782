"""Which frames of a training clip carry labels, and which of them serves a frame as reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echoplan.labels import IGNORE


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
