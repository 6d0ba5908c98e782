"""ResNets as backbones for ultrasound: one grey channel in, the four stages' feature maps out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from echoplan.networks.settings import check_choice
from echoplan.networks.weights import find_weights, load_weights

_CHANNELS = {"resnet18": (64, 128, 256, 512), "resnet34": (64, 128, 256, 512), "resnet50": (256, 512, 1024, 2048)}
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class ResNetBackbone(nn.Module):
    """torchvision's ResNet without its classifier; the keys of its state dict are torchvision's.

    Args:
        name: "resnet18", "resnet34" or "resnet50".
        pretrained: True finds ImageNet weights, a path names their file, False starts at random.
        input_range: what the input holds, see `grey_first_convolution`; only matters for pretrained weights.
        bottleneck_stride: which convolution of ResNet-50's bottleneck is strided: "3x3" as torchvision has it, or "1x1"
            as the first publication and weights that come from Keras have it.

    Attributes:
        channels: channels of the four maps, whose strides are 4, 8, 16 and 32.

    Raises:
        EchoPlanError: unknown name or setting, or the weights cannot be found or do not fit.
    """

    def __init__(
        self,
        name: str = "resnet18",
        *,
        pretrained: bool | str | Path = False,
        input_range: str = "standardised",
        bottleneck_stride: str = "3x3",
    ) -> None:
        super().__init__()
        check_choice("backbone", name, _CHANNELS)
        check_choice("input_range", input_range, ("standardised", "unit"))
        check_choice("bottleneck_stride", bottleneck_stride, ("3x3", "1x1"))
        network = getattr(torchvision.models, name)(weights=None)
        self.channels = _CHANNELS[name]
        self.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1, self.relu, self.maxpool = network.bn1, network.relu, network.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            network.layer1,
            network.layer2,
            network.layer3,
            network.layer4,
        )
        if bottleneck_stride == "1x1" and name == "resnet50":
            for layer in (self.layer2, self.layer3, self.layer4):
                layer[0].conv1.stride, layer[0].conv2.stride = layer[0].conv2.stride, layer[0].conv1.stride
        if pretrained:
            path = find_weights(name, path=pretrained)
            load_weights(self, path, ignore=("fc.",), adapt=partial(grey_first_convolution, input_range=input_range))

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Frames ``(N, 1, H, W)`` -> four maps ``(N, channels[i], H / s, W / s)``, s = 4, 8, 16, 32."""
        return self.maps(self.stem(frames))

    def stem(self, frames: Tensor) -> Tensor:
        """Frames ``(N, 1, H, W)`` -> ``(N, 64, H / 2, W / 2)``."""
        return self.relu(self.bn1(self.conv1(frames)))

    def maps(self, stem: Tensor) -> list[Tensor]:
        """What `stem` gave -> what `forward` gives."""
        features = self.maxpool(stem)
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = layer(features)
            maps.append(features)
        return maps


def grey_first_convolution(state: dict[str, Tensor], *, input_range: str) -> dict[str, Tensor]:
    """Turn an RGB ResNet's first convolution into one for a single grey channel, which gives what grey RGB would give.

    A grey picture g has three equal channels. The weights were trained on (g - mean_c) / std_c for the colours c.

    "standardised": g comes with mean 0 and standard deviation 1, as the trained colours had; the kernel is the sum over
    the colours. "unit": g lies in 0 to 1; the kernel is sum_c w_c / std_c, and the constant -sum_c w_c mean_c / std_c
    goes into the normalisation that follows. (It then also acts where the convolution reaches over the picture's edge.)
    A kernel that has one channel already is left alone.
    """
    kernel = state["conv1.weight"]
    if kernel.shape[1] == 1:
        return state
    if input_range == "standardised":
        return {**state, "conv1.weight": kernel.sum(dim=1, keepdim=True)}
    mean = torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1)
    constant = -(kernel * mean / std).sum(dim=(1, 2, 3))
    return {
        **state,
        "conv1.weight": (kernel / std).sum(dim=1, keepdim=True),
        "bn1.running_mean": state["bn1.running_mean"] - constant,
    }
