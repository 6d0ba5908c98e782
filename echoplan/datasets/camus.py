"""CAMUS: the NIfTI release and the challenge's older MetaImage layout.

    database_nifti/patient0001/patient0001_2CH_half_sequence.nii.gz, ..._half_sequence_gt.nii.gz
                               patient0001_2CH_ED.nii.gz, ..._ED_gt.nii.gz, ES likewise, Info_2CH.cfg
    database_split/subgroup_{training,validation,testing}.txt          (optional)

The challenge's has patient0001_2CH_sequence.mhd, _ED.mhd, _ED_gt.mhd, ... and volumes in Info_2CH.cfg.
Labels: 1 left ventricle, 2 myocardium, 3 left atrium.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from echoplan.dataset import Case, DatasetDescription, EchoDataset
from echoplan.datasets.building import (
    build_dataset,
    finite_number,
    frame_time,
    keep_labels,
    labels_of,
    places,
    spread_labels,
)
from echoplan.errors import EchoPlanError
from echoplan.imageio import Clip, read_clip, write_clip, write_mask
from echoplan.labels import IGNORE
from echoplan.masks import load_mask

logger = logging.getLogger(__name__)

LICENCE = "CC BY-NC-SA 4.0"
REFERENCE = "Leclerc et al., IEEE Transactions on Medical Imaging 38(9), 2019, doi:10.1109/TMI.2019.2900516"
VIEWS = {"2CH": "A2C", "4CH": "A4C"}
_ENDINGS = (".nii.gz", ".nii", ".mhd", ".mha")
_SUBGROUPS = {"training": "train", "validation": "val", "testing": "test"}


@dataclass(frozen=True)
class _Source:
    """One view of one patient."""

    folder: Path
    view: str
    split: str

    @property
    def case(self) -> str:
        return f"{self.folder.name}_{self.view}"

    def find(self, *parts: str) -> Path | None:
        """The file `<case>_<part>` of the first part that exists, in any of the release's formats."""
        candidates = (self.folder / f"{self.case}_{part}{ending}" for part in parts for ending in _ENDINGS)
        return next((path for path in candidates if path.is_file()), None)


@dataclass(frozen=True)
class _Labelled:
    """A clip with its labels, (T, H, W) or None, and what is known of its frames."""

    clip: Clip
    mask: np.ndarray | None
    ed_frame: int | None
    es_frame: int | None
    labelled_frames: tuple[int, ...] | None


def convert_camus(
    source: str | Path,
    destination: str | Path,
    *,
    name: str = "CAMUS",
    structures: str = "lv",
    processes: int = 0,
    overwrite: bool = False,
    failures: dict[str, str] | None = None,
) -> EchoDataset:
    """Convert CAMUS, one case a view: patient0001_2CH (A2C) and patient0001_4CH (A4C).

    A case without a readable sequence becomes the clip of its frames ED and ES, with no frame time; a warning says so.

    Args:
        source: the folder with the patients, or the release's folder above it.
        destination: the dataset's folder.
        structures: "lv" keeps the left ventricle alone, "all" the myocardium and the left atrium too.
        processes: worker processes; 0 works in this process.
        failures: filled with each broken case's reason.

    Raises:
        EchoPlanError: there are no patients here, the dataset exists already, or no case could be converted.
    """
    labels = labels_of(structures)
    sources = {item.case: (item, labels) for item in _find_sources(Path(source))}
    description = DatasetDescription(name=name, labels=labels, licence=LICENCE, reference=REFERENCE)
    return build_dataset(Path(source), Path(destination), description, _convert_case, sources,
                         processes=processes, overwrite=overwrite, failures=failures)  # fmt: skip


def _find_sources(source: Path) -> list[_Source]:
    patients: dict[str, Path] = {}
    for folder in sorted([*source.glob("patient*"), *source.glob("*/patient*")]):
        if folder.is_dir() and re.fullmatch(r"patient\d+", folder.name):
            if folder.name in patients:
                there = patients[folder.name].parent
                raise EchoPlanError(
                    f"{folder.name} lies here and in {there}", file=folder, remedy="convert one of them"
                )
            patients[folder.name] = folder
    if not patients:
        raise EchoPlanError(
            "there are no patient folders here", file=source, remedy="give the folder that holds patient0001, ..."
        )
    splits = _read_splits(source)
    sources = []
    for patient, folder in sorted(patients.items()):
        split = splits.get(patient, "test" if folder.parent.name == "testing" else "")
        views = [view for view in VIEWS if any(folder.glob(f"{patient}_{view}_*"))]
        sources += [_Source(folder, view, split) for view in views or VIEWS]
    return sources


def _read_splits(source: Path) -> dict[str, str]:
    """patient -> split, from the release's subgroup files; empty where there are none."""
    above = source.parent if source.name == "database_nifti" else source
    splits = {}
    for subgroup, split in _SUBGROUPS.items():
        for path in (above / f"subgroup_{subgroup}.txt", above / "database_split" / f"subgroup_{subgroup}.txt"):
            if path.is_file():
                splits.update(dict.fromkeys(path.read_text(encoding="utf-8-sig").split(), split))
    return splits


