"""Boxes around a structure, from labels: what a promptable network is told where it is, for training and comparison.

A box is (x0, y0, x1, y1) in pixels, x to the right and y down: the centres of the first and the last column and row
that the structure takes. So a structure of one pixel has a box of no extent.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BOX_REACH = 0.1  # of the box's side: the noise that SAM's own training boxes have (Kirillov et al. 2023, appendix A)

Box = tuple[float, float, float, float]


def box_of(mask: NDArray[np.bool_]) -> Box:
    """(x0, y0, x1, y1) of a (H, W) mask.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        raise ValueError("an empty mask has no box")
    return float(columns[0]), float(rows[0]), float(columns[-1]), float(rows[-1])


def jittered_box(mask: NDArray[np.bool_], generator: np.random.Generator, *, reach: float = BOX_REACH) -> Box:
    """The box of a mask, drawn by a hurried hand: each side is moved by chance, within the frame.

    Args:
        mask: (H, W), not empty.
        generator: gives four numbers.
        reach: the farthest move, as a share of the box's own width (for x) or height (for y).

    Raises:
        ValueError: the mask is empty, or `reach` lies outside [0, 0.5).
    """
    draws = torch.from_numpy(generator.random(4))
    moved = move_boxes(torch.tensor(box_of(mask), dtype=torch.float64), draws, size=mask.shape, reach=reach)
    x0, y0, x1, y1 = moved.tolist()
    return x0, y0, x1, y1


def boxes_of_labels(labels: Tensor, *, label: int = 1) -> Tensor:
    """The box of a structure in every frame; NaN where no pixel shows it, as in frames that nobody labelled.

    Args:
        labels: (B, T, H, W), integers.
        label: the structure's.

    Returns:
        (B, T, 4) float32: x0, y0, x1, y1.
    """
    seen = labels == label
    columns, rows = seen.any(dim=-2), seen.any(dim=-1)
    corners = [*(_first(axis) for axis in (columns, rows)), *(_last(axis) for axis in (columns, rows))]
    boxes = torch.stack(corners, dim=-1).float()
    return boxes.masked_fill(~rows.any(dim=-1, keepdim=True), torch.nan)


def jitter_boxes(boxes: Tensor, *, size: tuple[int, int], reach: float = BOX_REACH) -> Tensor:
    """`jittered_box` for a batch of boxes (..., 4); NaN stays NaN.

    Chance comes from torch's generator on the CPU, which checkpoints keep.

    Args:
        boxes: on any device.
        size: (H, W) of the frames.
        reach: see `jittered_box`.
    """
    draws = torch.rand(boxes.shape, device="cpu")
    return move_boxes(boxes, draws if boxes.device.type == "cpu" else draws.to(boxes.device), size=size, reach=reach)


def move_boxes(boxes: Tensor, draws: Tensor, *, size: tuple[int, int], reach: float) -> Tensor:
    """Boxes (..., 4) whose sides are moved by draws (..., 4) in [0, 1): a half moves nothing; see `jittered_box`.

    Raises:
        ValueError: `reach` lies outside [0, 0.5), so that sides could change places.
    """
    if not 0 <= reach < 0.5:
        raise ValueError(f"reach must be at least 0 and less than 0.5, not {reach}")
    extent = boxes[..., 2:] - boxes[..., :2]
    moved = boxes + (2 * draws - 1) * reach * torch.cat([extent, extent], dim=-1)
    height, width = size
    limits = torch.tensor([width, height, width, height], device=boxes.device, dtype=boxes.dtype) - 1
    return moved.clamp_min(0).minimum(limits)


def _first(taken: Tensor) -> Tensor:
    return taken.byte().argmax(dim=-1)


def _last(taken: Tensor) -> Tensor:
    return taken.shape[-1] - 1 - taken.flip(-1).byte().argmax(dim=-1)
