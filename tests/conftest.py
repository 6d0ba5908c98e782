"""Shared by all tests: commands run as a user types them, and one small project they have worked on."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tests share the machine with each other's worker processes


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
        done = subprocess.run(
            self.command(*words), env=self.environment, capture_output=True, text=True, check=False, timeout=280
        )
        assert done.returncode == status, f"{words}\n{done.stdout}\n{done.stderr}"
        return done


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Six phantom patients, planned, preprocessed, and a small U-Net trained on all folds."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.run("echoplan_make_phantom", "-d", "Phantom", "--patients", 6, "--test_patients", 2, "--size", 96,
                "--labels", "ed_es", "-np", 0)  # fmt: skip
    project.run("echoplan_plan_and_preprocess", "-d", "Phantom", "--verify_dataset_integrity", "-tr", "UNetTrainer",
                "-np", 0)  # fmt: skip
    project.run("echoplan_train", "Phantom", "all", "-tr", "UNetTrainer", *project.quick)
    return project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project of its own, empty."""
    return Project(tmp_path)
