"""The pixels of a DICOM file: what decodes them, and what is checked before.

Each frame says its own size, which is compared with the header's before anything is decoded. Decoders are those of
pydicom, Pillow, CharLS, FFmpeg and openjpeg, in this order; lossless JPEG of 16 bits and lossy JPEG of 12 need libjpeg,
which is GPL and an extra. GDCM is not asked: damaged lossless JPEG ends the process there.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pydicom
from pydicom import uid
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, get_decoder, iter_pixels
from pydicom.pixels.decoders.base import Decoder, DecodeRunner

from echoplan.errors import EchoPlanError
from echoplan.extras import how_to_install
from echoplan.imageio.arrays import to_grey
from echoplan.imageio.bounds import damaged

_ORDER = ("pydicom", "pillow", "pyjpegls", "ffmpeg", "pylibjpeg")
_VIDEO = "1.2.840.10008.1.2.4.10"  # how the UIDs of MPEG-2, MPEG-4 and HEVC begin
_LOSSLESS_JPEG = (uid.JPEGLossless, uid.JPEGLosslessSV1)
_RUN_AT_BEST = 64  # bytes out of one byte of RLE
_LONGEST_STEP = 16  # the code of a difference of 32,768, behind which FFmpeg takes bits that are not its
_FORMS = {"gray": ("u1", 1), "gray16le": ("<u2", 1), "bgr24": ("u1", 3), "bgr48le": ("<u2", 3)}  # type, channels
_HEADER_BYTES = 2**16
_J2K_SIZE = b"\xff\x4f\xff\x51"  # codestream, then its size
# The markers that tell a JPEG's size.
_SIZES = {
    0xC0,
    0xC1,
    0xC2,
    0xC3,
    0xC5,
    0xC6,
    0xC7,
    0xC9,
    0xCA,
    0xCB,
    0xCD,
    0xCE,
    0xCF,
    0xF7,
}
DECODER_DEPENDENCIES = {syntax: ("av",) for syntax in _LOSSLESS_JPEG}  # what pydicom asks of the module of a decoder


def frames(header: pydicom.Dataset, count: int, region: tuple[slice, slice], path: Path) -> Iterator[np.ndarray]:
    """A region of the frames as they are shown, (h, w) in grey; those there are, at most `count`.

    Args:
        header: the file's elements, PixelData with them.
        count: how many frames the header tells.
        region: the rows and columns that are wanted.
        path: the file, for errors.

    Raises:
        EchoPlanError: nothing decodes them, or they are not as the header tells.
    """
    decoder = check_syntax(header, path)
    if decoder.is_native:
        _check_native(header, count, path)
        attempts = [""]
    else:
        _check_encapsulated(header, count, path)
        attempts = [name for name in _ORDER if name in decoder.available_plugins]
    for attempt in attempts:
        done = 0
        try:
            for pixels in islice(_decoded(header, decoder, count, attempt), count):
                yield _grey(pixels[region], header)
                done += 1
            return
        except (MemoryError, EchoPlanError):
            raise
        except Exception:  # decoders raise what they like
            if done:  # what has been given away would come again
                break
    raise EchoPlanError(
        "the pixels cannot be decoded",
        file=path,
        remedy=f"check that the file is whole; for JPEG of 12 or 16 bits, {how_to_install('gpl')}",
    )


def check_syntax(header: pydicom.Dataset, path: Path) -> Decoder:
    """What decodes pixels that are compressed like this file's.

    Raises:
        EchoPlanError: nothing that is installed does.
    """
    syntax = uid.UID(header.file_meta.TransferSyntaxUID)
    if syntax.startswith(_VIDEO):
        raise EchoPlanError(
            "the clip is MPEG video inside DICOM, which is not read",
            file=path,
            remedy="export it as single frames (uncompressed, JPEG or JPEG 2000), or as a video file (.mp4)",
        )
    try:
        decoder = get_decoder(uid.ExplicitVRLittleEndian if syntax == uid.DeflatedExplicitVRLittleEndian else syntax)
    except NotImplementedError:
        raise EchoPlanError(
            "the pixels are compressed in a way that is not read", file=path, remedy="export it uncompressed"
        ) from None
    if not decoder.is_native and not any(name in decoder.available_plugins for name in _ORDER):
        raise EchoPlanError(f"nothing that is installed decodes {syntax.name}", file=path, remedy=how_to_install("gpl"))
    return decoder


def _decoded(header: pydicom.Dataset, decoder: Decoder, count: int, plugin: str) -> Iterator[np.ndarray]:
    if decoder.is_native and header.PhotometricInterpretation == "YBR_FULL_422":
        # Frame by frame from the start: pydicom's iterator takes the second frame for one that is no longer halved.
        return (decoder.as_array(header, index=index)[0] for index in range(count))
    return iter_pixels(header, decoding_plugin=plugin)


def _grey(pixels: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """(H, W) of one decoded frame; pydicom has already turned YBR into RGB."""
    photometric = header.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, header)
        if pixels.dtype.itemsize > 1:  # tables of 16 bits hold 8 bits of colour, most in the upper byte
            pixels = (pixels >> 8 if pixels.max() > 255 else pixels).astype(np.uint8)
    if pixels.ndim == 3:
        return to_grey(pixels)
    if photometric == "MONOCHROME1":
        largest = (1 << int(header.BitsStored)) - 1
        return (-1 - pixels) if int(header.get("PixelRepresentation") or 0) else (largest - pixels).astype(pixels.dtype)
    return pixels


def _check_native(header: pydicom.Dataset, count: int, path: Path) -> None:
    samples = 2 if header.PhotometricInterpretation == "YBR_FULL_422" else int(header.SamplesPerPixel)
    bits = count * header.Rows * header.Columns * samples * int(header.BitsAllocated)
    there = len(header.PixelData)
    if there * 8 < bits:
        raise EchoPlanError(
            f"the DICOM file is truncated: {there} bytes of pixels, its header tells {-(-bits // 8)}",
            file=path,
            remedy="export it again",
        )


def _check_encapsulated(header: pydicom.Dataset, count: int, path: Path) -> None:
    """Refuse a frame whose own size is not the header's; decoders ask for the memory of either."""
    expected = (int(header.Rows), int(header.Columns), int(header.SamplesPerPixel))
    value = math.prod(expected) * int(header.BitsAllocated) // 8
    run_length = header.file_meta.TransferSyntaxUID == uid.RLELossless
    tables = [header.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    offsets = (tables[0], tables[1]) if tables[0] and tables[1] else None
    for frame in generate_frames(header.PixelData, number_of_frames=count, extended_offsets=offsets):
        if run_length and len(frame) * _RUN_AT_BEST >= value:
            continue
        size = None if run_length else _size_of_frame(frame)
        if size is None:
            raise damaged(path, "DICOM file")
        if size != expected:
            raise EchoPlanError(
                f"a frame is {size[0]} x {size[1]} x {size[2]}, the header tells "
                f"{expected[0]} x {expected[1]} x {expected[2]} (rows, columns, channels)",
                file=path,
                remedy="export it again",
            )


def _size_of_frame(frame: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, channels) by the frame's own header: JPEG, JPEG-LS or JPEG 2000; None where there is none."""
    if frame[:2] == b"\xff\xd8":
        header = next((body for marker, body in _segments(frame) if marker in _SIZES and len(body) > 5), None)
        if header is None:
            return None
        height, width, channels = struct.unpack_from(">HHB", header, 1)
        return height, width, channels
    place = frame.find(_J2K_SIZE, 0, _HEADER_BYTES)  # a file's boxes may stand before the codestream
    if place < 0 or len(frame) < place + 42:
        return None
    width, height, left, top = struct.unpack_from(">4I", frame, place + 8)
    return height - top, width - left, int.from_bytes(frame[place + 40 : place + 42], "big")


def _segments(frame: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, content) of a JPEG's segments, up to its pixels."""
    place = 2
    while place + 4 <= len(frame) and frame[place] == 0xFF and frame[place + 1] != 0xDA:
        if frame[place + 1] == 0xFF:  # a fill byte
            place += 1
            continue
        end = place + 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
        yield frame[place + 1], frame[place + 4 : end]
        place = end


def is_available(syntax: str) -> bool:
    """Whether `decode_lossless_jpeg` decodes this transfer syntax (pydicom asks)."""
    return syntax in _LOSSLESS_JPEG


def decode_lossless_jpeg(frame: bytes, runner: DecodeRunner) -> bytes:
    """A frame of lossless JPEG, decoded by FFmpeg, as pydicom wants it.

    Raises:
        ValueError: it is damaged, or has differences of 16 bits, which FFmpeg misreads.
    """
    segments = list(_segments(frame))
    bits, channels = next(((body[0], body[5]) for marker, body in segments if marker == 0xC3), (0, 0))
    steps = (code for marker, body in segments if marker == 0xC4 for code in _difference_codes(body))
    # FFmpeg converts the colours of these by an idea of its own.
    own_colours = channels > 1 and (bits == 9 or any(body.startswith(b"LJIF") for _, body in segments))
    if not bits or own_colours or _LONGEST_STEP in steps:
        raise ValueError("not for FFmpeg")
    context = av.VideoCodecContext.create("mjpeg", "r")
    context.options = {"err_detect": "explode"}
    decoded = [picture for packet in (av.Packet(frame), None) for picture in context.decode(packet)]
    if len(decoded) != 1 or not isinstance(decoded[0], av.VideoFrame) or decoded[0].is_corrupt:
        raise ValueError("not one whole picture")
    pixels = _channels(decoded[0], bits)
    runner.set_option("bits_allocated", pixels.itemsize * 8)
    runner.set_option("planar_configuration", 0)
    return pixels.tobytes()


def _difference_codes(tables: bytes) -> Iterator[int]:
    """What the Huffman tables of a segment code for, those of lossy JPEG's higher frequencies left out."""
    while len(tables) >= 17:
        end = 17 + sum(tables[1:17])
        if tables[0] < 16:
            yield from tables[17:end]
        tables = tables[end:]


def _channels(picture: av.VideoFrame, bits: int) -> np.ndarray:
    """(H, W) or (H, W, 3) as they lie in the file; no colour is converted."""
    name = picture.format.name
    kind, per_pixel = _FORMS[name]
    plane = picture.planes[0]
    lines = np.frombuffer(bytes(plane), np.uint8).reshape(-1, plane.line_size)[: picture.height]
    values = lines[:, : picture.width * per_pixel * np.dtype(kind).itemsize].copy().view(kind)
    if name == "gray16le":
        return values >> (16 - bits)  # FFmpeg fills 16 bits
    values = values.reshape(picture.height, picture.width, per_pixel)
    return values[..., ::-1] if name.startswith("bgr") else values[..., 0]


for _syntax in _LOSSLESS_JPEG:  # pydicom wants decoders of others registered by where they are
    if "ffmpeg" not in get_decoder(_syntax).available_plugins:
        get_decoder(_syntax).add_plugin("ffmpeg", (__name__, "decode_lossless_jpeg"))
