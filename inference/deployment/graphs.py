"""What an exported file computes beside the network: bytes in, masks out, as preprocessing and prediction do it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...preprocessing.clip import BACKGROUND
from ...preprocessing.geometry import Geometry

_WHITE = 255.0
_INT16 = 2**15
_MOST_BITS = 22


class SegmentFrames(nn.Module):
    """Frames of a clip as bytes -> their masks and probabilities, by one or several models.

    Args:
        members: the networks of each model. Probabilities are averaged over a model's networks, then over the models.
        normalisations: of each model, see `preprocessing.normalise`.
        window: frames that the networks see together; 1: each by itself.
        classes: K.
        geometry: how clips of one size come to the networks' grid and back; None: frames and masks lie on that grid.
    """

    def __init__(
        self,
        members: Sequence[Sequence[nn.Module]],
        *,
        normalisations: Sequence[str],
        window: int,
        classes: int,
        geometry: Geometry | None,
    ) -> None:
        super().__init__()
        each = [
            (network, normalisation, 1 / (len(members) * len(networks)))
            for networks, normalisation in zip(members, normalisations, strict=True)
            for network in networks
        ]
        self.networks = nn.ModuleList(network for network, _, _ in each)
        self.normalisations = [normalisation for _, normalisation, _ in each]
        self.shares = [share for _, _, share in each]
        self.window, self.classes = window, classes
        self.shrink = None if geometry is None else ToGrid(geometry)
        self.enlarge = None if geometry is None else FromGrid(geometry)

    def forward(self, frames: Tensor, statistics: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """uint8 ``(T, H, W)`` -> masks uint8 ``(T, H, W)`` and probabilities float32 ``(K, T, H, W)``.

        Args:
            frames: all of a clip, or some of it with the whole clip's statistics.
            statistics: mean and SD ``(2,)`` of the grey levels in the sector; NaN: those of these frames. None where
                no normalisation reads them.
        """
        grey = frames.float() if self.shrink is None else self.shrink(frames.float())
        found = [
            share * self._of_network(network, normalised(grey, normalisation, statistics))
            for network, normalisation, share in zip(self.networks, self.normalisations, self.shares, strict=True)
        ]
        probabilities = reduce(torch.add, found)
        if self.enlarge is not None:
            probabilities = self.enlarge(probabilities)
        return labels_of(probabilities), probabilities

    def _of_network(self, network: nn.Module, seen: Tensor) -> Tensor:
        """``(K, T, h, w)`` of standardised frames ``(T, h, w)``."""
        clip = seen[:, None, None] if self.window == 1 else seen[None, :, None]
        return as_probabilities(network(clip).flatten(0, 1), axis=1).transpose(0, 1)


def as_probabilities(logits: Tensor, *, axis: int) -> Tensor:
    """Of logits with one map, or one a label, along an axis."""
    return logits.sigmoid() if logits.shape[axis] == 1 else logits.softmax(dim=axis)


def labels_of(probabilities: Tensor) -> Tensor:
    """`labels_from_probabilities`: ``(K, ...)`` -> uint8 ``(...)``."""
    found = probabilities[0] >= 0.5 if probabilities.shape[0] == 1 else probabilities.argmax(dim=0)
    return found.to(torch.uint8)


def normalised(grey: Tensor, normalisation: str, statistics: Tensor | None) -> Tensor:
    """`preprocessing.normalise` of grey levels ``(T, h, w)``, by these statistics or, where NaN, by its own."""
    if normalisation == "unit":
        return grey / _WHITE
    if normalisation == "grey":
        return grey
    assert statistics is not None
    mean, sd = torch.where(statistics.isnan(), sector_statistics(grey), statistics)
    return (grey - mean) / sd


def sector_statistics(grey: Tensor) -> Tensor:
    """`preprocessing.sector_statistics` of grey levels ``(T, h, w)``: mean and SD, ``(2,)``."""
    inside = grey.amax(dim=0) > BACKGROUND
    weights = (inside | ~inside.any()).float()
    count = _total(weights[None]) * grey.shape[0]  # not len(), which a trace takes for a constant
    mean = _total(grey * weights) / count
    variance = _total((grey - mean).square() * weights) / count
    return torch.stack([mean, variance.sqrt().clamp_min(1.0)])


def _total(values: Tensor) -> Tensor:
    """The sum, axis by axis: a float32 that runs over ten million pixels would lose digits."""
    return values.sum(dim=2).sum(dim=1).sum(dim=0)


class ToGrid(nn.Module):
    """`Geometry.to_network` of bytes, in whole numbers as PyTorch has it: the same to the bit.

    Up to a reduction by about four, that is: beyond, float32 does not hold the sums, and a rare pixel is one level off.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        top, bottom, left, right = geometry.padding
        self.padding = (left, right, top, bottom)
        for name, old, new in zip(("rows", "columns"), geometry.native_shape, geometry.resized_shape, strict=True):
            self.register_buffer(name, _in_whole_parts(_resizing(old, new)), persistent=False)

    def forward(self, grey: Tensor) -> Tensor:
        """Whole numbers 0 to 255 ``(T, H, W)`` -> ``(T, h, w)``, zero in the padding."""
        across = torch.floor(grey @ self.columns.T + 0.5)
        return F.pad(torch.floor(self.rows @ across + 0.5), self.padding)


class FromGrid(nn.Module):
    """`Geometry.to_native`."""

    rows: Tensor
    columns: Tensor

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        (top, _, left, _), (height, width) = geometry.padding, geometry.resized_shape
        self.inner = (..., slice(top, top + height), slice(left, left + width))
        for name, old, new in zip(("rows", "columns"), geometry.resized_shape, geometry.native_shape, strict=True):
            self.register_buffer(name, _resizing(old, new).float(), persistent=False)

    def forward(self, probabilities: Tensor) -> Tensor:
        """``(K, T, h, w)`` -> ``(K, T, H, W)``."""
        return self.rows @ (probabilities[self.inner] @ self.columns.T)


def _resizing(old: int, new: int) -> Tensor:
    """How much each of `old` pixels counts in each of `new` ones, ``(new, old)`` float64, antialiased."""
    if old == new:
        return torch.eye(old, dtype=torch.float64)
    pixels = torch.eye(old, dtype=torch.float64)[None, None]
    return F.interpolate(pixels, size=(new, old), mode="bilinear", antialias=True)[0, 0]


def _in_whole_parts(weights: Tensor) -> Tensor:
    """Weights as PyTorch resizes bytes with them: whole multiples of a power of two, the largest below 2^15 of them."""
    greatest = float(weights.max())
    bits = next((b for b in range(_MOST_BITS) if int(0.5 + greatest * 2 ** (b + 1)) >= _INT16), _MOST_BITS)
    return (torch.floor(weights * 2**bits + 0.5) / 2**bits).float()
