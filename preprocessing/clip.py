"""The way of one clip to the network, the same for training data and for prediction; and of its labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from echoplan.dataset import Case
from echoplan.device import upload
from echoplan.errors import EchoPlanError
from echoplan.imageio.clip import Clip
from echoplan.labels import IGNORE
from echoplan.networks.interface import FrameIndices
from echoplan.sector import Box, detect_sector

from .geometry import Geometry, plan_geometry

logger = logging.getLogger(__name__)

NORMALISATIONS = ("zscore_sector", "unit", "grey")
BACKGROUND = 4  # grey levels; compressed videos leave a little noise where the image is black


def preprocess_clip(
    clip: Clip,
    *,
    size: tuple[int, int],
    protocol: str = "aspect",
    crop: bool = False,
    crop_box: Box | None = None,
) -> tuple[np.ndarray, Geometry]:
    """Scale to uint8, crop to the sector, resample to the network's grid.

    Args:
        clip: frames (T, H, W) of any type a reader returns.
        size: (h, w) of the network's grid.
        protocol: "aspect", "stretch" or "nearest", see `plan_geometry`.
        crop: whether to crop to the sector.
        crop_box: the sector's box where it is known already; found in the frames otherwise. Unused without `crop`.

    Returns:
        frames uint8 (T, h, w), and the geometry that brings results back.

    Raises:
        EchoPlanError: the clip has no frames, or the protocol is unknown.
    """
    frames = to_uint8(clip.frames, source=clip.source)
    if not crop:
        crop_box = None
    elif crop_box is None:
        crop_box = detect_sector(frames)
    geometry = plan_geometry(clip.frame_shape, clip.spacing_mm, crop_box, size, protocol)
    return geometry.to_network(frames), geometry


def to_uint8(frames: np.ndarray, *, source: str = "") -> np.ndarray:
    """Grey values 0 to 255; uint8 is kept, other types are scaled by the clip's 0.1 and 99.9 percentiles.

    One pair of percentiles serves the whole clip, so brightness does not flicker. Non-finite values become 0.

    Raises:
        EchoPlanError: the frames are not (T, H, W) or there are none.
    """
    if frames.ndim != 3 or frames.size == 0:
        raise EchoPlanError(f"expected frames (T, H, W), found an array of shape {frames.shape}", file=source or None)
    if frames.dtype == np.uint8:
        return frames
    sample = _sample(frames)
    if not len(sample):
        raise EchoPlanError("the frames hold no finite value", file=source or None)
    low, high = np.percentile(sample, (0.1, 99.9))
    if high <= low:
        low, high = float(sample.min()), max(float(sample.max()), float(sample.min()) + 1.0)
    grey = np.zeros(frames.shape, np.uint8)
    for frame, target in zip(frames, grey, strict=True):  # one by one: a long clip's floats would fill the memory
        values = frame.astype(np.float32)
        finite = np.isfinite(values)
        scaled = np.clip((values[finite] - low) * (255.0 / (high - low)), 0, 255)
        target[finite] = np.rint(scaled).astype(np.uint8)
    return grey


def _sample(frames: np.ndarray) -> np.ndarray:
    """Every so many-th finite value, float32: about a million place the percentiles well enough."""
    step, seen, parts = max(1, frames.size // 1_000_000), 0, []
    for frame in frames:
        values = frame.astype(np.float32)
        values = values[np.isfinite(values)]
        parts.append(values[-seen % step :: step])
        seen += len(values)
    return np.concatenate(parts)


def sector_statistics(frames: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the intensities inside the sector: pixels that carry signal in any frame.

    Args:
        frames: uint8 (T, h, w) on the network's grid.

    Returns:
        (mean, std) in grey levels; std is at least 1, so a constant clip does not divide by zero.
    """
    inside = frames.max(axis=0) > BACKGROUND
    if not inside.any():
        inside[:] = True
    weights, count = torch.from_numpy(inside).flatten().float(), len(frames) * int(inside.sum())
    total = squares = 0.0
    for frame in frames:  # one by one: a long clip's floats would need four times its memory
        values = torch.from_numpy(frame).flatten().float()
        counted = values * weights
        total += float(counted.sum())
        squares += float(counted.dot(values))
    mean = total / count
    return mean, max(1.0, float(np.sqrt(max(0.0, squares / count - mean**2))))


