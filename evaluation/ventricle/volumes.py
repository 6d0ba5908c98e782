"""Left ventricular volumes by the method of discs, and the ejection fraction."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from echoplan.errors import EchoPlanError

from .landmarks import DISCS, Landmarks, disc_diameters, find_landmarks, find_landmarks_of_beat

logger = logging.getLogger(__name__)

VolumeRule = Literal["simpson", "camus", "area_length"]
VOLUME_RULES: dict[VolumeRule, str] = {
    "simpson": "20 discs of height L/20, L the (larger) long axis of that phase; Lang et al., ASE/EACVI 2015",
    "camus": "20 discs of one height for both phases, the largest long axis over views and phases / 20, as in CAMUS' "
    "own script: EF is 5 to 10 points lower",
    "area_length": "8 A1 A2 / (3 pi L), A the areas of the views (one view: A^2), L the (larger) long axis",
}
LARGEST_LENGTH_DIFFERENCE_PERCENT = 10.0


def lv_volume_single_plane(mask: ArrayLike, spacing_mm: Sequence[float], discs: int = DISCS) -> float:
    """Volume in mL from one long-axis view: V = pi/4 sum d_i^2 L / discs (Lang et al., ASE/EACVI 2015).

    Args:
        mask: (H, W), 0 is background.
        spacing_mm: (row, col) size of a pixel.

    Raises:
        EchoPlanError: the mask is empty, too small or too thin for a shape (never a silent NaN).

    Example:
        >>> import numpy as np
        >>> from echoplan.evaluation import lv_volume_single_plane
        >>> rows, columns = np.mgrid[:120, :80]
        >>> mask = ((rows - 100) / 90) ** 2 + ((columns - 40) / 25) ** 2 < 1
        >>> mask &= rows < 100  # half an ellipse: its volume is 2/3 pi 90 x 25 x 25 cubic mm
        >>> volume = lv_volume_single_plane(mask, (1.0, 1.0))
        >>> round(volume, -1), round(2 / 3 * np.pi * 90 * 25 * 25 / 1000, -1)
        (120.0, 120.0)
    """
    view = find_landmarks(mask, spacing_mm)
    return biplane_volume(view, view, discs)


def lv_volume_biplane(
    mask_a2c: ArrayLike,
    mask_a4c: ArrayLike,
    spacing_a2c_mm: Sequence[float],
    spacing_a4c_mm: Sequence[float],
    discs: int = DISCS,
) -> float:
    """Volume in mL from two orthogonal long-axis views: V = pi/4 sum a_i b_i L / discs, L the larger length.

    Logs a warning where the lengths differ by more than 10 %: then one view is likely foreshortened.
    Source: Lang et al., ASE/EACVI recommendations for cardiac chamber quantification, 2015.

    Raises:
        EchoPlanError: a mask is empty, too small or too thin for a shape.

    Example:
        >>> import numpy as np
        >>> from echoplan.evaluation import lv_volume_biplane
        >>> rows, columns = np.mgrid[:120, :80]
        >>> mask = ((rows - 100) / 90) ** 2 + ((columns - 40) / 25) ** 2 < 1
        >>> mask &= rows < 100  # half an ellipse: its volume is 2/3 pi 90 x 25 x 25 mm³
        >>> round(lv_volume_biplane(mask, mask, (1.0, 1.0), (1.0, 1.0)), -1)
        120.0
    """
    a2c, a4c = find_landmarks(mask_a2c, spacing_a2c_mm), find_landmarks(mask_a4c, spacing_a4c_mm)
    difference = length_difference_percent(a2c.length, a4c.length)
    if difference > LARGEST_LENGTH_DIFFERENCE_PERCENT:
        logger.warning("the long axes of A2C and A4C differ by %.0f %%: one view may be foreshortened", difference)
    return biplane_volume(a2c, a4c, discs)


def camus_biplane_volumes(
    masks_ed: tuple[ArrayLike, ArrayLike],
    masks_es: tuple[ArrayLike, ArrayLike],
    spacing_a2c_mm: Sequence[float],
    spacing_a4c_mm: Sequence[float],
    discs: int = DISCS,
) -> tuple[float, float]:
    """(EDV, ESV) in mL by the rule of CAMUS' own script: one disc height for both phases.

    The height is the largest length over both views and both phases, divided by `discs`, so that the end-systolic
    volume comes out too large by L_ED / L_ES and EF too low by 5 to 10 points. CAMUS' published EF follows it; use it
    only to compare with those.

    Args:
        masks_ed, masks_es: (A2C, A4C) masks, each (H, W).

    Raises:
        EchoPlanError: a mask is empty, too small or too thin for a shape.

    Example:
        >>> import numpy as np
        >>> from echoplan.evaluation import camus_biplane_volumes, lv_volume_biplane
        >>> rows, columns = np.mgrid[:120, :80]
        >>> lengths = ((rows - 100) / 90) ** 2, ((rows - 100) / 70) ** 2
        >>> ed, es = ((length + ((columns - 40) / 25) ** 2 < 1) & (rows < 100) for length in lengths)
        >>> edv, esv = camus_biplane_volumes((ed, ed), (es, es), (1.0, 1.0), (1.0, 1.0))
        >>> esv > lv_volume_biplane(es, es, (1.0, 1.0), (1.0, 1.0))
        True
    """
    a2c_ed, a2c_es = find_landmarks_of_beat(masks_ed[0], masks_es[0], spacing_a2c_mm)
    a4c_ed, a4c_es = find_landmarks_of_beat(masks_ed[1], masks_es[1], spacing_a4c_mm)
    return camus_volumes((a2c_ed, a4c_ed), (a2c_es, a4c_es), discs)


def ejection_fraction(edv: float, esv: float) -> float:
    """Ejection fraction in percent, 100 (EDV - ESV) / EDV; negative if ESV is the larger: nothing is swapped.

    Raises:
        EchoPlanError: EDV is not positive, or one is not a finite number.

    Example:
        >>> from echoplan.evaluation import ejection_fraction
        >>> ejection_fraction(120.0, 48.0)
        60.0
    """
    if not (math.isfinite(edv) and math.isfinite(esv)) or edv <= 0:
        raise EchoPlanError(f"no ejection fraction from an end-diastolic volume of {edv} and an end-systolic of {esv}")
    return 100.0 * (edv - esv) / edv


def biplane_volume(a2c: Landmarks, a4c: Landmarks, discs: int = DISCS) -> float:
    """Volume in mL from the landmarks of two views, or of one given twice (in 1000 px^3 if they are in pixels)."""
    return _stacked(a2c, a4c, max(a2c.length, a4c.length), discs)


def camus_volumes(ed: Sequence[Landmarks], es: Sequence[Landmarks], discs: int = DISCS) -> tuple[float, float]:
    """(EDV, ESV) in mL by CAMUS' rule from the landmarks (A2C, A4C) of each phase."""
    length = max(view.length for view in (*ed, *es))
    ed_volume, es_volume = (_stacked(a2c, a4c, length, discs) for a2c, a4c in (ed, es))
    return ed_volume, es_volume


