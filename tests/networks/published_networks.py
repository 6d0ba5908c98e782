"""SAM2 as its package builds it, and a checkpoint of E3SAM2 as its authors' has names and shapes; random weights."""

from __future__ import annotations

import re
from typing import Any

import torch

CONFIGURATIONS = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}


def package_network(variant: str, *, size: int | None = None) -> Any:
    """The sam2 package's video predictor, built by its own function; at 1024 pixels unless a size is given."""
    import sam2.build_sam
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    grid = None if size is None else f"[{size // 16},{size // 16}]"
    overrides = [] if size is None else [
        f"++model.image_size={size}",
        f"++model.memory_attention.layer.self_attention.feat_sizes={grid}",
        f"++model.memory_attention.layer.cross_attention.feat_sizes={grid}",
    ]  # fmt: skip
    GlobalHydra.instance().clear()
    with initialize_config_module("sam2", version_base="1.2"):
        return sam2.build_sam.build_sam2_video_predictor(
            f"configs/sam2.1/sam2.1_hiera_{CONFIGURATIONS[variant]}.yaml",
            device="cpu",
            hydra_overrides_extra=overrides,
            apply_postprocessing=False,
        )


def authors_state() -> dict[str, torch.Tensor]:
    """A checkpoint of E3SAM2's authors by its names and shapes, with random weights."""
    package = package_network("small").state_dict()
    left_out = ("maskmem", "no_", "obj_ptr", "mask_downsample", "sam_mask_decoder.obj_", "sam_mask_decoder.pred_obj")
    shapes = {}
    for key, value in package.items():
        if not key.startswith(left_out):
            name = re.sub(r"trunk\.blocks\.(1|3|14)\.", r"trunk.blocks.\1.block.", key)
            shapes[name] = value.shape
    for block, c in ((1, 96), (3, 192), (14, 384)):
        shapes |= {f"image_encoder.trunk.blocks.{block}.glf.{name}": shape for name, shape in {
            "local_branch.conv_1_in.weight": (4 * c, c, 1, 1), "local_branch.dwconv3x3.weight": (4 * c, 1, 3, 3),
            "local_branch.dwconv5x5.weight": (4 * c, 1, 5, 5), "local_branch.conv_1_out.weight": (c, 8 * c, 1, 1),
            "local_branch.conv_1_out.bias": (c,), "global_branch.norm.weight": (c,), "global_branch.norm.bias": (c,),
            **{f"global_branch.{part}.weight": (c, c) for part in ("query", "key", "value")},
            **{f"global_branch.{part}.bias": (c,) for part in ("query", "key", "value")}}.items()}  # fmt: skip
    shapes |= {f"learned_prompt_conv.double_conv.{name}": shape for name, shape in {
        "0.weight": (128, 256, 3, 3), "1.weight": (128,), "1.bias": (128,),
        "3.weight": (256, 128, 3, 3), "4.weight": (256,), "4.bias": (256,)}.items()}  # fmt: skip
    for scale, channels in (("1", 32), ("3", 256)):
        shapes |= {
            f"edge_encoder.conv1_c{scale}.weight": (64, channels, 1, 1),
            f"edge_encoder.conv1_c{scale}.bias": (64,),
        }
        for axis in "xy":
            shapes[f"edge_encoder.sobel_{axis}{scale}.0.weight"] = (1, channels, 3, 3)
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"edge_encoder.sobel_{axis}{scale}.1.{name}"] = (1,)
            shapes[f"edge_encoder.sobel_{axis}{scale}.1.num_batches_tracked"] = ()
    shapes |= {f"edge_encoder.{name}": shape for name, shape in {
        "conv3_GE_LN.0.weight": (64, 128, 3, 3), "conv3_GE_LN.0.bias": (64,), "conv3_GE_LN.2.weight": (64,),
        "conv3_GE_LN.2.bias": (64,), "conv3_GE_LN.3.weight": (64, 64, 3, 3), "conv3_GE_LN.3.bias": (64,),
        "conv3_GE_LN.5.weight": (64,), "conv3_GE_LN.5.bias": (64,), "lastconv.weight": (1, 64, 1, 1),
        "lastconv.bias": (1,)}.items()}  # fmt: skip
    return {name: torch.rand(shape) for name, shape in shapes.items()}
