"""PNG and JPEG: a picture is a frame, a folder of them is a clip in the natural order of its names (2 before 10)."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from echoplan.errors import EchoPlanError
from echoplan.files import partial_prefix
from echoplan.imageio.arrays import to_clip_dtype, to_grey, to_labels
from echoplan.imageio.clip import Clip, ClipInfo

ENDINGS = (".png", ".jpg", ".jpeg")
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


def matches(path: Path, head: bytes) -> bool:
    """Whether the content is PNG or JPEG."""
    return head.startswith((_PNG, _JPEG))


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
        return ClipInfo((len(pictures), picture.height, picture.width))


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


def _stack(path: Path, convert) -> np.ndarray:
    frames: list[np.ndarray] = []
    for file in _pictures(path):
        with _opened(file) as picture:
            try:
                frame = convert(picture, file)
            except (OSError, SyntaxError) as error:
                raise _damaged(file) from error
        if frames and frame.shape != frames[0].shape:
            raise EchoPlanError(
                f"this picture is {frame.shape}, those before it {frames[0].shape} (rows, columns)",
                file=file,
                remedy="a folder is one clip: all its pictures must have one size",
            )
        frames.append(frame)
    return np.stack(frames)


def _opened(file: Path) -> Image.Image:
    try:
        return Image.open(file)
    except (OSError, SyntaxError) as error:
        raise _damaged(file) from error


def _damaged(file: Path) -> EchoPlanError:
    return EchoPlanError("the picture is truncated or damaged", file=file, remedy="copy or export it again")


def _grey(picture: Image.Image, file: Path) -> np.ndarray:
    if picture.mode == "LA":
        picture = picture.getchannel("L")
    elif picture.mode == "1":
        picture = picture.convert("L")
    if picture.mode == "L" or picture.mode.startswith(("I", "F")):
        return np.array(picture)
    return to_grey(np.array(picture.convert("RGB")))


def _label_values(picture: Image.Image, file: Path) -> np.ndarray:
    if picture.format == "JPEG":
        raise EchoPlanError("a JPEG cannot hold labels: its values are not exact", file=file, remedy="save it as PNG")
    values = np.array(picture)
    if values.ndim == 3:
        colours = values[..., :1] if picture.mode == "LA" else values[..., :3]
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
