"""Speed of preprocessing beside bare reading of the same files, clips and labels.

python tests/benchmarks/bench_preprocessing.py [--clips N] [--size PIXELS] [--formats ...] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import logging
import os
import pstats
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, UltrasoundMultiFrameImageStorage

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from echoplan import parallel_map
from echoplan.dataset import Case, DatasetDescription, EchoDataset
from echoplan.datasets.phantom import PhantomClip, PhantomSettings, make_patient
from echoplan.imageio import Clip, read_clip, read_mask, write_clip, write_mask
from echoplan.labels import IGNORE
from echoplan.paths import Folders
from echoplan.plans import Configuration, Decision, Plan
from echoplan.preprocessing.dataset import preprocess_dataset

STORE = "EchoPlans_{0}x{0}"
TARGET = 0.5  # of the clips a second of bare reading, with 2 workers
# Frames (T, H, W) as CAMUS (cut at the sector), EchoNet-Dynamic and a scanner's export have them.
SHAPES = {".nii.gz": (20, 584, 354), ".avi": (160, 112, 112), ".dcm": (60, 600, 800)}


def write_dicom(path: Path, clip: Clip) -> None:
    """A multi-frame file in grey, losslessly compressed; scanners compress, too."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = pydicom.uid.generate_uid()
    header.SOPClassUID = UltrasoundMultiFrameImageStorage
    header.NumberOfFrames, header.Rows, header.Columns = clip.frames.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 8, 8, 7, 0
    header.PixelData = clip.frames.tobytes()
    header.compress(RLELossless)
    header.save_as(path, enforce_file_format=True)


def write_files(raw: Path, ending: str) -> tuple[Path, Path, PhantomClip]:
    """One phantom clip in a format, and its labels at end-diastole and end-systole as .nii.gz."""
    frames, *size = SHAPES[ending]
    settings = PhantomSettings(size=tuple(size), frames=frames, whole_beat=frames > 30, views=("A4C",))
    (made,) = make_patient(np.random.default_rng(0), settings).clips
    clip = Clip(made.frames, made.spacing_mm, made.frame_time_ms)
    image, label = raw / f"clip{ending}", raw / "labels.nii.gz"
    image.parent.mkdir(parents=True)
    if ending == ".dcm":
        write_dicom(image, clip)
    else:
        write_clip(image, clip)
    mask = (made.labels == 1).astype(np.uint8)
    mask[np.setdiff1d(range(frames), [made.ed_frame, made.es_frame])] = IGNORE
    write_mask(label, mask, like=clip)
    return image, label, made


def make_dataset(raw: Path, ending: str, count: int) -> EchoDataset:
    """A dataset of as many cases, all made from one clip's files: copies, so that the disk gets no easier work."""
    image, label, made = write_files(raw, ending)
    cases = []
    for number in range(count):
        for source in (image, label):
            shutil.copy(source, raw / f"{number}_{source.name}")
        cases.append(
            Case(
                case=f"c{number}", patient=f"p{number}", image=f"{number}_{image.name}", label=f"{number}_{label.name}",
                view="A4C", ed_frame=made.ed_frame, es_frame=made.es_frame, frame_time_ms=made.frame_time_ms,
                spacing_row_mm=made.spacing_mm[0], spacing_col_mm=made.spacing_mm[1],
            )
        )  # fmt: skip
    dataset = EchoDataset(raw, DatasetDescription("Bench", image_ending=ending), tuple(cases))
    dataset.write()
    return dataset


def make_plan(size: int) -> Plan:
    """A plan with one store, cropped to the sector as plans usually are."""
    decisions = {"crop": True, "protocol": "aspect", "size": [size, size], "frames": 1}
    known = {name: Decision(value, "for this benchmark") for name, value in decisions.items()}
    trainers = {"UNetTrainer": Configuration("UNetTrainer", {}, inherits_from="frame")}
    return Plan("Bench", "EchoPlans", {"frame": Configuration("frame", known)}, trainers)


def cpu_seconds() -> float:
    """Of this process and of its workers that have ended."""
    return sum(os.times()[:4])


def rate(work_on: Callable[[], object], count: int) -> tuple[float, float]:
    """Clips a second, and CPU milliseconds a clip."""
    cpu, start = cpu_seconds(), time.perf_counter()
    work_on()
    return count / (time.perf_counter() - start), 1000 * (cpu_seconds() - cpu) / count


def steady_rate(store: Path) -> float:
    """Clips a second between the first and the last quarter of a run's files: the start of workers does not count."""
    ends = np.sort([path.stat().st_mtime_ns for path in store.glob("c*.json")]) / 1e9
    first = max(3, len(ends) // 4)
    return (len(ends) - 1 - first) / (ends[-1] - ends[first])


def read_all(dataset: EchoDataset) -> None:
    """Read every clip and its labels, and do nothing with them."""
    for case in dataset.cases:
        read_clip(dataset.folder / case.image)
        read_mask(dataset.folder / str(case.label))


def line(ending: str, options: argparse.Namespace) -> None:
    """One format's line of the table."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        where = Folders(root / "raw", root / "preprocessed", root / "results")
        dataset = make_dataset(where.raw / "Dataset001_Bench", ending, options.clips)
        plan = make_plan(options.size)
        preprocess = {
            workers: lambda workers=workers: preprocess_dataset(where, dataset, plan, processes=workers, overwrite=True)
            for workers in (0, 2)
        }
        bare, bare_cpu = rate(lambda: read_all(dataset), options.clips)
        alone, alone_cpu = rate(preprocess[0], options.clips)
        if options.profile:
            profile(preprocess[0])
        preprocess[2]()
        together = steady_rate(where.preprocessed / "Dataset001_Bench" / STORE.format(options.size))
    shape = " x ".join(map(str, SHAPES[ending]))
    print(
        f"{ending:<9}{shape:<17}{bare:>9.2f}{alone:>10.2f}{alone / bare:>7.2f}{together:>11.2f}"
        f"{together / bare:>7.2f}{bare_cpu:>13.0f}{alone_cpu:>12.0f}{bare_cpu / alone_cpu:>7.2f}",
        flush=True,
    )


def profile(work_on: Callable[[], object]) -> None:
    """Where the time goes."""
    profiler = cProfile.Profile(time.process_time)
    profiler.runcall(work_on)
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=24, help="a format")
    parser.add_argument("--size", type=int, default=256, help="of the network's grid")
    parser.add_argument("--formats", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    parallel_map._STARTING_SECONDS = 0.0  # workers, however short the work
    print(f"{options.clips} clips a format to {options.size} x {options.size}; clips a second, and their ratio to bare "
          f"reading (target with 2 workers: {TARGET})")  # fmt: skip
    print(f"{'format':<9}{'frames':<17}{'reading':>9}{'1 process':>10}{'ratio':>7}{'2 workers':>11}{'ratio':>7}"
          f"{'CPU ms: read':>13}{'preprocess':>12}{'ratio':>7}")  # fmt: skip
    for ending in options.formats:
        line(ending, options)


if __name__ == "__main__":
    main()
