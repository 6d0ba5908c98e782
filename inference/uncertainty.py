"""How far measurements can be trusted: what is kept of a clip beside its mask, intervals, and the quality flag.

Each fold's network has an opinion of its own. Its mask is kept at the end-diastoles and end-systoles that its own area
curve shows, on the network's grid: a few kilobytes a clip, however long the clip is.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
from scipy.ndimage import binary_erosion, binary_opening, label
from skimage.morphology import convex_hull_image

from echoplan import layout
from echoplan.dataset import Case
from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path
from echoplan.sector import detect_sector

from ..evaluation import PatientRow, find_phases, measure_patients
from ..evaluation.conformal import DEFAULT_COVERAGE, QUANTITIES, Interval, check_coverage
from ..evaluation.ejection import names_of_cases
from ..evaluation.measurements import measure_masks
from ..evaluation.quality import Doubt, Limit, default_limits, find_doubts, patient_measures, with_quality
from ..evaluation.ventricle.volumes import VolumeRule
from ..preprocessing import to_uint8
from ..preprocessing.geometry import Geometry
from .conformal import NONE_WRITTEN, Calibration, with_intervals
from .postprocessing import Step, apply_postprocessing
from .trained_weights import Weights

_DAMAGED = (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile)  # what reading a broken .npz raises
_AVERAGE = -1  # in the file, the number of the opinion of all folds together
_FRAMES_LOOKED_AT = 16
_WORKING_SIDE = 256
_BLACK = 16  # the black of video; an image whose darkest pixel is brighter has no border
_DARK = 6  # grey levels above black that count as signal
_EDGE_PIXELS = 2  # of the working grid; so near to the sector's edge counts as on it


@dataclass(frozen=True)
class Opinion:
    """One network's cavity, (2 B, h, w) bool: end-diastole and end-systole of each of B beats, by turns."""

    beats: np.ndarray

    @classmethod
    def of(
        cls, cavity: np.ndarray, *, phases: tuple[int, int] | None = None, frame_time_ms: float | None = None
    ) -> Opinion:
        """From a network's whole mask.

        Args:
            cavity: (T, h, w) bool.
            phases: end-diastole and end-systole where they are given; None finds them on the network's own area curve.
            frame_time_ms: time between two frames.
        """
        if phases is None:
            try:
                beats = find_phases(np.count_nonzero(cavity, axis=(1, 2)), frame_time_ms=frame_time_ms).beats
            except EchoPlanError:
                return cls(np.zeros((0, *cavity.shape[1:]), bool))  # no cavity in any frame; a slice would hold all
        else:
            beats = (phases,)
        return cls(cavity[[frame for beat in beats for frame in beat]])

    def __len__(self) -> int:
        """The beats."""
        return len(self.beats) // 2


