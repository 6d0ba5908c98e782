"""From a clip's native grid to the network's grid and back.

A geometry is three steps: crop to a box, resize the crop, pad with zeros. Pixel centres lie at half-integers (row i
covers [i, i + 1)): a resize maps the crop's edges onto the resized image's edges, and nothing drifts by half a pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from echoplan.errors import EchoPlanError
from echoplan.labels import IGNORE
from echoplan.sector import Box

PROTOCOLS = ("aspect", "stretch", "nearest")
_CHANNELS = 4
_FRAMES_AT_ONCE = 16  # bounds the float copies that resizing needs


@dataclass(frozen=True)
class Geometry:
    """How one clip's frames lie on the network's grid.

    Attributes:
        native_shape: (H, W) of the clip as read.
        crop_box: (first row, end row, first column, end column) in native pixels, ends excluded.
        resized_shape: (h, w) the crop is resized to.
        padding: rows and columns of zeros added (top, bottom, left, right).
        spacing_mm: (row, column) spacing of the network's grid, or None where the clip's spacing is unknown.
        nearest: whether each pixel of the grid is the clip's nearest one, of frames and labels, not a mean of several.
    """

    native_shape: tuple[int, int]
    crop_box: Box
    resized_shape: tuple[int, int]
    padding: tuple[int, int, int, int]
    spacing_mm: tuple[float, float] | None = None
    nearest: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the network's grid."""
        top, bottom, left, right = self.padding
        return self.resized_shape[0] + top + bottom, self.resized_shape[1] + left + right

    @property
    def is_native(self) -> bool:
        """Whether the grid is the clip's own."""
        height, width = self.native_shape
        return self.crop_box == (0, height, 0, width) and self.resized_shape == self.native_shape == self.size

    @property
    def native_spacing_mm(self) -> tuple[float, float] | None:
        """(row, column) spacing of the native grid, None where unknown."""
        if self.spacing_mm is None:
            return None
        r0, r1, c0, c1 = self.crop_box
        (height, width), (row, column) = self.resized_shape, self.spacing_mm
        return row * height / (r1 - r0), column * width / (c1 - c0)

    @property
    def apex(self) -> tuple[float, float]:
        """(row, column) of the sector's apex on the network's grid: the middle of the upper edge of the clip's area.

        Apical views are shown with the transducer at the top.
        """
        top, _, left, _ = self.padding
        return float(top), left + (self.resized_shape[1] - 1) / 2

    def to_network(self, frames: np.ndarray) -> np.ndarray:
        """Crop, resize (linear, with antialiasing where the image shrinks, or by the nearest pixel) and pad.

        Args:
            frames: (T, H, W) on the native grid; integers are rounded back to their type, floats become float32.

        Returns:
            (T, *size), zero in the padding.
        """
        crop = self._nearest(self._crop(frames)) if self.nearest else self._crop(frames)
        integer = np.issubdtype(crop.dtype, np.integer)
        network = np.zeros((len(crop), *self.size), dtype=crop.dtype if integer else np.float32)
        inner = network[self._inner]
        for first in range(0, len(crop), _FRAMES_AT_ONCE):
            part = slice(first, first + _FRAMES_AT_ONCE)
            if crop.dtype == np.uint8:
                inner[part] = _resize_bytes(crop[part], self.resized_shape)
            else:
                resized = _resize(crop[part], self.resized_shape)
                inner[part] = np.rint(resized) if integer else resized
        return network

    def labels_to_network(self, mask: np.ndarray) -> np.ndarray:
        """Bring a label map to the network's grid: each label is resized as an area, the largest share wins; or by the
        nearest pixel.

        Frames that are wholly `IGNORE` stay so, padding included. In other frames ignored pixels take part as a label
        of their own and the padding is background.

        Args:
            mask: (T, H, W) uint8 on the native grid.

        Returns:
            (T, *size) uint8.
        """
        crop = self._nearest(self._crop(mask)) if self.nearest else self._crop(mask)
        network = np.zeros((len(crop), *self.size), dtype=np.uint8)
        unlabelled = (mask == IGNORE).all(axis=(1, 2))
        network[unlabelled] = IGNORE
        labelled = np.flatnonzero(~unlabelled)
        inner = network[self._inner]
        for first in range(0, len(labelled), _FRAMES_AT_ONCE):
            part = labelled[first : first + _FRAMES_AT_ONCE]
            inner[part] = _resize_labels(crop[part], self.resized_shape)
        return network

    def to_native(self, probabilities: np.ndarray) -> np.ndarray:
        """Bring probabilities (or any smooth map) back to the native grid, linearly; 0 outside the crop box.

        Args:
            probabilities: (T, h, w) or (K, T, h, w) on the network's grid.

        Returns:
            float32, (T, H, W) or (K, T, H, W).
        """
        return self.tensor_to_native(torch.from_numpy(np.ascontiguousarray(probabilities))).numpy()

    def tensor_to_native(self, probabilities: Tensor) -> Tensor:
        """`to_native` of a tensor, on its device."""
        if tuple(probabilities.shape[-2:]) != self.size:
            raise ValueError(f"expected maps of {self.size}, got {tuple(probabilities.shape[-2:])}")
        leading = probabilities.shape[:-2]
        maps = probabilities.reshape(-1, *self.size)[self._inner]
        native = torch.zeros((len(maps), *self.native_shape), device=maps.device)
        r0, r1, c0, c1 = self.crop_box
        for first in range(0, len(maps), _FRAMES_AT_ONCE):
            part = slice(first, first + _FRAMES_AT_ONCE)
            native[part, r0:r1, c0:c1] = _resize_tensor(maps[part].float().contiguous(), (r1 - r0, c1 - c0))
        return native.reshape(*leading, *self.native_shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as JSON wants them."""
        return {
            "native_shape": list(self.native_shape),
            "crop_box": list(self.crop_box),
            "resized_shape": list(self.resized_shape),
            "padding": list(self.padding),
            "spacing_mm": None if self.spacing_mm is None else list(self.spacing_mm),
            **({"nearest": True} if self.nearest else {}),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Geometry:
        """The inverse of `to_dict`."""
        spacing = content.get("spacing_mm")
        return cls(
            native_shape=tuple(content["native_shape"]),
            crop_box=tuple(content["crop_box"]),
            resized_shape=tuple(content["resized_shape"]),
            padding=tuple(content["padding"]),
            spacing_mm=None if spacing is None else tuple(spacing),
            nearest=content.get("nearest", False),
        )

    @property
    def _inner(self) -> tuple[slice, slice, slice]:
        """Where the resized images lie inside the padding of frames (T, h, w)."""
        top, _, left, _ = self.padding
        height, width = self.resized_shape
        return slice(None), slice(top, top + height), slice(left, left + width)

    def _crop(self, frames: np.ndarray) -> np.ndarray:
        if tuple(frames.shape[1:]) != self.native_shape:
            raise ValueError(f"expected frames of {self.native_shape}, got {tuple(frames.shape[1:])}")
        r0, r1, c0, c1 = self.crop_box
        return frames[:, r0:r1, c0:c1]

    def _nearest(self, crop: np.ndarray) -> np.ndarray:
        rows, columns = (
            (2 * np.arange(new) + 1) * old // (2 * new)
            for new, old in zip(self.resized_shape, crop.shape[1:], strict=True)
        )
        return crop[:, rows[:, None], columns]


def plan_geometry(
    frame_shape: tuple[int, int],
    spacing_mm: tuple[float, float] | None,
    crop_box: Box | None,
    size: tuple[int, int],
    protocol: str = "aspect",
) -> Geometry:
    """Decide how frames of one clip are brought to the network's grid.

    Args:
        frame_shape: (H, W) of the native frames.
        spacing_mm: (row, column) of the native grid; None: pixels are taken as square.
        crop_box: (first row, end row, first column, end column), ends excluded; None: the whole frame.
        size: (h, w) of the network's grid.
        protocol: "aspect": as large as fits with the same mm a pixel in both directions, centred, zeros around;
            "stretch": the crop fills the whole grid; "nearest": so, too, by the nearest pixel.

    Raises:
        EchoPlanError: an unknown protocol, or a box outside the frame.
    """
    height, width = (int(n) for n in frame_shape)
    r0, r1, c0, c1 = (0, height, 0, width) if crop_box is None else (int(n) for n in crop_box)
    box = (r0, r1, c0, c1)
    if not (0 <= r0 < r1 <= height and 0 <= c0 < c1 <= width):
        raise EchoPlanError(f"the crop box {box} does not lie in a frame of {height} x {width} pixels")
    row_mm, column_mm = spacing_mm or (1.0, 1.0)
    extent = ((r1 - r0) * row_mm, (c1 - c0) * column_mm)
    if protocol in ("stretch", "nearest"):
        resized = (int(size[0]), int(size[1]))
    elif protocol == "aspect":
        pixel = max(extent[0] / size[0], extent[1] / size[1])
        rows, columns = (min(n, max(1, round(length / pixel))) for n, length in zip(size, extent, strict=True))
        resized = rows, columns
    else:
        raise EchoPlanError(f"unknown protocol {protocol!r}", remedy=f"choose one of {', '.join(PROTOCOLS)}")
    spare = (size[0] - resized[0], size[1] - resized[1])
    padding = (spare[0] // 2, spare[0] - spare[0] // 2, spare[1] // 2, spare[1] - spare[1] // 2)
    spacing = None if spacing_mm is None else (extent[0] / resized[0], extent[1] / resized[1])
    return Geometry((height, width), box, resized, padding, spacing, nearest=protocol == "nearest")


def _resize(frames: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(N, H, W) -> float32 (N, *shape), linear; antialiased along an axis that shrinks."""
    return _resize_tensor(torch.from_numpy(np.ascontiguousarray(frames, dtype=np.float32)), shape).numpy()


def _resize_tensor(frames: Tensor, shape: tuple[int, int]) -> Tensor:
    if tuple(frames.shape[1:]) == tuple(shape):
        return frames
    # Without gradients and one channel at a time: the fast path of the antialiased filter.
    with torch.no_grad():
        return interpolate(frames[:, None], size=shape, mode="bilinear", antialias=True)[:, 0]


def _resize_bytes(frames: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """`_resize` for uint8 frames, in whole numbers: several times as fast, and at most one grey level off."""
    if tuple(frames.shape[1:]) == tuple(shape):
        return frames
    tensor = torch.from_numpy(np.ascontiguousarray(frames))
    # Four frames stand as one picture's four channels, which the filter's vector code works through together.
    left_over = len(tensor) % _CHANNELS
    fours = tensor[: len(tensor) - left_over].unflatten(0, (-1, _CHANNELS))
    parts = [fours, tensor[len(tensor) - left_over :, None]]
    resized = [
        interpolate(part, size=shape, mode="bilinear", antialias=True).flatten(0, 1) for part in parts if len(part)
    ]
    return torch.cat(resized).numpy()


def _resize_labels(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(N, H, W) uint8 -> (N, *shape) uint8; ties go to the smaller label value."""
    best_label = np.zeros((len(mask), *shape), dtype=np.uint8)
    best_share = np.zeros(best_label.shape, dtype=np.float32)
    for value in np.unique(mask):
        share = _resize(mask == value, shape)
        better = share > best_share
        best_label[better] = value
        best_share[better] = share[better]
    return best_label
