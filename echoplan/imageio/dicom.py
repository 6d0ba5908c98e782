"""DICOM ultrasound clips, single- and multi-frame.

Only pixels, spacing, times and a one-way code of the study leave this module. Nothing else of the header is even
parsed, so that no name or date of a patient can reach a log, an error message or a converted file.

Spacing comes from the Sequence of Ultrasound Regions (PS3.3 C.8.5.5): the region of tissue in 2D with both deltas in
cm, the largest where there are several. The clip is cropped to it, which also cuts away most of what is burnt in.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataelem import RawDataElement

from echoplan.errors import EchoPlanError
from echoplan.imageio import dicom_pixels
from echoplan.imageio.arrays import stack_frames, to_clip_dtype, usable_spacing, usable_time
from echoplan.imageio.bounds import MAX_CLIP_BYTES, check_size, open_regular
from echoplan.imageio.clip import Clip, ClipInfo, Crop
from echoplan.imageio.dicom_stream import MeteredHeader, unpacked

logger = logging.getLogger(__name__)

_CENTIMETRES = 3  # PhysicalUnitsXDirection
_FORMAT_2D, _TISSUE = 1, 1  # RegionSpatialFormat, RegionDataType
# By their names in PS3.6; exports of echocardiograms are secondary captures and videos, too.
_CLIP_CLASSES = re.compile("Ultrasound|US Volume|Secondary Capture|Video|VL |Visible Light")
_SMALLEST_SIDE = 8  # a box of fewer pixels was never filled in
_EXAM_DIGITS = 8
_MOST_REGIONS, _REGION_BYTES = 500, 1000  # a region takes about 300 bytes
_OVERHANG = 2  # pixels; some makers write the box's far corner as one past the last pixel
_TAGS = [
    "SOPClassUID", "StudyInstanceUID", "SequenceOfUltrasoundRegions", "PixelSpacing",
    "FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate", "FrameIncrementPointer",
    "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData",
]  # fmt: skip


@dataclass(frozen=True)
class _Region:
    box: tuple[int, int, int, int]  # first row, end row, first column, end column
    spacing_mm: tuple[float, float]
    tissue: bool

    @property
    def area(self) -> int:
        first_row, end_row, first_column, end_column = self.box
        return (end_row - first_row) * (end_column - first_column)


def matches(path: Path, head: bytes) -> bool:
    """Whether the file is DICOM: by its 'DICM' mark, or, without a preamble, by a class that pydicom finds in it."""
    if head[128:132] == b"DICM":
        return True
    if head[:2] not in (b"\x08\x00", b"\x00\x08", b"\x02\x00"):  # the first group of a file without a preamble
        return False
    try:
        with _saying_nothing_of(path):
            return bool(parse(path, ["SOPClassUID"]).get("SOPClassUID"))
    except EchoPlanError:
        return False


def read(path: Path) -> Clip:
    """Read a clip, cropped to its ultrasound region, in grey.

    A region box larger than the image means that the image was resized or cut after its header was written: it is not
    cropped, and the region's spacing is not used either; a warning says so.

    Raises:
        EchoPlanError: there are no pixels, they cannot be decoded, or the file is truncated.
    """
    header = parse(path, _TAGS)
    with _saying_nothing_of(path):
        _check_class(header, path)
        if not header.get("PixelData"):
            raise EchoPlanError(
                "the DICOM file holds no pixels, or is cut short",
                file=path,
                remedy="copy it again; export the clip itself, not a report",
            )
        info = _interpret(header, path)
        rows, columns = info.crop.file_shape if info.crop else info.shape[1:]
        first_row, end_row, first_column, end_column = info.crop.box if info.crop else (0, rows, 0, columns)
        region = (slice(first_row, end_row), slice(first_column, end_column))
        frames = stack_frames(dicom_pixels.frames(header, info.shape[0], region, path), info.shape[0], path)
        if len(frames) < info.shape[0]:
            raise EchoPlanError(
                f"the DICOM file is truncated: {len(frames)} of {info.shape[0]} frames",
                file=path,
                remedy="export it again",
            )
        frames = to_clip_dtype(frames, path)
        return Clip(frames, info.spacing_mm, info.frame_time_ms, str(path), info.crop, exam=info.exam)


def probe(path: Path) -> ClipInfo:
    """Shape (after the crop to the region), spacing and frame time from the header alone.

    Raises:
        EchoPlanError: it is no image, or one that nothing decodes.
    """
    header = parse(path, [tag for tag in _TAGS if tag != "PixelData"])
    info = _interpret(header, path)
    with _saying_nothing_of(path):
        dicom_pixels.check_syntax(header, path)
    return info


def parse(path: Path, tags: list[str]) -> pydicom.Dataset:
    """The named elements, and nothing else."""
    whole = "PixelData" in tags
    with _saying_nothing_of(path), open_regular(path) as file:
        stream = MeteredHeader(unpacked(file, MAX_CLIP_BYTES if whole else 0))
        header = pydicom.dcmread(stream, force=True, specific_tags=tags, stop_before_pixels=not whole)
        if "TransferSyntaxUID" not in header.file_meta:  # a file without a preamble
            implicit, little = header.original_encoding
            explicit = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
            header.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if implicit else explicit
        return header


@contextmanager
def _saying_nothing_of(path: Path) -> Iterator[None]:
    """What a library says of a header would quote it: names and dates stand in the wrong places, too."""
    try:
        with quiet():
            yield
    except (EchoPlanError, MemoryError):
        raise
    except Exception:  # pydicom raises what the damage happens to provoke
        raise EchoPlanError("the DICOM file cannot be understood", file=path, remedy="export it again") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the messages of DICOM libraries: they can quote a header's values; what matters becomes an error."""
    libraries = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [library.level for library in libraries]
    for library in libraries:
        library.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.setLevel(level)


