"""AVI, MP4 and MOV clips, and what else FFmpeg's libraries read (PyAV). Videos know no spacing.

FFmpeg is given the container's name and an absolute path behind `file:`, so that no name of a folder or file (`http:`,
`concat:`) and no playlist makes it open something else. It plays what it can of a damaged file without a word; what
shows the damage is checked here: the outermost chunks of a cut file, the number of frames that the container tells, the
decoder's own mark on a frame, and the checksums of FFV1.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.sidedata.sidedata import SideData
from av.video.reformatter import VideoReformatter

from echoplan.errors import EchoPlanError
from echoplan.imageio.arrays import stack_frames, usable_time
from echoplan.imageio.bounds import MAX_FRAME_PIXELS, check_size, damaged, open_regular
from echoplan.imageio.clip import Clip, ClipInfo

logger = logging.getLogger(__name__)

_DEFAULT_RATE = Fraction(25)  # a video file must have a rate; used where the clip knows no frame time
_MOST_BOXES = 200_000  # of an MP4 file, at all depths; one that is written frame by frame has seven a frame
_MOST_PACKETS = 200_000  # of a video: an hour of 55 frames a second
_TELL_SAMPLES = {b"trun": 4, b"stsz": 8, b"stz2": 8}  # MP4's boxes, and how far in they say how many
_HOLD_BOXES = frozenset(
    b"moov trak mdia minf stbl dinf edts udta meta ilst tref wave mvex moof traf sinf schi iprp ipco".split()
)
_EBML, _ASF = b"\x1a\x45\xdf\xa3", bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_PACK, _SEQUENCE = b"\0\0\1\xba", b"\0\0\1\xb3"  # how MPEG-1 and -2 begin: a program stream, bare pictures
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_CONVERT = "if it plays to its end elsewhere, convert it: ffmpeg -i FILE -c:v ffv1 CLIP.avi; else copy it again"


def is_avi(path: Path, head: bytes) -> bool:
    """Whether the content is a RIFF AVI."""
    return head[:4] == b"RIFF" and head[8:12] == b"AVI "


def is_mp4(path: Path, head: bytes) -> bool:
    """Whether the content is MP4 or QuickTime."""
    return head[4:8] in (b"ftyp", b"moov") or (head[4:8] == b"wide" and head[12:16] == b"mdat")


def is_matroska(path: Path, head: bytes) -> bool:
    """Whether the content is Matroska or WebM."""
    return head[:4] == _EBML


def is_windows_media(path: Path, head: bytes) -> bool:
    """Whether the content is ASF, which .wmv files are."""
    return head[:16] == _ASF


def is_mpeg(path: Path, head: bytes) -> bool:
    """Whether the content is MPEG-1 or MPEG-2."""
    return head[:4] in (_PACK, _SEQUENCE)


def _demuxer(path: Path) -> str:
    """FFmpeg's name of the container."""
    with open_regular(path) as stream:
        head = stream.read(16)
    for name, belongs in (("avi", is_avi), ("mov", is_mp4), ("matroska", is_matroska), ("asf", is_windows_media)):
        if belongs(path, head):
            return name
    return "mpeg" if head[:4] == _PACK else "mpegvideo"


def read(path: Path) -> Clip:
    """Read all frames of the first video stream as 8-bit grey in full range, upright.

    Raises:
        EchoPlanError: there is no video in it, it is truncated or damaged, or fewer frames come out of it than its
            container tells.
    """
    with _opened(path) as (container, stream):
        seen = _Seen()
        frames = stack_frames(_decoded(_packets(container, stream, path), stream, seen), stream.frames, path)
        told, rate = stream.frames, stream.average_rate
    seen.check(len(frames), told - _empty_chunks(path) if told else 0, path)
    return Clip(frames, None, _frame_time_ms(rate, len(frames)), str(path))


