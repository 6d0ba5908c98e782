"""Attention with a residual, and what goes with it: the feed-forward network and positions in the image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """LN(Q + psi_o(softmax(psi_q(Q) psi_k(K)^T / sqrt(d_h)) psi_v(V))), in several heads of d_h channels."""

    def __init__(self, channels: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))
        self.norm = nn.LayerNorm(channels)

    def forward(
        self,
        query: Tensor,
        other: Tensor,
        *,
        query_position: Tensor | None = None,
        position: Tensor | None = None,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """Tokens ``(B, L, d)`` attend over `other` ``(B, M, d)``.

        Args:
            query, other: the tokens; `other` gives keys and values.
            query_position, position: added to the queries ``(L, d)`` and to the keys ``(M, d)``.
            allowed: ``(B, L, M)``, True where a query may look; None lets it look everywhere.
        """
        q = self._split(self.query(query if query_position is None else query + query_position))
        k = self._split(self.key(other if position is None else other + position))
        v = self._split(self.value(other))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None if allowed is None else allowed.unsqueeze(1))
        return self.norm(query + self.out(mixed.transpose(1, 2).flatten(2)))

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """LN(x + W_out relu(W_in x))."""

    def __init__(self, channels: int, *, hidden: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(..., d)`` -> the same shape."""
        return self.norm(tokens + self.out(torch.relu(self.hidden(tokens))))


def image_position(height: int, width: int, channels: int, *, device: torch.device) -> Tensor:
    """Sines and cosines of each pixel's place, ``(height * width, channels)``; half of the channels for each axis.

    Places are shares of the image's height and width, so that they mean the same on every grid.
    """
    quarter = channels // 4
    waves = 2 * math.pi * 10000 ** -(torch.arange(quarter, device=device) / quarter)

    def axis(length: int) -> Tensor:
        angles = (torch.arange(length, device=device) + 0.5)[:, None] / length * waves
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    rows = axis(height)[:, None].expand(-1, width, -1)
    columns = axis(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)
