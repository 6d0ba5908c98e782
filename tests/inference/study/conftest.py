"""A toy project: six patients of two clips each, preprocessed and planned for a frame and a clip trainer, and a second
raw dataset. A bright disc that shrinks is the ventricle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from echoplan.dataset import Case, DatasetDescription, EchoDataset
from echoplan.files import write_json
from echoplan.imageio import Clip, write_clip, write_mask
from echoplan.paths import Folders
from echoplan.plans import Configuration, Decision, Plan
from echoplan.preprocessing import ClipStore, StoredCase, preprocess_clip, sector_statistics
from echoplan.scripts import study

SIDE, FRAMES, LAST = 32, 7, 6
PATIENTS = [f"p{number}" for number in range(6)]
QUICK = ("--epochs", "2", "--set", "iterations_per_epoch=2", "--set", "batch_size=2", "--set", "base_features=4",
         "--set", "deep_supervision=false", "-np", "0", "--device", "cpu")  # fmt: skip


def disc(random: np.random.Generator, spacing: tuple[float, float] | None = (1.0, 1.0)) -> tuple[Clip, np.ndarray]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    row, column = random.uniform(13, 18, 2)
    radii = np.linspace(9, 5, FRAMES)[:, None, None]
    mask = ((rows - row) ** 2 + (columns - column) ** 2 <= radii**2).astype(np.uint8)
    frames = (40 + 120 * mask + random.normal(0, 15, mask.shape)).clip(1, 255).astype(np.uint8)
    mask[1:LAST] = 255
    return Clip(frames, spacing, 40.0), mask


def make_plan() -> Plan:
    def decide(**values: object) -> dict[str, Decision]:
        return {name: Decision(value, "made for tests", kind="fixed") for name, value in values.items()}

    frame = decide(size=[SIDE, SIDE], frames=1, frame_stride=1, batch_size=2, crop=False, protocol="aspect",
                   normalisation="zscore_sector", mirror_axes=[], rotation_degrees=5.0, sampling="labelled_frames",
                   learning_rate=1e-2)  # fmt: skip
    evidence = {"ed_es_distance_frames": {"median": 6.0}, "frames": 4}
    clip = {
        **decide(frames=4, sampling="uniform_ed_es"),
        "frame_stride": Decision(2, "spans the median distance", evidence),
    }
    return Plan(
        "Dataset001_Toy",
        "EchoPlans",
        {"frame": Configuration("frame", frame), "clip": Configuration("clip", clip, "frame")},
        {"UNetTrainer": Configuration("UNetTrainer", {}, "frame"),
         "UNet2DtTrainer": Configuration("UNet2DtTrainer", clip, "clip")},
    )  # fmt: skip


@dataclass(frozen=True)
class Toy:
    """The project's folders, and the command in them."""

    folders: Folders
    run: Callable[..., int]

    def study(self, name: str) -> Path:
        return self.folders.results / "Dataset001_Toy" / "studies" / name


def make_project(root: Path) -> Folders:
    where, random = Folders(root / "raw", root / "preprocessed", root / "results"), np.random.default_rng(0)
    preprocessed = where.preprocessed / "Dataset001_Toy"
    make_plan().write(preprocessed / "EchoPlans.json")
    write_json(preprocessed / "dataset.json", DatasetDescription("Toy").to_dict())
    write_json(preprocessed / "dataset_fingerprint.json", {"dataset": "Toy"})
    store = ClipStore(preprocessed / f"EchoPlans_{SIDE}x{SIDE}")
    for patient in PATIENTS:
        for view in ("A2C", "A4C"):
            clip, mask = disc(random)
            frames, geometry = preprocess_clip(clip, size=(SIDE, SIDE))
            mean, std = sector_statistics(frames)
            stored = StoredCase(
                f"{patient}_{view}", patient, view=view, ef_percent=60.0, ed_frame=0, es_frame=LAST,
                labelled_frames=(0, LAST), frame_time_ms=40.0, native_frames=FRAMES, spacing_row_mm=1.0,
                spacing_col_mm=1.0, dataset="Toy", crop=False, geometry=geometry, mean=mean, std=std,
            )  # fmt: skip
            store.write(stored, frames, mask)
            write_mask(preprocessed / "gt_segmentations" / f"{patient}_{view}.nii.gz", mask, like=clip)
    names = [
        [f"{patient}_{view}" for patient in part for view in ("A2C", "A4C")] for part in (PATIENTS[:2], PATIENTS[2:])
    ]
    write_json(preprocessed / "splits_final.json",
               [{"train": names[1], "val": names[0]}, {"train": names[0], "val": names[1]}])  # fmt: skip
    write_other(where.raw / "Dataset002_Other", random)
    return where


def write_other(folder: Path, random: np.random.Generator) -> None:
    """Without spacing, with two structures of which the target is not the first, one case without labels."""
    cases = []
    for number in range(4):
        clip, mask = disc(random, None)
        mask[mask == 1] = 2
        write_clip(folder / "imagesTr" / f"q{number}.nii.gz", clip)
        write_mask(folder / "labelsTr" / f"q{number}.nii.gz", mask, like=clip)
        label = f"labelsTr/q{number}.nii.gz" if number else None
        cases.append(Case(f"q{number}", f"q{number}", f"imagesTr/q{number}.nii.gz", label, "A4C", ef_percent=55.0))
    labels = {"background": 0, "LA": 1, "LV": 2}
    EchoDataset(folder, DatasetDescription("Other", labels=labels), tuple(cases)).write()


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    root = tmp_path_factory.mktemp("toy")
    where = make_project(root)

    def run(*words: object) -> int:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("raw", "preprocessed", "results"):
                patch.setenv(f"echoplan_{name}", str(getattr(where, name)))
            return study(["Toy", *map(str, words), *QUICK])

    return Toy(where, run)
