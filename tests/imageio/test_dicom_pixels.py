"""Compressed and hostile DICOM: what decodes it, what is refused before anything is decoded."""

from __future__ import annotations

import re
import time
import tracemalloc
import zlib

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from echoplan.errors import EchoPlanError
from echoplan.imageio import dicom_pixels, probe_clip, read_clip


@pytest.fixture
def save(tmp_path):
    """A function that writes a DICOM file of frames, or of bytes that claim to be such, and returns its path."""

    def write(frames, *, content=None, syntax=uid.ExplicitVRLittleEndian, photometric="MONOCHROME2", **elements):
        header = Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = syntax
        header.file_meta.MediaStorageSOPClassUID = uid.UltrasoundMultiFrameImageStorage
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = "1.2.3"
        header.SOPClassUID = uid.UltrasoundMultiFrameImageStorage
        header.NumberOfFrames, header.Rows, header.Columns = frames.shape[:3]
        header.SamplesPerPixel = frames.shape[3] if frames.ndim == 4 else 1
        header.PhotometricInterpretation, header.PixelRepresentation = photometric, 0
        if frames.ndim == 4:
            header.PlanarConfiguration = 0
        header.BitsAllocated = header.BitsStored = frames.dtype.itemsize * 8
        header.HighBit = header.BitsStored - 1
        if syntax.is_encapsulated:
            header.PixelData = encapsulate(content)
            header["PixelData"].VR = "OB"
        else:
            header.PixelData = frames.tobytes() if content is None else content
        for key, value in elements.items():
            setattr(header, key, value)
        header.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        return tmp_path / "a.dcm"

    return write


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 24, 32), dtype=np.uint8)


@pytest.fixture
def without_extra(monkeypatch):
    """As where pip installed nothing that is GPL."""
    monkeypatch.setattr(dicom_pixels, "_ORDER", tuple(name for name in dicom_pixels._ORDER if name != "pylibjpeg"))


def lossless_jpeg(picture, *, bits, predictor=1):
    """The picture (H, W) or (H, W, channels) as lossless JPEG (ITU-T T.81, process 14); no library here writes it."""
    values = (picture[..., None] if picture.ndim == 2 else picture).astype(np.int64)
    rows, columns, channels = values.shape
    left, above, corner = (np.zeros_like(values) for _ in range(3))
    left[:, 1:], above[1:], corner[1:, 1:] = values[:, :-1], values[:-1], values[:-1, :-1]
    predicted = {
        1: left, 2: above, 3: corner, 4: left + above - corner, 5: left + ((above - corner) >> 1),
        6: above + ((left - corner) >> 1), 7: (left + above) >> 1,
    }[predictor].copy()  # fmt: skip
    predicted[0], predicted[1:, 0], predicted[0, 0] = left[0], above[1:, 0], 1 << (bits - 1)
    words = []
    for step in (values - predicted).ravel().tolist():
        length = abs(step).bit_length()
        words.append(f"{length:05b}")  # all 16 lengths have codes of five bits
        if length:
            words.append(f"{step if step > 0 else step + (1 << length) - 1:0{length}b}")
    text = "".join(words)
    text += "1" * (-len(text) % 8)
    coded = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    numbers = range(1, channels + 1)
    sizes = bytes([bits, *rows.to_bytes(2, "big"), *columns.to_bytes(2, "big"), channels])
    segments = {
        0xC3: sizes + b"".join(bytes([number, 0x11, 0]) for number in numbers),
        0xC4: bytes([0, 0, 0, 0, 0, 16, *[0] * 11, *range(16)]),
        0xDA: bytes([channels]) + b"".join(bytes([number, 0]) for number in numbers) + bytes([predictor, 0, 0]),
    }
    headers = (bytes([0xFF, mark]) + (len(body) + 2).to_bytes(2, "big") + body for mark, body in segments.items())
    return b"\xff\xd8" + b"".join(headers) + coded + b"\xff\xd9"


