"""The losses: one a file. Logits are (B, T, K, H, W), targets (B, T, H, W) with 255 where nobody labelled."""

from .boundary import boundary_loss, signed_distance_maps
from .compound import dice_ce_loss
from .cross_entropy import cross_entropy_loss
from .deep_supervision import deep_supervision_loss, reduce_labels
from .dice import soft_dice_loss
from .edges import edge_loss, edge_target
from .entropy import entropy_loss
from .quality import mask_quality_loss, presence_loss

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
