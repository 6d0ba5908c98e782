"""Which of SAM's parameters learn."""

from __future__ import annotations

from typing import Any

from echoplan.errors import EchoPlanError

# Each with those before it.
_STEPS = {"decoder": "mask_decoder", "all_but_prompt_encoder": "image_encoder", "all": "prompt_encoder"}


def set_trainable(network: Any, trainable: str) -> None:
    """Let a named part of a `SAM` learn, the locator always, and nothing else.

    What no box ever reaches stays as it is: the masks for ambiguous prompts, the predicted IoU, and the embeddings of
    points and masks as prompts.

    Args:
        network: changed in place.
        trainable: "decoder" (the mask decoder), "all_but_prompt_encoder" (and the image encoder) or "all".

    Raises:
        EchoPlanError: there is no such part.
    """
    names = list(_STEPS)
    if trainable not in names:
        raise EchoPlanError(f"trainable cannot be {trainable!r}", remedy=f"choose one of {', '.join(names)}")
    network.requires_grad_(False)
    network.locator.requires_grad_(True)
    for name in names[: names.index(trainable) + 1]:
        getattr(network, _STEPS[name]).requires_grad_(True)
    decoder, prompts = network.mask_decoder, network.prompt_encoder
    for unused in (
        decoder.iou_prediction_head,
        decoder.output_hypernetworks_mlps[1:],
        prompts.point_embeddings[:2],
        prompts.not_a_point_embed,
        prompts.mask_downscaling,
    ):
        unused.requires_grad_(False)