def luma(colour):
    return colour.astype(float) @ [0.299, 0.587, 0.114]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_native_ybr_full_422(save, count):
    halved = np.random.default_rng(0).integers(0, 256, (count, 24 * 32 * 2), dtype=np.uint8)
    path = save(np.zeros((count, 24, 32, 3), np.uint8), content=halved.tobytes(), photometric="YBR_FULL_422")
    expected = pydicom.pixels.pixel_array(path)
    expected = expected if expected.ndim == 4 else expected[None]
    clip = read_clip(path)
    assert clip.frames.shape == (count, 24, 32) and np.abs(clip.frames - luma(expected)).max() <= 0.51


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize(("bits", "channels"), [(8, 1), (8, 3), (12, 1), (14, 1)])
@pytest.mark.parametrize("syntax", [uid.JPEGLossless, uid.JPEGLosslessSV1])
def test_lossless_jpeg_without_libjpeg(save, without_extra, bits, channels, predictor, syntax):
    kind = np.uint8 if bits == 8 else np.uint16
    frames = np.random.default_rng(predictor).integers(0, 1 << bits, (3, 11, 14, channels)).astype(kind)
    frames = frames[..., 0] if channels == 1 else frames
    coded = [lossless_jpeg(frame, bits=bits, predictor=predictor) for frame in frames]
    photometric = "RGB" if channels == 3 else "MONOCHROME2"
    path = save(frames, content=coded, syntax=syntax, photometric=photometric, BitsStored=bits, HighBit=bits - 1)
    clip = read_clip(path)
    if channels == 1:
        assert np.array_equal(clip.frames, frames)
    else:
        assert np.abs(clip.frames - luma(frames)).max() <= 0.51


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_gdcm.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm", "bad_sequence.dcm"])
def test_real_lossless_jpeg(real_dicom, without_extra, monkeypatch, name):
    monkeypatch.setattr("echoplan.imageio.dicom._CLIP_CLASSES", re.compile(""))  # the last is CT
    pytest.importorskip("libjpeg", reason="nothing else to compare with")
    path = real_dicom(name)
    expected = pydicom.pixels.pixel_array(path, decoding_plugin="pylibjpeg")
    expected = luma(expected) if expected.ndim == 3 else expected
    clip = read_clip(path)
    r0, r1, c0, c1 = clip.crop.box if clip.crop else (0, *clip.frames.shape[1:2], 0, clip.frames.shape[2])
    assert np.abs(clip.frames[0] - expected[r0:r1, c0:c1].astype(float)).max() <= 0.51


@pytest.mark.parametrize("name", ["JPEG-LL.dcm", "JPGExtended.dcm"])
def test_what_needs_the_extra_says_so(real_dicom, without_extra, name):
    with pytest.raises(EchoPlanError, match="cannot be decoded") as error:
        read_clip(real_dicom(name))
    assert "pip install '.[gpl]'" in error.value.remedy


def test_mpeg_in_dicom(save, pixels):
    path = save(pixels, content=[b"\0\0\0\1\x67" * 20], syntax=uid.MPEG4HP41)
    for use in (read_clip, probe_clip):
        with pytest.raises(EchoPlanError, match="MPEG video inside DICOM") as error:
            use(path)
        assert ".mp4" in error.value.remedy and "2000" in error.value.remedy


def peak_memory(function, *arguments):
    """MB that Python asked for at most, and that NumPy did."""
    tracemalloc.start()
    try:
        with pytest.raises(EchoPlanError) as error:
            function(*arguments)
        return tracemalloc.get_traced_memory()[1] / 1e6, error.value
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "syntax", [uid.ExplicitVRLittleEndian, uid.JPEGBaseline8Bit, uid.RLELossless, uid.JPEG2000, uid.JPEGLSLossless]
)
def test_a_made_up_size_costs_no_memory(save, pixels, syntax):
    for rows, columns in ((65535, 65535), (5000, 5000)):
        path = (
            save(pixels, content=[b"\xff\xd8\xff\xd9" * 9] * 5, syntax=syntax)
            if syntax.is_encapsulated
            else save(pixels)
        )
        header = pydicom.dcmread(path)
        header.Rows, header.Columns = rows, columns
        header.save_as(path)
        megabytes, error = peak_memory(read_clip, path)
        assert megabytes < 50 and error.file == str(path)


