"""Augmentation of one training sample: the same draw for every frame of a clip, labels moved with the pixels.

Geometry (turning and scaling about the sector's apex) is ours, because the apex is a notion of ultrasound; intensity
transforms are batchgenerators', with time in its channel axis so that one draw serves all frames.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from batchgenerators.transforms.abstract_transforms import AbstractTransform, Compose
from batchgenerators.transforms.color_transforms import (
    BrightnessMultiplicativeTransform,
    ContrastAugmentationTransform,
    GammaTransform,
)
from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform
from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform
from torch.nn import functional

from echoplan.dataset import IGNORE


@dataclass(frozen=True)
class AffineDraw:
    """One draw of the geometric augmentation.

    Attributes:
        degrees: rotation, counter-clockwise on the screen.
        scale: more than 1 enlarges.
        mirror: left and right swapped.
    """

    degrees: float = 0.0
    scale: float = 1.0
    mirror: bool = False


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

    def draw(self, generator: np.random.Generator) -> AffineDraw:
        """Random parameters."""
        turned, scaled, mirrored = generator.random(3)
        degrees = generator.uniform(-self.rotation_degrees, self.rotation_degrees)
        # Uniform in the logarithm: halving is as likely as doubling.
        scale = float(np.exp(generator.uniform(*np.log(self.scale))))
        return AffineDraw(
            degrees=degrees if turned < self.probability else 0.0,
            scale=scale if scaled < self.probability else 1.0,
            mirror=self.mirror and mirrored < 0.5,
        )

    @staticmethod
    def apply(
        draw: AffineDraw, frames: np.ndarray, labels: np.ndarray, *, apex: tuple[float, float], classes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Move pixels and labels alike.

        Args:
            draw: the parameters.
            frames: (T, H, W), where 0 is black; what comes in from outside is black.
            labels: (T, H, W) uint8; what comes in from outside is background, 255 stays with its pixels.
            apex: (row, column) of the sector's apex, in pixels.
            classes: label values 0 to classes - 1.

        Returns:
            float32 frames and uint8 labels of the same shapes.
        """
        if draw == AffineDraw():
            return frames.astype(np.float32), labels
        height, width = frames.shape[1:]
        grid = _sampling_grid(draw, apex, height, width)
        moved = functional.grid_sample(
            torch.as_tensor(frames, dtype=torch.float32)[None], grid, mode="bilinear", align_corners=True
        )[0].numpy()
        return moved, _move_labels(labels, grid, classes)


def _sampling_grid(draw: AffineDraw, apex: tuple[float, float], height: int, width: int) -> torch.Tensor:
    """Where each output pixel comes from, (1, H, W, 2) in grid_sample's coordinates (align_corners=True)."""
    rows, columns = torch.meshgrid(torch.arange(height) - apex[0], torch.arange(width) - apex[1], indexing="ij")
    if draw.mirror:
        columns = (width - 1 - apex[1]) - (columns + apex[1])
    radians = np.deg2rad(draw.degrees)
    cosine, sine = np.cos(radians) / draw.scale, np.sin(radians) / draw.scale
    source_rows = cosine * rows + sine * columns + apex[0]
    source_columns = -sine * rows + cosine * columns + apex[1]
    x = 2 * source_columns / max(width - 1, 1) - 1
    y = 2 * source_rows / max(height - 1, 1) - 1
    return torch.stack([x, y], dim=-1)[None].float()