def _convert_case(destination: Path, source: _Source, labels: dict[str, int]) -> Case:
    info = _read_info(source.folder / f"Info_{source.view}.cfg")
    try:
        labelled = _sequence(source, info)
    except EchoPlanError as error:
        labelled = _two_frames(source, str(error))
        logger.warning("only ED and ES can be used, because %s", error)
    image, label = places(source.case, source.split)
    write_clip(destination / image, labelled.clip)
    if labelled.mask is not None:
        write_mask(destination / label, keep_labels(labelled.mask, labels), like=labelled.clip)
    return Case(
        case=source.case,
        patient=source.folder.name,
        image=image,
        label=None if labelled.mask is None else label,
        view=VIEWS[source.view],
        split=source.split,
        ed_frame=labelled.ed_frame,
        es_frame=labelled.es_frame,
        labelled_frames=labelled.labelled_frames,
        frame_time_ms=labelled.clip.frame_time_ms,
        ef_percent=finite_number(info, "EF", "LVef"),
        edv_ml=finite_number(info, "LVedv"),
        esv_ml=finite_number(info, "LVesv"),
        quality=info.get("ImageQuality", ""),
    )


def _sequence(source: _Source, info: dict[str, str]) -> _Labelled:
    """The sequence with its dense labels, or with those of ED and ES alone.

    Raises:
        EchoPlanError: there is no readable sequence, or its labels have no place in it.
    """
    path = source.find("half_sequence", "sequence")
    if path is None:
        raise EchoPlanError("there is no sequence file", file=source.folder)
    clip = replace(read_clip(path), frame_time_ms=frame_time(finite_number(info, "FrameRate")))
    phases = {phase: _frame_index(info, phase) for phase in ("ED", "ES")}
    if any(frame is not None and not 0 <= frame < len(clip) for frame in phases.values()):
        raise EchoPlanError(f"Info_{source.view}.cfg names frames outside the sequence's {len(clip)}", file=path)
    dense = source.find("half_sequence_gt", "sequence_gt")
    if dense is not None:
        try:
            mask = load_mask(dense, clip=clip)
            return _Labelled(clip, mask, phases["ED"], phases["ES"], None)
        except EchoPlanError as error:
            logger.warning("the labels of ED and ES alone are used, because %s", error)
    files = {phase: path for phase in phases if (path := source.find(f"{phase}_gt")) is not None}
    if not files:
        return _Labelled(clip, None, phases["ED"], phases["ES"], None)
    frames = [frame for phase in files if (frame := phases[phase]) is not None]
    if len(frames) < len(files):
        raise EchoPlanError("Info does not say which frames ED and ES are", file=source.folder)
    labels = np.concatenate([load_mask(file, clip=clip, any_frames=True) for file in files.values()])
    mask = spread_labels(labels, frames, clip.frames.shape, source=source.folder)
    return _Labelled(clip, mask, phases["ED"], phases["ES"], tuple(sorted(frames)))


def _two_frames(source: _Source, reason: str) -> _Labelled:
    """The clip [ED, ES], where the sequence cannot be used for a reason.

    Raises:
        EchoPlanError: one of the two is missing or unreadable, or they do not fit together.
    """
    paths = [path for phase in ("ED", "ES") if (path := source.find(phase)) is not None]
    if len(paths) < 2:
        raise EchoPlanError(
            f"ED or ES is missing; only ED and ES can be used, because {reason}",
            file=source.folder,
            remedy="download the patient again",
        )
    end_diastole, end_systole = map(read_clip, paths)
    shapes = [clip.frames.shape for clip in (end_diastole, end_systole)]
    if shapes[0] != shapes[1] or len(end_diastole) != 1:
        raise EchoPlanError(
            f"the ED image is {shapes[0]}, the ES image {shapes[1]} (frames, rows, columns)", file=paths[1]
        )
    clip = replace(end_diastole, frames=np.concatenate([end_diastole.frames, end_systole.frames]))
    files = [source.find(f"{phase}_gt") for phase in ("ED", "ES")]
    labelled = tuple(frame for frame, file in enumerate(files) if file is not None)
    if not labelled:
        return _Labelled(clip, None, 0, 1, None)
    unlabelled = np.full(shapes[0], IGNORE, np.uint8)
    mask = np.concatenate([unlabelled if file is None else load_mask(file, clip=end_diastole) for file in files])
    return _Labelled(clip, mask, 0, 1, labelled)


def _read_info(path: Path) -> dict[str, str]:
    """Info_2CH.cfg as key -> text; empty where there is none."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _frame_index(info: dict[str, str], phase: str) -> int | None:
    """The phase's frame, from 0; Info counts from 1."""
    number = finite_number(info, phase)
    return None if number is None else int(number) - 1
