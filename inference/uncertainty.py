"""What is kept of a predicted clip beside its mask, to tell how far its measurements can be trusted.

Each fold's network has an opinion of its own. Its mask is kept at the end-diastoles and end-systoles that its own area
curve shows, on the network's grid: a few kilobytes a clip, however long the clip is.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy.ndimage import binary_erosion, binary_opening, label
from skimage.morphology import convex_hull_image

from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path
from echoplan.sector import detect_sector

from ..evaluation import CaseMask, find_phases, measure_patients
from ..evaluation.conformal import QUANTITIES
from ..preprocessing import to_uint8
from ..preprocessing.geometry import Geometry
from .postprocessing import Step, apply_postprocessing

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
        origin: which model made it of which clip, as `one_clip.origin` has it.
    """

    spacing: tuple[float, float]
    average: Opinion | None = None
    by_fold: dict[int, Opinion] = field(default_factory=dict)
    edge_share: float | None = None
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
                origin = str(content["origin"])
        except FileNotFoundError as error:
            raise EchoPlanError("what the folds found is missing", file=path, remedy="predict again") from error
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise EchoPlanError(f"this file is damaged: {error}", file=path, remedy="predict again") from error
        average = opinions.pop(_AVERAGE, None)
        return cls((row, column), average, opinions, None if np.isnan(edge) else edge, origin)

    @staticmethod
    def read_origin(path: Path) -> str:
        """The `origin` alone, quickly; empty where the file is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as content:
                return str(content["origin"])
        except (FileNotFoundError, KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile):
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
    row: Mapping[str, Any], clips: Sequence[tuple[CaseMask, ClipEvidence]], *, method: str
) -> dict[int, dict[str, float | None]]:
    """EF, EDV and ESV of one patient as each fold's networks alone measure them; None where they cannot.

    By how much a fold's opinion differs from that of the average is measured on the network's grid for both, and added
    to the patient's own measurement (multiplied, for volumes), so that the grid's coarseness falls out.

    Args:
        row: the patient's, of `measure_patients`.
        clips: of the clips that the row was measured on, in the row's order: what is known of each (its mask is not
            looked at), and its evidence.
        method: the volume rule.
    """
    everywhere = [evidence for _, evidence in clips if evidence.average is not None]
    if not clips or len(everywhere) < len(clips):
        return {}
    centre = _measure([(about, item, item.average) for about, item in clips], row, method)
    found = {}
    for fold in sorted(set.intersection(*(set(item.by_fold) for item in everywhere))):
        own = _measure([(about, item, item.by_fold[fold]) for about, item in clips], row, method)
        found[fold] = {name: _moved(name, row[name], own.get(name), centre.get(name)) for name in QUANTITIES}
    return found


def fold_sd(by_fold: Mapping[int, Mapping[str, float | None]], quantity: str = "ef_percent") -> float | None:
    """SD (n - 1) over the folds that measure the quantity; None with fewer than two."""
    known = [values[quantity] for values in by_fold.values() if values[quantity] is not None]
    return stdev(known) if len(known) > 1 else None


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
    clips: Sequence[tuple[CaseMask, ClipEvidence, Opinion]], row: Mapping[str, Any], method: str
) -> dict[str, float]:
    """Means over the beats that all clips' opinions have; empty where one cannot be measured as the row was."""
    measured = []
    for beat in range(min(len(opinion) for *_, opinion in clips)):
        cases = [
            replace(about, mask=opinion.beats[2 * beat : 2 * beat + 2], spacing_mm=item.spacing, ed_frame=0, es_frame=1)
            for about, item, opinion in clips
        ]
        (found,) = measure_patients(cases, method=method)
        if found["failure"] or found["method"] != row["method"]:
            return {}
        measured.append(found)
    return {name: fmean(item[name] for item in measured) for name in QUANTITIES} if measured else {}


def _moved(name: str, value: float | None, own: float | None, centre: float | None) -> float | None:
    if value is None or own is None or centre is None:
        return None
    if name == "ef_percent":
        return value + own - centre
    return value * own / centre
