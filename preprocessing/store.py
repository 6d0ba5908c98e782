"""Preprocessed clips on disk: compressed frame by frame, so that a few frames are read without the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from echoplan import layout
from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path, read_json, write_json
from echoplan.labels import IGNORE

_NO_FILTERS = [blosc2.Filter.NOFILTER] * 6
_CHUNK_FRAMES = 256  # putting chunks together takes time; but a chunk is in memory three times meanwhile


class ClipStore:
    """A folder of preprocessed clips: `<case>.b2nd` frames, `<case>_seg.b2nd` labels, `<case>.json` properties.

    The JSON file is written last: a case is there when its JSON file is.

    Example:
        store = ClipStore("preprocessed/Dataset001_CAMUS/EchoPlans_256x256")
        frames = store.frames("patient0001_4CH", [0, 9, 17])   # uint8 (3, 256, 256)
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)

    def write(self, case: str, frames: np.ndarray, labels: np.ndarray | None, properties: Mapping[str, Any]) -> None:
        """Write one case; an older one of that name is replaced.

        Args:
            case: the case's name.
            frames: (T, h, w), uint8 or float16.
            labels: (T, h, w) uint8, `IGNORE` on frames without a label; None where the case has no labels.
            properties: plain types.

        Raises:
            EchoPlanError: the disk is full, or the name is taken by the store's own file.
        """
        if f"{case}.json" == layout.STORE_FILE:
            raise EchoPlanError(f"a case cannot be named {case!r}", remedy="rename the case in cases.csv")
        if labels is not None and labels.shape != frames.shape:
            raise ValueError(f"{case}: frames {frames.shape} and labels {labels.shape} differ in shape")
        self._path(case, ".json").unlink(missing_ok=True)
        _write_array(self._path(case, ".b2nd"), frames)
        if labels is None:
            self._path(case, "_seg.b2nd").unlink(missing_ok=True)
        else:
            _write_array(self._path(case, "_seg.b2nd"), labels)
        write_json(self._path(case, ".json"), dict(properties))

    def frames(self, case: str, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """(n, h, w) frames at `indices` (repeats allowed), or all of them.

        Raises:
            EchoPlanError: the case is not in the store or its file is damaged.
        """
        return _read_array(self._path(case, ".b2nd"), indices)

    def labels(self, case: str, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """(n, h, w) uint8 labels at `indices`, or all of them; all `IGNORE` where the case has no labels.

        Raises:
            EchoPlanError: the case is not in the store or its file is damaged.
        """
        path = self._path(case, "_seg.b2nd")
        if path.is_file():
            return _read_array(path, indices)
        count, *shape = _open(self._path(case, ".b2nd")).shape
        return np.full((count if indices is None else len(indices), *shape), IGNORE, dtype=np.uint8)

    def properties(self, case: str) -> dict[str, Any]:
        """What was noted about the case: geometry, intensities, phases, patient.

        Raises:
            EchoPlanError: the case is not in the store.
        """
        path = self._path(case, ".json")
        if not path.is_file():
            raise _missing(path)
        return read_json(path)

    def has(self, case: str) -> bool:
        """Whether the case is there, whole."""
        return self._path(case, ".json").is_file() and self._path(case, ".b2nd").is_file()

    def cases(self) -> list[str]:
        """The names of all cases, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.json") if self.has(path.stem))

    def _path(self, case: str, ending: str) -> Path:
        return self.folder / f"{case}{ending}"


def _write_array(path: Path, array: np.ndarray) -> None:
    packed = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=(min(len(array), _CHUNK_FRAMES), *array.shape[1:]),
        blocks=(1, *array.shape[1:]),  # what is decompressed at least
        # A tenth more space at most than level 5, in a quarter of its time; bytes gain nothing from shuffling.
        cparams={"codec": blosc2.Codec.ZSTD, "clevel": 1, "filters": _NO_FILTERS, "nthreads": 1},
    )
    with atomic_path(path) as temporary:
        # Written by Python, not by blosc2: a full disk must be an OSError, not a shorter file.
        temporary.write_bytes(packed.to_cframe())


def _open(path: Path) -> blosc2.NDArray:
    if not path.is_file():
        raise _missing(path)
    try:
        return blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
    except (RuntimeError, ValueError, OSError) as error:
        raise _damaged(path, error) from error


def _read_array(path: Path, indices: Sequence[int] | np.ndarray | None) -> np.ndarray:
    array = _open(path)
    try:
        if indices is None:
            return array[:]
        out = np.empty((len(indices), *array.shape[1:]), dtype=array.dtype)
        decoded: dict[int, int] = {}
        for position, index in enumerate(int(i) for i in indices):
            if not 0 <= index < array.shape[0]:
                raise IndexError(f"frame {index} of {array.shape[0]} in {path.name}")
            out[position] = out[decoded[index]] if index in decoded else array[index]
            decoded.setdefault(index, position)
        return out
    except (RuntimeError, ValueError) as error:
        raise _damaged(path, error) from error


def _missing(path: Path) -> EchoPlanError:
    return EchoPlanError("this case is not preprocessed", file=path, remedy="run echoplan_preprocess for the dataset")


def _damaged(path: Path, error: Exception) -> EchoPlanError:
    return EchoPlanError(
        f"the preprocessed file cannot be read: {error}",
        file=path,
        remedy="remove the file and run echoplan_preprocess again",
    )
