"""Moving a clip's pixels and labels about the sector's apex, in one resampling whatever moved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from echoplan.labels import IGNORE


@dataclass(frozen=True)
class SectorMove:
    """How a clip moves about its apex.

    Attributes:
        degrees: rotation, counter-clockwise on the screen.
        scale: more than 1 enlarges.
        mirror: left and right swapped, after all else.
        opening: more than 1 widens the fan: each beam's angle to the vertical becomes that many times as large.
    """

    degrees: float = 0.0
    scale: float = 1.0
    mirror: bool = False
    opening: float = 1.0

    def then(self, other: SectorMove) -> SectorMove:
        """Both moves as one."""
        return SectorMove(
            degrees=self.degrees + other.degrees,
            scale=self.scale * other.scale,
            mirror=self.mirror != other.mirror,
            opening=self.opening * other.opening,
        )


def move_clip(
    move: SectorMove, frames: np.ndarray, labels: np.ndarray, *, apex: tuple[float, float], classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Move pixels and labels alike.

    Args:
        move: the move; the default one changes nothing.
        frames: (T, H, W), where 0 is black; what comes in from outside is black.
        labels: (T, H, W) uint8; what comes in from outside is background, 255 stays with its pixels.
        apex: (row, column) of the sector's apex, in pixels.
        classes: label values 0 to classes - 1.

    Returns:
        float32 frames of their own and uint8 labels, of the same shapes.
    """
    if move == SectorMove():
        return frames.astype(np.float32), labels
    height, width = frames.shape[1:]
    grid = _sampling_grid(move, apex, height, width)
    moved = functional.grid_sample(
        torch.as_tensor(frames, dtype=torch.float32)[None], grid, mode="bilinear", align_corners=True
    )[0].numpy()
    return moved, _move_labels(labels, grid, classes)


def _sampling_grid(move: SectorMove, apex: tuple[float, float], height: int, width: int) -> torch.Tensor:
    """Where each output pixel comes from, (1, H, W, 2) in grid_sample's coordinates (align_corners=True)."""
    rows, columns = np.arange(height) - apex[0], np.arange(width) - apex[1]
    if move.mirror:
        columns = (width - 1 - 2 * apex[1]) - columns
    radians = np.deg2rad(move.degrees)
    cosine, sine = np.cos(radians) / move.scale, np.sin(radians) / move.scale
    down = np.add.outer(cosine * rows, sine * columns, dtype=np.float32)
    right = np.add.outer(-sine * rows, cosine * columns, dtype=np.float32)
    if move.opening != 1:
        radius, angle = np.hypot(down, right), np.arctan2(right, down) / np.float32(move.opening)
        down, right = radius * np.cos(angle), radius * np.sin(angle)
    grid = np.empty((1, height, width, 2), np.float32)
    for place, (offset, own, length) in enumerate(((right, apex[1], width), (down, apex[0], height))):
        step = 2 / max(length - 1, 1)
        grid[0, ..., place] = offset * np.float32(step) + np.float32(own * step - 1)
    return torch.from_numpy(grid)


def _move_labels(labels: np.ndarray, grid: torch.Tensor, classes: int) -> np.ndarray:
    """Linear interpolation of each label's own map, then the strongest: smoother borders than nearest neighbours."""
    moved = np.full_like(labels, IGNORE)
    labelled = np.flatnonzero((labels != IGNORE).any(axis=(1, 2)))
    if not len(labelled):
        return moved  # a frame nobody labelled stays so everywhere: its borders must not turn into background
    known = labels if len(labelled) == len(labels) else labels[labelled]
    moved[labelled] = 0  # what comes in from outside the image is background
    rows, columns = _reached(known.any(axis=0), grid)
    values = [*range(1, classes)] + ([IGNORE] if known.max() == IGNORE else [])
    maps = torch.from_numpy(np.stack([known == value for value in values]).astype(np.float32))
    flat = functional.grid_sample(maps.flatten(0, 1)[None], grid[:, rows, columns], mode="bilinear", align_corners=True)
    sampled = flat[0].unflatten(0, maps.shape[:2])
    strength = 1 - sampled.sum(dim=0)  # the background's
    strongest = torch.zeros(strength.shape, dtype=torch.uint8)
    for value, own in zip(values, sampled, strict=True):
        strongest.masked_fill_(own > strength, value)
        strength = torch.maximum(own, strength)
    moved[labelled, rows, columns] = strongest.numpy()
    return moved


def _reached(anything: np.ndarray, grid: torch.Tensor) -> tuple[slice, slice]:
    """The rows and columns of the output that take anything from where there is something, (H, W) bool: few of them."""
    reached = np.ones(anything.shape, bool)
    for axis in (0, 1):  # the grid's last axis is x, then y
        there = np.flatnonzero(anything.any(axis=axis))
        if not len(there):
            return slice(0, 0), slice(0, 0)
        source = (grid[0, ..., axis].numpy() + 1) * ((anything.shape[1 - axis] - 1) / 2)
        reached &= (source > there[0] - 1) & (source < there[-1] + 1)
    rows, columns = np.flatnonzero(reached.any(axis=1)), np.flatnonzero(reached.any(axis=0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
