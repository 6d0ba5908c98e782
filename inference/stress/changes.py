"""The graded changes of a clip: of its grey levels, its place and its time. Labels move with the pixels.

The physics is that of the augmentations of the same names (docs/augmentation.md), at a strength that is set, not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.functional import interpolate

from echoplan.dataset import Case
from echoplan.errors import EchoPlanError
from echoplan.imageio import Clip
from echoplan.labels import IGNORE
from echoplan.sector import detect_sector

from ...preprocessing import to_uint8
from ...training.augmentation.grey_levels import Brightness
from ...training.augmentation.spatial import SectorMove, move_clip
from ...training.augmentation.ultrasound import AttenuationDraw, DepthAttenuation, Haze, HazeDraw, Sector

_HAZE_DEPTH, _HAZE_WIDTH = 0.35, 0.12  # of the sector's depth: over the ventricle's apical half
_FEWEST_FRAMES = 5  # in which end-diastole and end-systole are found


@dataclass(frozen=True)
class LabelledClip:
    """A clip, its labels (T, H, W) uint8, 255 where nobody labelled, and what is known of it."""

    clip: Clip
    labels: np.ndarray
    case: Case


@dataclass(frozen=True)
class Change:
    """One kind of change.

    Attributes:
        name: as on the command line.
        unit: of its levels, for people.
        unchanged: the level that changes nothing.
        levels: those that are tried, apart from it.
        apply: a labelled clip and a level -> the changed one, or None where the clip cannot carry it.
    """

    name: str
    unit: str
    unchanged: float
    levels: tuple[float, ...]
    apply: Callable[[LabelledClip, float], LabelledClip | None]


def _gain(item: LabelledClip, level: float) -> LabelledClip:
    change = Brightness(factor=(level, level))
    return _regraded(item, lambda frames, sector: change.change(level, frames, sector))


def _haze(item: LabelledClip, level: float) -> LabelledClip:
    draw = HazeDraw(level, _HAZE_DEPTH, _HAZE_WIDTH, seed=0)
    return _regraded(item, lambda frames, sector: Haze().change(draw, frames, sector))


def _attenuation(item: LabelledClip, level: float) -> LabelledClip:
    return _regraded(item, lambda frames, sector: DepthAttenuation().change(AttenuationDraw(level), frames, sector))


def _depth(item: LabelledClip, level: float) -> LabelledClip:
    moved, spacing = _moved(item, SectorMove(scale=level)), item.clip.spacing_mm
    # A pixel of an enlarged picture shows fewer millimetres, so that a volume stays what it is.
    return moved if spacing is None else _with_spacing(moved, (spacing[0] / level, spacing[1] / level))


def _rotation(item: LabelledClip, level: float) -> LabelledClip:
    return _moved(item, SectorMove(degrees=level))


def _mirrored(item: LabelledClip, level: float) -> LabelledClip:
    return _moved(item, SectorMove(mirror=True))


def _resolution(item: LabelledClip, level: float) -> LabelledClip:
    """Pixels `level` times as large and back on the grid as it was, as a clip that was shrunk for the web looks."""
    frames = torch.from_numpy(_grey(item.clip))[None]
    height, width = item.clip.frame_shape
    small = interpolate(frames, (math.ceil(height / level), math.ceil(width / level)), mode="area")
    back = interpolate(small, (height, width), mode="bilinear", align_corners=False)
    return replace(item, clip=_with_frames(item.clip, back[0].numpy()))


def _frame_rate(item: LabelledClip, level: float) -> LabelledClip | None:
    """Every `level`-th frame, from the end-diastole that is given; phases are then found anew."""
    step, first = int(level), item.case.ed_frame or 0
    kept = np.arange(first % step, len(item.clip), step)
    labels = item.labels[kept]
    if len(kept) < _FEWEST_FRAMES or not (labels != IGNORE).any():
        return None
    time = None if item.clip.frame_time_ms is None else item.clip.frame_time_ms * step
    clip = replace(item.clip, frames=item.clip.frames[kept], frame_time_ms=time, space=None)
    return LabelledClip(clip, labels, replace(item.case.without_phases(), frame_time_ms=time))


CHANGES = {
    change.name: change
    for change in (
        Change("gain", "times as bright", 1.0, (0.35, 0.5, 0.7, 1.4, 2.0, 2.8), _gain),
        Change("haze", "share of white", 0.0, (0.2, 0.4, 0.6, 0.8), _haze),
        Change("attenuation", "rate over the depth", 0.0, (0.5, 1.0, 1.5, 2.0), _attenuation),
        Change("depth", "times as large", 1.0, (0.6, 0.75, 0.9, 1.15, 1.3), _depth),
        Change("rotation", "degrees", 0.0, (-30.0, -20.0, -10.0, 10.0, 20.0, 30.0), _rotation),
        Change("mirrored", "left and right swapped", 0.0, (1.0,), _mirrored),
        Change("resolution", "times as large pixels", 1.0, (2.0, 3.0, 4.0, 6.0), _resolution),
        Change("frame_rate", "of so many frames one is kept", 1.0, (2.0, 3.0, 4.0), _frame_rate),
    )
}


def changes_called(names: tuple[str, ...]) -> tuple[Change, ...]:
    """The changes of these names, all if none is named.

    Raises:
        EchoPlanError: there is no such change.
    """
    unknown = [name for name in names if name not in CHANGES]
    if unknown:
        raise EchoPlanError(f"there is no change {unknown[0]!r}", remedy=f"choose from {', '.join(CHANGES)}")
    return tuple(CHANGES[name] for name in names or CHANGES)


def _grey(clip: Clip) -> np.ndarray:
    """(T, H, W) float32 grey levels 0 to 255, the caller's own."""
    return to_uint8(clip.frames, source=clip.source).astype(np.float32)


def _with_frames(clip: Clip, frames: np.ndarray) -> Clip:
    return replace(clip, frames=frames.clip(0, 255).round().astype(np.uint8))


def _with_spacing(item: LabelledClip, spacing: tuple[float, float]) -> LabelledClip:
    case = replace(item.case, spacing_row_mm=spacing[0], spacing_col_mm=spacing[1])
    return replace(item, clip=replace(item.clip, spacing_mm=spacing, space=None), case=case)


def _apex(clip: Clip) -> tuple[float, float]:
    """(row, column) of the probe: the middle of the upper edge of the box about the sector."""
    top, _, left, right = detect_sector(to_uint8(clip.frames, source=clip.source))
    return float(top), (left + right - 1) / 2


def _regraded(item: LabelledClip, change: Callable[[np.ndarray, Sector], None]) -> LabelledClip:
    frames = _grey(item.clip)
    change(frames, Sector.of(frames, apex=_apex(item.clip)))
    return replace(item, clip=_with_frames(item.clip, frames))


def _moved(item: LabelledClip, move: SectorMove) -> LabelledClip:
    known = item.labels[item.labels != IGNORE]
    classes = int(known.max(initial=1)) + 1
    frames, labels = move_clip(move, _grey(item.clip), item.labels, apex=_apex(item.clip), classes=classes)
    return replace(item, clip=_with_frames(item.clip, frames), labels=labels)