def normalise(frames: np.ndarray, mean: float, std: float, normalisation: str = "zscore_sector") -> np.ndarray:
    """Intensities as the network sees them, float32 of the same shape.

    Args:
        frames: uint8.
        mean, std: of the clip, from `sector_statistics`; used by "zscore_sector" alone.
        normalisation: "zscore_sector": (x - mean) / std; "unit": x / 255; "grey": x, 0 to 255 as it is.

    Raises:
        EchoPlanError: an unknown normalisation.
    """
    if normalisation == "zscore_sector":
        return (frames.astype(np.float32) - np.float32(mean)) / np.float32(std)
    if normalisation == "unit":
        return frames.astype(np.float32) / np.float32(255)
    if normalisation == "grey":
        return frames.astype(np.float32)
    raise _unknown(normalisation)


class NormalisedFrames:
    """Clips on a network's grid, one behind the other, whose frames are normalised as they are asked for.

    A long clip's bytes need not all be floats at once. On a GPU they lie as bytes, brought there once.

    Args:
        clips: (T, h, w) uint8 of each clip.
        statistics: (mean, std) of each clip, from `sector_statistics`.
        normalisation: as `normalise` takes it; its results are the same to the bit on a CPU.
        device: where the frames are wanted.
    """

    def __init__(
        self,
        clips: Sequence[np.ndarray],
        statistics: Sequence[tuple[float, float]],
        normalisation: str,
        device: torch.device | str = "cpu",
    ) -> None:
        if normalisation not in NORMALISATIONS:
            raise _unknown(normalisation)
        self._normalisation = normalisation
        joined = torch.from_numpy(clips[0] if len(clips) == 1 else np.concatenate(clips))
        lengths = [len(clip) for clip in clips]
        of_frames = torch.tensor(np.repeat(np.array(statistics, np.float32), lengths, axis=0))
        self._frames, self._statistics = (upload(tensor, torch.device(device)) for tensor in (joined, of_frames))
        self.shape = joined.shape
        self.device = self._frames.device

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, indices: FrameIndices) -> torch.Tensor:
        """The frames of some indices (...,), float32 (..., h, w)."""
        if isinstance(indices, list):  # which would wait for a GPU
            indices = upload(torch.tensor(indices), self.device)
        frames = self._frames[indices].float()
        if self._normalisation == "grey":
            return frames
        if self._normalisation == "unit":
            return frames / 255
        mean, std = self._statistics[indices][..., None, None].unbind(-3)
        return (frames - mean) / std


def _unknown(normalisation: str) -> EchoPlanError:
    return EchoPlanError(
        f"unknown normalisation {normalisation!r}", remedy=f"choose one of {', '.join(NORMALISATIONS)}"
    )


def labelled_frames(mask: np.ndarray) -> list[int]:
    """The frames of (T, H, W) labels in which any pixel is labelled (zeros are a label: background)."""
    return np.flatnonzero((mask != IGNORE).any(axis=(1, 2))).tolist()


def phases_from_labels(case: Case, mask: np.ndarray | None, target: int) -> tuple[int | None, int | None]:
    """End-diastole and end-systole of a clip: the larger and the smaller cavity.

    What cases.csv says holds, except that the two are exchanged where both are labelled and the areas contradict their
    order. Where it does not say, or names one frame as both, the labelled frames with the largest and the smallest area
    are taken, if any differ.

    Args:
        case: the row of cases.csv.
        mask: (T, H, W) labels, or None.
        target: the label of the cavity that is measured.

    Returns:
        (ed_frame, es_frame), None where unknown.
    """
    end_diastole, end_systole = case.ed_frame, case.es_frame
    if end_diastole == end_systole:
        end_diastole = end_systole = None
    areas = {} if mask is None else {frame: int((mask[frame] == target).sum()) for frame in labelled_frames(mask)}
    if len(areas) >= 2 and max(areas.values()) > min(areas.values()):
        if end_diastole is None:
            end_diastole = max(areas, key=lambda frame: areas[frame])
        if end_systole is None:
            end_systole = min(areas, key=lambda frame: areas[frame])
    if end_diastole in areas and end_systole in areas and areas[end_diastole] < areas[end_systole]:
        logger.info("%s: end-diastole and end-systole are exchanged, for the areas say so", case.case)
        end_diastole, end_systole = end_systole, end_diastole
    return end_diastole, end_systole
