"""`echoplan_predict --dicom`: masks as DICOM segmentations, measurements as DICOM structured reports.

These are the only outputs that name the patient: they carry the patient and study of their source, as DICOM needs to
file them. They lie in a folder of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pydicom

from echoplan.dataset import DatasetDescription
from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path
from echoplan.imageio import find_format, read_mask
from echoplan.imageio.dicom import quiet
from echoplan.parallel_map import run_cases

from ..evaluation import PatientRow
from .inputs import InputClip

if TYPE_CHECKING:
    from .dicom_objects import MeasuredClip

logger = logging.getLogger(__name__)

_UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip


def require_highdicom() -> None:
    """Stop before any work where DICOM output cannot be written.

    Raises:
        EchoPlanError: highdicom is not installed.
    """
    if find_spec("highdicom") is None:
        raise EchoPlanError(
            "DICOM output needs the package highdicom, which is not installed", remedy="pip install 'echoplan[dicom]'"
        )


def write_dicom(
    out: Path,
    inputs: Sequence[InputClip],
    masks: Mapping[str, Path],
    rows: Sequence[PatientRow],
    failures: MutableMapping[str, str],
    *,
    description: DatasetDescription,
    model: str,
) -> list[Path]:
    """Write a segmentation for each DICOM clip, and a structured report for each measured patient.

    A report says what the patient's row of ef_report.csv says; it is written where all clips of that row are DICOM of
    one patient and study. Clips of other formats are named in the log and passed over.

    Args:
        out: the folder of the DICOM files; made where something is written.
        inputs: all clips.
        masks: case -> mask file, of those that were predicted.
        rows: the rows of ef_report.csv.
        failures: case -> reason; what could not be written is added.
        description: the labels that the masks hold.
        model: the name of what made the masks.

    Returns:
        the files written.
    """
    predicted = [item for item in inputs if item.name in masks]
    clips = {item.name: item for item in predicted if find_format(item.path).name == "DICOM"}
    others = [item.name for item in predicted if item.name not in clips]
    if others:
        logger.warning("no DICOM, so no DICOM output: %s", ", ".join(others))
    segmentations = {
        f"DICOM segmentation of {case}": (out / f"{case}_seg.dcm", item, masks[case], description, model)
        for case, item in clips.items()
    }
    reports = {}
    for row in rows:
        used = row.cases.split(";")
        if row.ef_percent is None or not any(case in clips for case in used):
            continue
        if not all(case in clips for case in used):
            logger.warning("%s: not all clips of its ejection fraction are DICOM, so no DICOM report", row.patient)
            continue
        path = out / f"{'+'.join(used)}_sr.dcm"
        reports[f"DICOM report of {row.patient}"] = (path, [clips[case] for case in used], row, model)
    written = []
    for function, arguments in ((_write_segmentation, segmentations), (_write_report, reports)):
        results = run_cases(function, arguments, description="writing DICOM")
        failures.update(results.failures)
        written += list(results.done.values())
    return written


def _write_segmentation(path: Path, item: InputClip, mask: Path, description: DatasetDescription, model: str) -> Path:
    from .dicom_objects import make_segmentation

    with _without_quotes(item.path):
        source = _header(item.path)
        labels = read_mask(mask, frames_shape=(int(source.get("NumberOfFrames") or 1), source.Rows, source.Columns))
        made = make_segmentation(
            source,
            labels,
            structures=description.structures,
            target=description.target,
            model=model,
        )
        _save(made, path)
    return path


def _write_report(path: Path, items: Sequence[InputClip], row: PatientRow, model: str) -> Path:
    from .dicom_objects import make_report

    with _without_quotes(items[0].path):
        _save(make_report(_measured_clips(items, row), row, model=model), path)
    return path


def _measured_clips(items: Sequence[InputClip], row: PatientRow) -> list[MeasuredClip]:
    from .dicom_objects import MeasuredClip

    phases = [[int(frame) for frame in (text or "").split(";")] for text in (row.ed_frames, row.es_frames)]
    clips = [
        MeasuredClip(_header(item.path), ed, es, item.case.view) for item, ed, es in zip(items, *phases, strict=True)
    ]
    owners = {(clip.source.PatientID, str(clip.source.PatientName), clip.source.StudyInstanceUID) for clip in clips}
    if len(owners) > 1:
        raise EchoPlanError(
            f"{' and '.join(item.name for item in items)} are measured together, but their headers name different "
            "patients or studies: no report can be filed for both",
            file=items[0].path,
            remedy="name the right patients in cases.csv",
        )
    return clips


def _header(path: Path) -> pydicom.Dataset:
    """All of the header but the pixels, with what may be empty in it, so that it can be taken over."""
    header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    missing = [keyword for keyword in _UIDS if not header.get(keyword)]
    if missing:
        raise EchoPlanError(
            f"the header lacks {', '.join(missing)}, by which DICOM output would refer to the clip",
            file=path,
            remedy="export the clip again, with its identifiers",
        )
    for keyword in _MAY_BE_EMPTY:
        if header.get(keyword) is None:
            setattr(header, keyword, "")
    header.decode()
    header.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: names of models and structures may be in any script
    return header


def _save(made: pydicom.Dataset, path: Path) -> None:
    with atomic_path(path) as temporary:
        made.save_as(temporary, enforce_file_format=True)


@contextmanager
def _without_quotes(path: Path) -> Iterator[None]:
    """Errors and warnings without the values they concern: libraries quote these, and they name patients."""
    try:
        with quiet():
            yield
    except (EchoPlanError, MemoryError, OSError):
        raise
    except Exception as error:
        raise EchoPlanError(
            f"the header cannot be carried over to DICOM output ({type(error).__name__})",
            file=path,
            remedy="check it with a validator such as dciodvfy",
        ) from None
