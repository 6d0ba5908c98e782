"""SAM 2.1's published weights, under the names of the parts here."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from echoplan.networks.weights import find_weights, load_weights

_NAMES = {
    "image_encoder.": "encoder.",
    "sam_prompt_encoder.": "prompting.encoder.",
    "mask_downsample.": "prompting.shrink.",
    "sam_mask_decoder.": "decoder.masks.",
    "obj_ptr_proj.": "decoder.pointer.",
    "memory_attention.": "memory.attention.",
    "memory_encoder.": "memory.encoder.",
    "maskmem_tpos_enc": "memory.age",
    "no_mem_embed": "memory.nothing",
    "obj_ptr_tpos_proj.": "memory.pointer_age.",
}
# For frames without an object, which do not occur.
_UNUSED = ("no_obj_ptr", "no_obj_embed_spatial", "no_mem_pos_enc")
_OURS = ("encoder.adapters.", "edges.", "prompting.locator.")


def load_sam2_weights(network: nn.Module, variant: str, pretrained: bool | str | Path) -> None:
    """Fill an `E3SAM2` with the weights of SAM 2.1; what SAM2 does not have stays as it is.

    None of them depends on the image's size: the position embeddings are interpolated, the rotations computed.

    Args:
        network: changed in place.
        variant: "tiny", "small", "base_plus" or "large".
        pretrained: True finds the file (`find_weights`), a path names it.

    Raises:
        EchoPlanError: there is no such file, or it holds something else.
    """
    path = find_weights(f"sam2.1_hiera_{variant}", path=None if pretrained is True else pretrained)
    load_weights(network, path, adapt=_renamed, ignore=_UNUSED, new=_OURS)


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {_new_name(name): value for name, value in state.items()}


def _new_name(name: str) -> str:
    for old, new in _NAMES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
