"""Good files of every format that is read, small, to be damaged; made by others' writers where there are some."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import jpeg_ls
import numpy as np
import SimpleITK as sitk
from PIL import Image
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from echoplan.imageio import Clip, write_clip

SECRET = "Doe^Jane"  # stands in headers, and must stand in no message
_ROWS, _COLUMNS = 24, 32


@dataclass(frozen=True)
class Seed:
    """One good clip.

    Attributes:
        name: its name, unlike all others.
        files: name -> content.
        kind: what its files are, for damage behind their checksums: text, gzip, png, deflated or nothing of these.
        guarded: (start, end) of its only file: whatever changes there alone is noticed by a checksum.
        target: what is read: a file, or a folder of them.
    """

    name: str
    files: dict[str, bytes]
    kind: str = ""
    guarded: tuple[int, int] | None = None
    target: str = ""

    @property
    def path(self) -> str:
        """What is read."""
        return self.target or next(iter(self.files))


def make_seeds(folder: Path) -> list[Seed]:
    """All seeds; what is written on the way lies in `folder`."""
    return [*_volumes(folder), *_dicom(), *_videos(folder), *_pictures(folder)]


def _frames(count: int = 3) -> np.ndarray:
    """(T, H, W) uint8: a bright disc that moves, and some noise."""
    rows, columns = np.mgrid[:_ROWS, :_COLUMNS]
    discs = [150 * np.exp(-((rows - 10) ** 2 + (columns - 10 - 2 * t) ** 2) / 40) for t in range(count)]
    return (np.stack(discs) + np.random.default_rng(0).integers(0, 40, (count, _ROWS, _COLUMNS))).astype(np.uint8)


def _volumes(folder: Path) -> Iterator[Seed]:
    frames = _frames()
    clip = Clip(frames, (0.3, 0.2), 20.0)
    for name, kind in (("own.nii", ""), ("own.nii.gz", "gzip"), ("own.mha", "text"), ("own.nrrd", "text")):
        write_clip(folder / name, clip)
        content = (folder / name).read_bytes()
        start = {"own.mha": content.find(b"LOCAL\n") + 6, "own.nrrd": content.find(b"\n\n") + 2}.get(name, 0)
        yield Seed(name, {name: content}, kind, None if name == "own.nii" else (start, len(content)))
    images = {
        "float": sitk.GetImageFromArray(frames.astype(np.float32)),
        "short": sitk.GetImageFromArray(frames.astype(np.int16)),
        "colour": sitk.GetImageFromArray(np.stack([frames] * 3, -1), isVector=True),
        "series": sitk.JoinSeries([sitk.GetImageFromArray(frame[None]) for frame in frames]),
    }
    for name, image in images.items():
        for key in ("Comment", "descrip", "ITK_FileNotes"):
            image.SetMetaData(key, SECRET)
        for ending, compressed in (("nii", False), ("nii.gz", True), ("mha", False), ("mhd", True), ("mhd", False),
                                   ("nrrd", False), ("nhdr", True), ("nhdr", False)):  # fmt: skip
            place = folder / f"{name}-{ending}-{compressed}"
            place.mkdir()
            sitk.WriteImage(image, str(place / f"a.{ending}"), useCompression=compressed)
            files = sorted(place.iterdir(), key=lambda file: file.name != f"a.{ending}")
            kind = {"nii": "", "nii.gz": "gzip"}.get(ending, "text")
            yield Seed(place.name, {file.name: file.read_bytes() for file in files}, kind)


def _header(frames: np.ndarray, syntax: uid.UID, photometric: str) -> Dataset:
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = uid.UltrasoundMultiFrameImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = "1.2.3"
    header.PatientName, header.PatientID, header.PatientBirthDate = SECRET, SECRET, "19600101"
    header.NumberOfFrames, header.Rows, header.Columns = frames.shape[:3]
    header.SamplesPerPixel = frames.shape[3] if frames.ndim == 4 else 1
    if frames.ndim == 4:
        header.PlanarConfiguration = 0
    header.PhotometricInterpretation, header.PixelRepresentation = photometric, 0
    header.BitsAllocated = header.BitsStored = 8 * frames.itemsize
    header.HighBit = header.BitsStored - 1
    header.FrameTime, header.CineRate = "20", "50"
    header.FrameTimeVector = [0, 20, 20]
    item = Dataset()
    item.RegionSpatialFormat = item.RegionDataType = 1
    item.RegionLocationMinX0, item.RegionLocationMinY0, item.RegionLocationMaxX1, item.RegionLocationMaxY1 = (
        2,
        2,
        29,
        21,
    )
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaX = item.PhysicalDeltaY = 0.03
    header.SequenceOfUltrasoundRegions = Sequence([item])
    return header


def _saved(header: Dataset, **how: object) -> bytes:
    stream = io.BytesIO()
    header.save_as(stream, **({"enforce_file_format": True} | how))
    return stream.getvalue()


def _dicom() -> Iterator[Seed]:
    grey, colour = _frames(), np.stack([_frames()] * 3, -1)
    for name, frames, photometric in (("grey", grey, "MONOCHROME2"), ("inverse", grey, "MONOCHROME1"),
                                      ("deep", grey.astype(np.uint16) * 200, "MONOCHROME2"), ("rgb", colour, "RGB"),
                                      ("ybr", colour, "YBR_FULL"), ("ybr422", colour, "YBR_FULL_422")):  # fmt: skip
        header = _header(frames, uid.ExplicitVRLittleEndian, photometric)
        header.PixelData = frames.tobytes()[: 2 * frames.size // 3 if name == "ybr422" else None]
        yield Seed(f"dicom-{name}", {"a.dcm": _saved(header)})
    header = _header(grey, uid.ImplicitVRLittleEndian, "MONOCHROME2")
    header.PixelData = grey.tobytes()
    content = _saved(header)
    yield Seed("dicom-implicit", {"a.dcm": content})
    yield Seed("dicom-bare", {"a": content[144 + int.from_bytes(content[140:144], "little") :]})
    header.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    yield Seed("dicom-deflated", {"a.dcm": _saved(header, implicit_vr=False, little_endian=True)}, "deflated")
    header = _header(grey, uid.ExplicitVRLittleEndian, "MONOCHROME2")
    header.PixelData = grey.tobytes()
    header.compress(uid.RLELossless)
    yield Seed("dicom-rle", {"a.dcm": _saved(header)})
    coded = {
        "jpeg": (uid.JPEGBaseline8Bit, "YBR_FULL_422", colour, lambda frame: _picture(frame, "JPEG")),
        "jpeg2000": (uid.JPEG2000Lossless, "RGB", colour, lambda frame: _picture(frame, "JPEG2000", no_jp2=True)),
        "jpegls": (uid.JPEGLSLossless, "MONOCHROME2", grey, _jpeg_ls),
    }
    for name, (syntax, photometric, frames, encode) in coded.items():
        header = _header(frames, syntax, photometric)
        header.PixelData = encapsulate([encode(frame) for frame in frames])
        header["PixelData"].VR = "OB"
        yield Seed(f"dicom-{name}", {"a.dcm": _saved(header)})
    lossless = get_testdata_file("SC_rgb_jpeg_gdcm.dcm", download=False)  # nothing here writes it
    if lossless is not None:
        yield Seed("dicom-lossless", {"a.dcm": Path(lossless).read_bytes()})


def _picture(frame: np.ndarray, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, format=form, **options)
    return stream.getvalue()


def _jpeg_ls(frame: np.ndarray) -> bytes:
    return bytes(jpeg_ls.encode_array(frame))


def _videos(folder: Path) -> Iterator[Seed]:
    frames = _frames(8)
    for name, codec, pixels in (("mjpeg.avi", "mjpeg", "yuvj420p"), ("ffv1.avi", "ffv1", "gray"),
                                ("raw.avi", "rawvideo", "bgr24"), ("mpeg4.avi", "mpeg4", "yuv420p"),
                                ("h264.mp4", "libx264", "yuv420p"), ("mjpeg.mov", "mjpeg", "yuvj420p"),
                                ("h264.mkv", "libx264", "yuv420p"), ("vp8.webm", "libvpx", "yuv420p"),
                                ("wmv2.wmv", "wmv2", "yuv420p"), ("mpeg2.mpg", "mpeg2video", "yuv420p")):  # fmt: skip
        with av.open(str(folder / name), "w") as container:
            container.metadata["title"] = SECRET
            stream = container.add_stream(codec, rate=25)
            stream.height, stream.width, stream.pix_fmt = _ROWS, _COLUMNS, pixels
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
            container.mux(stream.encode())
        content = (folder / name).read_bytes()
        guarded = (content.find(b"movi") + 4, content.find(b"idx1")) if name == "ffv1.avi" else None
        yield Seed(name, {name: content}, "", guarded)


def _pictures(folder: Path) -> Iterator[Seed]:
    frames = _frames()
    exif = Image.Exif()
    exif[0x112], exif[0x10E] = 6, SECRET
    pages = [Image.fromarray(frame) for frame in frames]
    several = {"save_all": True, "append_images": pages[1:]}
    deep = frames[0].astype(np.uint16) * 200
    files = {
        "grey.png": _picture(frames[0], "PNG"),
        "deep.png": _picture(deep, "PNG"),
        "turned.png": _picture(np.stack([frames[0]] * 3, -1), "PNG", exif=exif),
        "turned.jpg": _picture(frames[0], "JPEG", exif=exif),
        "colour.jpg": _picture(np.stack([frames[0]] * 3, -1), "JPEG", progressive=True),
        "a.bmp": _picture(frames[0], "BMP"),
        "raw.tif": _picture(frames[0], "TIFF", **several, description=SECRET),
        "lzw.tif": _picture(frames[0], "TIFF", **several, compression="tiff_lzw"),
        "deflate.tif": _picture(frames[0], "TIFF", **several, compression="tiff_adobe_deflate"),
        "a.gif": _picture(frames[0], "GIF", **several, duration=40, comment=SECRET),
    }
    for name, content in files.items():
        is_png = name.endswith("png")
        yield Seed(name, {name: content}, "png" if is_png else "", (0, len(content)) if is_png else None)
    folder_of_frames = {f"clip/{number}.png": _picture(frame, "PNG") for number, frame in enumerate(frames)}
    yield Seed("pictures", folder_of_frames, "png", target="clip")
