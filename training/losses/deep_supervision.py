"""A loss at several resolutions (nnU-Net's deep supervision)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def deep_supervision_loss(
    outputs: Sequence[Tensor], target: Tensor, *, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Weighted mean of `loss` over the resolutions; weights 1, 1/2, 1/4 ... divided by their sum.

    Args:
        outputs: logits, finest first: ``(B, T, K, H, W)``, then ``(B, T, K, h, w)`` ever coarser.
        target: ``(B, T, H, W)`` on the finest grid; the coarser ones take the nearest pixel's label, ignored
            ones included.
        loss: takes logits and target.
    """
    weights = [0.5**level for level in range(len(outputs))]
    total = sum(
        weight * loss(logits, reduce_labels(target, logits.shape[-2:]))
        for weight, logits in zip(weights, outputs, strict=True)
    )
    return total / sum(weights)


def reduce_labels(target: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels ``(..., H, W)`` on a grid of `size`: each pixel gets the label at its centre."""
    rows, columns = (
        torch.div((2 * torch.arange(new, device=target.device) + 1) * old, 2 * new, rounding_mode="floor")
        for new, old in zip(size, target.shape[-2:], strict=True)
    )
    return target[..., rows[:, None], columns]
