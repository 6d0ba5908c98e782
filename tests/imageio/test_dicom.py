"""DICOM: real ultrasound files, and small ones made here for what real ones do not show."""

from __future__ import annotations

import logging

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage

from echoplan.errors import EchoPlanError
from echoplan.imageio import dicom, probe_clip, read_clip

SECRET = "Doe^Jane"


def region(box=(4, 3, 27, 22), *, delta=(0.03, 0.02), data_type=1, spatial_format=1, units=(3, 3)):
    """One ultrasound region; box is x0, y0, x1, y1 (ends included), delta x, y in cm."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType = spatial_format, data_type
    item.RegionLocationMinX0, item.RegionLocationMinY0, item.RegionLocationMaxX1, item.RegionLocationMaxY1 = box
    item.PhysicalUnitsXDirection, item.PhysicalUnitsYDirection = units
    item.PhysicalDeltaX, item.PhysicalDeltaY = delta
    return item


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 24, 32), dtype=np.uint8)


@pytest.fixture
def save(tmp_path, pixels):
    """A function that writes a multi-frame DICOM file with the given elements and returns its path."""

    def write(frames=pixels, *, regions=None, photometric="MONOCHROME2", name="a.dcm", **elements):
        header = Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.file_meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
        header.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        header.SOPClassUID, header.SOPInstanceUID = UltrasoundMultiFrameImageStorage, "1.2.3"
        header.PatientName, header.PatientID, header.PatientBirthDate = SECRET, SECRET, "19600101"
        header.Rows, header.Columns, header.NumberOfFrames = frames.shape[1], frames.shape[2], len(frames)
        header.SamplesPerPixel = frames.shape[3] if frames.ndim == 4 else 1
        header.PhotometricInterpretation = photometric
        if frames.ndim == 4:
            header.PlanarConfiguration = 0
        bits = frames.dtype.itemsize * 8
        header.BitsAllocated, header.BitsStored, header.HighBit = bits, bits, bits - 1
        header.PixelRepresentation = 0
        header.PixelData = frames.tobytes()
        if regions is not None:
            header.SequenceOfUltrasoundRegions = Sequence(regions)
        for key, value in elements.items():
            setattr(header, key, value)
        header.save_as(tmp_path / name, enforce_file_format=True)
        return tmp_path / name

    return write


def test_a_real_clip(real_dicom):
    path = real_dicom("color3d_jpeg_baseline.dcm")
    clip = read_clip(path)
    header = pydicom.dcmread(path, stop_before_pixels=True)
    box = header.SequenceOfUltrasoundRegions[0]
    rows = box.RegionLocationMaxY1 - box.RegionLocationMinY0 + 1
    columns = box.RegionLocationMaxX1 - box.RegionLocationMinX0 + 1
    assert clip.frames.shape == (120, rows, columns) and clip.frames.dtype == np.uint8
    assert clip.spacing_mm == pytest.approx((0.5105, 0.5105), abs=1e-4)
    assert clip.frame_time_ms == pytest.approx(33.333)
    info = probe_clip(path)
    assert (info.shape, info.spacing_mm, info.frame_time_ms) == (clip.frames.shape, clip.spacing_mm, clip.frame_time_ms)
    # A sector: bright in the middle, black at the lower corners; and it beats.
    assert clip.frames[:, 50:150, 230:270].mean() > 10 * clip.frames[:, -40:, :40].mean()
    assert np.abs(np.diff(clip.frames[:30].astype(float), axis=0)).max() > 20


def test_a_region_larger_than_the_image_is_not_trusted(real_dicom, caplog):
    clip = read_clip(real_dicom("examples_ybr_color.dcm"))
    assert clip.frames.shape == (30, 240, 320)
    assert clip.spacing_mm is None  # the header speaks of 480 x 640 pixels: its spacing is half the true one
    assert clip.frame_time_ms == pytest.approx(33.333)
    assert "reaches beyond the image" in caplog.text and "examples_ybr_color.dcm" in caplog.text


@pytest.mark.parametrize(
    ("name", "plugin"),
    [("examples_ybr_color.dcm", "pillow"), ("SC_ybr_full_422_uncompressed.dcm", ""), ("SC_rgb_rle_2frame.dcm", ""),
     ("SC_rgb_jpeg_dcmtk.dcm", "pillow"), ("examples_jpeg2k.dcm", "pillow"),
     ("SC_rgb_jls_lossy_sample.dcm", "pyjpegls"),
     ("SC_rgb_jls_lossy_line.dcm", "pyjpegls")],
)  # fmt: skip
def test_grey_is_the_luma_of_what_pydicom_shows(real_dicom, name, plugin):
    """By the decoder that is used whatever else is installed."""
    path = real_dicom(name)
    colour = pydicom.pixels.pixel_array(path, decoding_plugin=plugin).astype(float)
    colour = colour if colour.ndim == 4 else colour[None]
    expected = 0.299 * colour[..., 0] + 0.587 * colour[..., 1] + 0.114 * colour[..., 2]
    assert np.abs(read_clip(path).frames - expected).max() <= 0.51


def test_a_palette(real_dicom):
    path = real_dicom("examples_palette.dcm")
    header = pydicom.dcmread(path)
    colour = pydicom.pixels.apply_color_lut(header.pixel_array, header)
    assert colour.dtype == np.uint16 and (colour % 256 == 0).all()
    expected = (colour // 256) @ [0.299, 0.587, 0.114]
    assert np.abs(read_clip(path).frames[0] - expected).max() <= 0.51


def test_crop_spacing_and_time(save, pixels):
    clip = read_clip(save(regions=[region()], FrameTime="21.5"))
    assert np.array_equal(clip.frames, pixels[:, 3:23, 4:28])
    assert clip.spacing_mm == pytest.approx((0.2, 0.3)) and clip.frame_time_ms == 21.5


def test_which_region(save, pixels):
    regions = [
        region((0, 0, 31, 23), spatial_format=2, units=(4, 3)),  # M-mode: x in seconds
        region((0, 0, 31, 23), data_type=2),  # colour flow, the largest
        region((0, 0, 9, 9), delta=(0.5, 0.5)),
        region((2, 2, 29, 21)),  # tissue, the larger of two
    ]
    clip = read_clip(save(regions=regions))
    assert np.array_equal(clip.frames, pixels[:, 2:22, 2:30]) and clip.spacing_mm == pytest.approx((0.2, 0.3))
    only_time = read_clip(save(regions=regions[:1], name="m.dcm"))
    assert only_time.frames.shape == pixels.shape and only_time.spacing_mm is None


def test_a_box_of_one_pixel_too_many_is_clamped(save, pixels, caplog):
    clip = read_clip(save(regions=[region((0, 0, 32, 24))]))
    assert np.array_equal(clip.frames, pixels) and clip.spacing_mm == pytest.approx((0.2, 0.3)) and not caplog.text


def test_an_empty_box_is_no_region(save, pixels):
    clip = read_clip(save(regions=[region((0, 0, 0, 0))]))
    assert np.array_equal(clip.frames, pixels) and clip.spacing_mm is None


@pytest.mark.parametrize("delta", [(0.0, 0.02), (float("nan"), 0.02)])
def test_nonsense_deltas(save, caplog, delta):
    clip = read_clip(save(regions=[region(delta=delta)]))
    assert clip.spacing_mm is None and "no length" in caplog.text
    assert clip.frames.shape == (5, 20, 24)  # the box is still good


def test_deltas_of_either_sign(save):
    assert read_clip(save(regions=[region(delta=(0.03, -0.02))])).spacing_mm == pytest.approx((0.2, 0.3))


def test_pixel_spacing_where_there_are_no_regions(save):
    assert read_clip(save(PixelSpacing=[0.2, 0.3])).spacing_mm == (0.2, 0.3)


@pytest.mark.parametrize(
    ("elements", "time"),
    [
        ({"FrameTime": "20", "CineRate": "30"}, 20),
        ({"FrameTimeVector": [0, 10, 20, 30, 40]}, 25),
        ({"FrameTime": "20", "FrameTimeVector": [0, 10, 20, 30, 40], "FrameIncrementPointer": 0x00181065}, 25),
        ({"CineRate": "50", "RecommendedDisplayFrameRate": "25"}, 20),
        ({"RecommendedDisplayFrameRate": "25"}, 40),
        ({"FrameTime": "0", "CineRate": "0", "RecommendedDisplayFrameRate": "25"}, 40),
        ({}, None),
    ],
)
def test_frame_time(save, elements, time):
    assert read_clip(save(**elements)).frame_time_ms == time


def test_photometric_interpretations(save, pixels):
    assert np.array_equal(read_clip(save(photometric="MONOCHROME1")).frames, 255 - pixels)
    equal = np.stack([pixels] * 3, -1)
    assert np.array_equal(read_clip(save(equal, photometric="RGB")).frames, pixels)
    neutral = np.stack([pixels, np.full_like(pixels, 128), np.full_like(pixels, 128)], -1)
    assert np.array_equal(read_clip(save(neutral, photometric="YBR_FULL")).frames, pixels)
    deep = pixels.astype(np.uint16) * 256
    assert np.array_equal(read_clip(save(deep)).frames, deep)


def test_one_frame_has_no_frame_time(save, pixels):
    clip = read_clip(save(pixels[:1], FrameTime="20"))
    assert clip.frames.shape == (1, 24, 32) and clip.frame_time_ms is None


def test_without_a_preamble(save, pixels, tmp_path):
    content = save(regions=[region()]).read_bytes()
    meta_length = int.from_bytes(content[140:144], "little")
    (tmp_path / "bare").write_bytes(content[144 + meta_length :])
    assert np.array_equal(read_clip(tmp_path / "bare").frames, pixels[:, 3:23, 4:28])


def test_broken_files(save, tmp_path):
    path = save()
    content = path.read_bytes()
    (tmp_path / "short.dcm").write_bytes(content[:-1000])
    with pytest.raises(EchoPlanError, match=r"short\.dcm"):
        read_clip(tmp_path / "short.dcm")
    header = pydicom.dcmread(path)
    del header.PixelData
    header.save_as(tmp_path / "empty.dcm")
    with pytest.raises(EchoPlanError, match="no pixels"):
        read_clip(tmp_path / "empty.dcm")
    del header.Rows
    header.save_as(tmp_path / "report.dcm")
    with pytest.raises(EchoPlanError, match="no image"):
        probe_clip(tmp_path / "report.dcm")


def test_nothing_of_the_patient_leaves_the_reader(save, caplog, tmp_path, recwarn):
    """Not through the clip, the log, the warnings, nor an error."""
    path = save(regions=[region((0, 0, 99, 99))], PatientAge="Doe")  # no valid age: pydicom quotes it
    caplog.clear()
    recwarn.clear()
    caplog.set_level(logging.DEBUG)
    clip = read_clip(path)
    (tmp_path / "short.dcm").write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(EchoPlanError) as error:
        read_clip(tmp_path / "short.dcm")
    said = caplog.text + str(error.value) + repr(clip) + "".join(str(item.message) for item in recwarn)
    assert "Doe" not in said and "1960" not in said
    assert "reaches beyond" in said  # what was said is what was looked at


def test_only_what_is_needed_is_parsed(save):
    path = save()
    assert "PatientName" in pydicom.dcmread(path)
    seen = {element.keyword for element in dicom.parse(path, dicom._TAGS)}
    assert {"PixelData", "Rows"} <= seen <= set(dicom._TAGS)


def test_a_value_that_is_no_number_is_not_quoted(save, caplog, recwarn):
    """Headers have names in the wrong places too; pydicom would repeat what it cannot understand."""
    path = save(FrameTime="123.4567")
    path.write_bytes(path.read_bytes().replace(b"123.4567", b"Doe Jane"))
    caplog.clear()
    recwarn.clear()
    caplog.set_level(logging.DEBUG)
    with pytest.raises(EchoPlanError, match="numbers in its header") as error:
        read_clip(path)
    assert "Doe" not in caplog.text + str(error.value) + "".join(str(item.message) for item in recwarn)


def test_pydicom_itself_is_silent(save, caplog, recwarn):
    path = save(CineRate="998877")
    path.write_bytes(path.read_bytes().replace(b"998877", b"Doe 19"))  # pydicom logs and warns with the value
    caplog.clear()
    recwarn.clear()
    with pytest.raises(EchoPlanError, match="numbers in its header"):
        read_clip(path)
    assert "Doe" not in caplog.text + "".join(str(item.message) for item in recwarn)


@pytest.mark.parametrize(
    ("number", "name"),
    [("2", "CT"), ("4", "MR"), ("12.1", "X-Ray Angiographic"), ("66.4", "Segmentation"), ("88.33", "Comprehensive SR"),
     ("128", "Positron")],
)  # fmt: skip
def test_what_is_no_ultrasound_by_its_class_is_refused(save, number, name):
    path = save(SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{number}")
    for use in (read_clip, probe_clip):
        with pytest.raises(EchoPlanError, match=f"no ultrasound clip but {name}"):
            use(path)


@pytest.mark.parametrize("uid", ["1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.6", "1.3.46.670589.2.3.1.1", ""])
def test_captures_and_unknown_classes_are_read(save, pixels, uid):
    assert np.array_equal(read_clip(save(SOPClassUID=uid)).frames, pixels)
