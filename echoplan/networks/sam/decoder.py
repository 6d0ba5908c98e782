"""From image features and a box to one mask."""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder
from torch import Tensor


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
