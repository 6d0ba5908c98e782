"""Preprocessed clips on disk: compressed frame by frame, so that a few frames are read without the rest."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from echoplan import layout
from echoplan.dataset import Case
from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path, plain, read_json, write_json
from echoplan.imageio.space import Space
from echoplan.labels import IGNORE

from .geometry import Geometry

_KNOWN_OF_CLIP = ("patient", "view", "ed_frame", "es_frame", "frame_time_ms", "ef_percent", "edv_ml", "esv_ml")
_KNOWN_OF_FEW = ("exam", "scale_note")  # written where there is something to say
_FRAMES, _LABELS = ".b2nd", "_seg.b2nd"  # how the files of a case end
_MAPPED = None if os.name == "nt" else "r"  # Windows replaces no file that is mapped
_NO_FILTERS = [blosc2.Filter.NOFILTER] * 6
_CHUNK_FRAMES = 256  # putting chunks together takes time; but a chunk is in memory three times meanwhile


@dataclass(frozen=True, kw_only=True)
class StoredCase(Case):
    """A case as a store holds it: what is known of its clip, and how it lies on the network's grid.

    Spacing and frame time are the clip's; end-diastole and end-systole are those that preprocessing found; `image` and
    `label` stay empty, for nobody reads the raw files from here on.

    Attributes:
        dataset: the source dataset that the case is of: its plan is `plan.of(dataset)`.
        crop: whether the clip was cropped to its sector.
        labelled_frames: the frames with any label.
        native_frames: T, the length of the clip.
        geometry: how the clip lies on the network's grid.
        mean, std: of the intensities inside the sector, see `sector_statistics`.
        source: what it was made from, so that a change is noticed: row of cases.csv, files, labels.
        space: where the clip's file lies in space, if it says so.
    """

    dataset: str
    crop: bool
    labelled_frames: tuple[int, ...] = ()
    native_frames: int
    geometry: Geometry
    mean: float
    std: float
    source: Mapping[str, Any] = field(default_factory=dict)
    space: Space | None = None

    def to_dict(self) -> dict[str, Any]:
        """As `<case>.json` holds it, in plain types."""
        return plain(
            {
                "case": self.case,
                **{name: getattr(self, name) for name in _KNOWN_OF_CLIP},
                "spacing_mm": self.spacing_mm,
                "labelled_frames": self.labelled_frames,
                "native_frames": self.native_frames,
                "dataset": self.dataset,
                "crop": self.crop,
                "geometry": self.geometry.to_dict(),
                "mean": self.mean,
                "std": self.std,
                "source": self.source,
                "space": None if self.space is None else self.space.to_dict(),
                **{name: getattr(self, name) for name in _KNOWN_OF_FEW if getattr(self, name)},
            }
        )

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> StoredCase:
        """The inverse of `to_dict`; KeyError where an earlier EchoPlan wrote it."""
        row, column = content["spacing_mm"] or (None, None)
        return cls(
            case=content["case"],
            **{name: content[name] for name in _KNOWN_OF_CLIP},
            spacing_row_mm=row,
            spacing_col_mm=column,
            labelled_frames=tuple(content["labelled_frames"]),
            native_frames=content["native_frames"],
            dataset=content["dataset"],
            crop=content["crop"],
            geometry=Geometry.from_dict(content["geometry"]),
            mean=content["mean"],
            std=content["std"],
            source=content["source"],
            space=Space.from_dict(content.get("space")),
            **{name: content.get(name, "") for name in _KNOWN_OF_FEW},
        )


class ClipStore:
    """A folder of preprocessed clips: `<case>.b2nd` frames, `<case>_seg.b2nd` labels, `<case>.json` a `StoredCase`.

    The JSON file is written last: a case is there when its JSON file is. It also holds the shape and type of both
    arrays and the CRC-32 of each of their frames, which is compared whenever a frame is read (0.06 of 0.33 ms for a
    frame of 256 x 256 pixels and its labels).

    Example:
        store = ClipStore("preprocessed/Dataset001_CAMUS/EchoPlans_256x256")
        frames = store.frames("patient0001_4CH", [0, 9, 17])   # uint8 (3, 256, 256)
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)

    def write(self, stored: StoredCase, frames: np.ndarray, labels: np.ndarray | None) -> None:
        """Write one case; an older one of that name is replaced.

        Args:
            stored: what is known of it.
            frames: (T, h, w), uint8 or float16.
            labels: (T, h, w) uint8, `IGNORE` on frames without a label; None where the case has no labels.

        Raises:
            EchoPlanError: the disk is full, or the name is taken by the store's own file.
        """
        case = stored.case
        if f"{case}.json" == layout.STORE_FILE:
            raise EchoPlanError(f"a case cannot be named {case!r}", remedy="rename the case in cases.csv")
        if labels is not None and labels.shape != frames.shape:
            raise ValueError(f"{case}: frames {frames.shape} and labels {labels.shape} differ in shape")
        self._path(case, ".json").unlink(missing_ok=True)
        arrays = {_FRAMES: _write_array(self._path(case, _FRAMES), frames)}
        if labels is None:
            self._path(case, _LABELS).unlink(missing_ok=True)
        else:
            arrays[_LABELS] = _write_array(self._path(case, _LABELS), labels)
        write_json(self._path(case, ".json"), {**stored.to_dict(), "arrays": arrays})

    def frames(self, case: str, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """(n, h, w) frames at `indices` (repeats allowed), or all of them.

        Raises:
            EchoPlanError: the case is not in the store, an earlier EchoPlan stored it, or its file is damaged.
        """
        return self._read(case, _FRAMES, self._content(case)["arrays"][_FRAMES], indices)

    def labels(self, case: str, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """(n, h, w) uint8 labels at `indices`, or all of them; all `IGNORE` where the case has no labels.

        Raises:
            EchoPlanError: the case is not in the store, an earlier EchoPlan stored it, or its file is damaged.
        """
        arrays = self._content(case)["arrays"]
        if _LABELS in arrays:
            return self._read(case, _LABELS, arrays[_LABELS], indices)
        count, *shape = arrays[_FRAMES]["shape"]
        return np.full((count if indices is None else len(indices), *shape), IGNORE, dtype=np.uint8)

    def case(self, name: str) -> StoredCase:
        """What was noted about a case: patient, phases, dataset, geometry, intensities.

        Raises:
            EchoPlanError: the case is not in the store, or an earlier EchoPlan stored it.
        """
        content = self._content(name)
        try:
            return StoredCase.from_dict(content)
        except (KeyError, TypeError) as error:
            raise _of_earlier(self._path(name, ".json"), str(error)) from error

    def has(self, case: str) -> bool:
        """Whether the case is there, whole."""
        return self._path(case, ".json").is_file() and self._path(case, _FRAMES).is_file()

    def cases(self) -> list[str]:
        """The names of all cases, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.json") if self.has(path.stem))

    def _read(
        self, case: str, ending: str, written: Mapping[str, Any], indices: Sequence[int] | np.ndarray | None
    ) -> np.ndarray:
        """Frames of an array, compared with what `_write_array` gave: blosc2 itself notices half of all damage."""
        path = self._path(case, ending)
        if not path.is_file():
            raise _missing(path)
        count, checksums = written["shape"][0], written["crc32"].split()
        wanted = range(count) if indices is None else [int(index) for index in indices]
        for index in wanted:
            if not 0 <= index < count:
                raise IndexError(f"frame {index} of {count} in {path.name}")
        try:
            array = blosc2.open(str(path), mode="r", mmap_mode=_MAPPED, dparams={"nthreads": 1})
            if list(array.shape) != written["shape"] or array.dtype.name != written["dtype"]:
                raise ValueError(f"it holds {array.dtype.name} {array.shape}")
            out = array[:] if indices is None else np.empty((len(wanted), *array.shape[1:]), dtype=array.dtype)
            decoded: dict[int, int] = {}
            for position, index in enumerate(wanted):
                if index in decoded:
                    out[position] = out[decoded[index]]
                    continue
                if indices is not None:
                    out[position] = array[index]
                if _checksum(out[position]) != checksums[index]:
                    raise ValueError(f"the checksum of frame {index} differs")
                decoded[index] = position
        except Exception as error:  # a damaged header makes blosc2 stumble in any way
            raise EchoPlanError(
                f"the preprocessed file is not as it was written: {error}",
                file=path,
                remedy=f"remove {case}.json beside it and run echoplan_preprocess, which makes this case anew; have "
                "the disk checked",
            ) from error
        return out

    def _content(self, case: str) -> dict[str, Any]:
        """What `<case>.json` holds."""
        path = self._path(case, ".json")
        if not path.is_file():
            raise _missing(path)
        content: dict[str, Any] = read_json(path)
        if "arrays" not in content:
            raise _of_earlier(path, "'arrays'")
        return content

    def _path(self, case: str, ending: str) -> Path:
        return self.folder / f"{case}{ending}"


def _write_array(path: Path, array: np.ndarray) -> dict[str, Any]:
    """Write an array; what reading it has to find."""
    array = np.ascontiguousarray(array)
    packed = blosc2.asarray(
        array,
        chunks=(min(len(array), _CHUNK_FRAMES), *array.shape[1:]),
        blocks=(1, *array.shape[1:]),  # what is decompressed at least
        # A tenth more space at most than level 5, in a quarter of its time; bytes gain nothing from shuffling.
        cparams={"codec": blosc2.Codec.ZSTD, "clevel": 1, "filters": _NO_FILTERS, "nthreads": 1},
    )
    with atomic_path(path) as temporary:
        # Written by Python, not by blosc2: a full disk must be an OSError, not a shorter file.
        temporary.write_bytes(packed.to_cframe())
    return {"shape": array.shape, "dtype": array.dtype.name, "crc32": " ".join(map(_checksum, array))}


def _checksum(frame: np.ndarray) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(frame).data):08x}"


def _missing(path: Path) -> EchoPlanError:
    return EchoPlanError("this case is not preprocessed", file=path, remedy="run echoplan_preprocess for the dataset")


def _of_earlier(path: Path, missing: str) -> EchoPlanError:
    return EchoPlanError(
        f"this case was preprocessed by an earlier EchoPlan: {missing} is missing",
        file=path,
        remedy="run echoplan_preprocess for the dataset, which makes such cases anew",
    )
