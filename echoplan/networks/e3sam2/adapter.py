"""The Global-Local Adapter that follows each stage of the image encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.networks.e3sam2.attention import EntropyGuidedAttention


class GlobalLocalAdapter(nn.Module):
    """x + gate * fuse(local(x) + global(x)): texture by depth-wise convolutions, context by entropy-guided attention.

    The two branches are summed, and the 1 x 1 convolution that fuses them is the attention's output map as well. So an
    adapter has 4 C^2 weights and little besides: 3.2 M over the four stages of SAM2's tiny and small encoders. The
    gate, one number a channel, starts at zero: at first the encoder's features pass unchanged.

    Args:
        channels: C, the stage's width.
        attention, heads, top_share: see `EntropyGuidedAttention`.

    Raises:
        EchoPlanError: a setting it cannot take.
    """

    def __init__(self, channels: int, *, attention: str = "ega", heads: int = 1, top_share: float = 0.5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fine, self.wide = (
            nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels) for size in (3, 5)
        )
        self.attention = EntropyGuidedAttention(channels, attention=attention, heads=heads, top_share=top_share)
        self.gate = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, C, H, W)`` -> the adapted features of the same shape, and H / ln N, ``(B, H * W)``, float32, 0 to 1."""
        tokens = self.norm(features.flatten(2).transpose(1, 2))
        grid = tokens.transpose(1, 2).unflatten(2, features.shape[2:])
        # Each scale has its own GELU: without it the sum of the two convolutions would be one 5 x 5 convolution.
        local = F.gelu(self.fine(grid)) + F.gelu(self.wide(grid))
        fused, entropy = self.attention(tokens, local=local.flatten(2).transpose(1, 2))
        change = (self.gate * fused).transpose(1, 2).unflatten(2, features.shape[2:])
        return features + change.to(features.dtype), entropy
