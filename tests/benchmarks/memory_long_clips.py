"""Peak memory of echoplan_predict on a long clip beside a short one.

python tests/benchmarks/memory_long_clips.py [--clips HxW ...] [--formats .avi ...] [--features N]
    [--folds N] [--frames SHORT LONG] [--more "--save_probabilities"]

Each number is the peak of a whole command in a process of its own, report and all, on one clip of speckle around a
beating cavity. The network is a U-Net as it is before training, on a grid of at most 256 x 256.
"ratio" is the long clip's peak, without its mask's bytes, to the short clip's. No part of `make bench`: a row of 3,000
frames takes minutes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench_ray import make_model

from echoplan.imageio import Clip, write_clip

GRID = 256  # rows and columns of the network's grid at most
BEAT = 25
MIB = 2**20


def main() -> int:
    options = _parse()
    print("| clip | network's grid | features, folds | " + " | ".join(f"{n} frames" for n in options.frames), end="")
    print(" | the long mask | ratio | minutes |\n|" + " --- |" * 8)
    for words in options.clips:
        shape = tuple(int(length) for length in words.split("x"))
        for ending in options.formats:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                print(_row(Path(folder), shape, ending, options), flush=True)
    return 0


def _row(folder: Path, shape: tuple[int, int], ending: str, options: argparse.Namespace) -> str:
    grid = min(GRID, max(shape))
    model = make_model(folder, grid, options.features)
    for fold in range(1, options.folds):
        shutil.copytree(model / "fold_0", model / f"fold_{fold}")
    started = time.perf_counter()
    peaks = []
    for count in options.frames:
        clips = folder / f"clips_{count}"
        write_clip(clips / f"clip{ending}", Clip(_frames(count, shape), (0.5, 0.5), 40.0, "bench"))
        peaks.append(_peak(model, clips, folder / f"out_{count}", shlex.split(options.more)))
        shutil.rmtree(clips)
    mask = options.frames[-1] * shape[0] * shape[1]
    ratio = (peaks[-1] - mask) / peaks[0]
    row = (f"{shape[0]} x {shape[1]} {ending}", f"{grid} x {grid}", f"{options.features}, {options.folds}")
    row += (*(f"{peak / MIB:.0f} MiB" for peak in peaks), f"{mask / MIB:.0f} MiB", f"{ratio:.2f}")
    return "| " + " | ".join((*row, f"{(time.perf_counter() - started) / 60:.1f}")) + " |"


def _frames(count: int, shape: tuple[int, int]) -> np.ndarray:
    """(count, *shape) uint8: speckle, darker inside an ellipse that beats."""
    rng = np.random.default_rng(0)
    speckle = rng.rayleigh(60, (BEAT, *shape)).clip(0, 255).astype(np.uint8)
    rows, columns = (np.mgrid[: shape[0], : shape[1]] - np.array(shape)[:, None, None] / 2) / min(shape)
    beat = [
        np.where((rows / 1.5) ** 2 + columns**2 < (0.3 * (0.85 + 0.15 * np.cos(2 * np.pi * t / BEAT))) ** 2,
                 speckle[t] // 7, speckle[t])
        for t in range(BEAT)
    ]  # fmt: skip
    return np.stack(beat)[np.arange(count) % BEAT]


def _peak(model: Path, clips: Path, out: Path, more: list[str]) -> int:
    """Bytes that the command had in memory at most."""
    words = [str(Path(sys.executable).parent / "echoplan_predict"), "-i", str(clips), "-o", str(out), "-m", str(model),
             "-np", "0", "--device", "cpu", "--trust_code", *more]  # fmt: skip
    log = out.with_suffix(".log")
    with open(log, "w") as stream:
        process = subprocess.Popen(words, stdout=stream, stderr=stream)
        _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{shlex.join(words)} failed:\n{log.read_text()}")
    return used.ru_maxrss * 1024


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", nargs="+", default=["112x112", "256x256", "600x800"], metavar="HxW")
    parser.add_argument("--formats", nargs="+", default=[".avi"], help="the clip file's endings")
    parser.add_argument("--features", type=int, default=8, help="of the U-Net's first stage; the recipe has 32")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--frames", type=int, nargs=2, default=[300, 3000], metavar=("SHORT", "LONG"))
    parser.add_argument("--more", default="", help="more words for echoplan_predict")
    parser.add_argument("--folder", type=Path, help="where temporary files go; the system's folder if left out")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