def probe(path: Path) -> ClipInfo:
    """Shape and frame time as the container's header states them; at most one frame is decoded, for how it is turned.

    Raises:
        EchoPlanError: there is no video in it, or it is truncated or damaged.
    """
    with _opened(path) as (container, stream):
        name, count, rate = container.format.name, stream.frames, stream.average_rate
        shape = (stream.height, stream.width)
        if not name.startswith("avi"):  # which knows of no turning
            seen, packets = _Seen(), _packets(container, stream, path)
            first = next(_decoded(packets, stream, seen), None)
            if first is None:
                raise damaged(path, "video")
            shape = first.shape
            if count:  # less what an edit list leaves out
                count -= seen.left_out + sum(packet.is_discard for packet in packets)
    if not count:  # containers may leave it out: then the packets are counted, without decoding
        with _opened(path) as (container, stream):
            count = sum(packet.size > 0 and not packet.is_discard for packet in _packets(container, stream, path))
    return ClipInfo((count, *shape), None, _frame_time_ms(rate, count))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its first video stream; what FFmpeg says of damage becomes an error that names the file."""
    _check_whole(path)
    try:
        with av.open(
            _url(path), format=_demuxer(path), options={"protocol_whitelist": "file"}, metadata_errors="replace"
        ) as container:
            if not container.streams.video:
                raise EchoPlanError("there is no video in this file", file=path)
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise EchoPlanError("the video's codec is not known to FFmpeg", file=path, remedy=_CONVERT)
            check_size(path, (1, stream.height, stream.width))  # a made-up number of frames costs nothing
            stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
            yield container, stream
    except MemoryError:
        raise
    except (av.FFmpegError, EOFError, ValueError) as error:
        raise _damaged(path, getattr(error, "strerror", None) or error) from error


@dataclass
class _Seen:
    """What is noticed on the way through a video."""

    packets: int = 0
    left_out: int = 0  # that an edit list leaves out
    corrupt: int = 0  # frames that the decoder marks as damaged
    checksums: list[bool] = field(default_factory=list)

    def check(self, frames: int, told: int, path: Path) -> None:
        """Raise an error where the clip is not what was recorded."""
        right = sum(self.checksums)
        if self.corrupt or (right and right < len(self.checksums)):  # none is right: the encoder wrote no checksums
            raise damaged(path, "video")
        if frames + self.left_out < told:
            raise EchoPlanError(
                f"the video is damaged: its container tells {told - self.left_out} frames, {frames} can be read",
                file=path,
                remedy=_CONVERT,
            )
        if told and self.left_out:  # as somebody trimmed it, or damage of its times would have it
            logger.warning("%s: %d of %d frames are left out by the video's edit list", path, self.left_out, told)
        if not told and frames + self.left_out < self.packets:  # cut from a longer one, or pictures that are not shown
            logger.warning("%s: %d of %d frames can be read", path, frames, self.packets - self.left_out)


def _packets(container: av.container.InputContainer, stream: av.VideoStream, path: Path) -> Iterator[av.Packet]:
    """The stream's packets, one a frame; a few bytes of a container can promise any number of them."""
    for number, packet in enumerate(container.demux(stream)):
        if number > _MOST_PACKETS:
            raise EchoPlanError(
                f"the video has more than {_MOST_PACKETS:,} frames", file=path, remedy="cut it into shorter clips"
            )
        yield packet


def _decoded(packets: Iterable[av.Packet], stream: av.VideoStream, seen: _Seen) -> Iterator[np.ndarray]:
    """The frames (H, W) in grey, upright."""
    reformatter, ffv1 = VideoReformatter(), stream.codec_context.name == "ffv1"
    for packet in packets:
        seen.packets += packet.size > 0
        seen.left_out += packet.is_discard
        if ffv1 and packet.size:
            seen.checksums.append(_ffv1_checksums_hold(bytes(packet)))
        for frame in packet.decode():
            assert isinstance(frame, av.VideoFrame)
            seen.corrupt += frame.is_corrupt
            yield _upright(reformatter.reformat(frame, format="gray").to_ndarray(), frame)


