"""AVI, MP4 and MOV clips, through FFmpeg's libraries (PyAV). Videos know no spacing."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from echoplan.errors import EchoPlanError
from echoplan.imageio.arrays import stack_frames, usable_time
from echoplan.imageio.clip import Clip, ClipInfo

_DEFAULT_RATE = Fraction(25)  # a video file must have a rate; used where the clip knows no frame time


def is_avi(path: Path, head: bytes) -> bool:
    """Whether the content is a RIFF AVI."""
    return head[:4] == b"RIFF" and head[8:12] == b"AVI "


def is_mp4(path: Path, head: bytes) -> bool:
    """Whether the content is MP4 or QuickTime."""
    return head[4:8] in (b"ftyp", b"moov") or (head[4:8] == b"wide" and head[12:16] == b"mdat")


def read(path: Path) -> Clip:
    """Read all frames of the first video stream as 8-bit grey in full range.

    Raises:
        EchoPlanError: there is no video in it, or it is truncated or damaged.
    """
    _check_whole(path)
    reformatter = VideoReformatter()
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container, path)
            pictures = (reformatter.reformat(frame, format="gray").to_ndarray() for frame in container.decode(stream))
            frames = stack_frames(pictures, stream.frames, path)
            rate = stream.average_rate
    except (av.FFmpegError, EOFError, ValueError) as error:
        raise _damaged(path, error) from error
    return Clip(frames, None, _frame_time_ms(rate, len(frames)), str(path))


def probe(path: Path) -> ClipInfo:
    """Shape and frame time as the container's header states them; nothing is decoded.

    Raises:
        EchoPlanError: there is no video in it, or it is truncated or damaged.
    """
    _check_whole(path)
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container, path)
            # Containers may leave the count out: then the packets are counted, still without decoding.
            count = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
            shape = (count, stream.height, stream.width)
            return ClipInfo(shape, None, _frame_time_ms(stream.average_rate, count))
    except (av.FFmpegError, EOFError) as error:
        raise _damaged(path, error) from error


def write_avi(path: Path, clip: Clip) -> None:
    """Write an 8-bit clip without loss (FFV1).

    Raises:
        EchoPlanError: the clip has more than 8 bits.
    """
    _write(path, clip, codec="ffv1", pixels="gray", options={})


def write_mp4(path: Path, clip: Clip) -> None:
    """Write an 8-bit clip for looking at (H.264, nearly lossless): not for labels or measurements.

    Raises:
        EchoPlanError: the clip has more than 8 bits.
    """
    even = all(length % 2 == 0 for length in clip.frame_shape)
    # Players want 4:2:0, which needs even sides; colour planes are empty either way.
    _write(path, clip, codec="libx264", pixels="yuv420p" if even else "yuv444p", options={"crf": "12"})


def _write(path: Path, clip: Clip, *, codec: str, pixels: str, options: dict[str, str]) -> None:
    if clip.frames.dtype != np.uint8:
        raise EchoPlanError(
            f"a video holds 8-bit frames, these are {clip.frames.dtype}", file=path, remedy="write .nii.gz or .mha"
        )
    rate = Fraction(1000 / clip.frame_time_ms).limit_denominator(1000) if clip.frame_time_ms else _DEFAULT_RATE
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = clip.frame_shape
        stream.pix_fmt = pixels
        for frame in clip.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="gray")))
        container.mux(stream.encode())


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    if not container.streams.video:
        raise EchoPlanError("there is no video in this file", file=path)
    return container.streams.video[0]


def _check_whole(path: Path) -> None:
    """FFmpeg plays what is there of a cut file without complaint; its outermost chunks say how long it should be."""
    there = path.stat().st_size
    with open(path, "rb") as stream:
        head = stream.read(16)
        if is_avi(path, head):
            length = int.from_bytes(head[4:8], "little")  # 0 where the recorder could not go back to fill it in
            expected = 0 if length in (0, 0xFFFFFFFF) else length + 8
        else:
            expected = _end_of_boxes(stream, there)
    if there < expected:
        raise _damaged(path, f"{there} bytes of {expected}")


def _end_of_boxes(stream: BinaryIO, file_size: int) -> int:
    """Where the last box of an MP4 file ends (ISO 14496-12, 4.2)."""
    end = 0
    while end < file_size:
        stream.seek(end)
        head = stream.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 0:  # this box goes on to the end of the file
            return file_size
        end += max(int.from_bytes(head[8:16], "big") if length == 1 else length, 8)
    return end


def _damaged(path: Path, reason: object) -> EchoPlanError:
    return EchoPlanError(f"the video is truncated or damaged ({reason})", file=path, remedy="copy or download it again")


def _frame_time_ms(rate: Fraction | None, frames: int) -> float | None:
    return usable_time(1000 / float(rate)) if rate and frames > 1 else None
