"""Clips made small for the report: frames in one picture, outlines and landmarks as lines to draw over them."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from skimage.measure import find_contours

from echoplan.sector import sector_mask

from .cases import CaseMeasurement
from .contour import Points
from .geometry import Landmarks, disc_segments

PLAYERS, PICTURES = 300, 1000  # cases of a report that have a player; that have pictures of ED and ES at least
OUTLINE_STEPS = 8  # outlines are stored in eighths of a pixel
_HIGHEST, _WIDEST = 256, 384  # of a frame, in pixels
_MOST_FRAMES = 120
_SHEET_PIXELS = 4_000_000  # of all frames together: what a browser decodes in a blink
_SHEET_BYTES = 160_000  # keeps 100 players under 30 MB with everything that belongs to them
_SHEET_QUALITIES = (55, 40, 25)
_STILL_QUALITY = 60
_TOLERANCE = 0.4  # of an outline, in pixels of the mask; the outline itself goes through pixel edges


Picture = Literal["player", "stills", "none"]


@dataclass(frozen=True)
class Marks:
    """Lines at end-diastole or end-systole, (x, y) in pixels of a `Frame`.

    Attributes:
        base: (2, 2), the mitral plane.
        axis: (2, 2), from the mitral plane's middle to the apex.
        discs: (discs, 2, 2), the two ends of each disc.
    """

    base: Points
    axis: Points
    discs: Points


@dataclass(frozen=True)
class Frame:
    """A frame as it is shown: square pixels, so that the heart keeps its proportions.

    Attributes:
        width, height: in pixels.
        scale_x, scale_y: pixels shown for one of the clip's columns and rows.
        spacing_mm: (row, col) of the clip; (1, 1) where it is unknown.
    """

    width: int
    height: int
    scale_x: float
    scale_y: float
    spacing_mm: tuple[float, float]

    @classmethod
    def fit(
        cls,
        shape: Sequence[int],
        spacing_mm: Sequence[float] | None,
        *,
        highest: int = _HIGHEST,
        widest: int = _WIDEST,
        even: bool = False,
    ) -> Frame:
        """The largest frame of a clip's (H, W) within bounds, with sides of even length where a video needs them."""
        row_mm, col_mm = spacing_mm or (1.0, 1.0)
        tall, wide = shape[0] * row_mm, shape[1] * col_mm
        scale = min(highest / tall, widest / wide)
        step = 2 if even else 1
        width, height = (max(step, step * round(side * scale / step)) for side in (wide, tall))
        return cls(width, height, width / shape[1], height / shape[0], (row_mm, col_mm))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as Pillow has it."""
        return self.width, self.height

    def outline(self, mask: ArrayLike) -> list[Points]:
        """Closed lines (N, 2) in (x, y) around all of a (H, W) mask, without needless points."""
        from skimage.measure import approximate_polygon  # takes most of a second: it brings all of scipy.stats

        lines = find_contours(np.pad(np.asarray(mask) != 0, 1).astype(np.float32), 0.5)
        return [self._place(approximate_polygon(line, _TOLERANCE)[:-1] - 1) for line in lines]

    def marks(self, landmarks: Landmarks) -> Marks:
        """The landmarks' lines."""
        axis = np.stack([landmarks.base_middle, landmarks.apex])
        lines = (landmarks.hinges, axis, disc_segments(landmarks))
        return Marks(*(self._place(line / self.spacing_mm) for line in lines))

    def _place(self, points: Points) -> Points:
        # Pixel centres lie at whole numbers in the mask and at halves in a picture.
        return (points[..., ::-1] + 0.5) * (self.scale_x, self.scale_y)


@dataclass(frozen=True)
class Still:
    """One phase of the most typical beat.

    Attributes:
        phase: "end-diastole" or "end-systole".
        frame: its number in the clip.
        webp: the picture, without lines.
        outline: closed lines (N, 2) around the cavity.
        marks: None where the landmarks were not found.
    """

    phase: str
    frame: int
    webp: bytes
    outline: tuple[Points, ...]
    marks: Marks | None


@dataclass(frozen=True)
class Sheet:
    """Frames of a clip side by side in one grey WebP picture, and their outlines.

    Attributes:
        webp: the picture, filled row by row.
        columns: frames in a row.
        width, height: of one frame in it; at most those of the `Film`.
        frames: the numbers of its frames in the clip.
        outlines: for each frame the number of its closed lines, then for each line the number of its points and their
            (x, y); little-endian 16-bit integers, places in eighths of a pixel of the `Film`.
    """

    webp: bytes
    columns: int
    width: int
    height: int
    frames: tuple[int, ...]
    outlines: bytes


@dataclass(frozen=True)
class Film:
    """A clip as the report shows it.

    Attributes:
        case: the clip's name.
        width, height: of a frame; all lines are in its pixels.
        stills: end-diastole and end-systole; empty where the clip has no cavity.
        marks: frame -> lines, for the ED and ES of every measured beat.
        sheet: what the player plays; None without a player.
    """

    case: str
    width: int
    height: int
    stills: tuple[Still, ...] = ()
    marks: Mapping[int, Marks] = field(default_factory=dict)
    sheet: Sheet | None = None


