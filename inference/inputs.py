"""What there is to predict: arrays checked, and clips found in files and folders."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from echoplan import layout
from echoplan.dataset import Case, read_cases
from echoplan.errors import EchoPlanError
from echoplan.files import plain
from echoplan.imageio import Clip, ending, pictures, read_clip
from echoplan.imageio.arrays import to_clip_dtype, to_grey

logger = logging.getLogger(__name__)

_SMALLEST_SIDE = 16  # pixels; anything smaller is not an image but axes in another order
_OTHER_ENDINGS = (".mhd", ".nhdr", ".jpg", ".jpeg")  # readable too, though not in the table of endings
_NO_CLIPS = (
    ".csv",
    ".json",
    ".txt",
    ".md",
    ".html",
    ".raw",
    ".zraw",
)  # that lie beside clips
_REFERENCE = "_gt"  # CAMUS and its kin keep masks beside the clips
_VIEW = re.compile(r"(?<![A-Za-z0-9])(?:AP?([24])(?:C|CH)?|([24])CH?)(?![A-Za-z0-9])", re.IGNORECASE)


def clip_from_array(
    frames: Any, spacing_mm: tuple[float, float] | None = None, frame_time_ms: float | None = None
) -> Clip:
    """A clip from an array, checked.

    Args:
        frames: (T, H, W), (H, W) for a single frame, or (T, H, W, 3) in colour; any real number type.
        spacing_mm: (row, column) size of a pixel.
        frame_time_ms: time between two frames.

    Raises:
        EchoPlanError: the array is no clip, or spacing or time are no positive finite numbers.
    """
    array = np.asarray(frames)
    if array.ndim == 4 and array.shape[-1] == 3:
        array = to_grey(array)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or len(array) == 0 or min(array.shape[1:]) < _SMALLEST_SIDE:
        raise EchoPlanError(
            f"an array of shape {np.shape(frames)} is no clip",
            remedy="give frames as (T, H, W), one frame as (H, W), or colour as (T, H, W, 3)",
        )
    array = to_clip_dtype(array, Path("array"))
    spacing = None if spacing_mm is None else tuple(float(value) for value in spacing_mm)
    if spacing is not None and (len(spacing) != 2 or not all(np.isfinite(v) and v > 0 for v in spacing)):
        raise EchoPlanError(f"the spacing {spacing} is not (row, column) in mm", remedy="give None where it is unknown")
    if frame_time_ms is not None and not (np.isfinite(frame_time_ms) and frame_time_ms > 0):
        raise EchoPlanError(
            f"the frame time {frame_time_ms} is no positive number of ms", remedy="give None if unknown"
        )
    return Clip(array, spacing, None if frame_time_ms is None else float(frame_time_ms), source="array")


@dataclass(frozen=True)
class InputClip:
    """A clip to predict.

    Attributes:
        path: the file, or the folder of pictures.
        case: what is known of it: its name, patient and view at least, all of a cases.csv row where there is one.
    """

    path: Path
    case: Case

    @property
    def name(self) -> str:
        """The name its results get."""
        return self.case.case

    def read(self) -> Clip:
        """The clip, with what cases.csv knows better than the file; EchoPlanError if it cannot be read."""
        clip = read_clip(self.path, spacing_mm=self.case.spacing_mm, frame_time_ms=self.case.frame_time_ms)
        if min(clip.frame_shape) < _SMALLEST_SIDE:
            raise EchoPlanError(f"frames of {clip.frame_shape} pixels are too small to be ultrasound", file=self.path)
        return clip

    def content(self) -> dict[str, Any]:
        """What its result depends on: the file as it is now, and what cases.csv knows better.

        Raises:
            EchoPlanError: the clip is gone.
        """
        names = ("ed_frame", "es_frame", "frame_time_ms", "spacing_row_mm", "spacing_col_mm")
        return {"files": _files_as_they_are(self.path), **{name: getattr(self.case, name) for name in names}}


def find_inputs(source: str | Path, *, leave_out: Path | None = None) -> tuple[InputClip, ...]:
    """The clips in a file or folder.

    A folder of pictures is one clip; other folders are searched to the bottom for files of any readable format. Rows of
    a cases.csv in the folder or beside it (as in a raw dataset's imagesTs) name clips that lie in the folder and say
    what is known of them. Clips without a row are named by their path; patient and view are read from names such as
    patient0001_4CH or 17/A2C. Files named ..._gt are taken for reference masks and left out.

    Args:
        source: the file or folder.
        leave_out: a folder that is not searched (where results go).

    Raises:
        EchoPlanError: there is nothing to read, or two clips would get one name.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import numpy as np
        >>> from echoplan.imageio import Clip, write_clip
        >>> from echoplan.inference import find_inputs
        >>> with TemporaryDirectory() as folder:
        ...     write_clip(f"{folder}/patient0001_4CH.nii.gz", Clip(np.zeros((2, 32, 32), np.uint8), (0.5, 0.5), 20.0))
        ...     (clip,) = find_inputs(folder)
        >>> clip.name, clip.case.patient, clip.case.view
        ('patient0001_4CH', 'patient0001', 'A4C')
    """
    source = Path(source)
    if not source.exists():
        raise EchoPlanError("there is no such file or folder", file=source)
    known = _rows(source)
    found = [source] if source.is_file() else list(_clips_in(source, leave_out))
    root = source.parent if source.is_file() else source
    inputs = [InputClip(path, case) for path, case in known.items()]
    inputs += [InputClip(path, _guess(path, root)) for path in found if path.resolve() not in known]
    if not inputs:
        raise EchoPlanError(
            "there is no clip here",
            file=source,
            remedy="give a file or a folder of NIfTI, MetaImage, DICOM, AVI, MP4, PNG",
        )
    inputs = _unique_names(inputs)
    return tuple(sorted(inputs, key=lambda item: item.name))


def digest(content: Any) -> str:
    """A short name for plain content (numbers, texts, lists, mappings): other content, another name."""
    packed = json.dumps(plain(content), sort_keys=True, allow_nan=False).encode()
    return hashlib.sha256(packed).hexdigest()[:20]


def patient_and_view(name: str) -> tuple[str, str]:
    """("patient0001", "A4C") of patient0001_4CH or patient0001_A4C; the whole name and "" where no view is named."""
    matches = list(_VIEW.finditer(name.replace("_", " ")))
    if not matches:
        return name, ""
    match = matches[-1]
    patient = name[: match.start()].strip("_- .") or name[match.end() :].strip("_- .") or name
    return patient, f"A{match[1] or match[2]}C"


def _rows(source: Path) -> dict[Path, Case]:
    """Rows of the cases.csv in or beside `source` whose clip lies in it, by the clip's absolute path."""
    folders = [source.parent] if source.is_file() else [source, source.parent]
    for folder in folders:
        table = folder / layout.CASES_FILE
        if table.is_file():
            inside = source.resolve()
            rows = {(folder / case.image).resolve(): case for case in read_cases(table)}
            return {path: case for path, case in rows.items() if path == inside or inside in path.parents}
    return {}


def _clips_in(folder: Path, leave_out: Path | None) -> Iterator[Path]:
    """The clips in a folder and those below; files of no format that is read are named once.

    Each folder is searched once, whatever links lead to it, by its own name before a link's.
    """
    passed_over: list[Path] = []
    searched, waiting = ({leave_out.resolve()} if leave_out else set()), [folder]
    for start in waiting:
        yield from _search(start, searched, waiting, passed_over)
    if passed_over:
        names = ", ".join(ascii(file.name)[1:-1] for file in passed_over[:5])
        more = ", ..." if len(passed_over) > 5 else ""
        logger.warning("%s: %d files are of no format that is read: %s%s", folder, len(passed_over), names, more)


def _search(folder: Path, searched: set[Path], links: list[Path], passed_over: list[Path]) -> Iterator[Path]:
    if folder.resolve() in searched:
        return
    searched.add(folder.resolve())
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if entry.is_file()]
    if any(file.suffix.lower() in pictures.ENDINGS for file in files):
        yield folder
        files = [file for file in files if file.suffix.lower() not in pictures.ENDINGS]
    folders = [entry for entry in entries if entry.is_dir()]
    links.extend(entry for entry in folders if entry.is_symlink())
    for entry in folders:
        if not entry.is_symlink():
            yield from _search(entry, searched, links, passed_over)
    for file in files:
        if _is_clip(file):
            yield file
        elif not _clip_ending(file) and file.suffix.lower() not in _NO_CLIPS and file.name.upper() != "DICOMDIR":
            passed_over.append(file)


