"""Backbone, light feature pyramid, and the attention that anchors, tokens and queries share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.networks.echoforge.settings import EchoForgeSettings
from echoplan.networks.resnet import ResNetBackbone

_GROUPS = 8  # of GroupNorm: frames are normalised one by one, so that none depends on its batch mates


class Pyramid(nn.Module):
    """A ResNet whose maps at strides 8, 16 and 32 meet top-down: L3 + up(L4 + up(L5)), then 3 x 3 and a norm.

    Args:
        settings: see `EchoForgeSettings`.
        pretrained: see `ResNetBackbone`.
    """

    def __init__(self, settings: EchoForgeSettings, *, pretrained: bool | str | Path) -> None:
        super().__init__()
        channels = settings.channels
        self.backbone = ResNetBackbone(
            settings.backbone,
            pretrained=pretrained,
            input_range=settings.input_range,
        )
        self.laterals = nn.ModuleList(conv_norm(width, channels, kernel=1) for width in self.backbone.channels)
        self.smooth = conv_norm(channels, channels, kernel=3)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames ``(N, C, H, W)`` -> X ``(N, d, H / 8, W / 8)`` and the fine features ``(N, d, H / 4, W / 4)``."""
        fine, *coarse = (
            lateral(features) for lateral, features in zip(self.laterals, self.backbone(frames), strict=True)
        )
        top = coarse.pop()
        while coarse:
            lateral = coarse.pop()
            top = lateral + enlarge(top, lateral.shape[-2:])
        return self.smooth(top), fine


class PixelDecoder(nn.Module):
    """Features at stride 8 brought to stride 4: 3 x 3 over up(F) + fine."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.merge = conv_norm(channels, channels, kernel=3)

    def forward(self, features: Tensor, fine: Tensor) -> Tensor:
        """``(N, d, h, w)`` and ``(N, d, 2 h, 2 w)`` -> pixel features ``(N, d, 2 h, 2 w)``."""
        return self.merge(enlarge(features, fine.shape[-2:]) + fine)


def conv_norm(in_channels: int, channels: int, *, kernel: int) -> nn.Sequential:
    """A convolution that keeps the grid, and GroupNorm."""
    convolution = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(_GROUPS, channels))


def enlarge(features: Tensor, size: Sequence[int]) -> Tensor:
    """``(N, C, h, w)`` on a finer grid, bilinearly."""
    return F.interpolate(features, size=tuple(size), mode="bilinear")


def reduced(maps: Tensor, size: Sequence[int]) -> Tensor:
    """``(N, C, H, W)`` on a grid whose sides divide theirs, by area."""
    # Numbers, of a trace too, which would pool to no size that it does not know.
    return F.avg_pool2d(maps, [int(old) // int(new) for old, new in zip(maps.shape[-2:], size, strict=True)])


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
        keys = other if position is None else other + position
        if not self.training and self.heads * query.shape[1] < min(other.shape[1:]):
            mixed = self._of_few(q, keys, other, allowed)
        else:
            k, v = self._split(self.key(keys)), self._split(self.value(other))
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None if allowed is None else allowed.unsqueeze(1))
            mixed = mixed.transpose(1, 2).flatten(2)
        return self.norm(query + self.out(mixed))

    def _of_few(self, queries: Tensor, keys: Tensor, other: Tensor, allowed: Tensor | None) -> Tensor:
        """The same for few queries ``(B, heads, L, d_h)`` that look at many tokens ``(B, M, d)``: ``(B, L, d)``.

        The projections of keys and values act on the queries and on what these have gathered instead, which are fewer,
        as queries of a single head. The keys' bias adds the same to all of a query's scores.
        """
        by_head = self.key.weight.unflatten(0, (self.heads, -1))  # (heads, d_h, d)
        gathered = F.scaled_dot_product_attention(
            (queries @ by_head).flatten(1, 2),
            keys,
            other,
            attn_mask=None if allowed is None else allowed.repeat(1, self.heads, 1),
            scale=queries.shape[-1] ** -0.5,
        ).unflatten(1, (self.heads, -1))
        mixed = gathered @ self.value.weight.unflatten(0, (self.heads, -1)).transpose(1, 2)
        return mixed.transpose(1, 2).flatten(2) + self.value.bias

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
    height, width, quarter = int(height), int(width), int(channels) // 4  # numbers, of a trace too
    base = torch.full((), 10000.0, device=device)  # made there: `torch.tensor` would wait for a GPU
    waves = 2 * math.pi * base ** -(torch.arange(quarter, device=device) / quarter)

    def axis(length: int) -> Tensor:
        angles = (torch.arange(length, device=device) + 0.5)[:, None] / length * waves
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    rows = axis(height)[:, None].expand(-1, width, -1)
    columns = axis(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)
