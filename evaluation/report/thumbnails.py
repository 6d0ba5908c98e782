"""Clips made small for the report: frames in one picture, outlines and landmarks as lines to draw over them."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from echoplan.sector import sector_mask

from ..measurements import CaseMeasurement
from ..ventricle.cardiac_cycle import Phases
from ..ventricle.contour import Points
from ..ventricle.landmarks import Landmarks, disc_segments
from .contours import enclosed, packed, trace, within

# Okabe and Ito's palette: told apart with every common kind of colour blindness. Shapes and line styles differ too.
OUTLINE, AXIS, ED_COLOUR, ES_COLOUR = "#E69F00", "#56B4E9", "#0072B2", "#D55E00"
INK, SOFT, PALE, LINE = "#1f2933", "#52606d", "#9aa5b1", "#e4e7eb"
PLAYERS, PICTURES = 300, 1000  # cases of a report that have a player; that have pictures of ED and ES at least
MARKED_BEATS = 30  # of a clip; more would lie on top of each other
_HIGHEST, _WIDEST = 256, 384  # of a frame, in pixels
_MOST_FRAMES = 120
_SHEET_PIXELS = 4_000_000  # of all frames together: what a browser decodes in a blink
# A page of 100 clips stays under 30 MB: what a film is in a page, and 40 kB for the curve and the words beside it.
_FILM_BYTES = 240_000  # in a page, where three bytes take four letters; the sheet has what the rest leaves of it
_SHEET_BYTES, _STILL_BYTES, _OUTLINE_BYTES = 160_000, 16_000, 40_000  # at most, before they are letters
_SHEET_QUALITIES, _STILL_QUALITIES = (55, 40, 25), (60, 40, 25)
_STILL_LINE_BYTES = 1_600  # of the outline of a still, as it would be in a sheet
_MISSED_OF_MASK, _MISSED_OF_FRAME = 0.1, 0.005
_About = TypeVar("_About")

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
        """Closed lines (N, 2) in (x, y) around a (H, W) mask as it is seen at this size, see `trace`."""
        return trace(mask, self.size)

    def marks(self, landmarks: Landmarks) -> Marks:
        """The landmarks' lines."""
        axis = np.stack([landmarks.base_middle, landmarks.apex])
        lines = (landmarks.hinges, axis, disc_segments(landmarks))
        # Pixel centres lie at whole numbers in the mask and at halves in a picture.
        return Marks(*((line / self.spacing_mm + 0.5)[..., ::-1] * (self.scale_x, self.scale_y) for line in lines))


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
        outlines: of each frame, in pixels of the `Film`, as `packed` has them; at most 40 kB.
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
        marks: frame -> lines, for the ED and ES of every measured beat among the `marked_beats`.
        sheet: what the player plays; None without a player.
        outlined_in_part: whether the outline of some frame leaves out much of its mask, as of one in a thousand pieces.
    """

    case: str
    width: int
    height: int
    stills: tuple[Still, ...] = ()
    marks: Mapping[int, Marks] = field(default_factory=dict)
    sheet: Sheet | None = None
    outlined_in_part: bool = False


def picture_of(number: int) -> Picture:
    """What the case at this place of a report gets, so that large reports stay small and quick to make."""
    return "player" if number < PLAYERS else "stills" if number < PICTURES else "none"


def film_frames(measurement: CaseMeasurement, count: int, *, player: bool = True) -> frozenset[int]:
    """The frames of a clip of `count` frames whose masks `make_film` needs."""
    phases = measurement.phases
    typical = () if phases is None else (phases.ed_frame, phases.es_frame)
    shown = _shown_frames(count, {number for beat in marked_beats(phases) for number in beat}) if player else ()
    return frozenset({*shown, *typical})


def make_film(
    measurement: CaseMeasurement,
    frames: NDArray[Any],
    mask: NDArray[Any] | Mapping[int, NDArray[Any]],
    spacing_mm: Sequence[float] | None = None,
    *,
    player: bool = True,
) -> Film:
    """A clip's pictures for the report.

    Args:
        measurement: `measure_case` of this clip.
        frames: (T, H, W), any range of values.
        mask: (T, H, W), 0 is background; or those of the `film_frames`, frame -> (H, W).
        spacing_mm: (row, col).
        player: whether to hold the frames of the whole clip, or only ED and ES.

    Example:
        >>> import numpy as np
        >>> from echoplan.dataset import Case
        >>> from echoplan.evaluation import make_film, measure_case
        >>> rows, columns = np.mgrid[:100, :80]
        >>> mask = np.stack([(((rows - 80) / 60) ** 2 + ((columns - 40) / width) ** 2 < 1) & (rows < 80)
        ...                  for width in (25, 20, 15)])
        >>> film = make_film(measure_case(Case("a", "p"), mask), mask * np.uint8(90), mask)
        >>> [still.phase for still in film.stills], film.sheet.frames
        (['end-diastole', 'end-systole'], (0, 1, 2))
    """
    frame = Frame.fit(frames.shape[1:], spacing_mm)
    grey = grey_levels(frames)
    phases, beats = measurement.phases, marked_beats(measurement.phases)
    ends = {number for beat in beats for number in beat}
    known = landmarks_by_frame(measurement).items()
    marks = {number: frame.marks(landmarks) for number, landmarks in known if number in ends}
    typical = () if phases is None else (("end-diastole", phases.ed_frame), ("end-systole", phases.es_frame))
    shown = _shown_frames(len(frames), ends) if player else ()
    traced = {number: frame.outline(mask[number]) for number in film_frames(measurement, len(frames), player=player)}
    stills = tuple(
        Still(
            phase,
            number,
            _still(Image.fromarray(grey(frames[number])), frame.size),
            tuple(within([traced[number]], _STILL_LINE_BYTES)[0]),
            marks.get(number),
        )
        for phase, number in typical
    )
    drawn = {still.frame: still.outline for still in stills}
    sheet = None
    if player:
        outlines = within([traced[number] for number in shown], _OUTLINE_BYTES)
        drawn |= {number: tuple(lines) for number, lines in zip(shown, outlines, strict=True)}
        content = packed(outlines)
        most = min(_SHEET_BYTES, (_FILM_BYTES - _letters(content, stills, marks)) * 3 // 4)
        pictures = [Image.fromarray(grey(frames[number])) for number in shown]
        sheet = _make_sheet(pictures, frame, shown, content, most)
    in_part = any(_leave_out(lines, mask[number], frame) for number, lines in drawn.items())
    return Film(measurement.name, frame.width, frame.height, stills, marks, sheet, in_part)


def marked_beats(phases: Phases | None) -> tuple[tuple[int, int], ...]:
    """(ed, es) of the beats that are marked: all, or of more than `MARKED_BEATS` those about the most typical one."""
    if phases is None or len(phases.beats) <= MARKED_BEATS:
        return () if phases is None else phases.beats
    typical = phases.beats.index((phases.ed_frame, phases.es_frame))
    first = min(max(0, typical - MARKED_BEATS // 2), len(phases.beats) - MARKED_BEATS)
    return phases.beats[first : first + MARKED_BEATS]


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


def _make_sheet(
    pictures: Sequence[Image.Image], frame: Frame, shown: tuple[int, ...], outlines: bytes, most_bytes: int
) -> Sheet:
    """The pictures in one, as large and as good as its limits of pixels and bytes allow."""
    native = pictures[0].height / frame.height  # enlarging adds bytes and no detail

    def laid_out(scale: float) -> tuple[Image.Image, tuple[int, int, int]]:
        width, height = (max(1, round(side * scale)) for side in frame.size)
        columns = max(1, math.ceil(math.sqrt(len(pictures) * height / width)))
        whole = Image.new("L", (columns * width, math.ceil(len(pictures) / columns) * height))
        for number, picture in enumerate(pictures):
            place = (number % columns * width, number // columns * height)
            whole.paste(picture.resize((width, height), Image.Resampling.LANCZOS), place)
        return whole, (columns, width, height)

    scale = min(1.0, native, math.sqrt(_SHEET_PIXELS / (len(pictures) * frame.width * frame.height)))
    webp, sizes = _fitted(laid_out, scale, _SHEET_QUALITIES, most_bytes)
    return Sheet(webp, *sizes, shown, outlines)


def _still(picture: Image.Image, size: tuple[int, int]) -> bytes:
    def drawn(scale: float) -> tuple[Image.Image, None]:
        width, height = (max(1, round(side * scale)) for side in size)
        return picture.resize((width, height), Image.Resampling.LANCZOS), None

    return _fitted(drawn, 1.0, _STILL_QUALITIES, _STILL_BYTES)[0]


def _fitted(
    draw: Callable[[float], tuple[Image.Image, _About]], scale: float, qualities: Sequence[int], most_bytes: int
) -> tuple[bytes, _About]:
    """What is drawn at a scale as WebP, in the best of the qualities that fits, and smaller where none does."""
    while True:
        picture, about = draw(scale)
        size = 0
        for quality in qualities:
            if size > 2 * most_bytes and quality != qualities[-1]:
                continue  # the next quality saves a quarter
            stream = io.BytesIO()
            picture.save(stream, "WEBP", quality=quality, method=2)
            size = stream.tell()
            if size <= most_bytes:
                return stream.getvalue(), about
        scale *= min(0.9, 0.95 * math.sqrt(most_bytes / size))


def _leave_out(lines: Iterable[Points], mask: NDArray[Any], frame: Frame) -> bool:
    """Whether lines differ from a mask (H, W) by a tenth of its area, and by what an eye sees of the frame."""
    area = np.count_nonzero(mask) * frame.scale_x * frame.scale_y
    return abs(enclosed(lines) - area) > max(_MISSED_OF_MASK * area, _MISSED_OF_FRAME * frame.width * frame.height)


def _letters(outlines: bytes, stills: Iterable[Still], marks: Mapping[int, Marks]) -> int:
    """At most so many bytes of a page go to what a film has beside its sheet."""
    lines = [line for still in stills for line in still.outline]
    lines += [still.marks.discs for still in stills if still.marks]
    binary = len(outlines) + sum(len(still.webp) for still in stills)
    points = sum(len(own.base) + len(own.axis) + 2 * len(own.discs) for own in marks.values())
    return 4 * (binary // 3 + 3) + 14 * sum(len(line) for line in lines) + 16 * points + 60 * len(marks)
