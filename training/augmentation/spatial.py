"""What moves pixels and labels about the sector's apex: all moves of a clip in one resampling."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from echoplan.labels import IGNORE

from .transform import Bounds, Clip, Transform, check_bounds


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
    rows, columns = _reached(np.any(known, axis=0), grid)
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


@dataclass(frozen=True)
class SectorAffine:
    """Turns and scales about the sector's apex, and mirrors left and right.

    A scanner turns and rescales its image about the transducer, so that the apex stays where it is.

    Args:
        rotation_degrees: the largest rotation to either side.
        scale: the range of scales.
        mirror: whether left and right may be swapped (half of the draws).
        probability: of a rotation, and independently of a scaling.
    """

    rotation_degrees: float
    scale: tuple[float, float] = (1.0, 1.0)
    mirror: bool = False
    probability: float = 1.0

    def draw(self, generator: np.random.Generator) -> SectorMove:
        """Random parameters."""
        turned, scaled, mirrored = generator.random(3)
        degrees = generator.uniform(-self.rotation_degrees, self.rotation_degrees)
        # Uniform in the logarithm: halving is as likely as doubling.
        scale = float(np.exp(generator.uniform(*np.log(self.scale))))
        return SectorMove(
            degrees=degrees if turned < self.probability else 0.0,
            scale=scale if scaled < self.probability else 1.0,
            mirror=self.mirror and mirrored < 0.5,
        )


@dataclass(frozen=True, kw_only=True)
class MovingTransform(Transform):
    """Moves pixels about the apex, and labels with them."""

    @abstractmethod
    def draw(self, generator: np.random.Generator) -> SectorMove:
        """A random move."""

    def apply(self, draw: SectorMove, **clip: Any) -> Clip:
        """The clip moved, and its spacing corrected: a pixel of an enlarged picture shows fewer millimetres."""
        frames, labels = move_clip(draw, clip["frames"], clip["labels"], apex=clip["apex"], classes=clip["classes"])
        moved = clip | {"frames": frames, "labels": labels}
        moved.pop("sector", None)
        if clip.get("spacing_mm") is not None:
            moved["spacing_mm"] = tuple(value / draw.scale for value in clip["spacing_mm"])
        return moved


@dataclass(frozen=True, kw_only=True)
class Rotation(MovingTransform):
    """Turns the clip about the sector's apex, where the probe stands; depth under the probe stays what it was.

    Source: rotation is every recipe's; about the apex because that is how a probe tilts. Geometric changes that
    anatomy allows carried over best between echocardiography datasets (Elyasi et al. 2026, arXiv 2605.16427).

    Attributes:
        degrees: the largest rotation to either side, 0 to 45.
    """

    degrees: float = 15.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds("rotation in degrees", (self.degrees, self.degrees), 0, 45)

    def draw(self, generator: np.random.Generator) -> SectorMove:
        """Uniform to either side."""
        return SectorMove(degrees=float(generator.uniform(-self.degrees, self.degrees)))


@dataclass(frozen=True, kw_only=True)
class DepthChange(MovingTransform):
    """Scales the clip about the sector's apex, as another imaging depth does, and corrects "spacing_mm".

    Source: after the idea of the zoom of Singla et al. (MIDL 2022) and the depth change of VanBerlo et al. (2025, arXiv
    2504.07904), which both keep the beams where they are.

    Attributes:
        scale: bounds within 0.5 to 2; more than 1 is a shallower setting, which shows the heart larger.
    """

    scale: Bounds = (0.85, 1.15)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds("depth scale", self.scale, 0.5, 2)

    def draw(self, generator: np.random.Generator) -> SectorMove:
        """Uniform in the logarithm: a tenth shallower is as likely as a tenth deeper."""
        return SectorMove(scale=float(np.exp(generator.uniform(*np.log(self.scale)))))


@dataclass(frozen=True, kw_only=True)
class FieldOfView(MovingTransform):
    """Spreads or gathers the beams: what lay at an angle to the vertical lies at a multiple of that angle.

    Distances along a beam stay, those across are stretched, so "spacing_mm" holds along the beams only.

    Source: after the idea of the convexity mutation of VanBerlo et al. (2025, arXiv 2504.07904).

    Attributes:
        opening: bounds within 0.5 to 2; more than 1 widens the fan.
    """

    opening: Bounds = (0.9, 1.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds("opening of the field of view", self.opening, 0.5, 2)

    def draw(self, generator: np.random.Generator) -> SectorMove:
        """Uniform in the logarithm."""
        return SectorMove(opening=float(np.exp(generator.uniform(*np.log(self.opening)))))
