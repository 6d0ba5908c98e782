"""What there is to predict: arrays checked, and clips found in files and folders."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from echoplan import layout
from echoplan.case_warnings import few
from echoplan.dataset import Case, read_cases
from echoplan.errors import EchoPlanError, printable
from echoplan.files import plain
from echoplan.imageio import Clip, pictures, read_clip
from echoplan.imageio.arrays import to_clip_dtype, to_grey
from echoplan.imageio.clip import plausible_scale
from echoplan.masks import find_mask
from echoplan.names import clip_ending, name_of_file, on_any_disk, shortened
from echoplan.views import standard_view, view_in

logger = logging.getLogger(__name__)

_SMALLEST_SIDE = 16  # pixels; anything smaller is not an image but axes in another order
_NO_CLIPS = (".csv", ".json", ".txt", ".md", ".html", ".raw", ".zraw")  # that lie beside clips
_REFERENCE = "_gt"  # CAMUS and its kin keep masks beside the clips
_CAMUS_FILES = ("half_sequence", "sequence", "ED", "ES")  # of one patient and view
_REPORTS = (layout.EF_REPORT_JSON, layout.SUMMARY_FILE)
_RESULT_FOLDERS = (layout.EVIDENCE, layout.OVERLAYS, layout.DICOM)


def as_clip(
    clip: str | Path | Clip | ArrayLike,
    spacing_mm: tuple[float, float] | None = None,
    frame_time_ms: float | None = None,
) -> Clip:
    """A clip from a file, an array, or one that is there already; spacing and time given are known better than its own.

    Raises:
        EchoPlanError: see `read_clip` and `clip_from_array`.
    """
    if isinstance(clip, (str, os.PathLike)):
        return read_clip(clip, spacing_mm=spacing_mm, frame_time_ms=frame_time_ms)
    if not isinstance(clip, Clip):
        return clip_from_array(clip, spacing_mm, frame_time_ms)
    if spacing_mm is None and frame_time_ms is None:
        return clip
    known = clip_from_array(clip.frames, spacing_mm or clip.spacing_mm, frame_time_ms or clip.frame_time_ms)
    return replace(clip, spacing_mm=known.spacing_mm, frame_time_ms=known.frame_time_ms, scale_note=known.scale_note)


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
    spacing, time, note = plausible_scale(spacing, None if frame_time_ms is None else float(frame_time_ms))
    return Clip(array, spacing, time, source="array", scale_note=note)


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
    patient0001_4CH or 17/A2C. Files named ..._gt are taken for reference masks and left out, as are the labels that
    cases.csv names and folders with the results of an earlier run.

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
    known, labels = _rows(source)
    found = [source] if source.is_file() else list(_clips_in(source, leave_out))
    root = source.parent if source.is_file() else source
    inputs = [InputClip(path, case) for path, case in known.items()]
    inputs += [
        InputClip(path, _guess(path, root))
        for path in found
        if _real(path) not in known and _real(path) not in labels and not _is_result(path)
    ]
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
    """("patient0001", "A4C") of patient0001_4CH or patient0001_A4C; the whole name and "" where no view is named.

    What stands behind the view belongs to the patient's name: echo_A2C_001 and echo_A4C_002 are clips of two. The words
    of CAMUS' file names alone say nothing of the patient.
    """
    match = view_in(name)
    if match is None:
        return name, ""
    before, behind = (part.strip("_- .") for part in (name[: match.start()], name[match.end() :]))
    named = [part for part in (before, behind) if part and (part is before or part not in _CAMUS_FILES)]
    return "_".join(named) or name, standard_view(match[0])


def _rows(source: Path) -> tuple[dict[Path, Case], set[Path]]:
    """Of the cases.csv in or beside `source`: rows whose clip lies in it, by the clip's absolute path; label files."""
    folders = [source.parent] if source.is_file() else [source, source.parent]
    for folder in folders:
        table = folder / layout.CASES_FILE
        if table.is_file():
            cases = read_cases(table)
            labels = {_real(folder / case.label) for case in cases if case.label}
            inside = [case for case in cases if _lies_in(source, folder / case.image)]
            return {_real(folder / case.image): case for case in inside}, labels
    return {}, set()


def _lies_in(source: Path, file: Path) -> bool:
    """Whether `source` is that file, or a folder that holds it or a link to it."""
    places = ((source.absolute(), file.absolute()), (_real(source), _real(file)))
    return any(path == inside or inside in path.parents for inside, path in places)


def _real(path: Path) -> Path:
    """The path without links; of a link that leads to itself as it is, where `Path.resolve` may fail."""
    return Path(os.path.realpath(path))


