"""PNG, JPEG, BMP, TIFF and GIF.

A PNG, JPEG or BMP is a frame, and a folder of them a clip, in the natural order of the names (2 before 10). A TIFF or
GIF is a clip of its own: its pages are the frames. Pictures are turned upright as their EXIF orientation says.
"""

from __future__ import annotations

import io
import itertools
import re
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from echoplan.errors import EchoPlanError
from echoplan.files import partial_prefix
from echoplan.imageio.arrays import stack_frames, to_clip_dtype, to_grey, to_labels
from echoplan.imageio.bounds import MAX_FRAME_PIXELS, check_size, damaged, open_regular
from echoplan.imageio.clip import Clip, ClipInfo

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")  # of pictures that are a clip's frames
_MANY_PAGES = ("TIFF", "GIF")
_KINDS = {"PNG": (b"\x89PNG\r\n\x1a\n",), "JPEG": (b"\xff\xd8\xff",), "BMP": (b"BM",),
          "TIFF": (b"II*\0", b"MM\0*"), "GIF": (b"GIF87a", b"GIF89a")}  # fmt: skip
# Not Image.open, which refuses large pictures without telling their size.
_READERS: dict[str, Callable[..., Image.Image]] = {
    "PNG": PngImageFile, "JPEG": JpegImageFile, "BMP": BmpImageFile, "TIFF": TiffImageFile, "GIF": GifImageFile
}  # fmt: skip
_TURN = Image.Transpose
_UPRIGHT = {2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE,
            6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90}  # fmt: skip
_SIDEWAYS = (5, 6, 7, 8)
_ORIENTATION = 0x0112
_BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "LA": 2, "I;16": 2, "I;16B": 2, "I;16L": 2}  # 4 for all others


def is_kind(*kinds: str) -> Callable[[Path, bytes], bool]:
    """A function of (path, first bytes): whether the content is one of PNG, JPEG, BMP, TIFF and GIF."""
    return lambda path, head: _kind(head) in kinds


def is_folder(path: Path, head: bytes) -> bool:
    """Whether this is a folder, which only pictures make a clip of."""
    return path.is_dir()


def read(path: Path) -> Clip:
    """Read a picture, or a folder of pictures, in grey. Spacing and frame time are unknown.

    Raises:
        EchoPlanError: a picture is damaged, the folder has none, or their sizes differ.
    """
    return Clip(to_clip_dtype(_stack(path, _grey), path), None, None, str(path))


def read_labels(path: Path) -> np.ndarray:
    """(T, H, W) uint8 label values of a picture or a folder; a palette's indices are the labels.

    Raises:
        EchoPlanError: as `read`, or the picture is coloured or a JPEG, whose values are not exact.
    """
    return _stack(path, _label_values)


def probe(path: Path) -> ClipInfo:
    """Shape from the names in the folder and the first picture's header."""
    pictures = _pictures(path)
    with _opened(pictures[0]) as picture:
        pages = getattr(picture, "n_frames", 1) if picture.format in _MANY_PAGES else 1
        sideways = picture.format != "TIFF" and _orientation(picture) in _SIDEWAYS
        rows, columns = (picture.width, picture.height) if sideways else (picture.height, picture.width)
        return ClipInfo((len(pictures) * pages, rows, columns))


def write_png(path: Path, clip: Clip) -> None:
    """Write a clip of one frame as a PNG (8 or 16 bits).

    Raises:
        EchoPlanError: there are several frames, or the intensities are not whole numbers.
    """
    if len(clip) != 1:
        raise EchoPlanError(
            f"a PNG holds one frame, this clip has {len(clip)}", file=path, remedy="give a folder's name, without .png"
        )
    _image(clip.frames[0], path).save(path, format="PNG")


def write_folder(path: Path, clip: Clip) -> None:
    """Write a clip as a folder of PNGs, frame_0000.png and so on; a folder of that name is replaced as a whole.

    Raises:
        EchoPlanError: something other than pictures lies there, or the intensities are not whole numbers.
    """
    if path.is_file():
        raise EchoPlanError("this is a file, not a folder for pictures", file=path, remedy="choose another name")
    if path.exists() and any(item.suffix.lower() not in ENDINGS for item in path.iterdir()):
        raise EchoPlanError("this folder holds more than pictures", file=path, remedy="choose another folder's name")
    path.parent.mkdir(parents=True, exist_ok=True)
    digits = max(4, len(str(len(clip) - 1)))
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=partial_prefix()) as beside:
        whole = Path(beside) / path.name
        whole.mkdir()
        for number, frame in enumerate(clip.frames):
            _image(frame, path).save(whole / f"frame_{number:0{digits}d}.png")
        if path.exists():
            shutil.rmtree(path)
        whole.replace(path)


