"""Augmentations that imitate what differs between ultrasound examinations: probe, scanner settings, tissue, artefacts.

One transform a file, on dictionaries, each drawn once a clip. docs/augmentation.md shows them.
"""

from .attenuation import AttenuationDraw, DepthAttenuation
from .cine_speed import CineSpeed, CineSpeedDraw
from .depth import DepthChange
from .field_of_view import FieldOfView
from .frame_drop import FrameDrop, FrameDropDraw
from .haze import Haze, HazeDraw
from .movement import SectorMove, move_clip
from .rotation import Rotation
from .sector import Sector
from .shadow import GaussianShadow, ShadowDraw
from .speckle import PolarSpeckle, SpeckleDraw
from .time_gain import TimeGain, TimeGainDraw
from .transform import Clip, IntensityTransform, MovingTransform, TimingTransform, Transform

__all__ = [
    "AttenuationDraw",
    "CineSpeed",
    "CineSpeedDraw",
    "Clip",
    "DepthAttenuation",
    "DepthChange",
    "FieldOfView",
    "FrameDrop",
    "FrameDropDraw",
    "GaussianShadow",
    "Haze",
    "HazeDraw",
    "IntensityTransform",
    "MovingTransform",
    "PolarSpeckle",
    "Rotation",
    "Sector",
    "SectorMove",
    "ShadowDraw",
    "SpeckleDraw",
    "TimeGain",
    "TimeGainDraw",
    "TimingTransform",
    "Transform",
    "move_clip",
]
