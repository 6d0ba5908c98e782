"""EchoNet-Dynamic's segmentation network (Ouyang et al., Nature 2020): torchvision's DeepLabV3 with ResNet-50."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from echoplan.networks.settings import NetworkSettings, check_choice
from echoplan.networks.weights import find_weights, load_weights, read_state

_RGB = 3


@dataclass(frozen=True)
class DeepLabV3Settings(NetworkSettings):
    """Of `DeepLabV3`.

    Attributes:
        bottleneck_stride: "3x3" for torchvision's ImageNet weights, "1x1" for weights of the original ResNet. Only the
            second stage is strided, the later ones are dilated.
        standardise: "training_set": frames are grey levels, which the network brings to mean 0 and SD 1 by
            `grey_mean` and `grey_sd`; "clip": they are standardised when they come.
        grey_mean, grey_sd: of the grey levels, until a training has measured its own.
    """

    bottleneck_stride: str = "3x3"
    standardise: str = field(default="training_set", metadata={"before": "clip"})
    grey_mean: float = 0.0
    grey_sd: float = 1.0

    def __post_init__(self) -> None:
        check_choice("standardise", self.standardise, ("training_set", "clip"))
        check_choice("bottleneck_stride", self.bottleneck_stride, ("3x3", "1x1"))


class DeepLabV3(nn.Module):
    """`deeplabv3`: every frame by itself, a grey one as three equal channels.

    Its image pooling normalises one value a channel over the frames of a batch. A single frame in training has nothing
    to be normalised by there: it takes the running mean and variance instead, as at test time, and leaves them as they
    are.

    Args:
        settings: see `DeepLabV3Settings`.
        size: the frames' height and width; any.
        classes: output channels K.
        pretrained: True finds ImageNet weights for the backbone; a path names their file, or that of a whole network
            of this kind, such as the one EchoNet-Dynamic's authors published.

    Attributes:
        grey_mean, grey_sd: of the grey levels of a training set; they are saved with the weights.

    Raises:
        EchoPlanError: weights that cannot be had.
    """

    grey_mean: Tensor
    grey_sd: Tensor

    def __init__(
        self,
        settings: DeepLabV3Settings,
        *,
        size: tuple[int, int],
        classes: int = 1,
        pretrained: bool | str | Path = False,
    ) -> None:
        super().__init__()
        from torchvision.models.segmentation import deeplabv3_resnet50  # who trains another method need not wait for it

        whole = deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=False, num_classes=classes)
        self.backbone, self.classifier = whole.backbone, whole.classifier
        if settings.bottleneck_stride == "1x1":
            first = self.backbone.layer2[0]
            first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
        self.standardise = settings.standardise
        if self.standardise == "training_set":
            self.register_buffer("grey_mean", torch.tensor(settings.grey_mean))
            self.register_buffer("grey_sd", torch.tensor(settings.grey_sd))
        if pretrained:
            path = find_weights("resnet50", path=pretrained)
            if any(key.startswith("classifier.") for key in read_state(path)):
                load_weights(self, path, new=("grey_",))
            else:
                load_weights(self.backbone, path, ignore=("fc.",))

    def forward(self, clip: Tensor) -> Tensor:
        """Frames ``(B, T, C, H, W)`` with C = 1 or 3, as `standardise` says -> logits ``(B, T, K, H, W)``."""
        if self.standardise == "training_set":
            clip = (clip.float() - self.grey_mean) / self.grey_sd
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
