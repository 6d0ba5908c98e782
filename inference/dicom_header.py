"""What DICOM output takes over from a clip's header: who and when, where it is valid, and what refers to the clip.

Headers of real clips break the standard: old ones write times with colons, anonymised ones REMOVED for a date. Nothing
is therefore copied unseen. Elements are read one by one as text, and what is not valid is left out and named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pydicom.charset import convert_encodings, decode_bytes, python_encoding
from pydicom.config import RAISE
from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.valuerep import TM, validate_value

from echoplan.errors import EchoPlanError
from echoplan.imageio import probe_clip
from echoplan.imageio.dicom import parse

STUDY_UID = "StudyInstanceUID"
# Of the modules Patient, General Study and Patient Study: all of type 2, and some of type 3.
_MAY_BE_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_MAY_BE_ABSENT = ("IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "StudyDescription")
# Of the module Clinical Trial Subject, which is there as a whole or not at all: types 1, and type 2.
_TRIAL = ("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialSubjectID")
_TRIAL_MAY_BE_EMPTY = ("ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName")
CARRIED = (STUDY_UID, *_MAY_BE_EMPTY, *_MAY_BE_ABSENT, *_TRIAL, *_TRIAL_MAY_BE_EMPTY)

_REFERENCE = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", STUDY_UID)
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
_TERMS = {"PatientSex": ("M", "F", "O"), "LossyImageCompression": ("00", "01")}
_IN_ANY_SCRIPT = ("LO", "PN", "SH")
_CODE_RESETS = set(b"\r\n\t\f^=")  # behind them the first character set counts again (PS3.5 6.1.2.5.3)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ufffd]")  # the last stands for bytes that its character set does not know
_PATTERNS = {"DA": re.compile(r"\d{8}"), "TM": re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?")}  # no ranges
_UID = re.compile(r"[0-9.]{1,64}")


def read_header(path: Path) -> tuple[Dataset, list[str]]:
    """What output takes over from a clip, in UTF-8, and the keywords of what is there but is not valid.

    Returns:
        the references, what `CARRIED` names and what describes the pictures. What DICOM wants to be there is there, if
        empty.

    Raises:
        EchoPlanError: the header lacks what output would refer to the clip by.
    """
    raw = parse(path, ["SpecificCharacterSet", *_REFERENCE, *CARRIED, *_LOSSY])
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: names of models and structures may be in any script
    _take_references(header, raw, path)
    invalid = [name for name in (*CARRIED, *_LOSSY) if name not in _REFERENCE and not _take(header, raw, name)]
    required: tuple[str, ...] = _MAY_BE_EMPTY
    if all(header.get(name) for name in _TRIAL):
        required += _TRIAL_MAY_BE_EMPTY
    else:
        for name in (*_TRIAL, *_TRIAL_MAY_BE_EMPTY):
            header.pop(name, None)
    for name in required:
        if name not in header:
            setattr(header, name, "")
    info = probe_clip(path)
    header.NumberOfFrames = info.shape[0]
    header.Rows, header.Columns = info.crop.file_shape if info.crop else info.shape[1:]
    return header, invalid


def carry_over(source: Dataset, made: Dataset) -> None:
    """Give a new instance the patient and the study of its source, which `read_header` read."""
    for name in CARRIED:
        if name in source:
            made[name] = source[name]


def _take_references(header: Dataset, raw: Dataset, path: Path) -> None:
    missing = []
    for name in _REFERENCE:
        text = _text(raw, name) or ""
        if _UID.fullmatch(text):
            header.add_new(name, "UI", text)  # as it is, valid or not: the clip is known by it
        else:
            missing.append(name)
    if missing:
        raise EchoPlanError(
            f"the header lacks {', '.join(missing)}, by which DICOM output would refer to the clip",
            file=path,
            remedy="export the clip again, with its identifiers",
        )


def _take(header: Dataset, raw: Dataset, name: str) -> bool:
    """Take over an element where it is valid; whether it was, or there is none."""
    kind = dictionary_VR(name)
    text = _text(raw, name)
    if not text:
        return text is not None
    values = text.split("\\")
    several = dictionary_VM(name) != "1"
    if not all(_is_valid(kind, value, _TERMS.get(name)) for value in values) or (len(values) > 1 and not several):
        return False
    header.add_new(name, kind, values if several else text)
    return True


def _text(raw: Dataset, name: str) -> str | None:
    """An element's value; "" where there is none, None where its bytes are no text."""
    if name not in raw:
        return ""
    value = raw.get_item(name).value
    if not value:
        return ""
    if not isinstance(value, bytes):
        return None
    if value.isascii() and b"\x1b" not in value:
        text = value.decode("ascii")
    elif dictionary_VR(name) in _IN_ANY_SCRIPT:
        text = _decoded(value, _character_sets(raw))
    else:
        return None
    return text.strip(" \0")


def _character_sets(raw: Dataset) -> list[str]:
    """Those that the header names, if all are known; "" stands for ASCII."""
    value = raw.get("SpecificCharacterSet") or ""
    names = [value] if isinstance(value, str) else list(value)
    return names if all(name in python_encoding for name in names) else []


def _decoded(value: bytes, names: Sequence[str]) -> str:
    if {*names} - {"", "ISO_IR 6", "ISO 2022 IR 6"}:
        return decode_bytes(value, convert_encodings(list(names)), _CODE_RESETS)
    try:  # none is named, or none that has these characters
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _is_valid(kind: str, value: str, terms: Sequence[str] | None) -> bool:
    try:
        validate_value(kind, value, RAISE)
        if kind == "DA":
            datetime.strptime(value, "%Y%m%d")
        elif kind == "TM":
            TM(value)
    except ValueError:
        return False
    pattern = _PATTERNS.get(kind)
    if pattern is not None and not pattern.fullmatch(value):
        return False
    return value in (terms or [value]) and not _CONTROL.search(value)
