"""One phantom patient: a heart of known volume, its clips and their labels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from echoplan.errors import EchoPlanError

from .heart import CAVITY, Cut, Heart, Pose, contraction_curve, random_heart
from .polar_grid import PolarGrid
from .randomised import place_freely, varied_heart, varied_scanner, varied_size
from .render import Renderer, Scanner
from .varied_render import VariedRenderer


@dataclass(frozen=True)
class PhantomSettings:
    """What the patients of a phantom dataset have in common.

    Attributes:
        size: (H, W) of the frames in pixels.
        spacing_mm: square pixels' size; None fits each sector to the frame.
        frames: frames of a clip; None follows from the heart rate and the frame rate, as in a real recording.
        whole_beat: a whole beat instead of end-diastole to end-systole.
        views: which cuts, of "A2C" and "A4C".
        quality: range of the image quality, 0 poor to 1 good.
        ef_percent, frame_rate_hz, heart_rate_bpm: ranges drawn from evenly.
        randomised: hearts, sectors, scanners and artefacts of far more kinds, frames of 112 pixels a side up to `size`,
            left and right swapped in some: to learn from phantoms alone. `spacing_mm` is then not used.
    """

    size: tuple[int, int] = (160, 160)
    spacing_mm: float | None = None
    frames: int | None = None
    whole_beat: bool = False
    views: tuple[str, ...] = ("A2C", "A4C")
    quality: tuple[float, float] = (0.0, 1.0)
    ef_percent: tuple[float, float] = (20.0, 75.0)
    frame_rate_hz: tuple[float, float] = (42.0, 58.0)
    heart_rate_bpm: tuple[float, float] = (52.0, 92.0)
    randomised: bool = False

    def __post_init__(self) -> None:
        if min(self.size) < 64:
            raise EchoPlanError(f"phantom frames of {self.size} are too small", remedy="ask for 64 pixels or more")
        if self.frames is not None and self.frames < (6 if self.whole_beat else 2):
            raise EchoPlanError(f"{self.frames} frames do not hold the heart's cycle", remedy="ask for 10 or more")
        if not self.views or set(self.views) - {"A2C", "A4C"}:
            raise EchoPlanError(f"the phantom knows the views A2C and A4C, not {self.views}")


@dataclass(frozen=True)
class PhantomClip:
    """A rendered clip with its exact labels.

    Attributes:
        view: "A2C" or "A4C".
        frames: (T, H, W) uint8.
        labels: (T, H, W) uint8, every frame: 0 background, 1 LV cavity, 2 myocardium, 3 left atrium.
        spacing_mm: (row, column).
        frame_time_ms: time between two frames.
        ed_frame, es_frame: frames of the largest and the smallest cavity.
        quality: "Good", "Medium" or "Poor".
        sector_box: (row 0, row 1, column 0, column 1) around the sector, ends excluded.
        sector_apex: (row, column) of the sector's point, fractional.
        cuts: the exact geometry of every frame.
    """

    view: str
    frames: np.ndarray
    labels: np.ndarray
    spacing_mm: tuple[float, float]
    frame_time_ms: float
    ed_frame: int
    es_frame: int
    quality: str
    sector_box: tuple[int, int, int, int]
    sector_apex: tuple[float, float]
    cuts: tuple[Cut, ...] = field(repr=False)


@dataclass(frozen=True)
class PhantomPatient:
    """A patient: the clips, and the volumes of the three-dimensional cavity in mL (analytic)."""

    clips: tuple[PhantomClip, ...]
    edv_ml: float
    esv_ml: float
    ef_percent: float
    frame_rate_hz: float
    heart: Heart

    def clip(self, view: str) -> PhantomClip:
        """The clip of `view`; KeyError if it was not asked for."""
        for clip in self.clips:
            if clip.view == view:
                return clip
        raise KeyError(view)


def make_patient(seed: int | np.random.Generator, settings: PhantomSettings | None = None) -> PhantomPatient:
    """Make a patient; the same seed and settings give the same bytes."""
    settings = settings or PhantomSettings()
    rng = np.random.default_rng(seed)
    ef_percent = float(rng.uniform(*settings.ef_percent))
    heart = (
        varied_heart(rng, ef_percent=ef_percent) if settings.randomised else random_heart(rng, ef_percent=ef_percent)
    )
    frame_rate = float(rng.uniform(*settings.frame_rate_hz))
    beat_seconds = 60 / float(rng.uniform(*settings.heart_rate_bpm))
    quality = float(rng.uniform(*settings.quality))
    lead = float(rng.uniform(0, 0.15))
    streams = dict(zip(("A2C", "A4C"), rng.spawn(2), strict=True))
    timing = _Timing.plan(settings, frame_rate, beat_seconds, lead)
    clips = tuple(_make_clip(streams[view], heart, view, quality, timing, settings) for view in settings.views)
    return PhantomPatient(
        clips, heart.state(0.0).volume_ml, heart.state(1.0).volume_ml, heart.ef_percent, 1000 / timing.frame_ms, heart
    )


@dataclass(frozen=True)
class _Timing:
    """When the frames are taken: both end-diastole and end-systole fall exactly on a frame."""

    contraction: np.ndarray
    valve: np.ndarray
    ed_frame: int
    es_frame: int
    frame_ms: float

    @classmethod
    def plan(cls, settings: PhantomSettings, frame_rate: float, beat_seconds: float, lead: float) -> _Timing:
        systole_seconds = 0.16 + 0.2 * beat_seconds  # 0.33 s at 70 beats a minute
        if settings.whole_beat:
            count = settings.frames or max(12, round(beat_seconds * frame_rate))
            systole = int(np.clip(round(count * systole_seconds / beat_seconds), 2, count - 3))
            ed = round(lead * count)
            beat, milliseconds = count, 1000 * beat_seconds / count
        else:
            count = settings.frames or max(8, round(systole_seconds * frame_rate) + 1)
            systole, ed = count - 1, 0
            beat, milliseconds = 2 * count, 1000 * systole_seconds / (count - 1)
        contraction, valve = contraction_curve((np.arange(count) - ed) / beat, systole / beat)
        return cls(contraction, valve, ed, ed + systole, milliseconds)


def _make_clip(
    rng: np.random.Generator, heart: Heart, view: str, quality: float, timing: _Timing, settings: PhantomSettings
) -> PhantomClip:
    quality = float(np.clip(quality + rng.normal(0, 0.1), *settings.quality))
    if settings.randomised:
        grid, pose, shape = place_freely(rng, heart, view, varied_size(rng, settings.size))
        scanner = varied_scanner(rng, quality)
        # The valve is still open in some first frames, and the leaflets then stand in the cavity.
        open_at_first = rng.uniform(0, 1.0) if rng.random() < 0.5 else 0.0
        valves = np.maximum(timing.valve, open_at_first * (1 - timing.contraction) ** 6)
    else:
        grid, pose = _place(rng, heart, view, settings)
        scanner, shape, valves = Scanner.random(rng, quality), None, timing.valve
    cuts = tuple(
        Cut(heart.state(float(contraction), float(valve)), view, pose, shape)
        for contraction, valve in zip(timing.contraction, valves, strict=True)
    )
    renderer = (VariedRenderer if settings.randomised else Renderer)(rng, grid, cuts[timing.ed_frame], scanner)
    frames = renderer.to_grey(np.stack([renderer.frame(cut) for cut in cuts]))
    local = pose.to_local(*grid.pixel_xy)
    return PhantomClip(
        view=view,
        frames=frames,
        labels=np.stack([cut.labels(*local) for cut in cuts]),
        spacing_mm=(grid.spacing_mm, grid.spacing_mm),
        frame_time_ms=timing.frame_ms,
        ed_frame=timing.ed_frame,
        es_frame=timing.es_frame,
        quality="Good" if quality > 0.6 else "Medium" if quality > 0.25 else "Poor",
        sector_box=grid.box,
        sector_apex=grid.point,
        cuts=cuts,
    )


def _place(rng: np.random.Generator, heart: Heart, view: str, settings: PhantomSettings) -> tuple[PolarGrid, Pose]:
    """A sector and a pose with the whole cavity in view; the heart is straightened and pushed down until it is."""
    start = heart.state(0.0)
    reach = start.c + start.apical_wall + start.h
    half_angle = np.deg2rad(rng.uniform(34, 43))
    depth = rng.uniform(6, 20)
    behind = start.atrium_length * rng.uniform(0.75, 1.3)
    x = rng.normal(0, 5)
    tilt = np.deg2rad(rng.normal(5 if view == "A4C" else 0, 7))
    bend = rng.normal(-3.0 if view == "A4C" else -1.0, 2.5)
    for trial in range(60):
        ease = 0.94**trial
        grid = PolarGrid.fitting(settings.size, depth + reach + behind, half_angle, settings.spacing_mm)
        pose = Pose(x * ease, depth + 0.6 * trial, tilt * ease, bend * ease)
        if settings.spacing_mm is None:
            grid = PolarGrid.fitting(settings.size, pose.depth + reach + behind, half_angle, None)
        labels = Cut(start, view, pose).labels(*pose.to_local(*grid.pixel_xy))
        cavity = labels == CAVITY
        # The sector may reach beyond the frame where the pixels' size is given.
        border = np.concatenate([cavity[0], cavity[-1], cavity[:, 0], cavity[:, -1]])
        if cavity.any() and not border.any() and not (cavity & ~grid.inside).any():
            return grid, pose
    raise EchoPlanError(
        f"the phantom's heart does not fit a frame of {settings.size} pixels of {settings.spacing_mm} mm",
        remedy="give larger pixels, or none to have them fitted",
    )