def _check_class(header: pydicom.Dataset, path: Path) -> None:
    """Refuse what is known to be no ultrasound clip: CT, MR, XA, segmentations, reports. Unknown classes pass."""
    uid = pydicom.uid.UID(str(header.get("SOPClassUID") or ""))
    if uid.name != uid and not _CLIP_CLASSES.search(uid.name):
        raise EchoPlanError(f"this DICOM file is no ultrasound clip but {uid.name}", file=path, remedy="leave it out")


def _interpret(header: pydicom.Dataset, path: Path) -> ClipInfo:
    """What the header says of the clip, cropped to its region."""
    try:
        with quiet():
            _check_class(header, path)
            rows, columns, frames = int(header.Rows), int(header.Columns), int(header.get("NumberOfFrames") or 1)
            spacing, region = _pixel_spacing(header), _main_region(header, path)
            time = _frame_time_ms(header) if frames > 1 else None
            exam = _exam(header)
            value = int(header.get("SamplesPerPixel") or 1) * int(header.get("BitsAllocated") or 8) / 8
    except EchoPlanError:
        raise
    except Exception:  # what it says would quote the header
        raise EchoPlanError(
            "the DICOM file holds no image, or numbers in its header are none",
            file=path,
            remedy="export the clip itself, not a report",
        ) from None
    check_size(path, (frames, rows, columns), value)
    box = (0, rows, 0, columns)
    if region is not None and _reaches_beyond(region, rows, columns):
        logger.warning(
            "%s: the ultrasound region reaches beyond the image of %d x %d, so the image was resized or cut after its "
            "header was written; it is not cropped and its spacing is unknown (give it in cases.csv)",
            path, rows, columns
        )  # fmt: skip
        spacing = None
    elif region is not None:
        first_row, end_row, first_column, end_column = region.box
        box = (first_row, min(end_row, rows), first_column, min(end_column, columns))
        spacing = region.spacing_mm
        if not usable_spacing(region.spacing_mm):
            logger.warning("%s: the ultrasound region's spacing %s is no length: unknown", path, region.spacing_mm)
            spacing = None
    crop = None if box == (0, rows, 0, columns) else Crop((rows, columns), box)
    return ClipInfo((frames, box[1] - box[0], box[3] - box[2]), spacing, time, crop, exam=exam)


