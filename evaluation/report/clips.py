"""A predicted clip as the report has it: measured, rated and made into pictures, one clip or its mask in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from echoplan.dataset import Case
from echoplan.errors import EchoPlanError
from echoplan.imageio import probe_clip, read_clip
from echoplan.masks import load_mask

from ..measurements import CaseMeasurement, measure_case
from ..quality import clip_measures
from ..ventricle.volumes import VolumeRule
from .thumbnails import Film, Picture, film_frames, make_film


@dataclass(frozen=True)
class ReportedClip:
    """What a report says of a clip.

    Attributes:
        measurement: of `measure_case`.
        quality: of `clip_measures`.
        film: its pictures; None where it gets none.
    """

    measurement: CaseMeasurement
    quality: dict[str, Any]
    film: Film | None = None


def report_clip(
    case: Case,
    clip_file: Path,
    mask_file: Path,
    label: int,
    *,
    method: VolumeRule = "simpson",
    picture: Picture = "none",
) -> ReportedClip:
    """Measure a clip by its mask on disk, and film it.

    Args:
        case: what is known of the clip, better than its file knows.
        clip_file, mask_file: the files.
        label: the measured structure's value in the mask.
        method: the volume rule.
        picture: which pictures to make.

    Raises:
        EchoPlanError: a file is missing or cannot be read, or the grids differ.
    """
    # The clip's own header is asked: a mask file cannot say that the spacing is unknown.
    header = probe_clip(clip_file, spacing_mm=case.spacing_mm, frame_time_ms=case.frame_time_ms)
    mask = load_mask(mask_file, clip=header, any_frames=True)  # a header's number of frames may be wrong
    cavity = np.equal(mask, label, out=mask.view(bool))  # in place: a long clip's mask is large
    case = case.with_header(header)
    measured = measure_case(case, cavity, method=method)
    if case.ef_percent is not None and measured.phase_errors is not None:  # both errors can be told
        found = measure_case(case.without_phases(), cavity, method=method)
        measured = replace(measured, at_found_phases=found)
    quality, player = clip_measures(cavity, measured), picture == "player"
    if picture == "none":
        return ReportedClip(measured, quality)
    shape = mask.shape
    shown = {frame: cavity[frame].copy() for frame in film_frames(measured, len(cavity), player=player)}
    del mask, cavity  # a long clip's whole mask is not in memory beside the clip
    clip = read_clip(clip_file, spacing_mm=case.spacing_mm, frame_time_ms=case.frame_time_ms)
    _check_grid(shape, clip.frames.shape, mask_file)
    return ReportedClip(measured, quality, make_film(measured, clip.frames, shown, clip.spacing_mm, player=player))


def _check_grid(mask: tuple[int, ...], clip: tuple[int, ...], file: Path) -> None:
    if mask != clip:
        raise EchoPlanError(f"the mask is {mask} and its clip {clip} (frames, rows, columns)", file=file)