@dataclass
class ClipEvidence:
    """What is known about the trust a clip deserves.

    Attributes:
        spacing: (row, column) of the opinions' grid, in mm, or in pixels of the clip where the spacing is unknown.
        average: the opinion of all networks together.
        by_fold: fold -> its networks' opinion.
        edge_share: share of the cavity's outline on the edge of the image sector.
        certainty: the networks' mean probability of the cavity in the pixels in which they find it.
        origin: which model made it of which clip, as `predict_folder.origin` has it.
    """

    spacing: tuple[float, float]
    average: Opinion | None = None
    by_fold: dict[int, Opinion] = field(default_factory=dict)
    edge_share: float | None = None
    certainty: float | None = None
    origin: str = ""

    def write(self, path: Path) -> None:
        """Write as compressed .npz, atomically."""
        opinions = ({} if self.average is None else {_AVERAGE: self.average}) | self.by_fold
        stacked = [opinion.beats for opinion in opinions.values()] or [np.zeros((0, 1, 1), bool)]
        with atomic_path(path) as temporary:
            np.savez_compressed(
                temporary,
                folds=np.array(list(opinions), dtype=np.int64),
                beats=np.array([len(opinion) for opinion in opinions.values()], dtype=np.int64),
                masks=np.concatenate(stacked),
                spacing=np.array(self.spacing, dtype=np.float64),
                edge_share=np.array(np.nan if self.edge_share is None else self.edge_share),
                certainty=np.array(np.nan if self.certainty is None else self.certainty),
                origin=np.array(self.origin),
            )

    @classmethod
    def read(cls, path: Path) -> ClipEvidence:
        """Read what `write` wrote.

        Raises:
            EchoPlanError: the file is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                folds, beats, masks = content["folds"], content["beats"], content["masks"]
                ends = np.cumsum(2 * beats)
                opinions = {
                    int(fold): Opinion(masks[end - 2 * count : end])
                    for fold, count, end in zip(folds, beats, ends, strict=True)
                }
                row, column = content["spacing"].tolist()
                edge = float(content["edge_share"])
                certainty = float(content["certainty"]) if "certainty" in content else np.nan  # of an earlier EchoPlan
                origin = str(content["origin"])
        except FileNotFoundError as error:
            raise EchoPlanError("what the folds found is missing", file=path, remedy="predict again") from error
        except _DAMAGED as error:
            raise EchoPlanError(f"this file is damaged: {error}", file=path, remedy="predict again") from error
        average = opinions.pop(_AVERAGE, None)
        known = {
            name: None if np.isnan(value) else value for name, value in (("edge_share", edge), ("certainty", certainty))
        }
        return cls((row, column), average, opinions, **known, origin=origin)

    @staticmethod
    def read_origin(path: Path) -> str:
        """The `origin` alone, quickly; empty where the file is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as content:
                return str(content["origin"])
        except _DAMAGED:  # or missing
            return ""


def make_opinion(
    labels: np.ndarray,
    steps: Sequence[Step],
    structures: Mapping[str, int],
    target: int,
    *,
    phases: tuple[int, int] | None,
    frame_time_ms: float | None,
) -> Opinion:
    """The opinion that one fold's labels (T, h, w) amount to, postprocessed as the final mask is; they are used up."""
    labels = apply_postprocessing(labels, steps, structures, frame_time_ms=frame_time_ms, in_place=True)
    cavity = np.equal(labels, target, out=labels.view(bool))
    return Opinion.of(cavity, phases=phases, frame_time_ms=frame_time_ms)


def grid_spacing(geometry: Geometry) -> tuple[float, float]:
    """(row, column) of a network's grid in mm, or in pixels of the clip where the spacing is unknown."""
    if geometry.spacing_mm is not None:
        return geometry.spacing_mm
    r0, r1, c0, c1 = geometry.crop_box
    return (r1 - r0) / geometry.resized_shape[0], (c1 - c0) / geometry.resized_shape[1]


def measure_folds(
    row: PatientRow, clips: Sequence[tuple[Case, ClipEvidence]], *, method: VolumeRule
) -> dict[int, dict[str, float | None]]:
    """EF, EDV and ESV of one patient as each fold's networks alone measure them; None where they cannot.

    By how much a fold's opinion differs from that of the average is measured on the network's grid for both, and added
    to the patient's own measurement (multiplied, for volumes), so that the grid's coarseness falls out.

    Args:
        row: the patient's.
        clips: those that the row was measured on, in the row's order, and the evidence of each.
        method: the volume rule.
    """
    averages = [(case, item, item.average) for case, item in clips if item.average is not None]
    if not clips or len(averages) < len(clips):
        return {}
    centre = _measure(averages, row, method)
    by_fold = {}
    for fold in sorted(set.intersection(*(set(item.by_fold) for _, item in clips))):
        alone = _measure([(case, item, item.by_fold[fold]) for case, item in clips], row, method)
        by_fold[fold] = {
            name: _moved(name, row.measured(name), alone.get(name), centre.get(name)) for name in QUANTITIES
        }
    return by_fold