def test_a_frame_that_has_another_size_than_the_header_tells(save, pixels):
    big = lossless_jpeg(np.zeros((2000, 30), np.uint8), bits=8)
    path = save(pixels, content=[big] * 5, syntax=uid.JPEGLosslessSV1)
    with pytest.raises(EchoPlanError, match=r"2000 x 30 x 1, the header tells 24 x 32 x 1"):
        read_clip(path)


def deflated(path, behind=b""):
    """The file with all behind its meta information deflated, and with `behind` at its end."""
    content = path.read_bytes()
    end = 144 + int.from_bytes(content[140:144], "little")
    meta, place = content[:end], content.index(b"1.2.840.10008.1.2.1\0")
    group = int.from_bytes(content[140:144], "little") + 2
    meta = meta[:140] + group.to_bytes(4, "little") + meta[144 : place - 2] + (22).to_bytes(2, "little")
    meta += b"1.2.840.10008.1.2.1.99" + content[place + 20 : end]
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    path.write_bytes(meta + engine.compress(content[end:] + behind) + engine.flush())


def test_a_deflated_file_is_read(save, pixels):
    path = save(pixels)
    deflated(path)
    assert pydicom.dcmread(path).Rows == 24  # as pydicom takes it, too
    assert np.array_equal(read_clip(path).frames, pixels) and probe_clip(path).shape == pixels.shape


def test_a_deflated_file_is_not_inflated_to_look_at_its_header(save, pixels):
    path = save(pixels)
    deflated(path, b"\x01\x7f\x10\0OB\0\0" + (2**28).to_bytes(4, "little") + bytes(2**28))
    tracemalloc.start()
    assert probe_clip(path).shape == pixels.shape
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("count", [1000, 20_000, 200_000])
def test_regions_without_end(save, pixels, undefined, count):
    item = Dataset()
    item.RegionLocationMinX0, item.RegionLocationMinY0 = item.RegionLocationMaxX1, item.RegionLocationMaxY1 = 0, 31
    path = save(pixels, SequenceOfUltrasoundRegions=Sequence([item]))
    content = path.read_bytes()
    tag = content.index(b"\x18\x00\x11\x60SQ\0\0")
    length = int.from_bytes(content[tag + 8 : tag + 12], "little")
    items, rest = content[tag + 12 : tag + 12 + length] * count, content[tag + 12 + length :]
    told, end = (b"\xff" * 4, b"\xfe\xff\xdd\xe0\0\0\0\0") if undefined else (len(items).to_bytes(4, "little"), b"")
    path.write_bytes(content[: tag + 8] + told + items + end + rest)
    start = time.process_time()
    for use in (read_clip, probe_clip):
        with pytest.raises(EchoPlanError, match=r"500 ultrasound regions|cannot be understood"):
            use(path)
    assert time.process_time() - start < 20


def test_a_broken_value_representation_without_a_preamble(save, pixels, tmp_path):
    content = save(pixels).read_bytes()
    bare = bytearray(content[144 + int.from_bytes(content[140:144], "little") :])
    for place in range(4, 120):
        broken = bytearray(bare)
        broken[place : place + 2] = b"\xff\x01"
        (tmp_path / "bare").write_bytes(broken)
        for use in (read_clip, probe_clip):
            try:
                use(tmp_path / "bare")
            except EchoPlanError as error:
                assert error.file == str(tmp_path / "bare")


def test_values_of_a_wrong_length_are_not_quoted(save, pixels, caplog):
    """pydicom's BytesLengthException repeats the bytes; here they are a name in the wrong place."""
    path = save(pixels)
    content = path.read_bytes()
    place = content.index(b"\x28\x00\x10\x00US\x02\x00")
    path.write_bytes(content[:place] + b"\x28\x00\x10\x00US\x08\x00Doe^Jane" + content[place + 10 :])
    for use in (read_clip, probe_clip):
        with pytest.raises(EchoPlanError) as error:
            use(path)
        chain, said = error.value, caplog.text
        while chain is not None:
            said += str(chain)
            chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
        assert "Doe" not in said
