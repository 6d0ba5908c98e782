"""Edge-aware supervision: edges of the structure, found in the encoder's features. Only its loss needs it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.networks.e3sam2.sam2_parts import WIDTH, sam2_module

_GROUPS = 8
_NO_GRADIENT = 1e-12  # keeps the slope of a square root finite where nothing changes


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


class GatedEdgeHead(nn.Module):
    """The authors' edge head: it reads what the mask decoder reads, and gates features by their gradient's magnitude.

    Args:
        channels: of the decoder's stride-4 features and of the top features (stride 16).
        width: common width of the two scales.
    """

    def __init__(self, channels: tuple[int, int] = (WIDTH // 8, WIDTH), *, width: int = 64) -> None:
        super().__init__()
        norm = sam2_module("modeling.sam2_utils").LayerNorm2d
        self.fine, self.coarse = (GradientGate(each, width) for each in channels)
        self.refine = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.GELU(),
            norm(width),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            norm(width),
        )
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Edge logits ``(B, 1, H/4, W/4)`` of features ``(B, C1, H/4, W/4)`` and ``(B, C3, H/16, W/16)``."""
        enlarged = F.interpolate(self.coarse(coarse), size=fine.shape[-2:], mode="bilinear", align_corners=True)
        return self.last(self.refine(torch.cat([self.fine(fine), enlarged], dim=1)))


class GradientGate(nn.Module):
    """project(x * sigmoid(g)); g is the gradient's magnitude of all channels' sum, its directions batch-normalised."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        smooth, change = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, -1.0])
        self.across, self.down = (
            nn.Sequential(FixedConvolution(torch.outer(*pair).expand(1, channels, 3, 3)), nn.BatchNorm2d(1))
            for pair in ((smooth, change), (change, smooth))
        )
        self.project = nn.Conv2d(channels, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, C, h, w)`` -> ``(B, width, h, w)``."""
        squares = self.across(features).square() + self.down(features).square()
        return self.project((squares + _NO_GRADIENT).sqrt().sigmoid() * features)


class FixedConvolution(nn.Module):
    """A convolution ``(out, in, 3, 3)`` that does not learn but lies in the network's state, as the authors' does."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.clone())

    def forward(self, features: Tensor) -> Tensor:
        """``(B, in, h, w)`` -> ``(B, out, h, w)``."""
        return F.conv2d(features, self.weight, padding=1)
