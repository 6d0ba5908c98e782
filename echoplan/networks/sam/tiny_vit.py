"""TinyViT (Wu et al., ECCV 2022) as LiteMedSAM has it: an image encoder of 5.7 M parameters for images of 256 x 256."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

_WIDTHS, _DEPTHS, _HEADS, _WINDOWS = (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)
_EXPANSION = 4
_FEATURES = 256  # what SAM's decoder takes


class TinyViT(nn.Module):
    """TinyViT-5M with LiteMedSAM's changes: neither the first layer nor the last stage reduces the grid.

    Names of parameters are those of the published weights. Images may have any edges that are multiples of 4; windows
    at the border are filled up with zeros.
    """

    stride = 4

    def __init__(self) -> None:
        super().__init__()
        first = _WIDTHS[0]
        embedding = nn.Sequential(_NormedConv(3, first // 2), nn.GELU(), _NormedConv(first // 2, first))
        self.patch_embed = nn.ModuleDict({"seq": embedding})
        self.layers = nn.ModuleList(_Stage(index) for index in range(len(_WIDTHS)))
        self.neck = nn.Sequential(
            nn.Conv2d(_WIDTHS[-1], _FEATURES, 1, bias=False),
            LayerNorm2d(_FEATURES),
            nn.Conv2d(_FEATURES, _FEATURES, 3, padding=1, bias=False),
            LayerNorm2d(_FEATURES),
        )

    def forward(self, images: Tensor) -> Tensor:
        """``(N, 3, H, W)``, edges multiples of 4 -> features ``(N, 256, H/4, W/4)``."""
        features = self.patch_embed["seq"](images)
        for stage in self.layers:
            features = stage(features)
        return self.neck(features)


class _NormedConv(nn.Sequential):
    """A convolution without a bias, and batch normalisation."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)


class _Stage(nn.Module):
    """Blocks of one width (the first stage's are convolutions), and the step to the next stage's width and grid."""

    def __init__(self, index: int) -> None:
        super().__init__()
        width = _WIDTHS[index]
        self.blocks = nn.ModuleList(
            _AttentionBlock(width, _HEADS[index], _WINDOWS[index]) if index else _ConvBlock(width)
            for _ in range(_DEPTHS[index])
        )
        last = index == len(_WIDTHS) - 1
        self.downsample = None if last else _Merging(width, _WIDTHS[index + 1], stride=1 if index == 2 else 2)

    def forward(self, features: Tensor) -> Tensor:
        for block in self.blocks:
            features = block(features)
        return features if self.downsample is None else self.downsample(features)


class _ConvBlock(nn.Module):
    """MobileNet's inverted bottleneck."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = width * _EXPANSION
        self.conv1 = _NormedConv(width, wide)
        self.conv2 = _NormedConv(wide, wide, kernel=3, groups=wide)
        self.conv3 = _NormedConv(wide, width)
        nn.init.zeros_(self.conv3.bn.weight)  # begins as the identity

    def forward(self, features: Tensor) -> Tensor:
        inner = F.gelu(self.conv2(F.gelu(self.conv1(features))))
        return F.gelu(features + self.conv3(inner))


class _Merging(nn.Module):
    def __init__(self, width: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = _NormedConv(width, outputs)
        self.conv2 = _NormedConv(outputs, outputs, kernel=3, stride=stride, groups=outputs)
        self.conv3 = _NormedConv(outputs, outputs)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(features)))))


class _AttentionBlock(nn.Module):
    """Attention in windows, a depthwise convolution across them, and an MLP a place."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.attn = _WindowAttention(width, heads, window)
        self.local_conv = _NormedConv(width, width, kernel=3, groups=width)
        wide = width * _EXPANSION
        layers = {"norm": nn.LayerNorm(width), "fc1": nn.Linear(width, wide), "fc2": nn.Linear(wide, width)}
        self.mlp = nn.ModuleDict(layers)

    def forward(self, features: Tensor) -> Tensor:
        features = self.local_conv(features + self.attn(features))
        tokens = features.permute(0, 2, 3, 1)
        inner = self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.mlp["norm"](tokens))))
        return features + inner.permute(0, 3, 1, 2)


class _WindowAttention(nn.Module):
    """Softmax(q.k / sqrt(d) + bias) v among the places of a window; the bias is learned for each distance."""

    distances: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window**2))
        places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        apart = (places[:, None] - places[None]).abs()
        self.register_buffer("distances", apart[..., 0] * window + apart[..., 1], persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """``(N, C, h, w)`` -> the same shape."""
        count, _, height, width = features.shape
        side = self.window
        below, right = -height % side, -width % side
        tokens = F.pad(features, (0, right, 0, below)).permute(0, 2, 3, 1)
        rows, columns = (height + below) // side, (width + right) // side
        windows = tokens.unflatten(2, (columns, side)).unflatten(1, (rows, side)).transpose(2, 3)
        tokens = self.norm(windows.reshape(count * rows * columns, side * side, -1))
        # The published weights hold q, k and v of one head after another.
        query, key, value = self.qkv(tokens).unflatten(2, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        bias = self.attention_biases[:, self.distances].to(query.dtype)
        answer = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        answer = self.proj(answer.transpose(1, 2).flatten(2))
        windows = answer.view(count, rows, columns, side, side, -1).transpose(2, 3)
        whole = windows.reshape(count, rows * side, columns * side, -1)[:, :height, :width]
        return whole.permute(0, 3, 1, 2)
