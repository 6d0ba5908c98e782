"""The first stage: a small U-Net that finds the structure, and the box that SAM is given when nobody draws one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from echoplan.device import upload
from echoplan.networks.interface import ClipOutput
from echoplan.networks.unet import FrameUNet, UNetSettings

Resize: TypeAlias = Callable[[Tensor], Tensor]
GRID = (128, 128)  # on which the structure is looked for, whatever the frames' size


class Locator(nn.Module):
    """Finds the structure in every frame by itself.

    Args:
        width: channels of the U-Net's first stage.
    """

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.unet = FrameUNet(UNetSettings(base_features=width, deep_supervision=False), size=GRID)

    def forward(self, clip: Tensor, *, resize: Resize | None = None) -> Tensor:
        """Standardised frames ``(B, T, C, H, W)`` -> logits ``(B, T, 1, 128, 128)`` of the structure.

        `resize` brings frames to 128 x 128; None: PyTorch's own.
        """
        resize = resize or partial(F.interpolate, size=GRID, mode="bilinear", align_corners=False, antialias=True)
        reduced = resize(clip[:, :, :1].flatten(0, 1))
        output = self.unet(reduced.unflatten(0, clip.shape[:2]))
        return output.logits if isinstance(output, ClipOutput) else output


@torch.no_grad()
def found_boxes(logits: Tensor, *, size: Sequence[int], margin: float) -> Tensor:
    """The box of what a locator found in every frame; the whole frame where it found nothing.

    Args:
        logits: ``(B, T, 1, h, w)``.
        size: (H, W) of the frames that the boxes are for.
        margin: by which the box is widened at each side, as a share of its width or height.

    Returns:
        ``(B, T, 4)``: x0, y0, x1, y1 in pixel centres of the frames.
    """
    height, width = size
    whole = torch.tensor([0.0, 0.0, width - 1.0, height - 1.0])
    boxes = whole.expand(*logits.shape[:2], 4)
    if logits.is_meta:  # planning's dry run, where logits have no values
        return boxes.to(logits.device)
    grid = logits.shape[-2:]
    regions = [largest_region_box(frame) for frame in (logits.float() >= 0).flatten(0, 2).cpu().numpy()]
    known = torch.tensor([region is not None for region in regions])
    corners = torch.tensor([region or (0.0,) * 4 for region in regions])
    corners = rescale_boxes(corners, old=grid, new=size)
    extent = (corners[:, 2:] - corners[:, :2]) * margin
    widened = (
        torch.cat([corners[:, :2] - extent, corners[:, 2:] + extent], dim=1).clamp_min(0).minimum(whole[[2, 3] * 2])
    )
    return upload(torch.where(known[:, None], widened, boxes.flatten(0, 1)).view_as(boxes), logits.device)


def largest_region_box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float] | None:
    """(x0, y0, x1, y1) of the largest region of a (H, W) mask that hangs together; None where it is empty."""
    regions, count = ndimage.label(mask)
    if not count:
        return None
    largest = 1 + int(np.bincount(regions.ravel())[1:].argmax())
    rows, columns = ndimage.find_objects(regions, max_label=largest)[largest - 1]
    return float(columns.start), float(rows.start), float(columns.stop - 1), float(rows.stop - 1)


def rescale_boxes(boxes: Tensor, *, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Boxes ``(..., 4)`` in pixel centres of an image of `old` (H, W), when it is resized to `new`."""
    return _scaled(boxes + 0.5, old, new) - 0.5


def rescale_as_rectangles(boxes: Tensor, *, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """The same as OpenCV's rectangles (x, y, x + w, y + h), of which SAM's ResizeLongestSide scales the corners."""
    return _scaled(torch.cat([boxes[..., :2], boxes[..., 2:] + 1], dim=-1), old, new)


def _scaled(boxes: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """By numbers, not by a tensor of them, which would have to be brought to the boxes' device."""
    x, y = boxes[..., 0::2], boxes[..., 1::2]
    return torch.stack([x * (new[1] / old[1]), y * (new[0] / old[0])], dim=-1).flatten(-2)
