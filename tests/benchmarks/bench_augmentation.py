"""Clips a second that the ultrasound transforms change, beside batchgenerators' intensity transforms.

python tests/benchmarks/bench_augmentation.py [--size PIXELS] [--frames T] [--repeats N]

One thread. Seconds of the processor, since other programs on the machine do not count there; seconds of the clock
beside them. Whatever acts only now and then in a training acts on every clip here, but for the lines "as trained".
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from echoplan.datasets.phantom import PhantomSettings, make_patient
from echoplan.training.augmentation import THE_SIX, ULTRASOUND, Augmentation, TimingTransform, build_augmentation

TARGET = 200  # clips a second that the six should change in sum


def phantom(size: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """A clip and its labels, (T, H, W) uint8; the last frames are unlabelled in no clip: all labels must move."""
    settings = PhantomSettings(size=(size, size), frames=frames, views=("A4C",))
    (clip,) = make_patient(np.random.default_rng(0), settings).clips
    return clip.frames, (clip.labels == 1).astype(np.uint8)


def always(names: tuple[str, ...]) -> Augmentation:
    """These transforms on every clip."""
    return Augmentation(None, (), [replace(ULTRASOUND[name](), probability=1.0) for name in names])


def strong_intensity() -> list[Augmentation]:
    """nnU-Net's six intensity transforms, each by itself on every clip."""
    made = build_augmentation("strong", rotation_degrees=0, mirror=False).intensity.transforms
    for transform in made:
        transform.p_per_sample = 1.0
    return [Augmentation(None, [transform]) for transform in made]


def measure(works: dict[str, Callable[[int], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median seconds (of the processor, of the clock) of each, in turns, so that a machine's moods meet all alike."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for turn in range(repeats + 2):
        for name, work in works.items():
            start = time.process_time(), time.perf_counter()
            work(turn)
            taken[name].append((time.process_time() - start[0], time.perf_counter() - start[1]))
    return {name: tuple(np.median(own[2:], axis=0).tolist()) for name, own in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    frames, labels = phantom(options.size, options.frames)
    normal = (frames.astype(np.float32) - frames.mean()) / frames.std()
    apex = (0.0, (options.size - 1) / 2)

    def moving(made: Augmentation) -> Callable[[int], object]:
        return lambda turn: made.move(frames, labels, apex=apex, classes=2, seed=(0, turn))

    def colouring(made: Augmentation) -> Callable[[int], object]:
        return lambda turn: made.colour(normal.copy(), seed=(0, turn))

    space = tuple(name for name in ULTRASOUND if not isinstance(ULTRASOUND[name](), TimingTransform))
    peers = {type(made.intensity.transforms[0]).__name__: made for made in strong_intensity()}
    trained = {kind: build_augmentation(kind, rotation_degrees=15, mirror=True) for kind in ("ultrasound", "strong")}
    works = {
        **{name: moving(always((name,))) for name in space},
        "the six together": moving(always(tuple(name for name in ULTRASOUND if name in THE_SIX))),
        "ultrasound, as trained": moving(trained["ultrasound"]),
        **{name: colouring(made) for name, made in peers.items()},
        "strong, as trained": lambda turn: (moving(trained["strong"])(turn), colouring(trained["strong"])(turn)),
    }
    found = measure(works, options.repeats)
    peer = sum(found[name][0] for name in peers)
    found["nnU-Net's six intensities, in sum"] = (peer, sum(found[name][1] for name in peers))
    print(f"clips of {options.frames} x {options.size} x {options.size}, one thread, medians of {options.repeats}; "
          f"target {TARGET} clips/s for the six together\n")  # fmt: skip
    print(f"{'':<36}{'CPU ms':>8}{'clips/s':>9}{'clock ms':>10}{'clips/s':>9}{'of the peers':>14}")
    for name, (processor, clock) in found.items():
        print(f"{name:<36}{1e3 * processor:>8.2f}{1 / processor:>9.0f}{1e3 * clock:>10.2f}{1 / clock:>9.0f}"
              f"{100 * processor / peer:>13.0f}%")  # fmt: skip


if __name__ == "__main__":
    main()