def fold_sd(by_fold: Mapping[int, Mapping[str, float | None]], quantity: str = "ef_percent") -> float | None:
    """SD (n - 1) over the folds that measure the quantity; None with fewer than two."""
    known = [value for values in by_fold.values() if (value := values[quantity]) is not None]
    return stdev(known) if len(known) > 1 else None


@dataclass(frozen=True)
class TrustSettings:
    """What intervals and flags are made with.

    Attributes:
        calibration: of the very model or ensemble; None where there is none.
        why_none: why there is no calibration, in words.
        coverage: of the intervals, between 0 and 1.
        file: where the calibration was read.
    """

    calibration: Calibration | None = None
    why_none: str = NONE_WRITTEN
    coverage: float = DEFAULT_COVERAGE
    file: Path | None = None

    @classmethod
    def find(
        cls,
        models: Sequence[Path],
        *,
        weights: Weights,
        file: Path | None,
        postprocessing: Sequence[Step],
        checkpoint: str,
        coverage: float,
    ) -> TrustSettings:
        """Read the calibration that holds for a predictor, where there is one.

        Args:
            models: the model folders.
            weights: of each of them the folds that the predictor has.
            file: the calibration; None takes a single model's own, crossval_results/calibration.json.
            postprocessing, checkpoint: those of the predictor.
            coverage: between 0 and 1.

        Raises:
            EchoPlanError: the coverage is not between 0 and 1, or the file is no calibration.
        """
        coverage = check_coverage(coverage)
        if file is None and len(models) == 1:
            file = models[0] / layout.CROSS_VALIDATION / layout.CALIBRATION_FILE
        if file is None:
            return cls(None, "no calibration: the ensemble is not the best configuration that was found", coverage)
        if not file.is_file():
            return cls(None, NONE_WRITTEN, coverage)
        calibration = Calibration.read(file)
        reason = calibration.mismatch(weights=weights, postprocessing=postprocessing, checkpoint=checkpoint)
        return cls(None, reason, coverage, file) if reason else cls(calibration, "", coverage, file)

    @property
    def limits(self) -> Mapping[str, Limit]:
        """Of the quality flag."""
        return self.calibration.limits if self.calibration else default_limits()

    def to_dict(self) -> dict[str, Any]:
        """As prediction_args.json and ef_report.json hold it."""
        return {
            "coverage_percent": 100 * self.coverage,
            "calibration": None if self.calibration is None else str(self.file),
            "why_none": self.why_none,
            "limits": {name: asdict(limit) for name, limit in self.limits.items()},
        }


