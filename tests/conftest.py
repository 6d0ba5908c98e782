"""Shared by all tests: commands run as a user types them, and one small project they have worked on."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from echoplan import scripts
from echoplan.networks.sam.settings import VARIANTS, Variant

torch.set_num_threads(1)  # tests share the machine with each other's worker processes
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell starts what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)


# From the longest on. They begin first, so that no worker is left with one of them when the others have ended.
LONGEST = (
    "test_end_to_end.py", "test_every_trainer.py", "test_nothing_lost.py", "test_ray_engine.py", "test_reproduce.py",
    "test_gpu_sizes.py", "test_e3sam2_network.py", "test_memory.py", "test_echoforge.py", "test_sam2_weights.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@dataclass(frozen=True)
class Project:
    """A root folder and the commands that work in it."""

    root: Path
    quick: tuple[str, ...] = (
        "--epochs", "2", "--set", "iterations_per_epoch=12", "--set", "batch_size=4", "--set", "base_features=8",
        "--set", "optimiser=adamw", "--set", "learning_rate=0.003", "-np", "0",
    )  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("echoplan_")}
        return {**kept, "ECHOPLAN_ROOT": str(self.root), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}

    @property
    def raw(self) -> Path:
        return self.root / "raw" / "Dataset001_Phantom"

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed" / "Dataset001_Phantom"

    @property
    def results(self) -> Path:
        return self.root / "results" / "Dataset001_Phantom"

    def command(self, *words: object) -> list[str]:
        """The console script as installed beside this Python."""
        name, *arguments = map(str, words)
        return [str(Path(sys.executable).parent / name), *arguments]

    def run(self, *words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        """A command, in this process: another one would import PyTorch for seconds before it began."""
        name, *arguments = map(str, words)
        main = getattr(scripts, name.removeprefix("echoplan_"))
        out, told = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(told):
            for variable in os.environ.keys() - self.environment.keys():
                patch.delenv(variable)
            for variable, value in self.environment.items():
                patch.setenv(variable, value)
            root, terminate = logging.getLogger(), signal.getsignal(signal.SIGTERM)
            patch.setattr(root, "handlers", [])  # so that it shows its log as it does to users
            level = root.level
            try:
                ended = main(arguments)
            except SystemExit as stopped:
                ended = stopped.code
            finally:
                root.setLevel(level)
                signal.signal(signal.SIGTERM, terminate)
        assert ended == status, f"{words}\n{out.getvalue()}\n{told.getvalue()}"
        return subprocess.CompletedProcess(list(map(str, words)), ended, out.getvalue(), told.getvalue())

    def run_installed(self, *words: object) -> str:
        """What a console script prints that is started as users start it."""
        return subprocess.run(
            self.command(*words), env=self.environment, stdout=subprocess.PIPE, text=True, check=True, timeout=900
        ).stdout


@pytest.fixture
def tiny_sam(monkeypatch: pytest.MonkeyPatch) -> None:
    """SAM's image encoder with 2 blocks of 32 channels instead of 12 of 768; all other parts as they are."""
    monkeypatch.setitem(VARIANTS, "vit_b", Variant(width=32, depth=2, heads=2, global_blocks=(1,)))


