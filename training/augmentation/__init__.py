"""Augmentation: policies by name, and the transforms that they are made of.

One idea a file: `spatial` (pixels and labels move), `timing` (other frames), `grey_levels` (brightness, contrast,
gamma), `ultrasound` (grey levels, as other scanners, tissues and artefacts make them). A transform is drawn once a clip
and works on dictionaries.
"""

from .grey_levels import Brightness, Contrast, Gamma
from .policy import GENERIC, THE_SIX, ULTRASOUND, Augmentation, augmentation_parts, build_augmentation
from .spatial import DepthChange, FieldOfView, MovingTransform, Rotation, SectorAffine, SectorMove, move_clip
from .timing import CineSpeed, CineSpeedDraw, FrameDrop, FrameDropDraw, TimingTransform
from .transform import Clip, Transform
from .ultrasound import (
    AttenuationDraw,
    DepthAttenuation,
    GaussianShadow,
    Haze,
    HazeDraw,
    IntensityTransform,
    PolarSpeckle,
    Sector,
    ShadowDraw,
    SpeckleDraw,
    TimeGain,
    TimeGainDraw,
)

__all__ = [
    "GENERIC",
    "THE_SIX",
    "ULTRASOUND",
    "AttenuationDraw",
    "Augmentation",
    "Brightness",
    "CineSpeed",
    "CineSpeedDraw",
    "Clip",
    "Contrast",
    "DepthAttenuation",
    "DepthChange",
    "FieldOfView",
    "FrameDrop",
    "FrameDropDraw",
    "Gamma",
    "GaussianShadow",
    "Haze",
    "HazeDraw",
    "IntensityTransform",
    "MovingTransform",
    "PolarSpeckle",
    "Rotation",
    "Sector",
    "SectorAffine",
    "SectorMove",
    "ShadowDraw",
    "SpeckleDraw",
    "TimeGain",
    "TimeGainDraw",
    "TimingTransform",
    "Transform",
    "augmentation_parts",
    "build_augmentation",
    "move_clip",
]
