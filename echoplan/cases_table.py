"""The columns of cases.csv: how people spell them, and what a cell may hold."""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from echoplan.case_warnings import few
from echoplan.errors import EchoPlanError, printable

logger = logging.getLogger(__name__)

REQUIRED = ("case", "patient", "image")
COLUMNS = (
    "case", "patient", "view", "image", "label", "split", "ed_frame", "es_frame", "labelled_frames", "frame_time_ms",
    "spacing_row_mm", "spacing_col_mm", "ef_percent", "edv_ml", "esv_ml", "quality",
)  # fmt: skip
EXAM = "exam"  # a column only where a case has one
POSITIVE = ("frame_time_ms", "spacing_row_mm", "spacing_col_mm")

# Spellings that can mean one column alone; letters without case, spaces and signs. Times and spacings are not guessed
# without their unit.
_SPELLINGS = {
    "case": ("caseid", "casename"),
    "patient": ("patientid", "patientname", "subject", "subjectid"),
    "image": ("imagefile", "imagepath", "file", "filepath", "filename", "clip", "video"),
    "label": ("labels", "labelfile", "mask", "masks", "maskfile", "segmentation"),
    "ed_frame": ("ed", "edframe", "enddiastole", "enddiastolicframe"),
    "es_frame": ("es", "esframe", "endsystole", "endsystolicframe"),
    "labelled_frames": ("labeledframes", "labelledframe", "labeledframe"),
    "ef_percent": ("ef", "lvef", "ejectionfraction"),
    "edv_ml": ("edv", "lvedv"),
    "esv_ml": ("esv", "lvesv"),
    "quality": ("imagequality",),
    EXAM: ("examid", "studyid"),
}


def columns_of(header: Sequence[str], path: Path) -> dict[str, str]:
    """Known column -> how a table spells it. What is not read is named in a warning, with the known name next to it.

    Args:
        header: the table's first line.
        path: the table, for messages.

    Raises:
        EchoPlanError: a required column is missing, or two are the same one.
    """
    spelled: dict[str, list[str]] = {}
    for name in header:
        known = _known(name)
        if known is not None:
            spelled.setdefault(known, []).append(name)
    # A column by its own name goes before others that may mean it.
    columns = {known: [name for name in names if name == known] or names for known, names in spelled.items()}
    unread = [name for name in header if name and not any(name in names for names in columns.values())]
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise EchoPlanError(
            f"required columns are missing: {', '.join(missing)}{_not_read(unread)}",
            file=path,
            remedy="name the columns in the first line, with commas between them (not semicolons or tabs)",
        )
    doubled = [names for names in columns.values() if len(names) > 1]
    if doubled:
        raise EchoPlanError(
            f"columns are there more than once: {'; '.join(', '.join(dict.fromkeys(names)) for names in doubled)}",
            file=path,
            remedy="keep one of each name",
        )
    taken = {known: names[0] for known, names in columns.items()}
    if renamed := [
        f"{printable(name)} as {known}" for known, name in taken.items() if _letters(known) != _letters(name)
    ]:
        _say(logging.INFO, f"{path}: read {', '.join(renamed)}")
    if unread:
        _say(logging.WARNING, f"{path}{_not_read(unread)}")
    return taken


@cache  # a command reads its table more than once, and says this once
def _say(level: int, message: str) -> None:
    logger.log(level, "%s", message)


def warn_of_views(views: Sequence[str], path: Path) -> None:
    """Say which words among the views of a table's rows are none that is known; they stay as they are."""
    if words := dict.fromkeys(views):
        named = few(f"{word!r} ({views.count(word)})" for word in words)
        _say(
            logging.WARNING,
            f"{path}: views that are not known stay as they are: {named}. Volumes are made for A2C and A4C",
        )


def frame_of(text: str, name: str) -> int | None:
    """The frame number in a cell of a column; ValueError where there is another thing."""
    if not text:
        return None
    try:
        number = float(text)  # spreadsheets turn 17 into 17.0
    except ValueError:
        raise ValueError(f"{name} is {text!r}, not a frame number") from None
    if not math.isfinite(number) or number < 0 or number != int(number):
        raise ValueError(f"{name} is {text!r}; frames count 0, 1, 2, ...")
    return int(number)


def number_of(text: str, name: str) -> float | None:
    """The number in a cell of a column; ValueError where there is another thing."""
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, not a number") from None
    if not math.isfinite(number) or (name in POSITIVE and number <= 0):
        raise ValueError(f"{name} is {text!r}; leave the cell empty where the value is unknown")
    return number


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


_BY_LETTERS = {_letters(name): name for name in (*COLUMNS, EXAM)} | {
    spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings
}


def _known(name: str) -> str | None:
    """The column that a heading means: of `View`, `Patient ID`, `EF (%)`, `LVEDV [mL]`; None for others."""
    return _BY_LETTERS.get(_letters(name)) or _BY_LETTERS.get(_letters(re.sub(r"[\[(].*[\])]$", "", name.strip())))


def _not_read(names: Sequence[str]) -> str:
    """Headings that mean no column, each with the known one that is spelled most alike."""
    told = []
    for name in names:
        near = difflib.get_close_matches(_letters(name), _BY_LETTERS, n=1, cutoff=0.6)
        told.append(printable(name) + (f" (do you mean {_BY_LETTERS[near[0]]}?)" if near else ""))
    return f"; columns that are not read: {few(told)}" if told else ""
