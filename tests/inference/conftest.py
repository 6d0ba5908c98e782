"""Tiny model folders: a network that calls bright pixels the ventricle, and clips with a beating bright ellipse."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from echoplan.dataset import DatasetDescription
from echoplan.files import write_json
from echoplan.imageio import Clip, write_clip, write_mask
from echoplan.paths import Folders
from echoplan.plans import Configuration, Decision, Plan
from echoplan.preprocessing import (
    ClipStore,
    Geometry,
    StoredCase,
    normalise,
    preprocess_clip,
    sector_statistics,
)
from echoplan.training.checkpoint import plain_settings, save_checkpoint
from echoplan.training.methods import find_method
from echoplan.training.recipe import Recipe

TRAINER_FILE = """
import torch
from torch import nn
from echoplan.training.recipe import MethodRequirements
from echoplan.training.methods import Method


class Bright(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(0.5))
        self.classes = classes

    def forward(self, clip):
        logits = 40 * (clip - self.threshold)
        if self.classes == 1:
            return logits
        return torch.cat([torch.zeros_like(logits), logits, *[logits - 1000] * (self.classes - 2)], dim=2)


class BrightTrainer(Method):
    configuration = "frame"
    requirements = MethodRequirements(batch_size=1, learning_rate=1e-3)

    def build_network(self, *, size, classes, pretrained=False):
        return Bright(classes)

    def loss(self, output, batch, **_):
        return output.logits.mean()


class DimTrainer(BrightTrainer):
    pass
"""


@dataclass(frozen=True)
class Heart:
    """A clip with a beating bright ellipse, and where the ellipse is."""

    clip: Clip
    mask: np.ndarray
    ed_frame: int
    es_frame: int


def make_heart(
    *, frames: int = 12, shape: tuple[int, int] = (64, 80), beats: float = 1.0, spacing_mm=(1.0, 1.0), dimmer: int = 0
) -> Heart:
    """Bright (200) in a dark (40) image; largest in frame 0, smallest half a beat later."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    masks = []
    for phase in np.arange(frames) / frames * beats:
        scale = 0.85 + 0.15 * np.cos(2 * np.pi * phase)
        ellipse = ((rows - shape[0] / 2) / (22 * scale)) ** 2 + ((columns - shape[1] / 2) / (12 * scale)) ** 2 < 1
        above_valve = rows < shape[0] / 2 + 16 * scale
        masks.append(ellipse & above_valve)
    mask = np.stack(masks).astype(np.uint8)
    images = np.where(mask > 0, 200 - dimmer, 40).astype(np.uint8)
    return Heart(Clip(images, spacing_mm, 1000 / 12, "phantom"), mask, 0, int(frames / beats / 2))


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Raw, preprocessed and results in a temporary folder."""
    return Folders(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """`make_model(results, trainer="BrightTrainer", folds=(0, 1), threshold=0.5, ...)` -> a model folder."""
    source = tmp_path / "trainers.py"
    source.write_text(TRAINER_FILE)

    def make(
        results: Path,
        *,
        dataset: str = "Dataset001_Phantom",
        trainer: str = "BrightTrainer",
        plans_name: str = "EchoPlans",
        folds: Sequence[int] = (0, 1),
        thresholds: Sequence[float] = (0.5, 0.5),
        size: tuple[int, int] = (64, 64),
        frames: int = 1,
        labels: dict[str, int] | None = None,
    ) -> Path:
        model = results / dataset / f"{trainer}__{plans_name}__frame"
        description = DatasetDescription("Phantom", labels or {"background": 0, "LV": 1})
        values = {
            "size": list(size), "frames": frames, "frame_stride": 2, "batch_size": 4, "crop": False,
            "protocol": "aspect", "normalisation": "unit", "mirror_axes": ["horizontal"], "rotation_degrees": 15.0,
            "sampling": "labelled_frames",
        }  # fmt: skip
        frame = Configuration("frame", {name: Decision(value, "for the test") for name, value in values.items()})
        plan = Plan(dataset, plans_name, {"frame": frame}, {trainer: Configuration(trainer, {}, "frame")})
        plan.write(model / "plans.json")
        write_json(model / "dataset.json", description.to_dict())
        for fold, threshold in zip(folds, thresholds, strict=False):
            save_checkpoint(
                model / f"fold_{fold}" / "checkpoint_final.pth",
                {
                    "trainer": trainer,
                    "trainer_source": f"{source}:{trainer}",
                    "settings": plain_settings(Recipe().to_dict()),
                    "size": list(size),
                    "classes": description.classes,
                    "network": {"threshold": torch.tensor(threshold)},
                },
            )
        return model

    return make


@pytest.fixture
def make_crossval(folders: Folders, make_model: Callable[..., Path]) -> Callable[..., Path]:
    """`make_crossval(trainer, spoil=...)`: a trainer of two folds with validation predictions of six patients.

    `spoil(case, probabilities)` makes the predictions worse.
    """

    def make(trainer: str = "BrightTrainer", *, spoil=None, folds=(0, 1), size=(64, 64)) -> Path:
        model = make_model(folders.results, trainer=trainer, folds=folds, size=size, thresholds=(0.5, 0.5))
        preprocessed = folders.preprocessed / "Dataset001_Phantom"
        cases = [f"patient{i}_A4C" for i in range(6)]
        write_json(
            preprocessed / "splits_final.json",
            [{"train": cases[3:], "val": cases[:3]}, {"train": cases[:3], "val": cases[3:]}],
        )
        store = ClipStore(preprocessed / f"EchoPlans_{size[0]}x{size[1]}")
        for i, case in enumerate(cases):
            heart = make_heart(dimmer=i)
            truth = np.full_like(heart.mask, 255)
            for frame in (heart.ed_frame, heart.es_frame):
                truth[frame] = heart.mask[frame]
            write_mask(preprocessed / "gt_segmentations" / f"{case}.nii.gz", truth, like=heart.clip)
            frames, geometry = preprocess_clip(heart.clip, size=size)
            mean, std = sector_statistics(frames)
            stored = StoredCase(
                case, case[:8], view="A4C", ef_percent=50.0, ed_frame=0, es_frame=heart.es_frame,
                labelled_frames=(0, heart.es_frame), frame_time_ms=heart.clip.frame_time_ms, native_frames=12,
                spacing_row_mm=1.0, spacing_col_mm=1.0, dataset="Phantom", crop=False, geometry=geometry,
                mean=mean, std=std,
            )  # fmt: skip
            store.write(stored, frames, None)
            fold = 0 if i < 3 else 1
            if fold in folds:
                values = 1 / (1 + np.exp(-40 * (normalise(frames, mean, std, "unit") - 0.5)))[None]
                save_validation(model / f"fold_{fold}" / "validation", case, values, geometry, heart.clip, spoil)
        return model

    return make


def save_validation(folder: Path, case: str, values: np.ndarray, geometry: Geometry, clip: Clip, spoil) -> None:
    """What a fold's validation leaves, as its format says."""
    if spoil is not None:
        values = spoil(case, values.copy())
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        folder / f"{case}.npz",
        probabilities=values.astype(np.float16),
        geometry=np.array(json.dumps(geometry.to_dict())),
    )
    mask = (geometry.to_native(values.astype(np.float32))[0] >= 0.5).astype(np.uint8)
    write_mask(folder / f"{case}.nii.gz", mask, like=clip)


