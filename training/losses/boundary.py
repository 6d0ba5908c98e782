"""The boundary loss (Kervadec et al., Medical Image Analysis 2021)."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from echoplan.errors import EchoPlanError
from echoplan.labels import IGNORE

from .region import class_probabilities, mask_logits, mean_where


def signed_distance_maps(
    labels: np.ndarray, *, classes: int = 1, normalise: str = "sides", ignore: int = IGNORE
) -> np.ndarray:
    """Each pixel's distance to the structure's boundary: positive outside, negative inside (the paper's phi_G).

    Outside it is the distance to the nearest pixel of the structure; inside, one less than the distance to the nearest
    pixel outside, so that the structure's own outermost pixels are at zero. Ignored pixels count as outside. A frame
    where the structure is absent, or fills everything, has no boundary, and neither has an unlabelled one: all zeros.

    Args:
        labels: ``(..., H, W)``, integers.
        classes: 1 for label 1 alone; K > 1 for the labels 1 to K - 1 (the background has no map of its own).
        normalise: "sides" divides what lies outside and what lies inside, each by its own greatest distance, giving -1
            to 1 whatever the resolution; "diagonal" divides by the image's diagonal; "none" leaves pixels.
        ignore: the label of pixels that nobody labelled.

    Returns:
        float32, ``(..., H, W)`` for one class, else ``(..., K - 1, H, W)``.

    Raises:
        EchoPlanError: `normalise` is none of these.
    """
    if normalise not in ("sides", "diagonal", "none"):
        raise EchoPlanError(
            f"distance maps cannot be normalised by {normalise!r}", remedy="choose sides, diagonal or none"
        )
    wanted = [1] if classes == 1 else list(range(1, classes))
    masks = np.stack([labels == label for label in wanted], axis=-3)
    maps = np.stack([_signed_distance(mask, normalise) for mask in masks.reshape(-1, *labels.shape[-2:])])
    maps = maps.reshape(masks.shape)
    return maps[..., 0, :, :] if classes == 1 else maps


def _signed_distance(mask: np.ndarray, normalise: str) -> np.ndarray:
    if not mask.any() or mask.all():
        return np.zeros(mask.shape, np.float32)
    outside = distance_transform_edt(~mask)
    inside = np.where(mask, distance_transform_edt(mask) - 1, 0)
    if normalise == "sides":
        outside, inside = outside / outside.max(), inside / max(inside.max(), 1)
    signed = outside - inside
    return (signed / np.hypot(*mask.shape) if normalise == "diagonal" else signed).astype(np.float32)


def boundary_loss(logits: Tensor, distances: Tensor, target: Tensor, *, ignore: int = IGNORE) -> Tensor:
    """Mean of probability times signed distance: per labelled frame over its labelled pixels, then over the frames.

    It is negative where the prediction fills the structure, and least for the structure itself. It goes with a region
    loss such as Dice: alone it is too weak to find the structure.

    Args:
        logits: ``(B, T, K, H, W)``.
        distances: from `signed_distance_maps`, ``(B, T, H, W)`` for K = 1, else ``(B, T, K - 1, H, W)``.
        target: ``(B, T, H, W)``; only read for which pixels are labelled.
        ignore: the label of pixels that nobody labelled.
    """
    logits, labelled = mask_logits(logits, target, ignore=ignore)
    single = logits.shape[2] == 1
    probabilities = class_probabilities(logits) if single else class_probabilities(logits)[:, :, 1:]
    distances = distances.unsqueeze(2) if single else distances
    weighted = (probabilities * distances.float()).mean(dim=2) * labelled
    per_frame = weighted.sum(dim=(2, 3)) / labelled.sum(dim=(2, 3)).clamp_min(1)
    return mean_where(per_frame, labelled.flatten(2).any(dim=2))