def _exam(header: pydicom.Dataset) -> str:
    """A code that tells two studies of a patient apart, of which nobody learns the study; empty where none is named."""
    study = str(header.get("StudyInstanceUID") or "").strip()
    return hashlib.sha256(study.encode()).hexdigest()[:_EXAM_DIGITS] if study else ""


def _main_region(header: pydicom.Dataset, path: Path) -> _Region | None:
    """The 2D region in cm that shows tissue and is the largest; None where there is none with a box."""
    raw = header.get_item("SequenceOfUltrasoundRegions")
    unparsed = len(raw.value or b"") if isinstance(raw, RawDataElement) else 0
    items = [] if unparsed > _MOST_REGIONS * _REGION_BYTES else header.get("SequenceOfUltrasoundRegions") or []
    if len(items) > _MOST_REGIONS or unparsed > _MOST_REGIONS * _REGION_BYTES:
        raise EchoPlanError(
            f"the header names more than {_MOST_REGIONS} ultrasound regions", file=path, remedy="export it again"
        )
    regions = [_region(item) for item in items]
    usable = [region for region in regions if region is not None]
    return max(usable, key=lambda region: (region.tissue, region.area), default=None)


def _region(item: pydicom.Dataset) -> _Region | None:
    units = (item.get("PhysicalUnitsXDirection"), item.get("PhysicalUnitsYDirection"))
    if units != (_CENTIMETRES, _CENTIMETRES) or item.get("RegionSpatialFormat", _FORMAT_2D) != _FORMAT_2D:
        return None
    corners = ("RegionLocationMinY0", "RegionLocationMaxY1", "RegionLocationMinX0", "RegionLocationMaxX1")
    if any(item.get(name) is None for name in corners):
        return None
    first_row, last_row, first_column, last_column = (int(item.get(name)) for name in corners)
    row, column = (abs(float(item.get(name) or 0.0)) * 10 for name in ("PhysicalDeltaY", "PhysicalDeltaX"))
    if min(last_row - first_row, last_column - first_column) < _SMALLEST_SIDE - 1:
        return None
    return _Region(
        box=(first_row, last_row + 1, first_column, last_column + 1),
        spacing_mm=(row, column),
        tissue=item.get("RegionDataType") == _TISSUE,
    )


def _reaches_beyond(region: _Region, rows: int, columns: int) -> bool:
    return region.box[1] > rows + _OVERHANG or region.box[3] > columns + _OVERHANG


def _pixel_spacing(header: pydicom.Dataset) -> tuple[float, float] | None:
    """(row, column) in mm of Pixel Spacing, which files without ultrasound regions may have."""
    values = header.get("PixelSpacing")
    if values is None or isinstance(values, (str, float)) or len(values) != 2:
        return None
    spacing = (float(values[0]), float(values[1]))
    return spacing if usable_spacing(spacing) else None


def _frame_time_ms(header: pydicom.Dataset) -> float | None:
    """Mean time between frames: Frame Time, Frame Time Vector, Cine Rate, or Recommended Display Frame Rate."""
    vector = header.get("FrameTimeVector")
    if isinstance(vector, (str, float)) or vector is None or len(vector) < 2:
        increments = None
    else:  # the first increment is 0 by definition
        increments = math.fsum(float(value) for value in vector[1:]) / (len(vector) - 1)
    times = [header.get("FrameTime"), increments]
    if header.get("FrameIncrementPointer") == pydicom.tag.Tag("FrameTimeVector"):
        times.reverse()
    rates = [header.get("CineRate"), header.get("RecommendedDisplayFrameRate")]
    times += [1000 / float(rate) for rate in rates if rate]
    return next((time for time in map(usable_time, times) if time is not None), None)
