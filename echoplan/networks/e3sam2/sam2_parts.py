"""SAM2's modules, built one by one from the sam2 package, without its configuration system.

The numbers are those of the package's configurations `sam2.1_hiera_*.yaml`, so that the published weights fit.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from echoplan.errors import EchoPlanError

WIDTH = 256  # channels of the image features, the tokens and the decoder
MEMORY_WIDTH = 64  # channels of a memory
FEEDFORWARD = 2048  # channels between the two layers of the transformers' perceptrons
MEMORY_LAYERS = 4
MEMORIES = 7  # the start frame's, and six besides
_LIGHT_WINDOWS = (8, 4, 16, 8)
_MLP_RATIO = 4  # of the trunk's blocks
_CACHED = 2**20  # values that a core has at hand
_HYDRA = "hydra.core.global_hydra"


@dataclass(frozen=True)
class Variant:
    """One size of the Hiera trunk.

    Attributes:
        width: channels of the first stage; each later one has twice as many.
        heads: attention heads of the first stage, doubled likewise.
        blocks: transformer blocks of the four stages.
        global_blocks: the blocks that attend to the whole image.
        position_grid: side of the coarse grid of position embeddings, which is interpolated to the image's.
        windows: side of the attention windows of each stage, in tokens.
    """

    width: int
    heads: int
    blocks: tuple[int, int, int, int]
    global_blocks: tuple[int, int, int]
    position_grid: int = 7
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)


VARIANTS = {
    "tiny": Variant(96, 1, (1, 2, 7, 2), (5, 7, 9)),
    "small": Variant(96, 1, (1, 2, 11, 2), (7, 10, 13)),
    "base_plus": Variant(112, 2, (2, 3, 16, 3), (12, 16, 20), position_grid=14),
    "large": Variant(144, 2, (2, 6, 36, 4), (23, 33, 43), windows=_LIGHT_WINDOWS),
}
WINDOWS = ("sam2", "light")
VERSIONS = ("2.1", "2.0")


def sam2_module(name: str) -> ModuleType:
    """The module ``sam2.<name>``, imported so that Hydra is as before.

    The package's `__init__` starts Hydra with its own configurations, for the whole process, where Hydra was not
    started before. EchoPlan needs none of it. Who wants the package's `build_sam2` after EchoPlan in one process starts
    it again with ``hydra.initialize_config_module("sam2", version_base="1.2")``.

    Raises:
        EchoPlanError: the package is missing or broken.
    """
    was_started = _hydra_is_started()
    try:
        return importlib.import_module(f"sam2.{name}")
    except ImportError as error:
        raise EchoPlanError(
            f"the package sam2 cannot be imported: {error}",
            remedy="run SAM2_BUILD_CUDA=0 pip install 'sam2>=1.1.0'",
        ) from error
    finally:
        if not was_started and _hydra_is_started():
            sys.modules[_HYDRA].GlobalHydra.instance().clear()


def _hydra_is_started() -> bool:
    return _HYDRA in sys.modules and sys.modules[_HYDRA].GlobalHydra.instance().is_initialized()


class _ReadableSteps(TorchFunctionMode):
    """Even steps lie on the processor: the package reads their values, which the meta device does not have."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        placed = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **(kwargs or {}), **placed)


def build_trunk(variant: Variant, windows: str, size: int) -> Any:
    """The Hiera trunk for square images of `size` pixels; see `Variant`, and `run_block` for its blocks.

    "light" windows divide the grids of sizes that are multiples of 256.
    """
    home = torch.get_default_device()
    with _ReadableSteps() if home.type == "meta" else torch.device("cpu"):
        trunk = sam2_module("modeling.backbones.hieradet").Hiera(
            embed_dim=variant.width,
            num_heads=variant.heads,
            stages=variant.blocks,
            global_att_blocks=variant.global_blocks,
            window_pos_embed_bkg_spatial_size=(variant.position_grid,) * 2,
            window_spec=_LIGHT_WINDOWS if windows == "light" else variant.windows,
        )
    with torch.device("cpu"):
        grid = size // 4
        for block in trunk.blocks:
            block.register_buffer("window_bias", window_bias(block, grid), persistent=False)
            grid //= 2 if block.q_stride else 1
    return trunk.to(home)


