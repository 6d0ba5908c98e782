"""Ventricles that are not ellipsoids but hold as much: slices shifted, sheared, widened and narrowed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

_NODES = np.linspace(0, 1, 33)  # shares of the cavity's axis, 0 apex to 1 mitral plane


@dataclass(frozen=True)
class Shape:
    """What a cut does to the ellipsoid's slices.

    Attributes:
        width: factors on the slices' diameters at 33 places from apex to mitral plane. Both cuts of a heart share them,
            and with `balanced_width` its volume stays what it is.
        bow, wave: mm by which slices are shifted, sin(pi s) and sin(2 pi s) along the share s of the axis.
        apex_shift: mm by which the apex lies aside.
        slant: mm along the axis a mm across: how far the mitral plane is not square to the axis.
        outer_shift: mm by which the wall's outer surface lies aside: one wall is thicker, the other one thinner.
        flare: mm along the axis a mm outwards by which the wall's end below the ring is oblique.
        atrium_shift, atrium_lean: mm by which the atrium lies aside, and mm across a mm along its axis.
    """

    width: np.ndarray = field(default_factory=lambda: np.ones(len(_NODES)))
    bow: float = 0.0
    wave: float = 0.0
    apex_shift: float = 0.0
    slant: float = 0.0
    outer_shift: float = 0.0
    flare: float = 0.0
    atrium_shift: float = 0.0
    atrium_lean: float = 0.0

    def width_at(self, share: np.ndarray) -> np.ndarray:
        """Factor on the diameter at `share` of the axis."""
        return np.interp(share, _NODES, self.width)

    def shift_at(self, share: np.ndarray) -> np.ndarray:
        """Shift in mm at `share` of the axis; 0 in the mitral plane."""
        share = np.clip(share, -0.2, 1.0)
        swing = self.bow * np.sin(np.pi * share) + self.wave * np.sin(2 * np.pi * share)
        return swing + self.apex_shift * (1 - share) ** 2

    @classmethod
    def random(cls, rng: np.random.Generator, width: np.ndarray, view: str) -> Shape:
        """The shape of one cut; `width` is the heart's."""
        return cls(
            width=width,
            bow=rng.normal(-3.0 if view == "A4C" else -1.0, 3.0),
            wave=rng.normal(0, 1.8),
            apex_shift=rng.normal(0, 5.0),
            slant=rng.normal(-0.05, 0.1),
            outer_shift=rng.normal(0, 1.5),
            flare=rng.uniform(0, 0.6),
            atrium_shift=rng.normal(0, 3.0),
            atrium_lean=rng.normal(0, 0.15),
        )

    def smaller(self, share: float) -> Shape:
        """The same with all that moves a slice times `share`."""
        moved = ("bow", "wave", "apex_shift", "slant")
        return replace(self, **{name: share * getattr(self, name) for name in moved})


def balanced_width(rng: np.random.Generator, truncation: float) -> np.ndarray:
    """Random factors on the slices' diameters, from a cone to a bullet, that leave the volume as it is.

    Args:
        truncation: height of the mitral plane as a share of the ellipsoid's semi-axis.
    """
    cone, barrel, wave = rng.normal(0, (0.07, 0.05, 0.025))
    width = 1 + cone * (2 * _NODES - 1) + barrel * np.cos(2 * np.pi * _NODES) + wave * np.sin(3 * np.pi * _NODES)
    width = np.clip(width, 0.6, 1.4)
    fine = np.linspace(0, 1, 2001)
    area = 1 - (fine * (1 + truncation) - 1) ** 2  # of the ellipsoid's slices, the largest 1
    return width * np.sqrt(area.sum() / (area * np.interp(fine, _NODES, width) ** 2).sum())
