"""The Global-Local Adapters: texture by depth-wise convolutions beside context by entropy-guided attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.networks.e3sam2.attention import EntropyGuidedAttention
from echoplan.networks.e3sam2.sam2_parts import in_cache

_WIDER = 4  # channels within the local branch, for each of its input


class BlockAdapter(nn.Module):
    """What a block of the trunk reads instead of its input x: local(x) + LayerNorm(attention(x) + x).

    The local branch widens x fourfold, takes it through a depth-wise 3 x 3 and a depth-wise 5 x 5 convolution, each
    followed by ReLU, and brings both back together. The paper names the two branches and depth-wise convolutions; all
    else is as the authors programmed it.

    Args:
        channels: C.
        attention, certainty_power: see `EntropyGuidedAttention`.

    Raises:
        EchoPlanError: a setting it cannot take.
    """

    def __init__(self, channels: int, *, attention: str = "ega_column", certainty_power: float = 1.0) -> None:
        super().__init__()
        wide = _WIDER * channels
        self.widen = nn.Conv2d(channels, wide, 1, bias=False)
        self.three, self.five = (
            nn.Conv2d(wide, wide, size, padding=size // 2, groups=wide, bias=False) for size in (3, 5)
        )
        self.join = nn.Conv2d(2 * wide, channels, 1)
        self.attention = EntropyGuidedAttention(
            channels, attention=attention, certainty_power=certainty_power, projected=False
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, features: Tensor, *, with_entropy: bool = True) -> tuple[Tensor, Tensor | None]:
        """``(B, C, H, W)`` -> as many adapted features, and `EntropyGuidedAttention`'s entropies, ``(B, H * W)``."""
        local = in_cache(self._local, features, wider=_WIDER)
        tokens = features.flatten(2).transpose(1, 2)
        attended, entropy = self.attention(tokens, with_entropy=with_entropy)
        context = self.norm(attended + tokens).transpose(1, 2).unflatten(2, features.shape[2:])
        return local + context.to(local.dtype), entropy

    def _local(self, features: Tensor) -> Tensor:
        wide = self.widen(features)
        return self.join(torch.cat([F.relu(self.three(wide)), F.relu(self.five(wide))], dim=1))


class GlobalLocalAdapter(nn.Module):
    """x + gate * fuse(local(x) + global(x)): texture by depth-wise convolutions, context by entropy-guided attention.

    The two branches are summed, and the 1 x 1 convolution that fuses them is the attention's output map as well. So an
    adapter has 4 C^2 weights and little besides: 3.2 M over the four stages of SAM2's tiny and small encoders. The
    gate, one number a channel, starts at zero: at first the encoder's features pass unchanged.

    Args:
        channels: C, the stage's width.
        attention, certainty_power: see `EntropyGuidedAttention`.

    Raises:
        EchoPlanError: a setting it cannot take.
    """

    def __init__(self, channels: int, *, attention: str = "ega_column", certainty_power: float = 1.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fine, self.wide = (
            nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels) for size in (3, 5)
        )
        self.attention = EntropyGuidedAttention(channels, attention=attention, certainty_power=certainty_power)
        self.gate = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor, *, with_entropy: bool = True) -> tuple[Tensor, Tensor | None]:
        """``(B, C, H, W)`` -> the adapted features of that shape, and the entropies of `EntropyGuidedAttention`."""
        tokens = self.norm(features.flatten(2).transpose(1, 2))
        grid = tokens.transpose(1, 2).unflatten(2, features.shape[2:])
        # Each scale has its own GELU: without it the sum of the two convolutions would be one 5 x 5 convolution.
        local = F.gelu(self.fine(grid)) + F.gelu(self.wide(grid))
        local = local.flatten(2).transpose(1, 2)
        fused, entropy = self.attention(tokens, local=local, with_entropy=with_entropy)
        change = (self.gate * fused).transpose(1, 2).unflatten(2, features.shape[2:])
        return features + change.to(features.dtype), entropy