def _clips_in(folder: Path, leave_out: Path | None) -> Iterator[Path]:
    """The clips in a folder and those below; reference masks, and files of no format that is read, are named once.

    Each folder is searched once, whatever links lead to it, by its own name before a link's.
    """
    passed_over: list[str] = []
    references: list[str] = []
    searched, waiting = ({leave_out.resolve()} if leave_out else set()), [folder]
    for start in waiting:
        for path in _search(start, searched, waiting):
            if path.is_dir() or _is_clip(path):
                yield path
            elif clip_ending(path):
                references.append(printable(path.name))
            elif path.suffix.lower() not in _NO_CLIPS and path.name.upper() != "DICOMDIR":
                passed_over.append(printable(path.name))
    if references:
        logger.info("%d files are taken for reference masks and not predicted: %s", len(references), few(references))
    if passed_over:
        logger.warning("%s: %d files are of no format that is read: %s", folder, len(passed_over), few(passed_over))


def _search(folder: Path, searched: set[Path], links: list[Path]) -> Iterator[Path]:
    """The files in a folder and those below, and each folder of pictures."""
    if folder.resolve() in searched:
        return
    searched.add(folder.resolve())
    if (folder != links[0] and _holds_results(folder)) or _is_result(folder):
        logger.info("%s holds results of an earlier run and is left out", folder)
        return
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if not entry.is_dir()]  # or links that lead nowhere, of which reading tells
    if any(file.suffix.lower() in pictures.ENDINGS for file in files):
        yield folder
        files = [file for file in files if file.suffix.lower() not in pictures.ENDINGS]
    folders = [entry for entry in entries if entry.is_dir()]
    links.extend(entry for entry in folders if entry.is_symlink())
    for entry in folders:
        if not entry.is_symlink():
            yield from _search(entry, searched, links)
    yield from files


def _holds_results(folder: Path) -> bool:
    """Whether an earlier run left its results there, or began to."""
    records = folder.glob(f"{Path(layout.ARGUMENTS_FILE).stem}*.json")  # of all clips, or of a part
    evidence = (folder / layout.EVIDENCE).glob("*.npz")
    return any((folder / name).is_file() for name in _REPORTS) or any(records) or any(evidence)


def _is_result(path: Path) -> bool:
    """Whether this is a mask, or the folder of evidence, overlays or DICOM files, that an earlier run left."""
    if path.is_dir():
        return path.name in _RESULT_FOLDERS and _holds_results(path.parent)
    case = name_of_file(path)
    evidence = path.parent / layout.EVIDENCE / layout.probabilities_file(case)
    return evidence.is_file() and path == find_mask(path.parent, case)


def _is_clip(file: Path) -> bool:
    suffix = clip_ending(file)
    if suffix:
        return not file.name[: -len(suffix)].endswith(_REFERENCE)
    if file.name.upper() == "DICOMDIR" or not file.is_file():
        return False
    with open(file, "rb") as stream:  # scanners often write DICOM without an ending
        return stream.read(132)[128:] == b"DICM"


def _guess(path: Path, root: Path) -> Case:
    inside = path.relative_to(root)
    parts = list(inside.parts) or [path.resolve().name]  # the root itself is one clip of pictures
    parts = [*map(printable, parts[:-1]), printable(parts[-1]) if path.is_dir() else name_of_file(path)]
    # 0001/0001_4CH is named 0001_4CH: the folder adds nothing.
    name = "_".join(
        part
        for part, inner in zip(parts, [*parts[1:], ""], strict=True)
        if not re.match(re.escape(part) + r"(?![A-Za-z0-9])", inner)
    )
    patient, view = patient_and_view(name)
    return Case(case=shortened(name), patient=patient, image=str(path), view=view)


def _unique_names(inputs: list[InputClip]) -> list[InputClip]:
    """Clips that differ only in their ending get it into their name.

    Raises:
        EchoPlanError: results of two would be one file, on this disk or on one that takes Case for case.
    """
    count = Counter(on_any_disk(item.name) for item in inputs)
    named = []
    for item in inputs:
        if count[on_any_disk(item.name)] > 1:
            suffix = printable(clip_ending(item.path) or item.path.suffix or ".pictures").replace(".", "_")
            item = replace(item, case=replace(item.case, case=f"{item.name}{suffix}"))
        named.append(item)
    alike: dict[str, InputClip] = {}
    for item in named:
        other = alike.setdefault(on_any_disk(item.name), item)
        if other is not item:
            raise EchoPlanError(
                f"several clips would be named {item.name}, this one and {other.path}",
                file=item.path,
                remedy="rename one, or use cases.csv",
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
    except OSError as error:
        raise EchoPlanError("the clip is gone", file=path) from error
    return [[item.st_size, item.st_mtime_ns] for item in status]