@pytest.fixture
def heart() -> Heart:
    """One clip of one beat."""
    return make_heart()


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder with four clips of two patients in several formats, and one broken file."""
    folder = tmp_path / "clips"
    for name, spacing in (("p1_A4C.nii.gz", (0.5, 0.5)), ("p1_2CH.nii.gz", (0.5, 0.5)), ("p2_A4C.avi", None)):
        write_clip(folder / name, make_heart(spacing_mm=spacing).clip)
    write_clip(folder / "p3_pictures", make_heart(spacing_mm=None).clip)
    (folder / "p4_A4C.nii.gz").write_bytes(b"\x1f\x8bthis is no NIfTI file")
    (folder / "notes.txt").write_text("not a clip")
    return folder


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], Folders]:
    """`at(root)` makes a folder the root of all commands, which tmp_path is at first."""

    def go(root: Path) -> Folders:
        for name in ("raw", "preprocessed", "results"):
            monkeypatch.delenv(f"echoplan_{name}", raising=False)
        monkeypatch.setenv("ECHOPLAN_ROOT", str(root))
        return Folders.from_environment()

    go(tmp_path)
    return go


@pytest.fixture
def save_unet() -> Callable[..., None]:
    """`save_unet(file, seed=0, ...)` writes a checkpoint of a tiny UNetTrainer, with whatever else it should hold."""

    def save(file: Path, *, seed: int = 0, **more: object) -> None:
        torch.manual_seed(seed)
        method = find_method("UNetTrainer").with_settings({"base_features": 4})
        state = {
            "version": "0.1.0", "trainer": "UNetTrainer", "trainer_source": "UNetTrainer", "size": [64, 64],
            "classes": 1, "epochs": 2, "seed": 0, "dataset": "Phantom",
            "settings": plain_settings(method.recipe.to_dict()),
            "started_from": {"kind": "random weights", "file": None},
            "network": method.build_network(size=(64, 64), classes=1).state_dict(),
        }  # fmt: skip
        save_checkpoint(file, state | more)

    return save


@pytest.fixture
def unet(folders: Folders, make_model: Callable[..., Path], save_unet: Callable[..., None]) -> Callable[..., Path]:
    """Like `make_model`, of one of the project's own trainers, with the best checkpoints too."""

    def make(results: Path | None = None, *, folds: Sequence[int] = (0, 1), **more: object) -> Path:
        model = make_model(results or folders.results, trainer="UNetTrainer", folds=folds, **more)
        for fold in folds:
            for number, name in enumerate(("final", "best")):
                save_unet(model / f"fold_{fold}" / f"checkpoint_{name}.pth", seed=fold + 10 * number)
        return model

    return make
