from dataclasses import replace

import numpy as np
import pytest

from echoplan.dataset import Case, DatasetDescription, EchoDataset
from echoplan.imageio import write_clip, write_mask
from echoplan.imageio.clip import Clip
from echoplan.paths import Folders
from echoplan.plans import Configuration, Decision, Plan


@pytest.fixture
def ventricle_mask():
    """A left ventricle seen from the apex: half an ellipse, cut by a mitral plane, slightly turned; uint8 (H, W)."""

    def make(shape=(480, 640), centre=(0.45, 0.5), half_axes=(0.28, 0.12), turn_degrees=12.0):
        rows, columns = np.mgrid[: shape[0], : shape[1]]
        y, x = rows + 0.5 - centre[0] * shape[0], columns + 0.5 - centre[1] * shape[1]
        turn = np.deg2rad(turn_degrees)
        along, across = y * np.cos(turn) + x * np.sin(turn), x * np.cos(turn) - y * np.sin(turn)
        length, width = half_axes[0] * shape[0], half_axes[1] * shape[1]
        return (((along / length) ** 2 + (across / width) ** 2 < 1) & (along < 0.6 * length)).astype(np.uint8)

    return make


@pytest.fixture
def project(tmp_path):
    """The three folders, empty."""
    return Folders(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")


@pytest.fixture
def fan_dataset(project, sector_scene, ventricle_mask):
    """Three clips: two with labels at ED and ES (one row has them the wrong way round), one without."""
    folder = project.raw / "Dataset007_FAN"
    cases = []
    for number in range(3):
        frames, _ = sector_scene(frames=4, shape=(150, 200), furniture=False, seed=number)
        clip = Clip(frames, (0.8, 0.6), 25.0)
        write_clip(folder / "imagesTr" / f"c{number}.nii.gz", clip)
        mask = np.full(frames.shape, 255, np.uint8)
        mask[0] = ventricle_mask((150, 200), half_axes=(0.22, 0.10))
        mask[3] = ventricle_mask((150, 200), half_axes=(0.16, 0.06))
        if number < 2:
            write_mask(folder / "labelsTr" / f"c{number}.nii.gz", mask, like=clip)
        cases.append(Case(f"c{number}", f"p{number}", f"imagesTr/c{number}.nii.gz", ed_frame=0, es_frame=3, view="A4C"))
    cases[0] = replace(cases[0], label="labelsTr/c0.nii.gz", ef_percent=55.0)
    cases[1] = replace(cases[1], label="labelsTr/c1.nii.gz", ed_frame=3, es_frame=0)
    dataset = EchoDataset(folder, DatasetDescription("FAN"), tuple(cases))
    dataset.write()
    return dataset


@pytest.fixture
def plan_with():
    """Makes a plan whose trainers have the given sizes."""

    def make(crop=False, protocol="aspect", **sizes):
        decisions = {"crop": Decision(crop, "test"), "protocol": Decision(protocol, "test")}
        trainers = {
            name: Configuration(name, {"size": Decision(list(size), "test")}, inherits_from="frame")
            for name, size in sizes.items()
        }
        return Plan("Dataset007_FAN", "EchoPlans", {"frame": Configuration("frame", decisions)}, trainers)

    return make
