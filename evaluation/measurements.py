"""One clip: its area curve, its beats, and its single-plane volumes and ejection fraction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np

from echoplan.errors import EchoPlanError

from .metrics import check_spacing
from .ventricle.cardiac_cycle import PhaseErrors, Phases, find_phases, phase_errors
from .ventricle.landmarks import Landmarks, find_landmarks_of_beat
from .ventricle.volumes import VolumeRule, ejection_fraction, volumes_of_beat

NO_SPACING = "no volumes: the pixel spacing is unknown"
NEGATIVE_EF = "end-systole is larger than end-diastole: negative EF"
_VIEWS = {"2CH": "A2C", "AP2": "A2C", "4CH": "A4C", "AP4": "A4C", "A2C": "A2C", "A4C": "A4C"}
_DENSE_SHARE = 0.9  # of a clip's frames must have a cavity before found phases are compared with given ones
_DENSE_FRAMES = 5


@dataclass(frozen=True)
class CaseMask:
    """The masks of one clip and what is known of it.

    Attributes:
        case, patient: names; an empty patient counts as a patient of its own.
        view: "A2C", "A4C" (2CH, 4CH are understood) or any other word.
        mask: (T, H, W), 0 is background, anything else the ventricle's cavity.
        spacing_mm: (row, col), None where unknown.
        frame_time_ms: mean time between frames, None where unknown.
        ed_frame, es_frame: given phases, used as they are; None to have them found.
        reference_ef_percent, reference_edv_ml, reference_esv_ml: of the patient, where known.
    """

    case: str
    mask: np.ndarray
    patient: str = ""
    view: str = ""
    spacing_mm: tuple[float, float] | None = None
    frame_time_ms: float | None = None
    ed_frame: int | None = None
    es_frame: int | None = None
    reference_ef_percent: float | None = None
    reference_edv_ml: float | None = None
    reference_esv_ml: float | None = None

    def without_pixels(self) -> CaseMask:
        """What is known of the clip, without frames; the mask's memory can be let go."""
        return replace(self, mask=np.zeros((0, *self.mask.shape[1:]), bool))  # a slice would hold it


@dataclass(frozen=True)
class CaseMeasurement:
    """What was measured on one clip.

    Attributes:
        area: (T,) area of all foreground, in `area_unit` ("mm2", or "px" without spacing).
        phases: the beats; None where the clip has no cavity.
        beats: (end-diastole, end-systole) landmarks of every beat measured, in mm, or pixels without spacing.
        ef_percent, edv_ml, esv_ml: single plane, means over the beats; None where not measured.
        ef_per_beat_percent: the beats' own.
        frame_time_ms: as given.
        note: what a reader should know. failure: why there is no EF; empty if there is one.
        phase_errors: found against given phases; None unless both are given and the clip has masks throughout.
    """

    case: str
    patient: str
    view: str
    area: np.ndarray
    area_unit: str
    phases: Phases | None = None
    beats: tuple[tuple[Landmarks, Landmarks], ...] = ()
    ef_percent: float | None = None
    edv_ml: float | None = None
    esv_ml: float | None = None
    ef_per_beat_percent: tuple[float, ...] = ()
    frame_time_ms: float | None = None
    note: str = ""
    failure: str = ""
    phase_errors: PhaseErrors | None = None

    @property
    def ed_frame(self) -> int | None:
        return self.phases.ed_frame if self.phases else None

    @property
    def es_frame(self) -> int | None:
        return self.phases.es_frame if self.phases else None


@dataclass
class BeatVolumes:
    """EDV, ESV and EF of each beat."""

    volumes: list[tuple[float, float]] = field(default_factory=list)
    ef: list[float] = field(default_factory=list)

    def add(self, edv: float, esv: float) -> None:
        self.ef.append(ejection_fraction(edv, esv))
        self.volumes.append((edv, esv))

    def columns(self, *, in_ml: bool) -> dict[str, Any]:
        """The means over the beats."""
        edv, esv = (fmean(values) for values in zip(*self.volumes, strict=True))
        return {
            "ef_percent": fmean(self.ef),
            "edv_ml": edv if in_ml else None,
            "esv_ml": esv if in_ml else None,
        }

    @property
    def note(self) -> str:
        return NEGATIVE_EF if any(value < 0 for value in self.ef) else ""


def measure_case(case: CaseMask, *, method: VolumeRule = "simpson") -> CaseMeasurement:
    """Area curve, phases, and single-plane volumes and EF of one clip.

    Never raises for what the masks or the header hold: `failure` then says why there is no EF. Several beats give
    several EFs and their mean. Without spacing EF is measured in (square) pixels and volumes stay None.
    """
    view = _VIEWS.get(case.view.upper(), case.view)
    patient = case.patient or case.case
    mask = np.asarray(case.mask)
    try:
        if mask.ndim != 3:
            raise EchoPlanError(f"the mask has {mask.ndim} axes, a clip (T, H, W) is needed")
        spacing = check_spacing(case.spacing_mm)
    except EchoPlanError as error:
        return CaseMeasurement(case.case, patient, view, np.zeros(0), "px", failure=error.problem)
    pixel = 1.0 if spacing is None else spacing[0] * spacing[1]
    area = np.count_nonzero(mask, axis=(1, 2)) * pixel
    unit = "px" if spacing is None else "mm2"
    measured = CaseMeasurement(case.case, patient, view, area, unit, frame_time_ms=case.frame_time_ms)
    try:
        phases = _phases(case, area)
        measured = replace(measured, phases=phases, note=phases.note, phase_errors=_phase_errors(case, area))
        beats, broken = _measure_beats(mask, phases, spacing or (1.0, 1.0))
        result = BeatVolumes()
        for ed, es in beats:
            result.add(*volumes_of_beat((ed, ed), (es, es), method))
    except EchoPlanError as error:
        return replace(measured, failure=error.problem)
    note = joined([phases.note, broken, NO_SPACING if spacing is None else "", result.note])
    if phases.ed_frame == phases.es_frame:
        return replace(measured, beats=beats, note=note, failure="end-diastole and end-systole are one frame")
    return replace(
        measured,
        beats=beats,
        note=note,
        ef_per_beat_percent=tuple(result.ef),
        **result.columns(in_ml=spacing is not None),
    )


def joined(parts: Sequence[str]) -> str:
    """The parts of a note that say something, as one."""
    return "; ".join(part for part in parts if part)


def _phases(case: CaseMask, area: np.ndarray) -> Phases:
    ed, es = case.ed_frame, case.es_frame
    for name, frame in (("end-diastole", ed), ("end-systole", es)):
        if frame is not None and not 0 <= frame < len(area):
            raise EchoPlanError(f"the given {name}, frame {frame}, is not in the clip of {len(area)} frames")
    if ed is not None and es is not None:
        return Phases(ed, es, ((ed, es),), True)
    found = find_phases(area, frame_time_ms=case.frame_time_ms)
    if ed is None and es is None:
        return found
    ed, es = (found.ed_frame if ed is None else ed), (found.es_frame if es is None else es)
    return replace(found, ed_frame=ed, es_frame=es, beats=((ed, es),))


def _phase_errors(case: CaseMask, area: np.ndarray) -> PhaseErrors | None:
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
