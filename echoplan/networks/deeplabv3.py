"""EchoNet-Dynamic's segmentation network (Ouyang et al., Nature 2020): torchvision's DeepLabV3 with ResNet-50."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_resnet50

from echoplan.errors import EchoPlanError
from echoplan.networks.weights import find_weights, load_weights

_RGB = 3


class DeepLabV3(nn.Module):
    """`deeplabv3`: every frame by itself, a grey one as three equal channels.

    Its image pooling normalises one value a channel over the frames of a batch. A single frame in training has nothing
    to be normalised by there: it takes the running mean and variance instead, as at test time, and leaves them as they
    are.

    Args:
        size: the frames' height and width; any.
        classes: output channels K.
        pretrained: ImageNet weights for the backbone: True finds them, a path names their file. EchoNet-Dynamic's
            published network was trained without.
        bottleneck_stride: see `ResNetBackbone`; here only the second stage is strided, the later ones are dilated.

    Raises:
        EchoPlanError: a setting it cannot take, or weights that cannot be had.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int],
        classes: int = 1,
        pretrained: bool | str | Path = False,
        bottleneck_stride: str = "3x3",
    ) -> None:
        super().__init__()
        if bottleneck_stride not in ("3x3", "1x1"):
            raise EchoPlanError(f"bottleneck_stride cannot be {bottleneck_stride!r}", remedy="choose 3x3 or 1x1")
        whole = deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=False, num_classes=classes)
        self.backbone, self.classifier = whole.backbone, whole.classifier
        if bottleneck_stride == "1x1":
            first = self.backbone.layer2[0]
            first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
        if pretrained:
            path = find_weights("resnet50", path=None if pretrained is True else pretrained)
            load_weights(self.backbone, path, ignore=("fc.",))

    def forward(self, clip: Tensor) -> Tensor:
        """Standardised frames ``(B, T, C, H, W)`` with C = 1 or 3 -> logits ``(B, T, K, H, W)``."""
        frames = clip.flatten(0, 1).expand(-1, _RGB, -1, -1)
        if self.training:
            self._prepare_pooling(len(frames))
        logits = self.classifier(self.backbone(frames)["out"])
        enlarged = nn.functional.interpolate(logits, clip.shape[-2:], mode="bilinear", align_corners=False)
        return enlarged.unflatten(0, clip.shape[:2])

    def _prepare_pooling(self, frames: int) -> None:
        """Whether the image pooling normalises over the frames of this batch."""
        norm = self.classifier[0].convs[-1][2]
        if not isinstance(norm, nn.SyncBatchNorm):  # which looks at the frames of other processes too
            norm.train(frames > 1)
