"""Frames that a recorder loses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .transform import Bounds, TimingTransform, check_bounds, draw_seed


@dataclass(frozen=True)
class FrameDropDraw:
    """The share of frames that is lost, and the seed that says which."""

    share: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class FrameDrop(TimingTransform):
    """Shows the frame before instead of a lost one; the first frame and labelled ones are never lost.

    Source: recorders and networks drop frames; the augmentation and its bounds are ours.

    Attributes:
        share: bounds within 0 to 1; 0 changes nothing.
    """

    share: Bounds = (0.0, 0.3)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds("share of dropped frames", self.share, 0, 1)

    def draw(self, generator: np.random.Generator) -> FrameDropDraw:
        """Uniform."""
        return FrameDropDraw(share=float(generator.uniform(*self.share)), seed=draw_seed(generator))

    def retime(self, draw: FrameDropDraw, numbers: np.ndarray, labelled: np.ndarray, count: int) -> np.ndarray:
        """The frames to read instead of `numbers`."""
        kept = np.random.default_rng(draw.seed).random(len(numbers)) >= draw.share
        kept |= np.isin(numbers, labelled)
        kept[0] = True
        return numbers[np.maximum.accumulate(np.where(kept, np.arange(len(numbers)), 0))]