def area_length_volume(a2c: Landmarks, a4c: Landmarks) -> float:
    """Volume in mL by the area-length rule, V = 8 A1 A2 / (3 pi L), L the larger length; exact for half-ellipsoids.

    A single view is given twice: V = 8 A^2 / (3 pi L).
    """
    return 8 * a2c.area * a4c.area / (3 * math.pi * max(a2c.length, a4c.length) * 1000)


def volumes_of_beat(
    ed: tuple[Landmarks, Landmarks], es: tuple[Landmarks, Landmarks], method: VolumeRule = "simpson"
) -> tuple[float, float]:
    """(EDV, ESV) in mL by one of `VOLUME_RULES` from the (A2C, A4C) landmarks of each phase.

    A single view is given twice.

    Raises:
        EchoPlanError: the method is not known.
    """
    check_volume_rule(method)
    if method == "camus":
        return camus_volumes(ed, es)
    rule = area_length_volume if method == "area_length" else biplane_volume
    return rule(*ed), rule(*es)


def check_volume_rule(method: str) -> None:
    """Raises EchoPlanError where a volume rule is not known."""
    if method not in VOLUME_RULES:
        raise EchoPlanError(f"there is no volume rule {method!r}", remedy=f"use one of {', '.join(VOLUME_RULES)}")


def length_difference_percent(first: float, second: float) -> float:
    """Difference of two lengths as a percentage of the larger."""
    return 100.0 * abs(first - second) / max(first, second)


def _stacked(a2c: Landmarks, a4c: Landmarks, length: float, discs: int) -> float:
    if discs < 1:
        raise EchoPlanError(f"{discs} discs make no volume", remedy="use 20, as is usual")
    products = disc_diameters(a2c, discs) * disc_diameters(a4c, discs)
    return float(np.pi / 4 * products.sum() * length / discs / 1000)
