"""What a clip may be called: one rule for cases.csv, for converters, and for clips found in a folder.

A case's name becomes the names of files, on disks that may take Case and case, or the two spellings of ü, for one.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from echoplan import layout
from echoplan.errors import EchoPlanError, printable
from echoplan.imageio import ending

MAX_BYTES = 240  # of the 255 that a file's name may have; endings such as _seg.b2nd come behind
_MAX_FILE, _MAX_PATH = 255, 3000  # bytes
_OTHER_ENDINGS = (".mhd", ".nhdr", ".jpg", ".jpeg")  # readable too, though not in the table of endings
_STORED_LABELS = "_seg"  # of a.b2nd, a case's frames, in a store


def clip_ending(path: Path) -> str:
    """The name's ending if it is one of a format that is read, else ""."""
    return ending(path) or (path.suffix if path.suffix.lower() in _OTHER_ENDINGS else "")


def name_of_file(path: Path) -> str:
    """The file's name without its ending: bytes that are no UTF-8, and control characters, as %XX.

    Example:
        >>> from pathlib import Path
        >>> name_of_file(Path("clips/patient0001_4CH.nii.gz"))
        'patient0001_4CH'
    """
    return printable(path.name[: len(path.name) - len(clip_ending(path))])


def shortened(name: str) -> str:
    """The name, or, where it is too long for a file, its beginning and a digest that tells it from others."""
    encoded = name.encode()
    if len(encoded) <= MAX_BYTES:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    return f"{encoded[: MAX_BYTES - 20].decode(errors='ignore')}_{digest}"


def wrong_name(case: str) -> str:
    """Why no case can be called so; "" where it can."""
    if "/" in case or os.sep in case or case.startswith("."):
        return f"the case name {case!r} cannot be a file name"
    if printable(case) != case:
        return f"the case name {case!r} holds control characters"
    size = len(case.encode())
    if size > MAX_BYTES:
        return f"the case name {case[:20]}... takes {size} bytes; at most {MAX_BYTES} make a file name"
    return ""


def wrong_path(text: str) -> str:
    """Why this is no file in a dataset's folder; "" where it may be one (a symbolic link may lead elsewhere)."""
    path = Path(text)
    if printable(text) != text:
        return f"{text!r} holds control characters"
    if path.anchor or ".." in path.parts:
        return f"{text!r} leads out of the table's folder: put the file, or a link to it, into the folder"
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > _MAX_FILE or len(os.fsencode(text)) > _MAX_PATH:
        return f"{text[:20]}... is too long for the name of a file"
    return ""


def check_cases(names: Iterable[str], *, file: str | Path | None = None) -> None:
    """Check the names of a dataset's cases, that none would take another's files.

    Args:
        names: of all its cases.
        file: what messages name.

    Raises:
        EchoPlanError: a name cannot be one of a file, or two of a case would be one on some disk or in the store.
    """
    remedy = "rename them"
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if wrong := wrong_name(name):
            raise EchoPlanError(wrong, file=file, remedy="rename the case")
        alike[on_any_disk(name)].append(name)
    twice = [group[0] for group in alike.values() if len(set(group)) < len(group)]
    if twice:
        raise EchoPlanError(
            f"case names must be unique; more than one row has: {', '.join(twice[:5])}", file=file, remedy=remedy
        )
    for key, group in alike.items():
        if len(group) > 1:
            raise EchoPlanError(f"{' and '.join(map(ascii, group))} are one file's name to many disks", file=file,
                                remedy=remedy)  # fmt: skip
        if f"{key}.json" == layout.STORE_FILE:
            raise EchoPlanError(f"a case cannot be named {group[0]!r}, as a file of every store is", file=file,
                                remedy="rename the case")  # fmt: skip
        if key + _STORED_LABELS in alike:
            other = alike[key + _STORED_LABELS][0]
            raise EchoPlanError(
                f"preprocessed, the labels of case {group[0]} and the clip of case {other} would be one file",
                file=file,
                remedy=f"rename one of them, as to {group[0]}-1",
            )


def on_any_disk(name: str) -> str:
    """What is the same for two names that some disk takes for one: upper and lower case, composed and decomposed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