def _move_labels(labels: np.ndarray, grid: torch.Tensor, classes: int) -> np.ndarray:
    """Linear interpolation of each label's own map, then the strongest: smoother borders than nearest neighbours."""
    moved = np.full_like(labels, IGNORE)
    labelled = np.flatnonzero((labels != IGNORE).any(axis=(1, 2)))
    if not len(labelled):
        return moved  # a frame nobody labelled stays so everywhere: its borders must not turn into background
    values = torch.as_tensor(labels[labelled].astype(np.int64))
    maps = torch.stack([values == value for value in (*range(1, classes), IGNORE)]).float()
    flat = functional.grid_sample(maps.flatten(0, 1)[None], grid, mode="bilinear", align_corners=True)
    sampled = flat[0].unflatten(0, maps.shape[:2])
    strength = 1 - sampled.sum(dim=0)  # the background's; what lies outside the image is background
    strongest = torch.zeros(strength.shape, dtype=torch.uint8)
    for value, own in zip((*range(1, classes), IGNORE), sampled, strict=True):
        stronger = own > strength
        strongest[stronger] = value
        strength = torch.where(stronger, own, strength)
    moved[labelled] = strongest.numpy()
    return moved


class Augmentation:
    """All random changes of a training sample, a function of the sample and one seed.

    Args:
        geometry: rotation, scale, mirror.
        intensity: batchgenerators transforms on {"data": (1, T, H, W)} of normalised intensities.
    """

    def __init__(self, geometry: SectorAffine | None, intensity: Sequence[AbstractTransform] = ()) -> None:
        self.geometry = geometry
        self.intensity = Compose(list(intensity)) if intensity else None

    def move(
        self, frames: np.ndarray, labels: np.ndarray, *, apex: tuple[float, float], classes: int, seed: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The geometric part, on intensities where 0 is black."""
        if self.geometry is None:
            return frames.astype(np.float32), labels
        draw = self.geometry.draw(np.random.default_rng([*seed, 0]))
        return self.geometry.apply(draw, frames, labels, apex=apex, classes=classes)

    def colour(self, frames: np.ndarray, *, seed: Sequence[int]) -> np.ndarray:
        """The intensity part, on normalised intensities (T, H, W) float32."""
        if self.intensity is None:
            return frames
        with _global_seed(int(np.random.default_rng([*seed, 1]).integers(2**31))):
            return self.intensity(data=frames[None])["data"][0].astype(np.float32)


def build_augmentation(kind: str, *, rotation_degrees: float, mirror: bool) -> Augmentation:
    """The augmentation called `kind`.

    "strong": nnU-Net's 2D recipe (Isensee et al. 2021, supplement D) with a rotation that suits apical views.
    "moderate": EchoForge's (gamma, scaling, rotation and contrast, each in half of the samples; the paper names no
    ranges), and flips.
    "light": PKEcho-Net's (flip, rotation, brightness and contrast by 15 %).
    "none": the sample as it is.
    """
    if kind == "none":
        return Augmentation(None)
    if kind == "light":
        return Augmentation(
            SectorAffine(rotation_degrees, mirror=mirror),
            [
                BrightnessMultiplicativeTransform((0.85, 1.15), per_channel=False, p_per_sample=0.5),
                ContrastAugmentationTransform((0.85, 1.15), per_channel=False, p_per_sample=0.5),
            ],
        )
    if kind == "moderate":
        return Augmentation(
            SectorAffine(rotation_degrees, scale=(0.8, 1.25), mirror=mirror, probability=0.5),
            [
                GammaTransform((0.7, 1.5), retain_stats=True, p_per_sample=0.5),
                ContrastAugmentationTransform((0.75, 1.25), per_channel=False, p_per_sample=0.5),
            ],
        )
    return Augmentation(
        SectorAffine(rotation_degrees, scale=(0.7, 1.4), mirror=mirror, probability=0.5),
        [
            GaussianNoiseTransform((0, 0.1), p_per_sample=0.1),
            GaussianBlurTransform((0.5, 1.0), different_sigma_per_channel=False, p_per_sample=0.2),
            BrightnessMultiplicativeTransform((0.75, 1.25), per_channel=False, p_per_sample=0.15),
            ContrastAugmentationTransform((0.75, 1.25), per_channel=False, p_per_sample=0.15),
            SimulateLowResolutionTransform((0.5, 1), order_upsample=1, p_per_sample=0.25),
            GammaTransform((0.7, 1.5), retain_stats=True, p_per_sample=0.3),
        ],
    )


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """batchgenerators draws from the global generators: seed them for one sample and put them back."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
