"""Networks with fewer channels and blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.segmentation import DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from echoplan.networks import resnet
from echoplan.networks.e3sam2 import sam2_parts
from echoplan.networks.sam import parts as sam_parts
from echoplan.networks.sam import tiny_vit


class SlimResNet(ResNet):
    """A ResNet with the usual stem and one narrow block a stage, whatever the depth asked for."""

    def __init__(self, block: type[nn.Module], dilated: Sequence[bool] = (False, False, False)) -> None:
        super().__init__(block, [1, 1, 1, 1], num_classes=1, replace_stride_with_dilation=list(dilated))
        self.inplanes, self.dilation = 64, 1
        self.layer1 = self._make_layer(block, SLIM[0], 1)
        for number, width, dilate in zip((2, 3, 4), SLIM[1:], dilated, strict=True):
            setattr(self, f"layer{number}", self._make_layer(block, width, 1, stride=2, dilate=dilate))


SLIM = (8, 16, 24, 32)


def slim_deeplab(*, num_classes: int, **_: Any) -> DeepLabV3:
    backbone = IntermediateLayerGetter(SlimResNet(Bottleneck, (False, True, True)), {"layer4": "out"})
    return DeepLabV3(backbone, DeepLabHead(4 * SLIM[-1], num_classes))


def make_networks_slim(patch: pytest.MonkeyPatch) -> None:
    for name, block in (("resnet18", BasicBlock), ("resnet34", BasicBlock), ("resnet50", Bottleneck)):
        patch.setattr(torchvision.models, name, lambda block=block, **_: SlimResNet(block))
        patch.setitem(resnet._CHANNELS, name, tuple(width * block.expansion for width in SLIM))
    patch.setattr(torchvision.models.segmentation, "deeplabv3_resnet50", slim_deeplab)
    narrow_sam2(patch, blocks=(1, 1, 2, 1), global_blocks=(3, 3, 3))
    patch.setattr(sam_parts, "FEEDFORWARD", 32)
    for name, values in (("_WIDTHS", (8, 8, 16, 16)), ("_DEPTHS", (1,) * 4), ("_HEADS", (2,) * 4)):
        patch.setattr(tiny_vit, name, values)


def narrow_sam2(
    patch: pytest.MonkeyPatch,
    *,
    blocks: tuple[int, int, int, int] = (1, 2, 7, 2),
    global_blocks: tuple[int, int, int] = (5, 7, 9),
) -> None:
    """SAM2's smallest networks with few channels in the trunk and the perceptrons, and one layer that reads memories.

    The blocks of the trunk are those of "tiny" unless others are asked for.
    """
    for name in ("tiny", "small"):
        patch.setitem(sam2_parts.VARIANTS, name, sam2_parts.Variant(16, 1, blocks, global_blocks))
    patch.setattr(sam2_parts, "FEEDFORWARD", 32)
    patch.setattr(sam2_parts, "MEMORY_LAYERS", 1)
