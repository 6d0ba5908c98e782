"""Clips a second with the engine beside the plain command, and the memory of each actor over many short clips.

python tests/benchmarks/bench_ray.py [--clips N] [--frames T] [--size PIXELS] [--many N] [--actors N] [--folder FOLDER]

Clips of speckle around a beating cavity, and a U-Net that has not been trained; it does its work, and the mask is the
cavity found by its darkness, since measuring the noise of an untrained network takes longer than any real mask. Each
run is the command as users type it, in a process of its own. "clips/s" counts from the first mask to the last, "whole"
from the start of the command to its end, with the measuring of all clips.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from echoplan.dataset import DatasetDescription
from echoplan.files import write_json
from echoplan.imageio import Clip, write_clip
from echoplan.plans import Configuration, Decision, Plan
from echoplan.training.checkpoint import plain_settings, save_checkpoint
from echoplan.training.methods import find_method

TRAINER = "BenchTrainer"
TRAINER_FILE = """
from torch import nn
from torch.nn.functional import avg_pool2d
from echoplan.training.methods.unet import UNetMethod


class Dark(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, clip):
        smooth = avg_pool2d(clip.flatten(0, 1), 9, 1, 4, count_include_pad=False).reshape(clip.shape)
        return 40 * (0.15 - smooth) + 0 * self.network(clip)


class BenchTrainer(UNetMethod):
    def build_network(self, **options):
        return Dark(super().build_network(**options))
"""
TARGET = 0.9
MINUTE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d")
MIB = 2**20


def make_model(folder: Path, size: int, features: int) -> Path:
    """A model folder with one fold of a U-Net as it is before training."""
    model = folder / "results" / "Dataset001_Bench" / f"{TRAINER}__EchoPlans__frame"
    description = DatasetDescription("Bench")
    values = {
        "size": [size, size], "frames": 1, "frame_stride": 1, "batch_size": 4, "crop": False, "protocol": "aspect",
        "normalisation": "unit", "mirror_axes": [], "rotation_degrees": 0.0, "sampling": "labelled_frames",
    }  # fmt: skip
    frame = Configuration("frame", {name: Decision(value, "for the benchmark") for name, value in values.items()})
    Plan("Dataset001_Bench", "EchoPlans", {"frame": frame}, {TRAINER: Configuration(TRAINER, {}, "frame")}).write(
        model / "plans.json"
    )
    write_json(model / "dataset.json", description.to_dict())
    source = folder / "trainer.py"
    source.write_text(TRAINER_FILE)
    method = find_method(f"{source}:{TRAINER}").with_settings({"base_features": features})
    torch.manual_seed(0)
    network = method.build_network(size=(size, size), classes=description.classes)
    save_checkpoint(
        model / "fold_0" / "checkpoint_final.pth",
        {
            "trainer": TRAINER, "trainer_source": f"{source}:{TRAINER}",
            "settings": plain_settings(method.recipe.to_dict()),
            "size": [size, size], "classes": description.classes, "network": network.state_dict(),
        },
    )  # fmt: skip
    return model


def make_clips(folder: Path, count: int, frames: int, size: int) -> Path:
    """Clips of one patient each, under numbers."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    for number in range(count):
        scale = 0.3 * (0.85 + 0.15 * np.cos(2 * np.pi * np.arange(frames) / frames))[:, None, None]
        inside = (rows / 1.5) ** 2 + columns**2 < scale**2
        speckle = rng.rayleigh(60, (frames, size, size))
        images = np.clip(np.where(inside, speckle * 0.15, speckle), 0, 255).astype(np.uint8)
        write_clip(folder / f"{number:05}.nii.gz", Clip(images, (0.5, 0.5), 40.0, "bench"))
    return folder