@dataclass
class Assessment:
    """What was found about one patient.

    Attributes:
        row: the patient's, with intervals and the quality flag.
        no_interval: quantity -> why it has no interval.
        intervals: quantity -> its interval.
        doubts: clip -> reasons to look again; "" has those about the patient.
    """

    row: PatientRow
    no_interval: dict[str, str] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    doubts: dict[str, list[Doubt]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """What ef_report.json holds about the patient beside the columns."""
        return {"no_interval": self.no_interval, "doubts": [doubt.to_dict() for doubt in self.doubts.get("", ())]}

    @property
    def reasons(self) -> list[str]:
        """All reasons to look again, in words."""
        return [doubt.words for found in self.doubts.values() for doubt in found]


def assess_patient(
    row: PatientRow,
    clips: Sequence[tuple[Case, Mapping[str, Any]]],
    evidence: Mapping[str, ClipEvidence],
    settings: TrustSettings,
) -> Assessment:
    """Intervals, the folds' disagreement and the quality flag of one patient.

    Args:
        row: of `measure_patients`.
        clips: the patient's clips, as the row was made from, and `clip_measures` of each, but for what the evidence
            knows.
        evidence: clip -> what was kept of its prediction; clips without are passed over.
        settings: the calibration and the coverage.
    """
    cases = {case.case: case for case, _ in clips}
    used = names_of_cases(row.cases, cases)
    by_fold: dict[int, dict[str, float | None]] = {}
    if not row.failure and all(name in evidence for name in used):
        by_fold = measure_folds(row, [(cases[name], evidence[name]) for name in used], method=row.volume_rule)
    row, intervals, no_interval = with_intervals(row, by_fold, settings.calibration, settings.coverage)
    if settings.calibration is None:
        no_interval = {quantity: settings.why_none for quantity in no_interval}
    spread = fold_sd(by_fold)
    doubts = {"": find_doubts(patient_measures(row, ef_fold_sd_percent=spread), settings.limits)}
    for case, measures in clips:
        kept = evidence.get(case.case)
        known_too = {} if kept is None else {"edge_share": kept.edge_share, "certainty": kept.certainty}
        doubts[case.case] = doubts.get(case.case, []) + find_doubts({**measures, **known_too}, settings.limits)
    row = with_quality(replace(row, ef_fold_sd_percent=spread), doubts, folds=spread is not None)
    return Assessment(row, no_interval, intervals, doubts)


def edge_share(sector: np.ndarray, mask: np.ndarray, target: int = 1) -> float | None:
    """Share of the cavity's outline that lies on the edge of the image sector, in the frame where it is largest.

    Args:
        sector: of the clip, from `image_sector`.
        mask: (T, H, W) labels.
        target: the cavity's.
    """
    largest = max(range(len(mask)), key=lambda frame: np.count_nonzero(mask[frame] == target))
    step = _working_step(mask.shape[1:])
    shown = mask[largest, ::step, ::step] == target
    outline = shown & ~binary_erosion(shown)
    if not outline.any():
        return None
    inside = binary_erosion(sector, iterations=_EDGE_PIXELS)
    return float(np.count_nonzero(outline & ~inside) / np.count_nonzero(outline))


def image_sector(frames: np.ndarray) -> np.ndarray:
    """The image sector: the convex hull of what carries signal, the frame's own border counts as its edge too.

    Args:
        frames: (T, H, W), any grey level type.

    Returns:
        bool, every so many-th pixel that the longer side is about 256; all True where nothing stands out.
    """
    step = _working_step(frames.shape[1:])
    looked_at = frames[np.unique(np.linspace(0, len(frames) - 1, _FRAMES_LOOKED_AT).round().astype(int))]
    looked_at = to_uint8(looked_at, source="clip")
    r0, r1, c0, c1 = detect_sector(looked_at)
    brightest = looked_at.max(axis=0)
    signal = np.zeros(brightest.shape, bool)
    signal[r0:r1, c0:c1] = brightest[r0:r1, c0:c1] > min(int(brightest.min()), _BLACK) + _DARK
    parts, count = label(binary_opening(signal[::step, ::step]))
    if not count:
        return np.ones(parts.shape, bool)
    return convex_hull_image(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]))


def _working_step(shape: tuple[int, ...]) -> int:
    return max(1, round(max(shape) / _WORKING_SIDE))


def _measure(
    clips: Sequence[tuple[Case, ClipEvidence, Opinion]], row: PatientRow, method: VolumeRule
) -> dict[str, float]:
    """What the clips' opinions amount to; empty where they cannot be measured as the row was."""
    of_clips = []
    for case, item, opinion in clips:
        spacing_row, spacing_col = item.spacing
        on_grid = replace(case.without_phases(), spacing_row_mm=spacing_row, spacing_col_mm=spacing_col, exam="")
        beats = [(2 * beat, 2 * beat + 1) for beat in range(len(opinion))]
        of_clips.append(measure_masks(on_grid, opinion.beats, method=method, beats=beats))
    (together,) = measure_patients(of_clips, method=method)
    if together.failure or together.method != row.method:
        return {}
    return {name: getattr(together, name) for name in QUANTITIES}


def _moved(name: str, value: float | None, own: float | None, centre: float | None) -> float | None:
    if value is None or own is None or centre is None:
        return None
    if name == "ef_percent":
        return value + own - centre
    return value * own / centre
