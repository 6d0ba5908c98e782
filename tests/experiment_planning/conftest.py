import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from echoplan.dataset import Case, DatasetDescription, EchoDataset
from echoplan.experiment_planning import MemoryModel, plan_experiment
from echoplan.experiment_planning.fingerprint import summarise
from echoplan.imageio import write_clip, write_mask
from echoplan.imageio.clip import Clip
from echoplan.training.methods import Method
from echoplan.training.recipe import MethodRequirements, Recipe

HERE = Path(__file__).parent


@pytest.fixture
def tiny_dataset(tmp_path):
    """Writes a raw dataset of small clips with a bright fan and an LV that shrinks from frame 0 to the last."""

    def make(patients=3, frames=5, shape=(64, 80), spacing=(0.5, 0.4), labelled=(0, 4), views=("A2C", "A4C")):
        folder = tmp_path / "raw" / "Dataset001_TINY"
        cases = []
        for number in range(patients):
            for view in views:
                name = f"p{number}_{view}"
                clip, mask = tiny_clip(frames, shape, spacing, seed=number)
                unlabelled = np.setdiff1d(np.arange(frames), labelled)
                mask[unlabelled] = 255
                write_clip(folder / "imagesTr" / f"{name}.nii.gz", clip)
                write_mask(folder / "labelsTr" / f"{name}.nii.gz", mask, like=clip)
                cases.append(
                    Case(
                        case=name,
                        patient=f"p{number}",
                        view=view,
                        image=f"imagesTr/{name}.nii.gz",
                        label=f"labelsTr/{name}.nii.gz",
                        ed_frame=0,
                        es_frame=frames - 1,
                        ef_percent=40.0 + 5 * number,
                    )
                )
        dataset = EchoDataset(folder, DatasetDescription("TINY"), tuple(cases))
        dataset.write()
        return dataset

    return make


def tiny_clip(frames, shape, spacing, *, seed):
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    images = np.zeros((frames, *shape), np.uint8)
    masks = np.zeros((frames, *shape), np.uint8)
    fan = (rows > 8) & (rows < shape[0] - 8) & (np.abs(columns - shape[1] / 2) < 0.45 * rows)
    for t in range(frames):
        images[t][fan] = rng.integers(60, 200, int(fan.sum()))
        radius = 12 - 6 * t / max(1, frames - 1)
        masks[t] = np.hypot(rows - 0.55 * shape[0], columns - 0.5 * shape[1]) < radius
    return Clip(images, spacing, 20.0), masks


@pytest.fixture
def change_case():
    """The dataset with some fields of one case changed, on disk too."""

    def change(dataset, name, **changes):
        cases = tuple(replace(case, **changes) if case.case == name else case for case in dataset.cases)
        changed = replace(dataset, cases=cases)
        changed.write()
        return changed

    return change


@dataclass(frozen=True)
class FakeRecipe(Recipe):
    optimiser: str = "sgd"


class FakeFrameTrainer(Method[Recipe]):
    """A frame network without a paper's size, as nnU-Net's recipe is."""

    configuration = "frame"
    requirements = MethodRequirements(batch_size=32, learning_rate=1e-2)
    recipe_class = FakeRecipe

    def build_network(self, *, size, classes, pretrained=False):
        return _Convolutions(classes)

    def loss(self, output, batch, **_):
        return output.logits.sum()


class FakeClipTrainer(FakeFrameTrainer):
    """A clip network of a paper: 320 x 320, ten frames."""

    configuration = "clip"
    requirements = MethodRequirements(batch_size=8, learning_rate=1e-3, frames=10, paper_size=320, square=True)
    recipe_class = Recipe


class FakeSmallTrainer(FakeFrameTrainer):
    """A frame network of a paper that works at 112 and takes one structure only."""

    requirements = MethodRequirements(
        batch_size=20, learning_rate=1e-5, paper_size=112, square=True, size_multiple=16, multi_structure=False
    )


class _Convolutions(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.second = nn.Conv2d(8, classes, 1, bias=False)

    def forward(self, clip):
        batch, frames = clip.shape[:2]
        return self.second(torch.relu(self.first(clip.flatten(0, 1)))).unflatten(0, (batch, frames))


@pytest.fixture
def trainers():
    """Three made-up trainers by name."""
    return {kind.__name__: kind() for kind in (FakeFrameTrainer, FakeClipTrainer, FakeSmallTrainer)}


@dataclass
class FakeMemory:
    """Memory in proportion to the pixels of a sample; remembers what it was asked."""

    gb_per_megapixel: float = 1.0
    asked: list = field(default_factory=list)

    def __call__(self, method, *, size, frames, classes):
        self.asked.append((method.name, size, frames))
        return MemoryModel(0.5, self.gb_per_megapixel * size[0] * size[1] * frames / 1e6)


@pytest.fixture
def fake_memory():
    """Makes memory models that are the same on every machine."""
    return FakeMemory


def load(name):
    """One of the made-up fingerprints of fingerprints/, with its summary, and its dataset's labels."""
    content = json.loads((HERE / "fingerprints" / f"{name}.json").read_text())
    fingerprint = {"dataset": content["dataset"], "cases": content["cases"], "summary": summarise(content["cases"])}
    return fingerprint, DatasetDescription(name, labels=content["labels"])


@pytest.fixture
def plan_of(trainers, fake_memory):
    """Plans one of the made-up fingerprints."""

    def make(name, **options):
        fingerprint, description = load(name)
        options = {"trainers": trainers, "gpu_memory_gb": 8.0, "measure": fake_memory(), "check": None} | options
        return plan_experiment(fingerprint, description, **options)

    return make
