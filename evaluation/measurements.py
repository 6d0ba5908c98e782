"""One clip: its area curve, its beats, and its single-plane volumes and ejection fraction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike

from echoplan.dataset import Case
from echoplan.errors import EchoPlanError
from echoplan.views import standard_view

from .metrics import check_spacing
from .ventricle.cardiac_cycle import PhaseErrors, Phases, find_phases, phase_errors
from .ventricle.landmarks import Landmarks, find_landmarks_of_beat
from .ventricle.volumes import VolumeRule, ejection_fraction, not_measurable, volumes_of_views

NO_SPACING = "no volumes: the pixel spacing is unknown"
_DENSE_SHARE = 0.9  # of a clip's frames must have a cavity before found phases are compared with given ones
_DENSE_FRAMES = 5


@dataclass(frozen=True)
class CaseMeasurement:
    """What was measured on one clip.

    Attributes:
        case: what is known of the clip, with the phases that were given.
        area: (T,) area of all foreground, in `area_unit` ("mm2", or "px" without spacing).
        phases: the beats; None where the clip has no cavity.
        beats: (end-diastole, end-systole) landmarks of every beat measured, in mm, or pixels without spacing.
        ef_percent, edv_ml, esv_ml: single plane, means over the beats; None where not measured. Volumes that give no
            EF (`failure` says why) are there to be seen and take part in nothing.
        ef_per_beat_percent: the beats' own.
        note: what a reader should know. failure: why there is no EF; empty if there is one.
        doubt: what of the note is a reason to look again, whatever the masks are like.
        phase_errors: found against given phases; None unless both are given and the clip has masks throughout.
        at_found_phases: the clip measured as if no phases were given; None where nobody asked.
    """

    case: Case
    area: np.ndarray
    area_unit: str
    phases: Phases | None = None
    beats: tuple[tuple[Landmarks, Landmarks], ...] = ()
    ef_percent: float | None = None
    edv_ml: float | None = None
    esv_ml: float | None = None
    ef_per_beat_percent: tuple[float, ...] = ()
    note: str = ""
    failure: str = ""
    doubt: str = ""
    phase_errors: PhaseErrors | None = None
    at_found_phases: CaseMeasurement | None = None

    @property
    def name(self) -> str:
        """The case's name."""
        return self.case.case

    @property
    def patient(self) -> str:
        """Whose clip it is; one of nobody counts as a patient of its own."""
        return self.case.patient or self.case.case

    @property
    def view(self) -> str:
        """ "A2C" or "A4C", also where the case has it as 2CH or 4CH; else the case's own word."""
        return standard_view(self.case.view)

    @property
    def frame_time_ms(self) -> float | None:
        """Mean time between frames; None where unknown."""
        return self.case.frame_time_ms

    @property
    def has_volumes(self) -> bool:
        """Whether there is a cavity at end-diastole and another at end-systole, be there an EF or not."""
        return bool(self.beats) and self.ed_frame != self.es_frame

    @property
    def ed_frame(self) -> int | None:
        return self.phases.ed_frame if self.phases else None

    @property
    def es_frame(self) -> int | None:
        return self.phases.es_frame if self.phases else None


def measure_case(case: Case, mask: ArrayLike, *, method: VolumeRule = "simpson") -> CaseMeasurement:
    """Area curve, phases, and single-plane volumes and EF of one clip.

    Never raises for what the masks or the header hold: `failure` then says why there is no EF. Several beats give
    several EFs and their mean; a beat whose end-systole is not the smaller volume is left out of it, and where no beat
    is left there is no EF. Without spacing EF is measured in (square) pixels and volumes stay None. A spacing or a
    frame time that no echocardiogram has counts as unknown, and `doubt` says so.

    Args:
        case: the spacing and the frame time of the clip, where known; given phases, used as they are, None to have them
            found.
        mask: (T, H, W), 0 is background, anything else the ventricle's cavity.
        method: one of `VOLUME_RULES`.

    Example:
        >>> import numpy as np
        >>> from echoplan.dataset import Case
        >>> from echoplan.evaluation import measure_case
        >>> y, x = np.mgrid[:100, :100]
        >>> inside = [((y - 70) / length) ** 2 + ((x - 50) / 20) ** 2 < 1 for length in (60, 58, 50)]
        >>> mask = np.stack(inside) & (y < 70)  # half-ellipses: a base, an apex
        >>> case = Case("a", "patient1", view="A4C", spacing_row_mm=1.0, spacing_col_mm=1.0)
        >>> measured = measure_case(case, mask)
        >>> measured.ed_frame, measured.es_frame, round(measured.ef_percent)
        (0, 2, 17)
    """
    return measure_masks(case.plausible(), mask, method=method)


