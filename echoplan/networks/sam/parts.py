"""SAM's modules, from the segment-anything package with the numbers of its `build_sam.py`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from torch import Tensor, nn

from echoplan.networks.sam.settings import NATIVE_SIZE, PATCH, VARIANTS, Variant
from echoplan.networks.sam.tiny_vit import TinyViT

WIDTH = 256  # channels of the image features and the prompts
FEEDFORWARD = 2048  # channels between the two layers of the decoder's perceptrons


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

    stride = PATCH

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


def vit_settings(variant: Variant) -> dict[str, object]:
    """What `ImageEncoderViT` is built with."""
    return {
        "img_size": NATIVE_SIZE,
        "patch_size": PATCH,
        "embed_dim": variant.width,
        "depth": variant.depth,
        "num_heads": variant.heads,
        "mlp_ratio": 4,
        "out_chans": WIDTH,
        "qkv_bias": True,
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
        "use_rel_pos": True,
        "window_size": 14,
        "global_attn_indexes": variant.global_blocks,
    }


def build_image_encoder(encoder: str) -> ImageEncoder | TinyViT:
    """The image encoder of that name in `settings.MODELS`."""
    return TinyViT() if encoder == "tiny_vit" else ImageEncoder(VARIANTS[encoder])


def build_prompt_encoder(size: int, *, stride: int = PATCH) -> PromptEncoder:
    """The prompt encoder for square images of `size` pixels, `stride` of them to a place of the image features."""
    grid = size // stride
    return PromptEncoder(
        embed_dim=WIDTH, image_embedding_size=(grid, grid), input_image_size=(size, size), mask_in_chans=16
    )


def build_mask_decoder() -> MaskDecoder:
    """The mask decoder: one mask for a clear prompt, three for an ambiguous one."""
    return MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=FEEDFORWARD, num_heads=8),
        transformer_dim=WIDTH,
        iou_head_depth=3,
        iou_head_hidden_dim=256,
    )


def decode_mask(decoder: MaskDecoder, prompts: PromptEncoder, features: Tensor, boxes: Tensor) -> Tensor:
    """The mask that SAM gives for a clear prompt: the first of its four mask tokens.

    The package's decoder takes one image with many prompts; this takes many images with one box each, and leaves out
    the three masks for ambiguous prompts and the predicted IoU, which nobody reads.

    Args:
        decoder, prompts: SAM's modules.
        features: ``(N, 256, h, w)``.
        boxes: ``(N, 4)``, x0, y0, x1, y1 in pixels of the encoder's image.

    Returns:
        logits ``(N, 1, 4h, 4w)``.
    """
    # Half precision is too coarse for the phases of the position encoding.
    with torch.autocast("cpu" if features.is_meta else features.device.type, enabled=False):
        corners, dense = prompts(points=None, boxes=boxes.float(), masks=None)
        positions = prompts.get_dense_pe()
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(len(features), -1, -1)
    tokens, image = decoder.transformer(features + dense, positions, torch.cat([own, corners], dim=1))
    upscaled = decoder.output_upscaling(image.transpose(1, 2).unflatten(2, features.shape[-2:]))
    kernel = decoder.output_hypernetworks_mlps[0](tokens[:, 1])  # token 0 is the IoU's
    return torch.einsum("nc,nchw->nhw", kernel, upscaled).unsqueeze(1)
