"""SAM's modules, built one by one from the segment-anything package with the numbers of its `build_sam.py`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn

NATIVE_SIZE = 1024  # side of the images that SAM was trained on; its position tables have this size
PATCH = 16
WIDTH = 256  # channels of the image features and the prompts


@dataclass(frozen=True)
class Variant:
    """One size of the image encoder.

    Attributes:
        width: channels of a token.
        depth: transformer blocks.
        heads: attention heads.
        global_blocks: the blocks that attend to the whole image; the others see windows of 14 x 14 tokens.
    """

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]


VARIANTS = {
    "vit_b": Variant(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": Variant(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": Variant(1280, 32, 16, (7, 15, 23, 31)),
}


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


def build_prompt_encoder(size: int) -> PromptEncoder:
    """The prompt encoder for square images of `size` pixels."""
    grid = size // PATCH
    return PromptEncoder(
        embed_dim=WIDTH, image_embedding_size=(grid, grid), input_image_size=(size, size), mask_in_chans=16
    )


def build_mask_decoder() -> MaskDecoder:
    """The mask decoder: one mask for a clear prompt, three for an ambiguous one."""
    return MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=2048, num_heads=8),
        transformer_dim=WIDTH,
        iou_head_depth=3,
        iou_head_hidden_dim=256,
    )


__all__ = [
    "NATIVE_SIZE",
    "PATCH",
    "VARIANTS",
    "ImageEncoderViT",
    "Variant",
    "build_mask_decoder",
    "build_prompt_encoder",
    "vit_settings",
]
