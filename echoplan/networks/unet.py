"""The U-Net whose depth follows from the frame's size, on frames and on space-time (nnU-Net, Isensee et al. 2021).

The frame network computes what MONAI's `DynUNet` does. That class is not used: it keeps the supervision heads' outputs
as attributes (a network in training can then not be copied), stores every weight under two names, enlarges the heads to
full size, and pads time with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.errors import EchoPlanError
from echoplan.networks.interface import ClipOutput
from echoplan.networks.settings import NetworkSettings, check_range

_SMALLEST_EDGE = 4
_SLOPE = 0.01


@dataclass(frozen=True)
class UNetSettings(NetworkSettings):
    """Of `FrameUNet`.

    Attributes:
        base_features: channels of the first stage, doubled at each.
        max_features: the most channels a stage has.
        deep_supervision: in training mode also give logits at lower resolutions.
    """

    base_features: int = 32
    max_features: int = 512
    deep_supervision: bool = True

    def __post_init__(self) -> None:
        check_range("base_features", self.base_features, 1, 1024)
        check_range("max_features", self.max_features, 1, 4096)


@dataclass(frozen=True)
class SpaceTimeUNetSettings(UNetSettings):
    """Of `SpaceTimeUNet`.

    Attributes:
        max_features: the most channels a stage has (320: nnU-Net's for volumes).
        flat_stages: how many of the first (finest) stages convolve in the frame only, kernel 1 x 3 x 3; the others
            have 3 x 3 x 3. Motion between frames shows at lower resolutions too, and the finest stage costs most.
    """

    max_features: int = 320
    flat_stages: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("flat_stages", self.flat_stages, 0)


def pooling_steps(size: tuple[int, int]) -> list[tuple[int, int]]:
    """The strides (rows, columns) after each stage: an axis is halved while its half is at least 4 pixels long.

    Args:
        size: the frame's height and width in pixels.

    Raises:
        EchoPlanError: an axis is not a multiple of the strides it gets, or too short for three stages.
    """
    edges, steps = list(size), list[tuple[int, int]]()
    while max(edges) >= 2 * _SMALLEST_EDGE:
        tall, wide = (2 if edge >= 2 * _SMALLEST_EDGE else 1 for edge in edges)
        step = tall, wide
        odd = [axis for axis in (0, 1) if edges[axis] % step[axis]]
        if odd:
            raise EchoPlanError(
                f"the U-Net cannot halve an edge of {size[odd[0]]} pixels evenly until it is below 8",
                remedy=f"choose a size such as {fitting_edge(size[0])} x {fitting_edge(size[1])}",
            )
        edges = [edge // s for edge, s in zip(edges, step, strict=True)]
        steps.append(step)
    if len(steps) < 2:
        raise EchoPlanError(
            f"frames of {size[0]} x {size[1]} pixels are too small for a U-Net",
            remedy=f"choose a size of at least {4 * _SMALLEST_EDGE} pixels",
        )
    return steps


def fitting_edge(edge: int) -> int:
    """The shortest length from `edge` on that can be halved evenly until it is below 8 pixels."""
    divisor = 1
    while -(-edge // divisor) >= 2 * _SMALLEST_EDGE:
        divisor *= 2
    return -(-edge // divisor) * divisor


class _TimeConv3d(nn.Conv3d):
    """A convolution over space-time, zero-padded in space and reflected in time.

    Zeros before the first and after the last frame would tell these apart from the rest. Where only end_diastole and
    end_systole are labelled and a clip runs from one to the other, a network learns just these two frames from it.
    """

    def _conv_forward(self, volume: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.kernel_size[0] > 1:  # 3: one frame at either end, the only one where there is no other
            second, last_but_one = volume[:, :, :2][:, :, -1:], volume[:, :, -2:][:, :, :1]
            volume = torch.cat([second, volume, last_but_one], 2)
        return F.conv3d(volume, weight, bias, self.stride, (0, *self.padding[1:]))


class _InstanceNorm(nn.GroupNorm):
    """Instance normalisation with weight and bias: one group a channel, with GroupNorm's parameters.

    On CPUs GroupNorm's kernel is twice as fast as batch normalisation's. On GPUs autocast computes GroupNorm in float32
    and so keeps three copies of each map for the backward pass (float32 before and after, 16 bits for the next
    convolution): mixed precision would take more memory than float32. Batch normalisation takes and gives 16 bits and
    adds up in 32.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, C, ...)``, each channel of each sample brought to mean 0 and variance 1, times weight plus bias."""
        return super().forward(maps) if maps.is_cpu else self.as_batch_norm(maps)

    def as_batch_norm(self, maps: Tensor) -> Tensor:
        """The same of a single sample with B x C channels, as PyTorch's `instance_norm` has it.

        That function is not called: it refuses maps of one pixel, and gives a view, of which an activation in place
        costs the backward pass two more copies of the map.
        """
        samples = len(maps)
        weight, bias = self.weight.repeat(samples), self.bias.repeat(samples)
        together = maps.reshape(1, -1, *maps.shape[2:])
        normalised = torch.batch_norm(
            together, weight, bias, None, None, True, 0.0, self.eps, torch.backends.cudnn.enabled
        )
        return torch.ops.aten._unsafe_view(normalised, maps.shape)  # no view to autograd; nothing else holds the memory


class _Stage(nn.Sequential):
    """Two convolutions, each followed by instance normalisation and LeakyReLU; the first one has the stride."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, ...], stride: tuple[int, ...]) -> None:
        convolution: type[Any] = nn.Conv2d if len(kernel) == 2 else _TimeConv3d
        layers: list[nn.Module] = []
        for channels, step in ((in_channels, stride), (out_channels, (1,) * len(kernel))):
            layers += [
                convolution(channels, out_channels, kernel, step, tuple(k // 2 for k in kernel), bias=False),
                _InstanceNorm(out_channels),
                nn.LeakyReLU(_SLOPE, inplace=True),
            ]
        super().__init__(*layers)


class _UNet(nn.Module):
    """Encoder, decoder and heads over images or space-time volumes.

    In training mode a 1 x 1 head sits on every decoder level but the coarsest, which nnU-Net gives no weight.
    """

    def __init__(
        self,
        settings: UNetSettings,
        *,
        classes: int,
        kernels: Sequence[tuple[int, ...]],
        strides: Sequence[tuple[int, ...]],
    ) -> None:
        super().__init__()
        flat, depth = len(kernels[0]) == 2, len(kernels)
        features = [min(settings.base_features * 2**i, settings.max_features) for i in range(depth)]
        pointwise: type[Any] = nn.Conv2d if flat else nn.Conv3d
        transposed: type[Any] = nn.ConvTranspose2d if flat else nn.ConvTranspose3d
        before = [1, *features]
        self.encoder = nn.ModuleList(
            _Stage(before[i], features[i], kernels[i], strides[i - 1] if i else (1,) * len(kernels[0]))
            for i in range(depth)
        )
        self.up = nn.ModuleList(
            transposed(features[i + 1], features[i], strides[i], strides[i], bias=False) for i in range(depth - 1)
        )
        self.decoder = nn.ModuleList(
            _Stage(2 * features[i], features[i], kernels[i], (1,) * len(kernels[0])) for i in range(depth - 1)
        )
        self.head = pointwise(features[0], classes, 1)
        supervised = range(1, depth - 2) if settings.deep_supervision else ()
        self.supervision_heads = nn.ModuleList(pointwise(features[i], classes, 1) for i in supervised)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits at full size; in training mode also those of the supervised levels, finest first."""
        levels = []
        for stage in self.encoder:
            images = stage(images)
            levels.append(images)
        for i in reversed(range(len(self.decoder))):
            levels[i] = self.decoder[i](torch.cat([self.up[i](levels[i + 1]), levels[i]], dim=1))
        supervised = zip(self.supervision_heads, levels[1:], strict=False) if self.training else ()
        return self.head(levels[0]), [head(level) for head, level in supervised]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class FrameUNet(nn.Module):
    """`unet`: every frame by itself.

    Args:
        settings: see `UNetSettings`.
        size: the frames' height and width; each axis must be divisible by the strides `pooling_steps` gives it.
        classes: output channels K.
    """

    def __init__(self, settings: UNetSettings, *, size: tuple[int, int], classes: int = 1) -> None:
        super().__init__()
        self.strides = pooling_steps(size)
        depth = len(self.strides) + 1
        self.network = _UNet(
            settings,
            classes=classes,
            kernels=[(3, 3)] * depth,
            strides=self.strides,
        )

    def forward(self, clip: Tensor) -> Tensor | ClipOutput:
        """``(B, T, C, H, W)`` -> logits ``(B, T, K, H, W)``; in training mode with "deep_supervision"."""
        _check_divisible(clip, self.strides)
        logits, lower = self.network(clip.flatten(0, 1))
        return _output(
            self, *([image.unflatten(0, clip.shape[:2]) for image in images] for images in ([logits], lower))
        )


class SpaceTimeUNet(nn.Module):
    """`unet_2dt`: convolutions over time and space; time is never pooled, so any number of frames will do.

    Args:
        settings: see `SpaceTimeUNetSettings`.
        size, classes: as for `FrameUNet`.
    """

    def __init__(self, settings: SpaceTimeUNetSettings, *, size: tuple[int, int], classes: int = 1) -> None:
        super().__init__()
        self.strides = pooling_steps(size)
        depth = len(self.strides) + 1
        self.network = _UNet(
            settings,
            classes=classes,
            kernels=[(1 if i < settings.flat_stages else 3, 3, 3) for i in range(depth)],
            strides=[(1, *step) for step in self.strides],
        )

    def forward(self, clip: Tensor) -> Tensor | ClipOutput:
        """``(B, T, C, H, W)`` -> logits ``(B, T, K, H, W)``; in training mode with "deep_supervision"."""
        _check_divisible(clip, self.strides)
        logits, lower = self.network(clip.transpose(1, 2))
        return _output(self, *([volume.transpose(1, 2) for volume in volumes] for volumes in ([logits], lower)))


def _output(network: nn.Module, logits: list[Tensor], lower: list[Tensor]) -> Tensor | ClipOutput:
    return ClipOutput(logits[0], {"deep_supervision": lower} if lower else {}) if network.training else logits[0]


def _check_divisible(clip: Tensor, strides: list[tuple[int, int]]) -> None:
    for axis, name in ((0, "high"), (1, "wide")):
        divisor = 2 ** sum(step[axis] == 2 for step in strides)
        edge = clip.shape[3 + axis]
        if edge % divisor:
            raise EchoPlanError(
                f"this U-Net takes frames a multiple of {divisor} pixels {name}, not {edge}",
                remedy="resize or pad the frames to the size the network was built for",
            )
