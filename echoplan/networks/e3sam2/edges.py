"""Edge-Aware Supervision: a map of the structure's contour from the image encoder's fine and coarse features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 8


def sobel(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Equations 6 and 7: every channel's gradient along x (to the right) and along y (downwards), a pixel.

    The rim is repeated outwards, so that the image's own border is no edge.

    Args:
        maps: ``(B, C, H, W)``.

    Returns:
        Two tensors of that shape. A ramp that rises by one a pixel has the gradient one.
    """
    padded = F.pad(maps, (1, 1, 1, 1), mode="replicate") / 8
    across = padded[..., 2:] - padded[..., :-2]
    down = padded[..., 2:, :] - padded[..., :-2, :]
    along_x = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    along_y = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    return along_x, along_y


class SobelProjection(nn.Module):
    """A feature map's Sobel gradients, concatenated and projected: F_e of one scale.

    Args:
        channels: C of the feature map.
        width: channels after the projection; a multiple of 8.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Conv2d(2 * channels, width, 1), nn.GroupNorm(_GROUPS, width), nn.GELU())

    def forward(self, features: Tensor) -> Tensor:
        """``(B, C, h, w)`` -> ``(B, width, h, w)``."""
        return self.project(torch.cat(sobel(features), dim=1))


class EdgeHead(nn.Module):
    """The Edge-Aware Supervision module (EAS). Only its loss needs it: prediction does without.

    Args:
        channels: of F_S^1 (stride 4) and F_S^3 (stride 16).
        width: common width of the two projections; a multiple of 8. 64 gives 0.14 M parameters for SAM2's tiny
            and small encoders.
    """

    def __init__(self, channels: tuple[int, int] = (96, 384), *, width: int = 64) -> None:
        super().__init__()
        self.fine, self.coarse = (SobelProjection(each, width) for each in channels)
        self.refine = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.GroupNorm(_GROUPS, width),
            nn.GELU(),
            nn.Conv2d(width, 1, 3, padding=1),
        )

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Edge logits ``(B, 1, H/4, W/4)``.

        Args:
            fine: F_S^1, ``(B, C1, H/4, W/4)``.
            coarse: F_S^3, ``(B, C3, H/16, W/16)``.
        """
        enlarged = F.interpolate(self.coarse(coarse), size=fine.shape[-2:], mode="bilinear")
        return self.refine(torch.cat([self.fine(fine), enlarged], dim=1))
