"""Speed of prediction beside peers, and the memory that long clips need.

python tests/benchmarks/bench_inference.py [--frames T] [--size PIXELS] [--long T] [--threads N] [--repeats N]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import BasicUNet
from torchvision.models.segmentation import deeplabv3_resnet50

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from echoplan.networks import build_network
from echoplan.networks.apply import segment_clip

ECHONET = 112  # EchoNet-Dynamic's frames, and its network, DeepLabV3 with ResNet-50
TARGET = 1.3  # the memory of a clip ten times as long, its output apart
SHORTER = 10
# Name, settings, frames of a window.
NETWORKS = [
    ("unet", {}, 1),
    ("unet_2dt", {}, 10),
    ("pkechonet", {"backbone": "resnet18"}, 10),
    ("sam2", {"variant": "tiny"}, 10),
    ("e3sam2", {"variant": "tiny"}, 10),
    ("echoforge", {"backbone": "resnet18"}, 10),
]
LONG = {"unet": ({}, 1, 128), "pkechonet": ({"backbone": "resnet18"}, 10, 128), "e3sam2": ({"variant": "tiny"}, 10, 64)}


def basic_unet(size: int, batch: int) -> Callable[[torch.Tensor], object]:
    """MONAI's U-Net on frames, through its sliding window; (T, H, W) in."""
    network = BasicUNet(spatial_dims=2, in_channels=1, out_channels=1, features=(32, 64, 128, 256, 512, 32)).eval()
    return lambda clip: sliding_window_inference(clip[:, None], (size, size), batch, network).sigmoid().numpy()


def deeplab() -> Callable[[torch.Tensor], object]:
    """EchoNet-Dynamic's network on frames of three equal channels."""
    network = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=1).eval()

    def predict(clip: torch.Tensor) -> np.ndarray:
        parts = [network(part[:, None].expand(-1, 3, -1, -1))["out"].sigmoid() for part in clip.split(20)]
        return torch.cat(parts).numpy()

    return predict


def own(name: str, settings: dict[str, str], window: int, size: int) -> Callable[[torch.Tensor], object]:
    """One of EchoPlan's networks through `segment_clip`."""
    network = build_network(name, size=(size, size), **settings).eval()
    return lambda clip: segment_clip(network, clip, window=window, classes=1, batch=8 if window == 1 else 1)


def frames_per_second(works: list[Callable[[torch.Tensor], object]], clip: torch.Tensor, repeats: int) -> list[float]:
    """Of each one's quickest run; the runs take turns."""
    best = [float("inf")] * len(works)
    with torch.inference_mode():
        for _ in range(repeats):
            for index, work in enumerate(works):
                start = time.perf_counter()
                work(clip)
                best[index] = min(best[index], time.perf_counter() - start)
    return [len(clip) / seconds for seconds in best]


def speed(size: int, options: argparse.Namespace, peer_name: str, peer: Callable[[torch.Tensor], object]) -> None:
    """A table of frames a second, each network beside the peer."""
    clip = torch.randn(options.frames, size, size)
    print(f"\nclips of {options.frames} frames of {size} x {size}, {options.threads} threads; peer: {peer_name}")
    print(f"{'network':<24}{'frames/s':>10}{'peer':>10}{'ratio':>8}")
    for name, settings, window in NETWORKS:
        if size % 32 and not name.startswith("unet"):
            continue  # takes multiples of 32
        work = own(name, settings, window, size)
        mine, theirs = frames_per_second([work, peer], clip, options.repeats)
        label = " ".join([name, *settings.values()])
        print(f"{label:<24}{mine:>10.2f}{theirs:>10.2f}{mine / theirs:>8.2f}", flush=True)


def peak_mib(name: str, frames: int) -> tuple[float, float]:
    """The peak of a process of its own that predicts so many frames, and the output's share of it, in MiB."""
    arguments = [sys.executable, __file__, "--measure", name, str(frames)]
    found = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()
    return float(found[0]), float(found[1])


def measure(name: str, frames: int) -> None:
    """In that process: print its peak and the size of clip and output, in MiB."""
    torch.set_num_threads(1)
    settings, window, size = LONG[name]
    work = own(name, settings, window, size)
    clip = torch.randn(frames, size, size)
    output = work(clip)
    # Not getrusage's: that starts with the peak of the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak_kib = int(re.search(r"VmHWM:\s*(\d+) kB", status).group(1))
    print(peak_kib / 2**10, (clip.nbytes + output.nbytes) / 2**20)


def memory(long: int) -> None:
    """A table of the memory of short and long clips."""
    print(f"\npeak memory of {long} frames beside {long // SHORTER}, MiB; with the clip and its output taken off the "
          f"ratio may be {TARGET}")  # fmt: skip
    print(f"{'network':<24}{'size':>6}{'short':>10}{'long':>10}{'clip + output':>15}{'ratio':>8}")
    for name, (settings, _, size) in LONG.items():
        short, brief = peak_mib(name, long // SHORTER)
        lengthy, own_size = peak_mib(name, long)
        ratio = (lengthy - own_size) / (short - brief)
        label = " ".join([name, *settings.values()])
        print(f"{label:<24}{size:>6}{short:>10.0f}{lengthy:>10.0f}{own_size:>15.0f}{ratio:>8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--long", type=int, default=3000, help="frames of the long clip")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=2, help="the quickest counts")
    parser.add_argument("--measure", nargs=2, metavar=("NETWORK", "FRAMES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], int(options.measure[1]))
        return
    torch.set_num_threads(options.threads)
    speed(options.size, options, "MONAI BasicUNet, sliding window", basic_unet(options.size, 8))
    speed(ECHONET, options, "torchvision DeepLabV3-R50", deeplab())
    if Path("/proc/self/status").exists():
        memory(options.long)


if __name__ == "__main__":
    main()
