"""echoplan_doctor: what EchoPlan sees on this machine, and what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from echoplan import __version__
from echoplan.device import choose_device
from echoplan.extras import how_to_install
from echoplan.paths import Folders

_LIBRARIES = (
    "torch", "torchvision", "SimpleITK", "batchgenerators", "acvl-utils", "numpy", "pandas", "scipy",
    "scikit-image", "tqdm", "filelock", "matplotlib", "jinja2", "markupsafe", "pillow", "pydicom", "pylibjpeg",
    "pylibjpeg-openjpeg", "pyjpegls", "blosc2", "av", "sam2", "segment-anything",
)  # fmt: skip
# Library: (extra, what needs it)
_OPTIONAL = {
    "highdicom": ("dicom", "echoplan_predict --dicom"),
    "ray": ("ray", "--engine ray"),
    "onnxruntime": ("onnx", "--backend onnx"),
    "openvino": ("openvino", "--backend openvino"),
    "pylibjpeg-libjpeg": ("gpl", "lossless JPEG of 16 bits in DICOM"),
}
_LOW_DISK_GB = 10


def doctor(_: argparse.Namespace) -> int:
    """echoplan_doctor"""
    lines, problems = diagnose(os.environ)
    print("\n".join(lines))
    for problem in problems:
        print(f"problem: {problem}")
    print("nothing is missing" if not problems else f"{len(problems)} thing(s) to look at")
    return 1 if problems else 0


def diagnose(environment: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """What is here, line by line, and what is missing or short, each with what to do."""
    lines = [f"echoplan {__version__}, Python {platform.python_version()}, {platform.platform()}", ""]
    problems: list[str] = []
    folders = Folders.from_environment(environment)
    for name in ("raw", "preprocessed", "results"):
        path: Path = getattr(folders, name)
        source = f"$echoplan_{name}" if environment.get(f"echoplan_{name}") else (
            "$ECHOPLAN_ROOT" if environment.get("ECHOPLAN_ROOT") else "default"
        )  # fmt: skip
        home = _nearest_existing(path)
        free = shutil.disk_usage(home).free / 1e9
        datasets = len(list(path.glob("Dataset*"))) if path.is_dir() else 0
        lines.append(f"{name:13} {path} ({source}), {datasets} dataset(s), {free:.0f} GB free")
        if not home.is_dir():
            problems.append(f"{home} is a file, not a folder; set echoplan_{name} or ECHOPLAN_ROOT to a folder")
        elif not os.access(home, os.W_OK):
            problems.append(f"{home} cannot be written to; set echoplan_{name} or ECHOPLAN_ROOT to a folder of yours")
        if free < _LOW_DISK_GB:
            problems.append(f"only {free:.1f} GB are free for {path}")
    lines += ["", *_device_lines(), ""]
    for library in _LIBRARIES:
        try:
            lines.append(f"{library:18} {importlib.metadata.version(library)}")
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"the package {library} is not installed; run: pip install {library}")
    for library, (extra, user) in _OPTIONAL.items():
        try:
            lines.append(f"{library:18} {importlib.metadata.version(library)} (for {user})")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{library:18} not installed; only {user} needs it; {how_to_install(extra)}")
    return lines, problems


def _device_lines() -> list[str]:
    device = choose_device("auto")
    lines = [f"device        {device.type} (--device auto takes it)"]
    if device.type == "cuda":
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            lines.append(f"              {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB")
    else:
        lines.append(f"              no CUDA GPU found: training runs on {device.type}, {os.cpu_count()} cores")
    return lines


def _nearest_existing(path: Path) -> Path:
    return next(candidate for candidate in (path, *path.absolute().parents) if candidate.exists())
