"""Which of SAM's parameters learn."""

from __future__ import annotations

from typing import Any

from echoplan.networks.sam.settings import LEARNING_PARTS

_PARTS = dict(zip(LEARNING_PARTS, ("mask_decoder", "image_encoder", "prompt_encoder"), strict=True))


def set_trainable(network: Any, part: str) -> None:
    """Let a named part of a `SAM` learn, the locator always, and nothing else.

    What no box ever reaches stays as it is: the masks for ambiguous prompts, the predicted IoU, and the embeddings of
    points and masks as prompts.

    Args:
        network: changed in place.
        part: of `LEARNING_PARTS`, see `SAMSettings`.
    """
    network.requires_grad_(False)
    network.locator.requires_grad_(True)
    for name in LEARNING_PARTS[: LEARNING_PARTS.index(part) + 1]:
        getattr(network, _PARTS[name]).requires_grad_(True)
    decoder, prompts = network.mask_decoder, network.prompt_encoder
    for unused in (
        decoder.iou_prediction_head,
        decoder.output_hypernetworks_mlps[1:],
        prompts.point_embeddings[:2],
        prompts.not_a_point_embed,
        prompts.mask_downscaling,
    ):
        unused.requires_grad_(False)
