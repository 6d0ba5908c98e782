"""Augmentation of one training sample: the same draw for every frame of a clip, labels moved with the pixels.

Generic recipes move about the sector's apex. "light" and "moderate" change grey levels, before normalisation, as their
papers do, and so do the transforms of ultrasound's own, which imitate what differs between examinations. "strong" takes
nnU-Net's transforms of normalised intensities from batchgenerators, with time in its channel axis so that one draw
serves all frames.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from echoplan.errors import EchoPlanError

from .grey_levels import Brightness, Contrast, Gamma
from .spatial import DepthChange, FieldOfView, MovingTransform, Rotation, SectorAffine, SectorMove, move_clip
from .timing import CineSpeed, FrameDrop, TimingTransform
from .transform import Clip, Transform
from .ultrasound import DepthAttenuation, GaussianShadow, Haze, IntensityTransform, PolarSpeckle, TimeGain

if TYPE_CHECKING:
    from batchgenerators.transforms.abstract_transforms import AbstractTransform

GENERIC = ("strong", "moderate", "light", "e3sam2", "none")
# In the order in which an examination comes about: time, probe and scanner's geometry, tissue, clutter, gain.
ULTRASOUND: dict[str, type[Transform]] = {
    "cine_speed": CineSpeed,
    "frame_drop": FrameDrop,
    "rotation": Rotation,
    "depth": DepthChange,
    "field_of_view": FieldOfView,
    "speckle": PolarSpeckle,
    "attenuation": DepthAttenuation,
    "shadow": GaussianShadow,
    "haze": Haze,
    "time_gain": TimeGain,
}
THE_SIX = ("rotation", "depth", "attenuation", "shadow", "haze", "speckle")


class Augmentation:
    """All random changes of a training sample, a function of the sample and one seed.

    Args:
        geometry: rotation, scale, mirror.
        intensity: batchgenerators transforms on {"data": (1, T, H, W)} of normalised intensities.
        transforms: of time, place and grey levels, in the order they act.
    """

    def __init__(
        self,
        geometry: SectorAffine | None,
        intensity: Sequence[AbstractTransform] = (),
        transforms: Sequence[Transform] = (),
    ) -> None:
        self.geometry, self.intensity = geometry, None
        if intensity:
            from batchgenerators.transforms.abstract_transforms import Compose

            self.intensity = Compose(list(intensity))
        self.transforms = tuple(transforms)

    def retime(
        self, frames: Sequence[int], *, labelled: Sequence[int], native_frames: int, seed: Sequence[int]
    ) -> tuple[int, ...]:
        """Other frames of a sample's recording, as many, where time is augmented.

        Args:
            frames: the sample's, before any is read.
            labelled: the frames of the recording whose labels the training may see.
            native_frames: the length of the recording.
            seed: of the sample.
        """
        clip: Clip = {"frame_numbers": tuple(frames), "labelled_frames": labelled, "native_frames": native_frames}
        for transform, draw in self._drawn(TimingTransform, seed):
            clip = transform.apply(draw, **clip)
        return clip["frame_numbers"]

    def move(
        self, frames: np.ndarray, labels: np.ndarray, *, apex: tuple[float, float], classes: int, seed: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """All that happens to grey levels, where 0 is black: geometry in one resampling, then their own transforms.

        Args:
            frames: (T, H, W).
            labels: (T, H, W) uint8.
            apex: (row, column) of the sector's apex, in pixels.
            classes: label values 0 to classes - 1; 255 stays ignored.
            seed: of the sample.

        Returns:
            float32 frames and uint8 labels of the same shapes.
        """
        move = SectorMove() if self.geometry is None else self.geometry.draw(np.random.default_rng([*seed, 0]))
        for _, own in self._drawn(MovingTransform, seed):
            move = move.then(own)
        frames, labels = move_clip(move, frames, labels, apex=apex, classes=classes)
        clip: Clip = {"frames": frames, "labels": labels, "apex": apex, "classes": classes}
        for transform, draw in self._drawn(IntensityTransform, seed):
            clip = transform.apply(draw, **clip)
        return clip["frames"], labels

    def colour(self, frames: np.ndarray, *, seed: Sequence[int]) -> np.ndarray:
        """The generic intensity part, on normalised intensities (T, H, W) float32."""
        if self.intensity is None:
            return frames
        with _global_seed(int(np.random.default_rng([*seed, 1]).integers(2**31))):
            return self.intensity(data=frames[None])["data"][0].astype(np.float32)

    def _drawn(self, kind: type, seed: Sequence[int]) -> Iterator[tuple[Any, Any]]:
        """The transforms of one kind that act on this sample, with what was drawn for them."""
        if not any(isinstance(transform, kind) for transform in self.transforms):
            return
        generator = np.random.default_rng([*seed, 2])
        for transform in self.transforms:
            # Drawn for all, whoever acts and whoever asks: so that each always gets the same.
            acts, draw = generator.random() < transform.probability, transform.draw(generator)
            if acts and isinstance(transform, kind):
                yield transform, draw


def augmentation_parts(kind: str) -> tuple[str, tuple[str, ...]]:
    """A policy's name taken apart: its generic recipe, and its ultrasound transforms in the order they act.

    Args:
        kind: a generic recipe (`GENERIC`), "ultrasound" for `THE_SIX`, names of `ULTRASOUND`, or several of them joined
            by "+", as "ultrasound+time_gain" or "strong+haze".

    Raises:
        EchoPlanError: there is no such part, or two generic recipes.
    """
    parts = kind.split("+")
    generic = [part for part in parts if part in GENERIC]
    chosen = {part for part in parts if part in ULTRASOUND} | set(THE_SIX if "ultrasound" in parts else ())
    unknown = [part for part in parts if part not in (*GENERIC, *ULTRASOUND, "ultrasound")]
    if unknown or len(generic) > 1 or ("none" in generic and chosen):
        raise EchoPlanError(
            f"there is no augmentation {kind!r}",
            remedy=f"choose generic (the method's own), {', '.join(GENERIC)}, ultrasound, or single transforms: "
            f"{', '.join(ULTRASOUND)}; a generic recipe and ultrasound transforms can be joined by +",
        )
    return (generic or ["flips"])[0], tuple(name for name in ULTRASOUND if name in chosen)


def build_augmentation(kind: str, *, rotation_degrees: float, mirror: bool) -> Augmentation:
    """The augmentation called `kind`.

    "strong": nnU-Net's 2D recipe (Isensee et al. 2021, supplement D) with a rotation that suits apical views.
    "moderate": EchoForge's (gamma, scaling, rotation and contrast, each in half of the samples; the paper names no
    ranges), and flips.
    "e3sam2": as E3SAM2's authors programmed it (gamma, rotation by up to 30 degrees, zoom and contrast, each in half of
    the samples; no flips); about the sector's apex, and one draw of the contrast a clip, where theirs is one a frame.
    "light": PKEcho-Net's (flip, rotation, brightness and contrast by 15 %; the paper says not how often each acts).
    "none": the sample as it is.
    "ultrasound": flips, and six transforms of ultrasound's own instead of a generic recipe (the number is Yao et al.'s,
    arXiv 2511.05731, whose abstract does not name them; how often each acts is ours).

    Args:
        kind: one of these, or parts joined by "+", see `augmentation_parts`.
        rotation_degrees: the largest rotation that suits the views.
        mirror: whether left and right may be swapped.

    Raises:
        EchoPlanError: there is no such augmentation.
    """
    generic, chosen = augmentation_parts(kind)
    if generic == "none":
        return Augmentation(None)
    ultrasound = [
        Rotation(degrees=min(Rotation.degrees, rotation_degrees)) if name == "rotation" else ULTRASOUND[name]()
        for name in chosen
    ]
    scale, probability = _GEOMETRY[generic]
    degrees = {"flips": 0.0, "e3sam2": 30.0}.get(generic, rotation_degrees)
    mirror &= generic != "e3sam2"
    geometry = SectorAffine(degrees, scale=scale, mirror=mirror, probability=probability)
    return Augmentation(
        geometry, _normalised_intensity() if generic == "strong" else (), [*ultrasound, *_GREY_LEVELS.get(generic, ())]
    )


# Scales and the probability of each move.
_GEOMETRY = {
    "flips": ((1.0, 1.0), 1.0),
    "light": ((1.0, 1.0), 1.0),
    "moderate": ((0.8, 1.25), 0.5),
    "e3sam2": ((1.0, 1.3), 0.5),
    "strong": ((0.7, 1.4), 0.5),
}
_GREY_LEVELS: dict[str, tuple[IntensityTransform, ...]] = {
    "light": (Brightness(factor=(0.85, 1.15)), Contrast(factor=(0.85, 1.15))),
    "e3sam2": (Gamma(factor=(1 / 2.4, 1.0)), Contrast(factor=(0.8, 2.0))),
    "moderate": (Gamma(factor=(0.7, 1.5)), Contrast(factor=(0.75, 1.25))),
}


def _normalised_intensity() -> list[AbstractTransform]:
    """nnU-Net's transforms of normalised intensities."""
    # Half a second, which prediction, that knows trainers but augments nothing, need not wait for.
    from batchgenerators.transforms.color_transforms import (
        BrightnessMultiplicativeTransform,
        ContrastAugmentationTransform,
        GammaTransform,
    )
    from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform
    from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform

    return [
        GaussianNoiseTransform((0, 0.1), p_per_sample=0.1),
        GaussianBlurTransform((0.5, 1.0), different_sigma_per_channel=False, p_per_sample=0.2),
        BrightnessMultiplicativeTransform((0.75, 1.25), per_channel=False, p_per_sample=0.15),
        ContrastAugmentationTransform((0.75, 1.25), per_channel=False, p_per_sample=0.15),
        SimulateLowResolutionTransform((0.5, 1), order_upsample=1, p_per_sample=0.25),
        GammaTransform((0.7, 1.5), retain_stats=True, p_per_sample=0.3),
    ]


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