def _upright(picture: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """The picture as the container's display matrix (ISO 14496-12, 8.3.2) turns and mirrors it."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return picture
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5]
    if not b and not c and a and d:
        return picture[:: int(np.sign(d)), :: int(np.sign(a))]
    if not a and not d and b and c:
        return picture.T[:: int(np.sign(b)), :: int(np.sign(c))]
    return picture  # a slanted one is no way to hold a probe


def _ffv1_checksums_hold(packet: bytes) -> bool:
    """Whether every slice of an FFV1 frame ends with the right checksum (RFC 9043, 4.9.3).

    It is a CRC-32 whose bits go the other way round than zlib's, so it is reckoned over bytes with their bits turned.
    """
    end = len(packet)
    while end > 0:
        length = int.from_bytes(packet[max(end - 8, 0) : end - 5], "big") + 8 if end >= 8 else end + 1
        if length > end or zlib.crc32(packet[end - length : end].translate(_REVERSED_BITS), 0xFFFFFFFF) != 0xFFFFFFFF:
            return False
        end -= length
    return True


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
    with av.open(_url(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = clip.frame_shape
        stream.pix_fmt = pixels
        for frame in clip.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="gray")))
        container.mux(stream.encode())


def _check_whole(path: Path) -> None:
    """FFmpeg plays what is there of a cut file without complaint; its outermost chunks say how long it should be."""
    there = path.stat().st_size
    with open_regular(path) as stream:
        head = stream.read(16)
        if is_avi(path, head):
            length = int.from_bytes(head[4:8], "little")  # 0 where the recorder could not go back to fill it in
            expected = 0 if length in (0, 0xFFFFFFFF) else length + 8
        else:
            expected = _check_boxes(stream, there, path) if is_mp4(path, head) else 0
    if there < expected:
        raise _damaged(path, f"{there} bytes of {expected}")


def _check_boxes(stream: BinaryIO, file_size: int, path: Path) -> int:
    """Where the last box of an MP4 file ends (ISO 14496-12, 4.2); too many are refused, at whatever depth.

    FFmpeg would go through all of them, several times. Looked into are the kinds in which it looks for more: it takes
    a header within any other box for a header, too. It makes an entry of 24 bytes for each sample that a box tells of,
    for which the box need not grow; so more samples than the file has bytes are refused as well.
    """
    boxes, last, inner, samples = 0, 0, 0, 0
    waiting = [(0, file_size, b"")]
    while waiting:
        place, end, parent = waiting.pop()
        while place < end - (7 if parent else 0):
            boxes += 1
            stream.seek(place)
            head = stream.read(28)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            long = 8 if length == 1 else 0
            length = max(int.from_bytes(head[8:16], "big") if long else length or end - place, 8)
            inner += parent not in (b"", b"moof", b"traf")  # FFmpeg's time grows with the square of some of these
            if max(boxes, inner * 10) > _MOST_BOXES:
                raise _damaged(path, "too many boxes")
            if kind in _TELL_SAMPLES:
                told = 8 + long + _TELL_SAMPLES[kind]
                samples += int.from_bytes(head[told : told + 4], "big")
                if samples > file_size:
                    raise _damaged(path, "more frames than bytes")
            if kind in (b"cmov", b"pssh"):  # deflated boxes without end; keys, of which each is compared with all
                raise EchoPlanError("the video has a compressed or encrypted header", file=path, remedy=_CONVERT)
            if parent == b"stsd":
                fields = [36, 86]  # of a sound's and of a picture's entry
            elif kind == b"stsd":
                fields = [16]
            elif kind in _HOLD_BOXES or head[12:16] in (b"mvhd", b"cmov"):
                fields = [12 if kind == b"meta" and not any(head[8:12]) else 8]
            else:
                fields = []
            begins = (place + long + size for size in fields)
            waiting += [(begin, min(place + length, end), kind) for begin in begins if begin + 8 <= place + length]
            place += length
            last = last if parent else place
    return last


def _empty_chunks(path: Path) -> int:
    """How many frames of an AVI file its index lists without any content: the recorder dropped them, the count did not.

    There is nothing to show for them, so the clip goes on without; other containers have no such frames.
    """
    with open_regular(path) as stream:
        head, end = stream.read(12), path.stat().st_size
        if not is_avi(path, head):
            return 0
        place, chunks = 12, 0
        while place + 8 <= end and chunks < _MOST_BOXES:
            chunks += 1
            stream.seek(place)
            chunk = stream.read(8)
            length = int.from_bytes(chunk[4:], "little")
            if chunk[:4] == b"idx1":
                entries = np.frombuffer(stream.read(min(length, end) // 16 * 16), np.dtype("<u4")).reshape(-1, 4)
                kinds = (entries[:, 0] >> 16) & 0xFFFF
                return int(((entries[:, 3] == 0) & np.isin(kinds, (0x6364, 0x6264))).sum())  # "dc" and "db"
            place += 8 + length + length % 2
    return 0


def _url(path: Path) -> str:
    """How FFmpeg opens this file and nothing else, whatever its name looks like."""
    return f"file:{os.path.abspath(path)}"


def _damaged(path: Path, reason: object) -> EchoPlanError:
    return EchoPlanError(f"the video is truncated or damaged ({reason})", file=path, remedy="copy or download it again")


def _frame_time_ms(rate: Fraction | None, frames: int) -> float | None:
    return usable_time(1000 / float(rate)) if rate and frames > 1 else None
