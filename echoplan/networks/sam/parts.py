"""SAM's modules, built one by one from the segment-anything package with the numbers of its `build_sam.py`."""

from __future__ import annotations

from functools import partial

from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn

from echoplan.networks.sam.settings import NATIVE_SIZE, PATCH, Variant

WIDTH = 256  # channels of the image features and the prompts


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