def measure_masks(
    case: Case, mask: ArrayLike, *, method: VolumeRule = "simpson", beats: Sequence[tuple[int, int]] = ()
) -> CaseMeasurement:
    """As `measure_case`, of masks on any grid: the case's spacing and frame time are taken as they are.

    Args:
        case, mask, method: as in `measure_case`.
        beats: (end-diastole, end-systole) of every beat where they are known; else as the case says or masks show.
    """
    mask, doubt = np.asarray(mask), case.scale_note
    try:
        if mask.ndim != 3:
            raise EchoPlanError(f"the mask has {mask.ndim} axes, a clip (T, H, W) is needed")
        case, wrong_phases = case.with_phases_in(len(mask))
        doubt = joined([case.scale_note, wrong_phases])
        spacing = check_spacing(case.spacing_mm)
    except EchoPlanError as error:
        return CaseMeasurement(case, np.zeros(0), "px", failure=error.problem, doubt=doubt)
    pixel = 1.0 if spacing is None else spacing[0] * spacing[1]
    area = np.count_nonzero(mask, axis=(1, 2)) * pixel
    measured = CaseMeasurement(case, area, "px" if spacing is None else "mm2", note=doubt, doubt=doubt)
    try:
        phases = _phases(case, area, beats)
        note = joined([doubt, phases.note])
        measured = replace(measured, phases=phases, note=note, phase_errors=_phase_errors(case, area))
        landmarks, broken = _measure_beats(mask, phases, spacing or (1.0, 1.0))
    except EchoPlanError as error:
        return replace(measured, failure=error.problem)
    note = joined([note, broken, NO_SPACING if spacing is None else ""])
    measured = replace(measured, beats=landmarks, note=note)
    if not measured.has_volumes:
        return replace(measured, failure="end-diastole and end-systole are one frame")
    return _with_volumes(measured, method)


def under_rule(measured: CaseMeasurement, method: VolumeRule) -> CaseMeasurement:
    """A clip measured by the ordinary rule as another rule has it; the landmarks, which take the time, are the same."""
    if method == "simpson" or not measured.has_volumes:
        return measured
    return _with_volumes(measured, method)


def _with_volumes(measured: CaseMeasurement, method: VolumeRule) -> CaseMeasurement:
    in_ml = measured.area_unit == "mm2"
    volumes = [volumes_of_views([beat], [beat], method) for beat in measured.beats]
    good = [place for place, pair in enumerate(volumes) if not not_measurable(*pair)]
    used = [volumes[place] for place in good] or volumes
    edv, esv = (fmean(values) for values in zip(*used, strict=True))
    left_out = len(volumes) - len(good)
    words = f"{left_out} of {len(volumes)} beats left out: end-systole is not smaller than end-diastole"
    words = words if good and left_out else ""
    ef = tuple(ejection_fraction(*volumes[place]) for place in good)
    return replace(
        measured,
        beats=tuple(measured.beats[place] for place in good) or measured.beats,
        ef_percent=fmean(ef) if ef else None,
        edv_ml=edv if in_ml else None,
        esv_ml=esv if in_ml else None,
        ef_per_beat_percent=ef,
        note=joined([measured.note, words]),
        failure="" if good else not_measurable(edv, esv, in_ml=in_ml),
        doubt=joined([measured.doubt, words]),
    )


def joined(parts: Sequence[str]) -> str:
    """The parts of a note that say something, as one."""
    return "; ".join(part for part in parts if part)


def _phases(case: Case, area: np.ndarray, beats: Sequence[tuple[int, int]]) -> Phases:
    if beats:
        return Phases(*beats[0], tuple(beats), True)
    ed, es = case.ed_frame, case.es_frame
    if ed is not None and es is not None:
        return Phases(ed, es, ((ed, es),), True)
    found = find_phases(area, frame_time_ms=case.frame_time_ms)
    if ed is None and es is None:
        return found
    ed, es = (found.ed_frame if ed is None else ed), (found.es_frame if es is None else es)
    return replace(found, ed_frame=ed, es_frame=es, beats=((ed, es),))


def _phase_errors(case: Case, area: np.ndarray) -> PhaseErrors | None:
    """How far phases found on the curve are from given ones, where both exist; labels of single frames are no curve."""
    if case.ed_frame is None or case.es_frame is None:
        return None
    if len(area) < _DENSE_FRAMES or np.count_nonzero(area) < _DENSE_SHARE * len(area):
        return None
    found = find_phases(area, frame_time_ms=case.frame_time_ms)
    return phase_errors(found, case.ed_frame, case.es_frame, frame_time_ms=case.frame_time_ms)


def _measure_beats(
    mask: np.ndarray, phases: Phases, spacing: tuple[float, float]
) -> tuple[tuple[tuple[Landmarks, Landmarks], ...], str]:
    """Landmarks of every measurable beat, and a note on those that are not; an error if there is none."""
    beats, reasons = [], []
    for ed_frame, es_frame in phases.beats:
        try:
            beats.append(find_landmarks_of_beat(mask[ed_frame], mask[es_frame], spacing))
        except EchoPlanError as error:
            reasons.append(f"frames {ed_frame} and {es_frame}: {error.problem}")
    if not beats:
        raise EchoPlanError(joined(reasons))
    return tuple(beats), joined(reasons)
