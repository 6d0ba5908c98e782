"""The image encoder: SAM's ViT for images of any size, without its attention maps in memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from torch import Tensor

from echoplan.networks.sam.parts import vit_settings
from echoplan.networks.sam.settings import Variant


class ImageEncoder(ImageEncoderViT):
    """segment-anything's encoder with its own weights and results.

    Two things are done otherwise. Images need not be 1024 x 1024: the position embeddings are interpolated to their
    grid, as SAM's own code does with the relative positions. And the attention map, 4096 x 4096 a head at 1024, is
    never built: SAM adds to q.k a term for the row and one for the column of the key, which are products of q with
    tables. With these terms beside q, and the key's row and column as one-hot vectors beside k, the sum is one product,
    which fused attention computes.

    Args:
        variant: its size.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__(**vit_settings(variant))

    def forward(self, images: Tensor) -> Tensor:
        """``(N, 3, H, W)``, edges multiples of 16 -> features ``(N, 256, H/16, W/16)``."""
        tokens = self.patch_embed(images)
        tokens = tokens + self._positions(tokens.shape[1:3])
        for block in self.blocks:
            tokens = _through(block, tokens)
        return self.neck(tokens.permute(0, 3, 1, 2))

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        own = self.pos_embed
        if tuple(grid) == tuple(own.shape[1:3]):
            return own
        return F.interpolate(own.permute(0, 3, 1, 2), grid, mode="bicubic", align_corners=False).permute(0, 2, 3, 1)


def _through(block: Any, tokens: Tensor) -> Tensor:
    """One transformer block over ``(N, h, w, C)``."""
    inner = block.norm1(tokens)
    if block.window_size:
        windows, padded = window_partition(inner, block.window_size)
        inner = window_unpartition(_attend(block.attn, windows), block.window_size, padded, tokens.shape[1:3])
    else:
        inner = _attend(block.attn, inner)
    tokens = tokens + inner
    return tokens + block.mlp(block.norm2(tokens))


def _attend(attention: Any, tokens: Tensor) -> Tensor:
    """Softmax((q.k / sqrt(d) + q.R_row + q.R_column) v) over the tokens ``(N, h, w, C)`` of each image or window."""
    count, height, width, channels = tokens.shape
    qkv = attention.qkv(tokens).view(count, height * width, 3, attention.num_heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (N, heads, h * w, d)
    on_grid = query.unflatten(2, (height, width))
    by_row = torch.einsum("nzijd,ikd->nzijk", on_grid, _relative(attention.rel_pos_h, height)).flatten(2, 3)
    by_column = torch.einsum("nzijd,jkd->nzijk", on_grid, _relative(attention.rel_pos_w, width)).flatten(2, 3)
    rows = torch.eye(height, dtype=key.dtype, device=key.device).repeat_interleave(width, dim=0)
    columns = torch.eye(width, dtype=key.dtype, device=key.device).repeat(height, 1)
    place = torch.cat([rows, columns], dim=1).expand(*key.shape[:2], -1, -1)
    answer = F.scaled_dot_product_attention(
        torch.cat([query * attention.scale, by_row.to(query.dtype), by_column.to(query.dtype)], dim=-1),
        torch.cat([key, place], dim=-1),
        F.pad(value, (0, height + width)),  # fused kernels want values as wide as keys
        scale=1.0,
    )[..., : value.shape[-1]]
    return attention.proj(answer.transpose(1, 2).reshape(count, height, width, channels))


def _relative(table: Tensor, size: int) -> Tensor:
    """The relative positions ``(size, size, d)`` of queries and keys from a table ``(L, d)``, interpolated to fit."""
    if len(table) != 2 * size - 1:
        table = F.interpolate(table.T[None], 2 * size - 1, mode="linear")[0].T
    places = torch.arange(size, device=table.device)
    return table[places[:, None] - places[None, :] + size - 1]
