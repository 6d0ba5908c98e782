"""The losses. Logits are (B, T, K, H, W), targets (B, T, H, W) with 255 where nobody labelled."""

from .boundary import boundary_loss, signed_distance_maps
from .e3sam2 import edge_loss, edge_target, entropy_loss, mask_quality_loss, presence_loss
from .region import cross_entropy_loss, deep_supervision_loss, dice_ce_loss, reduce_labels, soft_dice_loss

__all__ = [
    "boundary_loss",
    "cross_entropy_loss",
    "deep_supervision_loss",
    "dice_ce_loss",
    "edge_loss",
    "edge_target",
    "entropy_loss",
    "mask_quality_loss",
    "presence_loss",
    "reduce_labels",
    "signed_distance_maps",
    "soft_dice_loss",
]