@pytest.fixture
def slim_networks(tiny_sam: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All methods' networks with every kind of module, but fewer channels and blocks where most of the weights are."""
    from . import slim  # imports torchvision, which most tests need not wait for

    slim.make_networks_slim(monkeypatch)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Six phantom patients, planned, preprocessed, and a small U-Net trained on all folds.

    Of several test processes that run side by side one makes it, and the others take copies.
    """
    here = tmp_path_factory.getbasetemp()
    made = (here.parent if "PYTEST_XDIST_WORKER" in os.environ else here) / "trained"
    with open(made.with_name("trained.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            _train(Project(made.with_name("training"))).root.rename(made)
    return Project(shutil.copytree(made, tmp_path_factory.mktemp("project") / "root"))


def _train(project: Project) -> Project:
    project.run("echoplan_make_phantom", "-d", "Phantom", "--patients", 6, "--test_patients", 2, "--size", 64,
                "--labels", "ed_es", "-np", 0)  # fmt: skip
    project.run("echoplan_plan_and_preprocess", "-d", "Phantom", "--verify_dataset_integrity", "-tr", "UNetTrainer",
                "-np", 0)  # fmt: skip
    project.run("echoplan_train", "Phantom", "all", "-tr", "UNetTrainer", *project.quick)
    return project


TOY = {"--patients": 3, "--test_patients": 1, "--size": 64, "--epochs": 1, "iterations_per_epoch": 2, "batch_size": 2,
       "base_features": 4}  # fmt: skip


@pytest.fixture(scope="session")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The commands of docs/tutorial.md, word for word but for the numbers in `TOY`, and without worker processes.

    What each of them printed is in said/<number>.txt, the command in its first line.
    """
    page = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text(encoding="utf-8")
    project = Project(tmp_path_factory.mktemp("tutorial"))
    (project.root / "said").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        for number, line in enumerate(re.findall(r"^    (echoplan_(?:.*\\\n)*.*)$", page, re.M)):
            words = shlex.split(line.replace("\\\n", "").replace("$ECHOPLAN_ROOT", str(project.root)))
            done = project.run(*_toy(words), *(() if words[0] in WITHOUT_WORKERS else ("-np", 0)))
            (project.root / "said" / f"{number}.txt").write_text(f"{line}\n{done.stdout}\n{done.stderr}")
    return project


WITHOUT_WORKERS = ("echoplan_compare", "echoplan_doctor")


def _toy(words: list[str]) -> list[str]:
    """A command line at toy size."""
    made = [str(TOY.get(before, word)) for before, word in zip(["", *words], words, strict=False)]
    return [
        re.sub(r"^(\w+)=.*", lambda found: f"{found[1]}={TOY[found[1]]}" if found[1] in TOY else found[0], word)
        for word in made
    ]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project of its own, empty."""
    return Project(tmp_path)


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[None]:
    """This process is connected to a Ray cluster of two nodes with a CPU each, on this machine alone."""
    ray = pytest.importorskip("ray", reason="needs the extra: pip install '.[ray]'")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    try:
        cluster.add_node(**small)
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="session")
def sector_scene():
    """A fan of speckle, if asked with what scanners draw around it; gives the frames and the fan's box.

    Lengths of the fan are shares of the frame's height (the apex's column of its width), angles are degrees.
    """

    def make(frames=8, shape=(600, 800), furniture=True, background=0, seed=0, *, apex=(0.08, 0.5), near=None,
             depth=0.75, half_angle=38, moving=True, gain=1.0):  # fmt: skip
        rng = np.random.default_rng(seed)
        height, width = shape
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        top, middle = apex[0] * height, apex[1] * width
        radius = np.hypot(rows - top, columns - middle)
        angle = np.arctan2(columns - middle, rows - top)
        first = 5 if near is None else near * height
        fan = (radius < depth * height) & (np.abs(angle) < np.deg2rad(half_angle)) & (radius > first)
        cavity = ((rows - 0.4 * height) / (0.17 * height)) ** 2 + ((columns - middle) / (0.09 * width)) ** 2 < 1
        clip = np.full((frames, height, width), background, np.float32)
        speckle = None
        for t in range(frames):
            if moving or speckle is None:
                speckle = gain * ndimage.gaussian_filter(rng.rayleigh(60, shape).astype(np.float32), 1.2)
            clip[t][fan] = background + 10 * gain + speckle[fan]
            clip[t][cavity & fan] = background + speckle[cavity & fan] * 0.08
            if furniture:
                _draw_furniture(clip[t], t)
        box_rows, box_columns = np.flatnonzero(fan.any(1)), np.flatnonzero(fan.any(0))
        box = (box_rows[0], box_rows[-1] + 1, box_columns[0], box_columns[-1] + 1)
        return np.clip(clip, 0, 255).astype(np.uint8), tuple(int(n) for n in box)

    return make


def _draw_furniture(frame: np.ndarray, t: int) -> None:
    """Letters, a grey bar, a ruler and an ECG trace, into a frame (H, W)."""
    height, width = frame.shape
    for line in range(4):  # text: strokes of 2 pixels in blocks of letters
        for letter in range(10):
            top, left = 10 + 18 * line, 10 + 10 * letter
            frame[top : top + 11, left : left + 2] = 230
            frame[top : top + 2, left : left + 6] = 230
            frame[top + 6 : top + 8, left : left + 5] = 230
    bar = np.linspace(250, 20, height // 3)[:, None]
    frame[50 : 50 + height // 3, width - 25 : width - 13] = bar  # grey bar
    frame[height // 10 : height * 9 // 10 : height // 12, width - 45 : width - 37] = 180  # depth
    x = np.arange(width)
    beat = (x % 150) < 8
    y = (height - 25 - 30 * beat + 3 * np.sin(x / 9)).astype(int)
    seen = x < width * (t + 1) / 10  # the ECG trace grows as the sweep goes on
    for thickness in range(2):
        frame[y[seen] + thickness, x[seen]] = 240
