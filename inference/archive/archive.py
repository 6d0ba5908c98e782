"""Reading an archive that anybody may have made: nothing is taken from it that its manifest does not name."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from echoplan import layout
from echoplan.errors import EchoPlanError
from echoplan.files import naming_full_disk
from echoplan.parallel_map import progress

from .manifest import ASK_AGAIN, Manifest, printable

_LARGEST_MANIFEST = 2**20  # bytes; one of a hundred checkpoints has 20 kB
_LARGEST_RATIO = 100  # of a file to its packed size: weights hardly shrink, and plans not so much
_CHUNK = 2**20
_MS_DOS_FOLDER = 0x10
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError)


@dataclass(frozen=True)
class ModelArchive:
    """An archive whose names and sizes are checked; hashes are checked when it is unpacked."""

    file: Path
    manifest: Manifest
    content: zipfile.ZipFile

    @classmethod
    @contextmanager
    def open(cls, file: Path) -> Iterator[ModelArchive]:
        """Open an archive and check all that can be checked before anything is written.

        Raises:
            EchoPlanError: it is no archive of a model, of another format, or holds what it should not.
        """
        with _naming(file):
            content = zipfile.ZipFile(file)
        with content:
            with _naming(file):
                manifest = _checked(content, file)
            yield cls(file, manifest, content)

    def extract(self, folder: Path) -> None:
        """Write all files but the manifest to a folder.

        Raises:
            EchoPlanError: a file is not what the manifest says, or the disk is full.
        """
        with _naming(self.file), naming_full_disk(folder):
            for name in progress(sorted(self.manifest.files), description="unpacking", unit="file"):
                path = folder.joinpath(*name.split("/"))
                path.parent.mkdir(parents=True, exist_ok=True)
                self._extract_file(name, path)

    def _extract_file(self, name: str, path: Path) -> None:
        expected, digest, size = self.manifest.files[name], hashlib.sha256(), 0
        with self.content.open(name) as source, open(path, "xb") as target:
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if size > expected.bytes:
                    raise _refused(self.file, f"{name} is larger than the manifest says")
                digest.update(chunk)
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())  # before it is moved into place: a power cut must not leave an empty file there
        if (size, digest.hexdigest()) != (expected.bytes, expected.sha256):
            raise _refused(self.file, f"{name} is not the file that was exported (its SHA-256 differs)")


def is_model_archive(file: Path) -> bool:
    """Whether a file looks like an archive of a model."""
    try:
        with zipfile.ZipFile(file) as content:
            return layout.MANIFEST_FILE in content.namelist()
    except (OSError, *_BROKEN):
        return False


def _problem(entry: zipfile.ZipInfo) -> str:
    """Why an entry is not one plain file below the archive's root; empty if it is."""
    name, kind = entry.orig_filename, stat.S_IFMT(entry.external_attr >> 16)
    if stat.S_ISLNK(kind):
        return "is a symbolic link"
    if kind not in (0, stat.S_IFREG) or name.endswith("/") or entry.external_attr & _MS_DOS_FOLDER:
        return "is no plain file"
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "is an absolute path"
    if any(part in ("", ".", "..") for part in re.split(r"[/\\]", name)):
        return "leads out of the folder, or around in it"
    if "\\" in name or not name.isprintable() or name != entry.filename:
        return "is no name for a file on every system"
    if entry.flag_bits & 1:
        return "is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed in an unusual way"
    if entry.file_size > _LARGEST_RATIO * entry.compress_size + _CHUNK:
        return f"would unpack from {entry.compress_size} bytes to {entry.file_size}"
    return ""


def _checked(content: zipfile.ZipFile, file: Path) -> Manifest:
    """The manifest of an archive whose entries are all they should be."""
    seen: set[str] = set()
    for entry in content.infolist():
        problem = _problem(entry)
        if problem:
            raise _refused(file, f"{printable(entry.orig_filename)!r} {problem}")
        name = unicodedata.normalize("NFC", entry.filename).casefold()  # A and a are one file to some systems
        if name in seen:
            raise _refused(file, f"{entry.filename!r} is in the archive twice")
        seen.add(name)
    manifest = _read_manifest(content, file)
    _check_complete(content, manifest, file)
    return manifest


def _read_manifest(content: zipfile.ZipFile, file: Path) -> Manifest:
    if layout.MANIFEST_FILE not in content.namelist():
        raise EchoPlanError(
            f"this zip file is no archive of a model: it has no {layout.MANIFEST_FILE}",
            file=file,
            remedy="give an archive that echoplan_export_model wrote",
        )
    with content.open(layout.MANIFEST_FILE) as stream:
        text = stream.read(_LARGEST_MANIFEST + 1)
    if len(text) > _LARGEST_MANIFEST:
        raise _refused(file, f"{layout.MANIFEST_FILE} is larger than any manifest")
    try:
        parsed = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise _refused(file, f"{layout.MANIFEST_FILE} is not valid JSON") from error
    return Manifest.from_dict(parsed, source=file)


def _check_complete(content: zipfile.ZipFile, manifest: Manifest, file: Path) -> None:
    """Each file of the manifest is there with its size, and nothing else is."""
    sizes = {entry.filename: entry.file_size for entry in content.infolist() if entry.filename != layout.MANIFEST_FILE}
    for name in sorted(sizes.keys() - manifest.files.keys()):
        raise _refused(file, f"{name!r} is in the archive, but not in its manifest")
    for name in sorted(manifest.files.keys() - sizes.keys()):
        raise _refused(file, f"{name} is in the manifest, but not in the archive")
    for name, expected in manifest.files.items():
        if sizes[name] != expected.bytes:
            raise _refused(file, f"{name} has {sizes[name]} bytes, and {expected.bytes} by the manifest")
    if manifest.total_bytes > _LARGEST_RATIO * file.stat().st_size + _CHUNK:  # entries may lie over one another
        raise _refused(file, f"{file.stat().st_size} bytes would unpack to {manifest.total_bytes}")


def _refused(file: Path, problem: str) -> EchoPlanError:
    return EchoPlanError(f"the archive is not installed: {problem}", file=file, remedy=ASK_AGAIN)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Turn what broken zip files raise into an error for people."""
    try:
        yield
    except _BROKEN as error:
        raise EchoPlanError(f"this is no whole zip file: {printable(error)}", file=file, remedy=ASK_AGAIN) from error