def predict(model: Path, clips: Path, out: Path, *more: object, threads: int, watch: bool = False) -> tuple[float, ...]:
    """Run the command: seconds of the whole, clips a second between the first mask and the last; memory if watched."""
    words = [Path(sys.executable).parent / "echoplan_predict", "-i", clips, "-o", out, "-m", model, "-np", 0,
             "--device", "cpu", "--trust_code", *more]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "RAY_USAGE_STATS_ENABLED": "0"}
    memory: dict[int, list[tuple[int, float]]] = {}
    started = time.perf_counter()
    with open(out.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(list(map(str, words)), env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            time.sleep(0.5)
            if watch and out.is_dir():
                done = len(list(out.glob("*.nii.gz")))
                for pid, size in actors():
                    memory.setdefault(pid, []).append((done, size))
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}\n{out.with_suffix('.log').read_text()}")
    whole = time.perf_counter() - started
    times = sorted(file.stat().st_mtime for file in out.glob("*.nii.gz"))
    if watch:
        print_memory(memory, len(times))
    return whole, (len(times) - 1) / (times[-1] - times[0])


def actors() -> list[tuple[int, float]]:
    """(process, MiB in memory) of each actor that predicts."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and "ray::_Worker" in (entry / "cmdline").read_text():
                pages = int((entry / "statm").read_text().split()[1])
                found.append((int(entry.name), pages * os.sysconf("SC_PAGE_SIZE") / MIB))
        except OSError:  # it has ended meanwhile
            continue
    return found


def print_memory(memory: dict[int, list[tuple[int, float]]], clips: int) -> None:
    """A line an actor: its memory before its first clip, and when a tenth, the half and all of the clips were done."""
    print(f"\nMiB of each actor over {clips} clips; the ratio is the end's to that after a tenth")
    print(f"{'actor':<10}{'start':>10}{'a tenth done':>14}{'half':>10}{'end':>10}{'ratio':>8}")
    for number, samples in enumerate(memory.values()):
        if not any(done for done, _ in samples):
            continue
        waiting = [size for done, size in samples if not done]
        sizes = [min(samples, key=lambda item: abs(item[0] - share * clips))[1] for share in (0.1, 0.5, 1.0)]
        start = max(waiting, default=samples[0][1])
        print(
            f"{number:<10}{start:>10.0f}{sizes[0]:>14.0f}{sizes[1]:>10.0f}{sizes[2]:>10.0f}{sizes[2] / sizes[0]:>8.2f}",
            flush=True,
        )


def same_files(first: Path, second: Path) -> bool:
    """Whether two runs left the same masks, evidence and reports, byte for byte."""

    def contents(out: Path) -> dict[Path, bytes]:
        # Not the record of the options, and of the pages not the minute they were made.
        files = (file for file in out.rglob("*") if file.is_file() and file.name != "prediction_args.json")
        return {file.relative_to(out): MINUTE.sub(b"", file.read_bytes()) for file in files}

    return contents(first) == contents(second)


def main() -> None:
    """Print the tables."""
    options = _parse()
    if find_spec("ray") is None:
        print("bench_ray: Ray is not installed, nothing to measure: pip install '.[ray]'")
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        model = make_model(folder, options.size, options.features)
        clips = make_clips(folder / "clips", options.clips, options.frames, options.size)
        cores = os.cpu_count() or 1
        engine = ("--engine", "ray", *(("--actors", options.actors) if options.actors else ()))
        rows = [
            (f"plain, {cores} threads", predict(model, clips, folder / "plain", threads=cores)),
            ("plain, 1 thread", predict(model, clips, folder / "one", threads=1)),
            ("engine, 1 core an actor", predict(model, clips, folder / "ray", *engine, threads=1)),
        ]
        best = max(row[1][1] for row in rows[:2])
        quickest = min(row[1][0] for row in rows[:2])
        print(f"{options.clips} clips of {options.frames} frames of {options.size} x {options.size}, {cores} cores")
        print(f"{'':<26}{'clips/s':>10}{'to plain':>10}{'whole, s':>10}{'to plain':>10}")
        for label, (whole, rate) in rows:
            print(f"{label:<26}{rate:>10.2f}{rate / best:>10.2f}{whole:>10.1f}{quickest / whole:>10.2f}")
        print(f"target: {TARGET} of the plain command's clips/s")
        print(f"the files are the same, byte for byte: {same_files(folder / 'one', folder / 'ray')} (1 thread), "
              f"{same_files(folder / 'plain', folder / 'ray')} ({cores} threads)", flush=True)  # fmt: skip
        if options.many:
            shutil.rmtree(folder / "clips")
            small = make_model(folder / "small", 64, 8)
            clips = make_clips(folder / "many", options.many, 8, 64)
            predict(small, clips, folder / "out_many", *engine, threads=1, watch=True)


def _parse() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--clips", type=int, default=60)
    made.add_argument("--frames", type=int, default=12)
    made.add_argument("--size", type=int, default=64)
    made.add_argument("--features", type=int, default=8, help="of the U-Net's first stage")
    made.add_argument("--many", type=int, default=200, help="short clips of the memory's table; 0: leave it out")
    made.add_argument("--actors", type=int, help="one a core if not given")
    made.add_argument("--folder", type=Path, help="where its files lie meanwhile")
    return made.parse_args()


if __name__ == "__main__":
    main()
