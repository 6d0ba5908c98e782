"""Published weights: SAM 2.0's and 2.1's, and whole networks of E3SAM2's authors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from echoplan.networks.weights import find_weights, load_weights

# Beginnings of names, theirs and ours.
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
    # E3SAM2's authors'.
    "learned_prompt_conv.double_conv.": "prompting.later.",
    "edge_encoder.sobel_x1.": "edges.fine.across.",
    "edge_encoder.sobel_y1.": "edges.fine.down.",
    "edge_encoder.conv1_c1.": "edges.fine.project.",
    "edge_encoder.sobel_x3.": "edges.coarse.across.",
    "edge_encoder.sobel_y3.": "edges.coarse.down.",
    "edge_encoder.conv1_c3.": "edges.coarse.project.",
    "edge_encoder.conv3_GE_LN.": "edges.refine.",
    "edge_encoder.lastconv.": "edges.last.",
}
_ADAPTER_NAMES = {
    "local_branch.conv_1_in.": "widen.",
    "local_branch.dwconv3x3.": "three.",
    "local_branch.dwconv5x5.": "five.",
    "local_branch.conv_1_out.": "join.",
    "global_branch.norm.": "norm.",
    "global_branch.query_key_value.": "attention.query_key_value.",
}
_ADAPTED = re.compile(r"image_encoder\.trunk\.blocks\.(\d+)\.(block|glf)\.(.+)")
# For frames without an object, which do not occur.
_UNUSED = ("no_obj_ptr", "no_obj_embed_spatial", "no_mem_pos_enc")
# What a network of some settings does without.
_SPARED = (
    "prompting.shrink.",
    "decoder.pointer.",
    "decoder.masks.obj_score_token.",
    "decoder.masks.pred_obj_score_head.",
    "memory.age",
    "memory.nothing",
    "memory.pointer_age.",
)
_COARSE_HEAD = ("prompting.locator.", "prompting.shrink.")
_OURS = ("encoder.adapters.", "edges.", "prompting.locator.", "prompting.later.")


def load_published_weights(network: nn.Module, variant: str, version: str, pretrained: bool | str | Path) -> None:
    """Fill an `E3SAM2` with published weights; what they do not have stays as it is.

    None of them depends on the image's size: the position embeddings are interpolated, the rotations computed. A file
    of SAM 2.0 has no ages of object pointers, which then read as none.

    Args:
        network: changed in place.
        variant: "tiny", "small", "base_plus" or "large".
        version: of SAM2, that is looked for: "2.0" or "2.1".
        pretrained: True finds the file (`find_weights`), a path names it: of either version, or a whole network of
            E3SAM2's authors, which must fit strictly but for the coarse head, that theirs does not have.

    Raises:
        EchoPlanError: there is no such file, or it holds something else.
    """
    name = f"sam2.1_hiera_{variant}" if version == "2.1" else f"sam2_hiera_{variant}"
    path = find_weights(name, path=pretrained)
    adapt = _Renaming(network)
    load_weights(network, path, adapt=adapt, ignore=_UNUSED, new=adapt.new)


class _Renaming:
    """Their names to ours; `new` then is what a file of that kind need not have."""

    def __init__(self, network: nn.Module) -> None:
        self._own = network.state_dict()
        self.new: list[str] = []

    def __call__(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state under our names.

        Raises:
            KeyError: an adapter lacks a part.
        """
        whole = any(name.startswith("learned_prompt_conv.") for name in state)
        self.new.extend(_COARSE_HEAD if whole else _OURS)
        blocks = sorted({int(found[1]) for name in state if (found := _ADAPTED.fullmatch(name)) and found[2] == "glf"})
        state = dict(state)
        for block in blocks:
            start = f"image_encoder.trunk.blocks.{block}.glf.global_branch."
            for kind in ("weight", "bias"):
                parts = [state.pop(f"{start}{each}.{kind}") for each in ("query", "key", "value")]
                state[f"{start}query_key_value.{kind}"] = torch.cat(parts)
        renamed = {_renamed(name, blocks): value for name, value in state.items()}
        if not whole and "memory.pointer_age.weight" in self._own and "memory.pointer_age.weight" not in renamed:
            for kind in ("weight", "bias"):
                renamed[f"memory.pointer_age.{kind}"] = torch.zeros_like(self._own[f"memory.pointer_age.{kind}"])
        return {name: value for name, value in renamed.items() if name in self._own or not name.startswith(_SPARED)}


def _renamed(name: str, adapted: Sequence[int]) -> str:
    if found := _ADAPTED.fullmatch(name):
        block, part, rest = int(found[1]), found[2], found[3]
        if part == "block":
            return f"encoder.trunk.blocks.{block}.{rest}"
        for old, new in _ADAPTER_NAMES.items():
            if rest.startswith(old):
                return f"encoder.adapters.{adapted.index(block)}.{new}{rest.removeprefix(old)}"
        return name
    for old, new in _NAMES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
