"""Phantom datasets on disk: the raw format, and the layouts of the CAMUS and EchoNet-Dynamic releases."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from echoplan.dataset import Case, DatasetDescription, EchoDataset
from echoplan.datasets.building import STRUCTURES, places
from echoplan.errors import EchoPlanError
from echoplan.files import write_csv, write_text
from echoplan.imageio import Clip, write_clip, write_mask
from echoplan.labels import IGNORE
from echoplan.parallel_map import CaseResults, run_cases
from echoplan.paths import dataset_name

from .heart import CAVITY, Cut
from .patient import PhantomClip, PhantomPatient, PhantomSettings, make_patient

LAYOUTS = ("raw", "camus", "echonet_dynamic")
LABELS = ("dense", "ed_es")
DISCS = 20
ECHONET_SIZE = (112, 112)
_CAMUS_VIEWS = {"A2C": "2CH", "A4C": "4CH"}


@dataclass(frozen=True)
class _EchoNetVideo:
    """A video's row of FileList.csv, and its rows of VolumeTracings.csv."""

    row: dict[str, str | float]
    tracings: list[dict[str, str | float]]


# What a patient leaves for the tables at the end: rows of cases.csv, videos, or (CAMUS has no tables) nothing.
_Tables = list[Case] | list[_EchoNetVideo]
_Writer = Callable[[Path, str, str, PhantomPatient, str, str], _Tables]


def make_phantom_dataset(
    destination: str | Path,
    *,
    patients: int,
    seed: int = 0,
    layout: str = "raw",
    labels: str = "dense",
    structures: str = "lv",
    test_patients: int = 0,
    settings: PhantomSettings | None = None,
    processes: int = 0,
) -> CaseResults:
    """Make a phantom dataset in the folder `destination`; patient n depends on the seed and on n alone.

    Args:
        destination: the dataset's folder; for layout "raw" a folder Dataset<id>_<name>.
        patients: number of patients for training.
        layout: "raw", "camus" (release of half sequences, all structures, always) or "echonet_dynamic" (A4C, AVI, 112 x
            112, a whole beat; there a fifth of `patients` are for validation).
        labels: "dense", or "ed_es": the other frames hold 255.
        structures: "lv" or "all" (cavity, myocardium, left atrium).
        test_patients: further patients, with split "test".
        settings: how the patients look.
        processes: worker processes; 0 works in this process.

    Returns:
        What was made, and each failed patient's reason.

    Raises:
        EchoPlanError: an option is unknown, no patient is asked for, or not one patient could be made.
    """
    _check_choice("layout", layout, LAYOUTS)
    _check_choice("labels", labels, LABELS)
    _check_choice("structures", structures, STRUCTURES)
    if patients < 1 or test_patients < 0:
        raise EchoPlanError("a phantom dataset needs at least one patient")
    folder, settings = Path(destination), settings or PhantomSettings()
    if layout == "echonet_dynamic":
        settings = replace(settings, size=ECHONET_SIZE, whole_beat=True, views=("A4C",))
    splits = _splits(patients, test_patients, validation=layout == "echonet_dynamic")
    writers: dict[str, _Writer] = {"raw": _write_raw, "camus": _write_camus, "echonet_dynamic": _write_echonet}
    jobs = {
        f"patient{number:04d}": (writers[layout], folder, number, split, seed, settings, labels, structures)
        for number, split in enumerate(splits, start=1)
    }
    folder.mkdir(parents=True, exist_ok=True)  # what forbids it is said once, not for each patient
    results = run_cases(_make_and_write, jobs, processes=processes, description="phantom")
    if not results.done:
        with suppress(OSError):
            folder.rmdir()  # else an empty folder would pass for a dataset
        raise EchoPlanError(f"no phantom patient could be made: {next(iter(results.failures.values()))}", file=folder)
    rows = [row for patient in jobs if patient in results.done for row in results.done[patient]]
    if layout == "raw":
        reference = "EchoPlan phantom, simulated"
        labels_kept = dict(STRUCTURES[structures])
        description = DatasetDescription(dataset_name(folder), labels_kept, licence="CC0", reference=reference)
        EchoDataset(folder, description, tuple(rows)).write()
    elif layout == "echonet_dynamic":
        _write_echonet_tables(folder, rows)
    return results


def _check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise EchoPlanError(f"the phantom's {name} cannot be {value!r}", remedy=f"choose one of {', '.join(allowed)}")


def _splits(patients: int, test_patients: int, *, validation: bool) -> list[str]:
    held_out = patients // 5 if validation else 0
    return ["train"] * (patients - held_out) + ["val"] * held_out + ["test"] * test_patients


def _make_and_write(
    write: _Writer, folder: Path, number: int, split: str, seed: int, settings: PhantomSettings,
    labels: str, structures: str,
) -> _Tables:  # fmt: skip
    patient = make_patient(np.random.default_rng([seed, number]), settings)
    return write(folder, f"patient{number:04d}", split, patient, labels, structures)


def _masks(clip: PhantomClip, labels: str, structures: str) -> np.ndarray:
    masks = clip.labels.copy() if structures == "all" else (clip.labels == CAVITY).astype(np.uint8)
    if labels == "ed_es":
        unlabelled = np.setdiff1d(np.arange(len(masks)), [clip.ed_frame, clip.es_frame])
        masks[unlabelled] = IGNORE
    return masks