def _pictures(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [item for item in path.iterdir() if item.suffix.lower() in ENDINGS and not item.name.startswith(".")]
    if not found:
        raise EchoPlanError("the folder holds no PNG or JPEG", file=path, remedy="give a clip's file, or its folder")
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\d+|\D+", path.name)
    return [(0, int(part), part) if part.isdigit() else (1, 0, part.lower()) for part in parts]


def _kind(head: bytes) -> str | None:
    return next((kind for kind, marks in _KINDS.items() if head.startswith(marks)), None)


def _stack(path: Path, convert: Callable[[Image.Image, Path], np.ndarray]) -> np.ndarray:
    files = _pictures(path)
    return stack_frames(_frames(files, convert), len(files), path)


def _frames(files: list[Path], convert: Callable[[Image.Image, Path], np.ndarray]) -> Iterator[np.ndarray]:
    first: tuple[int, ...] | None = None
    for file in files:
        with _opened(file) as picture:
            for page in itertools.count() if picture.format in _MANY_PAGES else (0,):
                try:
                    picture.seek(page)
                except EOFError:
                    break
                _check_page(picture, file)
                frame = convert(picture, file)
                first = first or frame.shape
                if frame.shape != first:
                    raise EchoPlanError(
                        f"this picture is {frame.shape}, those before it {first} (rows, columns)",
                        file=file,
                        remedy="a clip's pictures must all have one size",
                    )
                yield frame


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """The picture, its header read, its size and checksums checked; what goes wrong with it names the file."""
    with open_regular(file) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is told here: sizes, and damage in places that do not matter
        try:
            kind = _kind(stream.read(8))
            if kind is None:
                raise damaged(file, "picture")
            if kind == "PNG":
                _check_png(stream, file)
            stream.seek(0)
            with _READERS[kind](stream, str(file)) as picture:
                _check_page(picture, file)
                yield picture
        except (EchoPlanError, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise EchoPlanError(
                f"one of its pages has more than {MAX_FRAME_PIXELS:,} pixels",
                file=file,
                remedy="export it again, in the size it was recorded",
            ) from error
        except Exception as error:  # PIL raises what the damage happens to provoke
            raise damaged(file, "picture") from error


def _check_page(picture: Image.Image, file: Path) -> None:
    """Refuse a page that is too large, before its pixels are unpacked."""
    check_size(file, (1, picture.height, picture.width), _BYTES_PER_PIXEL.get(picture.mode, 4))


def _check_png(stream: io.BufferedReader, file: Path) -> None:
    """Check the CRC of every chunk: PIL does not look at those of the pixels."""
    name = b""
    while name != b"IEND":
        head = stream.read(8)
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        checksum = zlib.crc32(name)
        while length and (piece := stream.read(min(length, 2**20))):
            checksum, length = zlib.crc32(piece, checksum), length - len(piece)
        if len(head) < 8 or length or stream.read(4) != checksum.to_bytes(4, "big"):
            raise damaged(file, "picture")


def _orientation(picture: Image.Image) -> int:
    """How the picture is held, by its EXIF header (1: upright)."""
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF header damages no pixel
        return 1


def _upright(picture: Image.Image, file: Path) -> Image.Image:
    orientation = _orientation(picture)
    if picture.format != "TIFF":
        turn = _UPRIGHT.get(orientation)
        return picture if turn is None else picture.transpose(turn)
    if orientation in _SIDEWAYS:  # PIL turns all others itself, and some of these wrongly
        raise EchoPlanError("this TIFF lies on its side", file=file, remedy="save it upright, without an orientation")
    return picture


def _grey(picture: Image.Image, file: Path) -> np.ndarray:
    picture = _upright(picture, file)
    if picture.mode == "LA":
        picture = picture.getchannel("L")
    elif picture.mode == "1":
        picture = picture.convert("L")
    if picture.mode == "L" or picture.mode.startswith(("I", "F")):
        return np.array(picture)
    return to_grey(np.array(picture.convert("RGB")))


def _label_values(picture: Image.Image, file: Path) -> np.ndarray:
    if picture.format == "JPEG" or picture.info.get("compression") == "jpeg":
        raise EchoPlanError("a JPEG cannot hold labels: its values are not exact", file=file, remedy="save it as PNG")
    mode, values = picture.mode, np.array(_upright(picture, file))
    if values.ndim == 3:
        colours = values[..., :1] if mode == "LA" else values[..., :3]
        if not (colours == colours[..., :1]).all():
            raise EchoPlanError(
                "a coloured picture is no mask", file=file, remedy="save the label values 0, 1, 2, ... as a grey PNG"
            )
        values = colours[..., 0]
    return to_labels(values, file)


def _image(frame: np.ndarray, path: Path) -> Image.Image:
    if frame.dtype not in (np.uint8, np.uint16):
        raise EchoPlanError(f"a PNG holds whole numbers, not {frame.dtype}", file=path, remedy="write .nii.gz or .mha")
    return Image.fromarray(np.ascontiguousarray(frame))