def _clip_ending(file: Path) -> str:
    """The name's ending if it is one of a format that is read, else ""."""
    return ending(file) or (file.suffix if file.suffix.lower() in _OTHER_ENDINGS else "")


def _is_clip(file: Path) -> bool:
    suffix = _clip_ending(file)
    if suffix:
        is_reference = file.name[: -len(suffix)].endswith(_REFERENCE)
        if is_reference:
            logger.info("%s is taken for a reference mask and not predicted", file)
        return not is_reference
    if file.name.upper() == "DICOMDIR":
        return False
    with open(file, "rb") as stream:  # scanners often write DICOM without an ending
        return stream.read(132)[128:] == b"DICM"


def _guess(path: Path, root: Path) -> Case:
    inside = path.relative_to(root)
    parts = list(inside.parts) or [path.resolve().name]  # the root itself is one clip of pictures
    if path.is_file():
        last = parts[-1]
        suffix = _clip_ending(path)
        parts[-1] = last[: len(last) - len(suffix)] if suffix else last
    # 0001/0001_4CH is named 0001_4CH: the folder adds nothing.
    name = "_".join(
        part
        for part, inner in zip(parts, [*parts[1:], ""], strict=True)
        if not re.match(re.escape(part) + r"(?![A-Za-z0-9])", inner)
    )
    patient, view = patient_and_view(name)
    return Case(case=name, patient=patient, image=str(path), view=view)


def _unique_names(inputs: list[InputClip]) -> list[InputClip]:
    """Clips that differ only in their ending get it into their name."""
    count = Counter(item.name for item in inputs)
    named = []
    for item in inputs:
        if count[item.name] > 1:
            suffix = (ending(item.path) or item.path.suffix or ".pictures").replace(".", "_")
            item = replace(item, case=replace(item.case, case=f"{item.name}{suffix}"))
        named.append(item)
    twice = [name for name, times in Counter(item.name for item in named).items() if times > 1]
    if twice:
        raise EchoPlanError(
            f"several clips would be named {twice[0]}", file=named[0].path.parent, remedy="rename one, or use cases.csv"
        )
    return named


def _files_as_they_are(path: Path) -> list[Any]:
    """Size and time of a file, or of every file in a folder: what changes when somebody puts another clip there.

    Raises:
        EchoPlanError: there is nothing.
    """
    files: Iterable[Path] = sorted(item for item in path.iterdir() if item.is_file()) if path.is_dir() else (path,)
    try:
        status = [file.stat() for file in files]
    except FileNotFoundError as error:
        raise EchoPlanError("the clip is gone", file=path) from error
    return [[item.st_size, item.st_mtime_ns] for item in status]
