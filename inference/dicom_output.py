"""`echoplan_predict --dicom`: masks as DICOM segmentations, measurements as DICOM structured reports.

These are the only outputs that name the patient: they carry the patient and study of their source, as DICOM needs to
file them. They lie in a folder of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from pydicom.dataset import Dataset

from echoplan.case_warnings import few
from echoplan.dataset import DatasetDescription
from echoplan.errors import EchoPlanError
from echoplan.extras import how_to_install
from echoplan.files import atomic_path
from echoplan.imageio import find_format, read_mask
from echoplan.imageio.dicom import quiet
from echoplan.inputs import InputClip
from echoplan.masks import check_values
from echoplan.names import shortened
from echoplan.parallel_map import run_cases

from ..evaluation import PatientRow
from ..evaluation.ejection import CHECK, names_of_cases
from ..evaluation.measurements import joined
from .dicom_header import read_header

logger = logging.getLogger(__name__)


def require_highdicom() -> None:
    """Stop before any work where DICOM output cannot be written.

    Raises:
        EchoPlanError: highdicom is not installed.
    """
    if find_spec("highdicom") is None:
        raise EchoPlanError(
            "DICOM output needs the package highdicom, which is not installed", remedy=how_to_install("dicom")
        )


def write_dicom(
    out: Path,
    inputs: Sequence[InputClip],
    masks: Mapping[str, Path],
    rows: Sequence[PatientRow],
    failures: MutableMapping[str, str],
    description: DatasetDescription,
    model: str,
    *,
    doubtful: bool = False,
) -> list[Path]:
    """Write a segmentation for each DICOM clip, and a structured report for each measured patient.

    A report says what the patient's row of ef_report.csv says; it is written where all clips of that row are DICOM of
    one patient and study. Clips of other formats are named in the log and passed over, as are rows without an EF and,
    unless they are asked for, those to check.

    Args:
        out: the folder of the DICOM files; made where something is written.
        inputs: all clips.
        masks: case -> mask file, of those that were predicted.
        rows: the rows of ef_report.csv.
        failures: case -> reason; what could not be written is added.
        description: the labels that the masks hold.
        model: the name of what made the masks.
        doubtful: also report rows whose quality is "check".

    Returns:
        the files written.
    """
    predicted = {item.name: item for item in inputs if item.name in masks}
    clips = {case: item for case, item in predicted.items() if _is_dicom(item.path)}
    others = [case for case in predicted if case not in clips]
    if others:
        logger.warning("%d clips are no DICOM, so they get no DICOM output: %s", len(others), few(others))
    segmentations = {
        f"DICOM segmentation of {case}": (out / f"{case}_seg.dcm", item, masks[case], description, model)
        for case, item in clips.items()
    }
    reports = _planned_reports(out, predicted, clips, rows, model, doubtful=doubtful)
    written = []
    for function, arguments in ((_write_segmentation, segmentations), (_write_report, reports)):
        results = run_cases(function, arguments, description="writing DICOM")
        failures.update(results.failures)
        written += list(results.done.values())
    return written


def _planned_reports(
    out: Path,
    predicted: Mapping[str, InputClip],
    clips: Mapping[str, InputClip],
    rows: Sequence[PatientRow],
    model: str,
    *,
    doubtful: bool,
) -> dict[str, tuple[Path, list[InputClip], PatientRow, str]]:
    """Name -> what `_write_report` takes, of each report that there will be; the log says where there will be none."""
    reports: dict[str, tuple[Path, list[InputClip], PatientRow, str]] = {}
    without: dict[str, list[str]] = {}
    taken = set(predicted)
    for row in rows:
        used = names_of_cases(row.cases, predicted)
        if not any(case in clips for case in used):
            continue
        path = out / f"{_report_name(used, taken)}_sr.dcm"
        path.unlink(missing_ok=True)  # an older one would pass for this run's
        if why_not := _why_no_report(row, all_dicom=all(case in clips for case in used), doubtful=doubtful):
            without.setdefault(why_not, []).append(row.name)
            continue
        name = f"DICOM report of {row.name}"
        name = f"{name} ({row.cases})" if name in reports else name
        reports[name] = path, [clips[case] for case in used], row, model
    for reason, patients in without.items():
        logger.warning("%d patients without DICOM report, as %s: %s", len(patients), reason, few(patients))
    return reports


def _report_name(used: Sequence[str], taken: set[str]) -> str:
    """What no other report is called: A+B of two clips, A++B beside a clip that is called A+B."""
    if len(used) == 1:
        return used[0]
    sign = "+"
    while (name := shortened(sign.join(used))) in taken:
        sign += "+"
    taken.add(name)
    return name


def _is_dicom(path: Path) -> bool:
    try:
        return find_format(path).name == "DICOM"
    except EchoPlanError:  # it was one when it was predicted, and is gone; reading it again will say so
        return True


def _why_no_report(row: PatientRow, *, all_dicom: bool, doubtful: bool) -> str:
    """In words; empty where the row gets a report."""
    if row.ef_percent is None:
        return "there is no ejection fraction"
    if not all_dicom:
        return "not all clips of the ejection fraction are DICOM"
    if row.quality == CHECK and not doubtful:
        return f"their quality is {CHECK} (--dicom_doubtful reports them all the same)"
    return ""


def _write_segmentation(path: Path, item: InputClip, mask: Path, description: DatasetDescription, model: str) -> Path:
    from .dicom_objects import make_segmentation

    path.unlink(missing_ok=True)
    with _without_quotes(item.path):
        source, invalid = read_header(item.path)
        labels = read_mask(mask, frames_shape=(source.NumberOfFrames, source.Rows, source.Columns))
        check_values(labels, description.structures.values(), file=mask)
        made = make_segmentation(
            source,
            labels,
            structures=description.structures,
            target=description.target,
            model=model,
        )
        _save(made, path)
    if invalid:
        logger.warning("%s: not valid in the header, so not in the DICOM output: %s", item.path, ", ".join(invalid))
    return path


def _write_report(path: Path, items: Sequence[InputClip], row: PatientRow, model: str) -> Path:
    from .dicom_objects import MeasuredClip, make_report

    with _without_quotes(items[0].path):
        headers = [read_header(item.path) for item in items]
        sources = [source for source, _ in headers]
        invalid = ", ".join(dict.fromkeys(keyword for _, keywords in headers for keyword in keywords))
        if invalid:
            row = replace(row, note=joined([row.note, f"not valid in the clip's header, so not here: {invalid}"]))
        _check_owners(items, sources)
        phases = [[int(frame) for frame in (text or "").split(";")] for text in (row.ed_frames, row.es_frames)]
        found = zip(items, sources, *phases, strict=True)
        clips = [MeasuredClip(source, ed, es, item.case.view) for item, source, ed, es in found]
        _save(make_report(clips, row, model=model), path)
    return path


def _check_owners(items: Sequence[InputClip], sources: Sequence[Dataset]) -> None:
    owners = {(source.PatientID, str(source.PatientName), source.StudyInstanceUID) for source in sources}
    if len(owners) > 1:
        raise EchoPlanError(
            f"{' and '.join(item.name for item in items)} are measured together, but their headers name different "
            "patients or studies: no report can be filed for both",
            file=items[0].path,
            remedy="name the right patients in cases.csv",
        )


def _save(made: Dataset, path: Path) -> None:
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