def window_bias(block: Any, grid: int) -> Tensor | None:
    """What makes attention over a whole grid that of a trunk's block in its windows; None where that is no cheaper.

    Where windows do not divide the grid, SAM2 pads it with zeros, of which attention sees keys and values like any
    other. All of these are the same, and what attention finds for them is thrown away. So one more key, which counts as
    often as a window has padding, stands for all.

    Args:
        block: the block.
        grid: side of the grid that comes in, in tokens.

    Returns:
        ``(queries, grid^2 + 1)``: 0 within a window, -inf between windows, and for the last key, the padding's, the
        logarithm of how many there are in the query's window.
    """
    side = block.window_size
    if not side or grid % side == 0:
        return None
    windows, tokens, width = -(-grid // side), grid**2, block.attn.dim_out
    padded, a_window = (windows * side) ** 2, side**2
    maps = (
        3 * block.dim + width
    )  # multiply-accumulates a token and channel; attention's are two for each pair of tokens
    if tokens * (maps + 2 * tokens) > padded * (maps + 2 * a_window):
        return None
    place = torch.arange(grid) // side
    window = (windows * place[:, None] + place).flatten()
    padding = a_window - window.bincount(minlength=windows**2)
    asking = window.view(grid, grid)[::2, ::2].flatten() if block.q_stride else window
    between = torch.zeros(len(asking), tokens).masked_fill_(asking[:, None] != window, -torch.inf)
    return torch.cat([between, padding[asking, None].log()], dim=1)


def run_block(block: Any, tokens: Tensor) -> Tensor:
    """A block of the trunk, ``(N, h, w, C)`` -> ``(N, h', w', C')``, as the package has it but for work on padding."""
    fits = block.window_bias is not None and block.window_bias.shape[1] == tokens.shape[1] * tokens.shape[2] + 1
    return in_cache(partial(_without_padding, block) if fits else block, tokens, wider=_MLP_RATIO)


def in_cache(work: Callable[[Tensor], Tensor], frames: Tensor, *, wider: int) -> Tensor:
    """work(frames); without gradients on a CPU a few frames at a time, so that what lies between stays in its cache.

    Args:
        work: does the same to each frame, whatever others there are.
        frames: ``(N, ...)``.
        wider: how many times as large as the frames is what lies between.
    """
    together = max(1, _CACHED // (wider * frames[0].numel()))
    if frames.device.type != "cpu" or torch.is_grad_enabled() or together >= len(frames):
        return work(frames)
    return torch.cat([work(some) for some in frames.split(together)])


def _without_padding(block: Any, tokens: Tensor) -> Tensor:
    normed, attention = block.norm1(tokens), block.attn
    shortcut = tokens if block.dim == block.dim_out else _pooled(block.proj(normed), block.pool)
    q, k, v = attention.qkv(normed).flatten(1, 2).unflatten(2, (3, attention.num_heads, -1)).unbind(2)
    if attention.q_pool is not None:
        q = _pooled(q.reshape(*tokens.shape[:3], -1), attention.q_pool).flatten(1, 2).unflatten(2, q.shape[2:])
    _, *padding = attention.qkv.bias.view(3, 1, 1, attention.num_heads, -1)
    k, v = (torch.cat([each, more.to(each.dtype).expand(len(each), -1, -1, -1)], dim=1) for each, more in
            zip((k, v), padding, strict=True))  # fmt: skip
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=block.window_bias.to(q.dtype))
    found = attention.proj(found.transpose(1, 2).flatten(2)).view(shortcut.shape)
    tokens = shortcut + block.drop_path(found)
    return tokens + block.drop_path(block.mlp(block.norm2(tokens)))


def _pooled(grid: Tensor, pool: nn.Module) -> Tensor:
    return pool(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def build_neck(channels: list[int]) -> Any:
    """The feature pyramid over the trunk's stages, the coarsest of which comes first in `channels`."""
    return sam2_module("modeling.backbones.image_encoder").FpnNeck(
        position_encoding=nn.Identity(),
        d_model=WIDTH,
        backbone_channel_list=channels,
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )


def build_prompt_encoder(size: int) -> Any:
    """The prompt encoder for square images of `size` pixels."""
    return sam2_module("modeling.sam.prompt_encoder").PromptEncoder(
        embed_dim=WIDTH,
        image_embedding_size=(size // 16, size // 16),
        input_image_size=(size, size),
        mask_in_chans=16,
    )


def build_mask_decoder(*, object_score: bool) -> Any:
    """The mask decoder: three masks, their predicted IoU and, with `object_score`, whether there is an object."""
    transformer = sam2_module("modeling.sam.transformer").TwoWayTransformer(
        depth=2, embedding_dim=WIDTH, mlp_dim=FEEDFORWARD, num_heads=8
    )
    return sam2_module("modeling.sam.mask_decoder").MaskDecoder(
        num_multimask_outputs=3,
        transformer=transformer,
        transformer_dim=WIDTH,
        iou_head_depth=3,
        iou_head_hidden_dim=256,
        use_high_res_features=True,
        iou_prediction_use_sigmoid=True,
        pred_obj_scores=object_score,
        pred_obj_scores_mlp=object_score,
        use_multimask_token_for_obj_ptr=True,
    )


def build_pointer_head() -> Any:
    """From a mask's token to its object pointer."""
    return sam2_module("modeling.sam2_utils").MLP(WIDTH, WIDTH, WIDTH, 3)


def build_memory_attention(grid: int) -> Any:
    """Layers that attend to the frame itself and to the memories, on a feature grid of `grid` x `grid`."""
    module = sam2_module("modeling.memory_attention")
    layer = module.MemoryAttentionLayer(
        activation="relu",
        dim_feedforward=FEEDFORWARD,
        dropout=0.1,
        pos_enc_at_attn=False,
        self_attention=_rotary_attention(grid),
        d_model=WIDTH,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        cross_attention=_rotary_attention(grid, rope_k_repeat=True, kv_in_dim=MEMORY_WIDTH),
    )
    return module.MemoryAttention(d_model=WIDTH, pos_enc_at_input=True, layer=layer, num_layers=MEMORY_LAYERS)


def build_memory_encoder() -> Any:
    """From image features and a mask to a memory."""
    module = sam2_module("modeling.memory_encoder")
    block = module.CXBlock(dim=WIDTH, kernel_size=7, padding=3, layer_scale_init_value=1e-6, use_dwconv=True)
    return module.MemoryEncoder(
        out_dim=MEMORY_WIDTH,
        position_encoding=nn.Identity(),  # `sine_positions` are made once
        mask_downsampler=module.MaskDownSampler(kernel_size=3, stride=2, padding=1),
        fuser=module.Fuser(block, num_layers=2),
    )


def _rotary_attention(grid: int, *, rope_k_repeat: bool = False, **settings: Any) -> Any:
    """Attention with rotary positions, which move with the module.

    The package's constructor keeps the rotations as a plain attribute, on the first GPU where there is one: no home for
    a network on another device, and planning would open a CUDA context for it. So its parts are put together here.
    """
    module = sam2_module("modeling.sam.transformer")
    attention = module.RoPEAttention.__new__(module.RoPEAttention)
    module.Attention.__init__(attention, embedding_dim=WIDTH, num_heads=1, downsample_rate=1, dropout=0.1, **settings)
    turns = partial(module.compute_axial_cis, dim=attention.internal_dim // attention.num_heads, theta=10000.0)
    attention.compute_cis, attention.rope_k_repeat = turns, rope_k_repeat
    attention.register_buffer("freqs_cis", turns(end_x=grid, end_y=grid), persistent=False)
    return attention


def sine_positions(channels: int, grid: int) -> Tensor:
    """SAM2's sine position encoding of a square grid, ``(1, channels, grid, grid)``."""
    encoding = sam2_module("modeling.position_encoding").PositionEmbeddingSine(
        num_pos_feats=channels, normalize=True, scale=None, temperature=10000, warmup_cache=False
    )
    return encoding(torch.empty(1, 1, grid, grid))
