"""Crop, resample and store clips: the one place where training data and new clips take the same way to the network."""

from .clip import normalise, preprocess_clip, sector_statistics, to_uint8
from .geometry import Geometry, plan_geometry
from .store import ClipStore, StoredCase

__all__ = [
    "ClipStore",
    "Geometry",
    "StoredCase",
    "normalise",
    "plan_geometry",
    "preprocess_clip",
    "sector_statistics",
    "to_uint8",
]
