"""Videos of clips with outline and long axis burned in, for talks and for eyes without a browser."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path
from echoplan.imageio import Clip, read_clip
from echoplan.masks import load_mask
from echoplan.parallel_map import CaseResults, run_cases

from ..measurements import CaseMeasurement
from ..ventricle.landmarks import Landmarks, find_landmarks
from .thumbnails import AXIS, ED_COLOUR, ES_COLOUR, OUTLINE, Frame, grey_levels, landmarks_by_frame

_HIGHEST, _WIDEST = 512, 768
_DEFAULT_RATE = Fraction(25)  # where the clip knows no frame time
_CODECS = {"libx264": {"crf": "18"}, "mpeg4": {"b": "6M"}}  # the first that PyAV's FFmpeg can encode


def write_overlays(
    folder: Path, clips: Mapping[str, tuple[Path, Path, CaseMeasurement]], label: int, *, processes: int = 0
) -> CaseResults:
    """Write folder/<case>.mp4 for every case, past the cases that fail.

    Args:
        folder: where the videos go.
        clips: case -> the clip's file, its mask's, and its measurement.
        label: the measured structure's value in the masks.
        processes: worker processes; 0: none.
    """
    work = {case: (folder / f"{case}.mp4", *clip, label) for case, clip in clips.items()}
    return run_cases(_write_overlay, work, processes=processes, description="overlays")


def write_overlay_video(path: Path, clip: Clip, mask: NDArray[Any], measurement: CaseMeasurement) -> None:
    """Write a clip with its outline and long axis as MP4, in real time, with end-diastole and end-systole named.

    H.264 where FFmpeg can encode it, else MPEG-4; even sides and 4:2:0 colour, which every player takes.

    Args:
        path: the MP4 file.
        clip: what was measured.
        mask: (T, H, W), 0 is background.
        measurement: `measure_case` of it.

    Raises:
        EchoPlanError: the mask does not fit the clip, or FFmpeg cannot encode video.
    """
    if mask.shape != clip.frames.shape:
        raise EchoPlanError(f"the mask is {mask.shape} and its clip {clip.frames.shape} (frames, rows, columns)")
    frame = Frame.fit(clip.frame_shape, clip.spacing_mm, highest=_HIGHEST, widest=_WIDEST, even=True)
    grey = grey_levels(clip.frames)
    known = landmarks_by_frame(measurement)
    font = ImageFont.load_default(size=15)
    codec = _codec()
    rate = Fraction(1000 / clip.frame_time_ms).limit_denominator(500) if clip.frame_time_ms else _DEFAULT_RATE
    with atomic_path(path) as temporary, av.open(str(temporary), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=_CODECS[codec])
        stream.width, stream.height = frame.size
        stream.pix_fmt = "yuv420p"
        for number, values in enumerate(clip.frames):
            picture = Image.fromarray(grey(values)).resize(frame.size, Image.Resampling.LANCZOS).convert("RGB")
            landmarks = known.get(number) or _landmarks(mask[number], frame, known)
            _draw(picture, frame, mask[number], landmarks)
            _name(picture, font, number, measurement, clip.frame_time_ms)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))
        container.mux(stream.encode())


def _write_overlay(path: Path, clip_file: Path, mask_file: Path, measurement: CaseMeasurement, label: int) -> None:
    case = measurement.case
    clip = read_clip(clip_file, spacing_mm=case.spacing_mm, frame_time_ms=case.frame_time_ms)
    mask = load_mask(mask_file, clip=clip)
    write_overlay_video(path, clip, mask == label, measurement)


def _codec() -> str:
    for name in _CODECS:
        try:
            av.Codec(name, "w")
        except ValueError:
            continue
        return name
    raise EchoPlanError(
        "this FFmpeg can encode neither H.264 nor MPEG-4", remedy="install PyAV from PyPI: pip install av"
    )


def _landmarks(mask: NDArray[Any], frame: Frame, known: Mapping[int, Landmarks]) -> Landmarks | None:
    """Of a frame between end-diastole and end-systole; None where its mask has no shape."""
    towards = next((landmarks.direction for landmarks in known.values()), None)
    if towards is None:
        return None
    try:
        return find_landmarks(mask, frame.spacing_mm, towards=towards)
    except EchoPlanError:
        return None


def _draw(picture: Image.Image, frame: Frame, mask: NDArray[Any], landmarks: Landmarks | None) -> None:
    pen = ImageDraw.Draw(picture)
    for line in frame.outline(mask):
        pen.line([tuple(point) for point in (*line, line[0])], fill=OUTLINE, width=2, joint="curve")
    if landmarks is not None:
        marks = frame.marks(landmarks)
        for line in (marks.base, marks.axis):
            pen.line([tuple(point) for point in line], fill=AXIS, width=2)


def _name(
    picture: Image.Image,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    number: int,
    measurement: CaseMeasurement,
    frame_time_ms: float | None,
) -> None:
    """The frame's number and time, and the numbers of the beat's ED and ES, each on its colour when it is shown."""
    pen = ImageDraw.Draw(picture)
    time = f"  {number * frame_time_ms / 1000:.2f} s" if frame_time_ms else ""
    floor = picture.height - 8
    pen.text((8, floor), f"frame {number}{time}", fill="white", font=font, anchor="ls")
    beats = measurement.phases.beats if measurement.phases else ()
    if not beats:
        return
    ed, es = next((beat for beat in reversed(beats) if min(beat) <= number), beats[0])
    right: float = picture.width - 8
    for name, at, colour in (("ES", es, ES_COLOUR), ("ED", ed, ED_COLOUR)):  # from right to left
        box = pen.textbbox((right, floor), f"{name} {at}", font=font, anchor="rs")
        if at == number:
            pen.rectangle((box[0] - 4, box[1] - 4, box[2] + 4, box[3] + 4), fill=colour)
        pen.text((right, floor), f"{name} {at}", fill="white", font=font, anchor="rs")
        right = box[0] - 14
