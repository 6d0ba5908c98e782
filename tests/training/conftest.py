"""A tiny preprocessed dataset: a bright, shrinking disc in dark noise, labelled at its two phases only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echoplan.dataset import DatasetDescription
from echoplan.files import write_json
from echoplan.imageio import Clip, write_mask
from echoplan.plans import Configuration, Decision, Plan
from echoplan.preprocessing.geometry import plan_geometry
from echoplan.preprocessing.store import ClipStore, StoredCase
from echoplan.training.fold import FoldSetup
from echoplan.training.methods import method_registry
from echoplan.training.metrics import TrainingLog

SIDE, FRAMES, LAST = 32, 6, 5


def make_setup(
    folder: Path, *, frames: int = 1, patients: int = 4, batch_size: int = 4, dense: bool = False
) -> FoldSetup:
    values = {
        "size": [SIDE, SIDE], "frames": frames, "frame_stride": 1, "batch_size": batch_size, "crop": False,
        "protocol": "aspect", "normalisation": "zscore_sector", "mirror_axes": ["horizontal"], "rotation_degrees": 20.0,
        "sampling": "labelled_frames" if frames == 1 else "uniform_ed_es", "learning_rate": 1e-3,
    }  # fmt: skip
    decisions = {name: Decision(value, "made for tests", kind="fixed") for name, value in values.items()}
    kind = "frame" if frames == 1 else "clip"
    preprocessed = folder / "preprocessed" / "Dataset001_Toy"
    trainers = {
        name: Configuration(name, {}, inherits_from=kind)
        for name, method in method_registry().items()
        if method.configuration == kind
    }
    made = Plan("Toy", "EchoPlans", {kind: Configuration(kind, decisions)}, trainers)
    made.write(preprocessed / "EchoPlans.json")
    plan = Plan.read(preprocessed / "EchoPlans.json").resolve("UNetTrainer", configuration=kind)
    description = DatasetDescription("Toy")
    write_json(preprocessed / "dataset.json", description.to_dict())
    store = ClipStore(preprocessed / plan.store)
    random = np.random.default_rng(0)
    cases = [f"p{number}_A4C" for number in range(patients)]
    for case in cases:
        clip, labels = toy_clip(random)
        labelled = list(range(FRAMES)) if dense else [0, LAST]
        labels[np.setdiff1d(range(FRAMES), labelled)] = 255
        geometry = plan_geometry((SIDE, SIDE), (1.0, 1.0), (0, SIDE, 0, SIDE), (SIDE, SIDE), "aspect")
        store.write(StoredCase(
            case, case[:2], view="A4C", ef_percent=50.0, ed_frame=0, es_frame=LAST, labelled_frames=tuple(labelled),
            spacing_row_mm=1.0, spacing_col_mm=1.0, frame_time_ms=40.0, native_frames=FRAMES, dataset="Toy", crop=False,
            geometry=geometry, mean=float(clip.mean()), std=float(clip.std()),
        ), clip, labels)  # fmt: skip
        write_mask(preprocessed / "gt_segmentations" / f"{case}.nii.gz", labels, like=Clip(labels, (1.0, 1.0), 40.0))
    return FoldSetup(
        fold=0, plan=plan, description=description, store=store, train=tuple(cases[:-1]), val=tuple(cases[-1:]),
        model_folder=folder / "results" / "Dataset001_Toy" / f"UNetTrainer__EchoPlans__{plan.configuration}",
        preprocessed=preprocessed,
    )  # fmt: skip


def stored_case(name: str = "a", **known: Any) -> StoredCase:
    """What a store knows of a case of the dataset Toy, of which only some matters."""
    geometry = plan_geometry((SIDE, SIDE), None, None, (SIDE, SIDE))
    defaults = {"native_frames": FRAMES, "dataset": "Toy", "crop": False, "geometry": geometry, "mean": 0.0, "std": 1.0}
    return StoredCase(name, **{**defaults, **known})


def toy_clip(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    row, column = random.uniform(13, 18, 2)
    radii = np.linspace(9, 5, FRAMES)[:, None, None]
    labels = ((rows - row) ** 2 + (columns - column) ** 2 <= radii**2).astype(np.uint8)
    clip = 40 + 120 * labels + random.normal(0, 15, labels.shape)
    return clip.clip(1, 255).astype(np.uint8), labels


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process, unlike a machine without power, loses nothing that it has written; pictures do not matter."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(TrainingLog, "draw", lambda _: None)


@pytest.fixture
def frame_setup(tmp_path: Path) -> FoldSetup:
    return make_setup(tmp_path)


@pytest.fixture
def clip_setup(tmp_path: Path) -> FoldSetup:
    return make_setup(tmp_path, frames=4, batch_size=2)