def _write_raw(
    folder: Path, name: str, split: str, patient: PhantomPatient, labels: str, structures: str
) -> list[Case]:
    cases = []
    for clip in patient.clips:
        case = f"{name}_{_CAMUS_VIEWS[clip.view]}"
        image, label = places(case, split)
        written = Clip(clip.frames, clip.spacing_mm, clip.frame_time_ms)
        write_clip(folder / image, written)
        write_mask(folder / label, _masks(clip, labels, structures), like=written)
        labelled = range(len(clip.frames)) if labels == "dense" else sorted((clip.ed_frame, clip.es_frame))
        cases.append(
            Case(
                case=case, patient=name, image=image, label=label, view=clip.view, split=split,
                ed_frame=clip.ed_frame, es_frame=clip.es_frame, labelled_frames=tuple(labelled),
                frame_time_ms=clip.frame_time_ms, spacing_row_mm=clip.spacing_mm[0], spacing_col_mm=clip.spacing_mm[1],
                ef_percent=patient.ef_percent, edv_ml=patient.edv_ml, esv_ml=patient.esv_ml, quality=clip.quality,
            )
        )  # fmt: skip
    return cases


def _write_camus(
    folder: Path, name: str, split: str, patient: PhantomPatient, labels: str, structures: str
) -> list[Case]:
    for clip in patient.clips:
        view = _CAMUS_VIEWS[clip.view]
        stem = folder / name / f"{name}_{view}"
        # The release's headers carry no frame time; Info_*.cfg has the frame rate.
        half = slice(clip.ed_frame, clip.es_frame + 1)
        for suffix, frames in (
            ("half_sequence", half),
            ("ED", slice(clip.ed_frame, clip.ed_frame + 1)),
            ("ES", slice(clip.es_frame, clip.es_frame + 1)),
        ):
            written = Clip(clip.frames[frames], clip.spacing_mm, None)
            write_clip(f"{stem}_{suffix}.nii.gz", written)
            if suffix != "half_sequence" or labels == "dense":
                write_mask(f"{stem}_{suffix}_gt.nii.gz", clip.labels[frames], like=written)
        count = half.stop - half.start
        info = {
            "ED": 1, "ES": count, "NbFrame": count, "Sex": "F", "Age": 60, "ImageQuality": clip.quality,
            "EF": round(patient.ef_percent), "FrameRate": round(patient.frame_rate_hz, 1),
        }  # fmt: skip
        write_text(folder / name / f"Info_{view}.cfg", "".join(f"{key}: {value}\n" for key, value in info.items()))
    return []


def _write_echonet(
    folder: Path, name: str, split: str, patient: PhantomPatient, labels: str, structures: str
) -> list[_EchoNetVideo]:
    clip = patient.clip("A4C")
    video = f"0X{name[-4:]}"
    write_clip(folder / "Videos" / f"{video}.avi", Clip(clip.frames, None, clip.frame_time_ms))
    tracings = [
        {"FileName": f"{video}.avi", "X1": x1, "Y1": y1, "X2": x2, "Y2": y2, "Frame": frame}
        for frame in (clip.ed_frame, clip.es_frame)
        for x1, y1, x2, y2 in volume_tracing(clip, frame).round(4).tolist()
    ]
    row = {
        "FileName": video, "EF": patient.ef_percent, "ESV": patient.esv_ml, "EDV": patient.edv_ml,
        "FrameHeight": clip.frames.shape[1], "FrameWidth": clip.frames.shape[2], "FPS": round(patient.frame_rate_hz),
        "NumberOfFrames": len(clip.frames), "Split": split.upper(),
    }  # fmt: skip
    return [_EchoNetVideo(row, tracings)]


def _write_echonet_tables(folder: Path, videos: list[_EchoNetVideo]) -> None:
    files = [video.row for video in videos]
    tracings = [line for video in videos for line in video.tracings]
    write_csv(folder / "FileList.csv", files, list(files[0]))
    write_csv(folder / "VolumeTracings.csv", tracings, list(tracings[0]))


def volume_tracing(clip: PhantomClip, frame: int) -> np.ndarray:
    """EchoNet-Dynamic's tracing of one frame: (21, 4) of x1, y1, x2, y2 in pixels, whole at the pixels' centres.

    The first row is the long axis (apex to mitral plane), then 20 discs across it, from the apex down, taken from the
    exact outline. The outermost two lie on the ends of the axis but for half a percent, so that the polygon is closed.
    """
    cut: Cut = clip.cuts[frame]
    state, short = cut.state, cut.state.short_axis(cut.view)
    z = np.linspace(-state.c, state.h, DISCS + 1)[[0, -1]]
    axis_x, axis_y = _to_pixels(clip, *cut.to_image(np.zeros(2), z))
    heights = -state.c + (state.c + state.h) * np.linspace(0.005, 0.999, DISCS)
    half = short * np.sqrt(np.clip(1 - (heights / state.c) ** 2, 0, None))
    left_x, left_y = _to_pixels(clip, *cut.to_image(-half, heights))
    right_x, right_y = _to_pixels(clip, *cut.to_image(half, heights))
    discs = np.stack([left_x, left_y, right_x, right_y], 1)
    return np.concatenate([[[axis_x[0], axis_y[0], axis_x[1], axis_y[1]]], discs])


def _to_pixels(clip: PhantomClip, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    depth_spacing, lateral_spacing = clip.spacing_mm
    sector_row, sector_column = clip.sector_apex
    return x / lateral_spacing + sector_column, y / depth_spacing + sector_row