def picture_of(number: int) -> Picture:
    """What the case at this place of a report gets, so that large reports stay small and quick to make."""
    return "player" if number < PLAYERS else "stills" if number < PICTURES else "none"


def make_film(
    measurement: CaseMeasurement,
    frames: NDArray[Any],
    mask: NDArray[Any],
    spacing_mm: Sequence[float] | None = None,
    *,
    player: bool = True,
) -> Film:
    """A clip's pictures for the report.

    Args:
        measurement: `measure_case` of this clip.
        frames: (T, H, W), any range of values.
        mask: (T, H, W), 0 is background.
        spacing_mm: (row, col).
        player: whether to hold the frames of the whole clip, or only ED and ES.
    """
    frame = Frame.fit(frames.shape[1:], spacing_mm)
    grey = grey_levels(frames)
    marks = {number: frame.marks(landmarks) for number, landmarks in landmarks_by_frame(measurement).items()}
    phases = measurement.phases
    typical = () if phases is None else (("end-diastole", phases.ed_frame), ("end-systole", phases.es_frame))
    stills = tuple(
        Still(
            phase,
            number,
            _webp(Image.fromarray(grey(frames[number])).resize(frame.size, Image.Resampling.LANCZOS), _STILL_QUALITY),
            tuple(frame.outline(mask[number])),
            marks.get(number),
        )
        for phase, number in typical
    )
    sheet = None
    if player:
        shown = _shown_frames(len(frames), {number for beat in phases.beats for number in beat} if phases else set())
        outlines = _encoded([frame.outline(mask[number]) for number in shown])
        sheet = _make_sheet([Image.fromarray(grey(frames[number])) for number in shown], frame, shown, outlines)
    return Film(measurement.case, frame.width, frame.height, stills, marks, sheet)


def grey_levels(frames: NDArray[Any]) -> Callable[[NDArray[Any]], NDArray[np.uint8]]:
    """The mapping of a clip's frames to 8-bit grey: one for all (T, H, W), so that brightness does not flicker.

    Outside the ultrasound sector it is black, for scanners write names and dates there.
    """
    looked_at = frames[:: max(1, len(frames) // 8)]
    inside = sector_mask(looked_at if looked_at.dtype == np.uint8 else _scaled(looked_at, _levels(looked_at)))
    levels = _levels(looked_at[:, inside])
    return lambda frame: np.where(inside, _scaled(frame, levels), np.uint8(0))


def landmarks_by_frame(measurement: CaseMeasurement) -> dict[int, Landmarks]:
    """Frame -> landmarks, at end-diastole and end-systole of every measured beat."""
    phases = measurement.phases
    # Beats that could not be measured have no landmarks, and then the numbering of the others does not fit.
    if phases is None or len(phases.beats) != len(measurement.beats):
        return {}
    pairs = zip(phases.beats, measurement.beats, strict=True)
    return {number: marks for beat, own in pairs for number, marks in zip(beat, own, strict=True)}


def _levels(values: NDArray[Any]) -> tuple[float, float]:
    """What is shown black and white."""
    low, high = np.percentile(values, (0.5, 99.8))
    return float(low), float(high)


def _scaled(values: NDArray[Any], levels: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = levels
    return (np.clip((values.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)


def _shown_frames(count: int, wanted: Iterable[int]) -> tuple[int, ...]:
    """Every frame, or every second (third, ...) of a long clip, and always those wanted."""
    step = math.ceil(count / _MOST_FRAMES)
    return tuple(sorted({*range(0, count, step), *wanted}))


def _make_sheet(pictures: Sequence[Image.Image], frame: Frame, shown: tuple[int, ...], outlines: bytes) -> Sheet:
    """The pictures in one, as large and as good as its limits of pixels and bytes allow."""
    native = pictures[0].height / frame.height  # enlarging adds bytes and no detail
    scale = min(1.0, native, math.sqrt(_SHEET_PIXELS / (len(pictures) * frame.width * frame.height)))
    while True:
        width, height = (max(1, round(side * scale)) for side in frame.size)
        columns = max(1, math.ceil(math.sqrt(len(pictures) * height / width)))
        whole = Image.new("L", (columns * width, math.ceil(len(pictures) / columns) * height))
        for number, picture in enumerate(pictures):
            place = (number % columns * width, number // columns * height)
            whole.paste(picture.resize((width, height), Image.Resampling.LANCZOS), place)
        for quality in _SHEET_QUALITIES:
            webp = _webp(whole, quality)
            if len(webp) <= _SHEET_BYTES:
                return Sheet(webp, columns, width, height, shown, outlines)
        scale *= min(0.9, 0.95 * math.sqrt(_SHEET_BYTES / len(webp)))


def _webp(picture: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=quality, method=2)
    return stream.getvalue()


def _encoded(outlines: Iterable[Iterable[Points]]) -> bytes:
    parts: list[NDArray[Any]] = []
    for lines in outlines:
        found = list(lines)
        parts.append(np.array([len(found)]))
        for line in found:
            parts += [np.array([len(line)]), np.clip(np.rint(line * OUTLINE_STEPS), 0, 65535).ravel()]
    return np.concatenate(parts).astype("<u2").tobytes()
