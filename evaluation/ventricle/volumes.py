"""Left ventricular volumes by the method of discs, and the ejection fraction."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from echoplan.errors import EchoPlanError

from .contour import Points
from .landmarks import DISCS, Landmarks, disc_diameters, find_landmarks, find_landmarks_of_beat

logger = logging.getLogger(__name__)

Beats = Sequence[tuple[Landmarks, Landmarks]]  # end-diastole and end-systole of each, in one view
VolumeRule = Literal["simpson", "camus", "folland", "area_length"]
VOLUME_RULES: dict[VolumeRule, str] = {
    "simpson": "20 discs of height L/20, L the (larger) long axis of that phase; Lang et al., ASE/EACVI 2015",
    "camus": "20 discs of one height for both phases, the largest long axis over views and phases / 20, as in CAMUS' "
    "own script: EF is 5 to 10 points lower",
    "folland": "three sections of height L/3: (Am + (Am + Ap) / 2 + Ap / 3) L/3, Am and Ap the larger and the smaller "
    "cross-section at L/3 and 2L/3; Folland et al. 1979, PKEcho-Net's for EchoNet-Dynamic",
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
    return volumes_of_views([(a2c_ed, a2c_es)], [(a4c_ed, a4c_es)], "camus", discs)


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


def not_measurable(edv: float, esv: float, *, in_ml: bool = True) -> str:
    """Why two volumes give no ejection fraction: it lies above 0 and up to 100 %. Empty where they give one."""
    if 0 <= esv < edv:
        return ""
    end_diastole, end_systole = (f" ({volume:.1f} mL)" if in_ml else "" for volume in (edv, esv))
    return f"no EF: end-systole{end_systole} is not smaller than end-diastole{end_diastole}"


def biplane_volume(a2c: Landmarks, a4c: Landmarks, discs: int = DISCS) -> float:
    """Volume in mL from the landmarks of two views, or of one given twice (in 1000 px^3 if they are in pixels)."""
    return _volume(_mean_shape([a2c], discs), _mean_shape([a4c], discs), max(a2c.length, a4c.length))


def volumes_of_views(a2c: Beats, a4c: Beats, method: VolumeRule = "simpson", discs: int = DISCS) -> tuple[float, float]:
    """(EDV, ESV) in mL by one of `VOLUME_RULES` from the beats of each view; a single view is given twice.

    The beats of two clips are not the same beats of the heart, so that each view's discs, lengths and areas are the
    means over its own beats.

    Args:
        a2c, a4c: (end-diastole, end-systole) of each beat; not as many in both, as a rule.
        method: the rule.
        discs: how many.

    Raises:
        EchoPlanError: the method is not known.
    """
    check_volume_rule(method)
    wanted = None if method == "area_length" else discs
    (ed_a2c, es_a2c), (ed_a4c, es_a4c) = (
        [_mean_shape(cavities, wanted) for cavities in zip(*beats, strict=True)] for beats in (a2c, a4c)
    )
    ed, es = max(ed_a2c.length, ed_a4c.length), max(es_a2c.length, es_a4c.length)
    if method == "camus":
        ed = es = max(ed, es)
    rule = {"area_length": _area_length_volume, "folland": _three_sections}.get(method, _volume)
    return rule(ed_a2c, ed_a4c, ed), rule(es_a2c, es_a4c, es)


def check_volume_rule(method: str) -> None:
    """Raises EchoPlanError where a volume rule is not known."""
    if method not in VOLUME_RULES:
        raise EchoPlanError(f"there is no volume rule {method!r}", remedy=f"use one of {', '.join(VOLUME_RULES)}")


def length_difference_percent(first: float, second: float) -> float:
    """Difference of two lengths as a percentage of the larger."""
    return 100.0 * abs(first - second) / max(first, second)


class _Shape(NamedTuple):
    """A cavity as volumes need it: means over the beats; no diameters for the area-length rule."""

    diameters: Points
    length: float
    area: float


def _mean_shape(cavities: Sequence[Landmarks], discs: int | None) -> _Shape:
    if discs is not None and discs < 1:
        raise EchoPlanError(f"{discs} discs make no volume", remedy="use 20, as is usual")
    diameters = [np.zeros(0) if discs is None else disc_diameters(cavity, discs) for cavity in cavities]
    length, area = (fmean(values) for values in zip(*((c.length, c.area) for c in cavities), strict=True))
    return _Shape(np.mean(diameters, axis=0), length, area)


def _volume(a2c: _Shape, a4c: _Shape, length: float) -> float:
    products = a2c.diameters * a4c.diameters
    return float(np.pi / 4 * products.sum() * length / len(products) / 1000)


def _area_length_volume(a2c: _Shape, a4c: _Shape, length: float) -> float:
    """V = 8 A1 A2 / (3 pi L), L the larger length; exact for half-ellipsoids."""
    return 8 * a2c.area * a4c.area / (3 * math.pi * length * 1000)


def _three_sections(a2c: _Shape, a4c: _Shape, length: float) -> float:
    """A cylinder at the base, a frustum and a cone at the apex, each of a third of the length."""
    products = a2c.diameters * a4c.diameters
    middles = (np.arange(len(products)) + 0.5) / len(products)
    smaller, larger = sorted(np.pi / 4 * np.interp((1 / 3, 2 / 3), middles, products))
    return float((larger + (larger + smaller) / 2 + smaller / 3) * length / 3 / 1000)
