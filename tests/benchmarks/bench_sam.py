"""Time and memory of SAM's image encoder (ViT-B): segment-anything's own, and EchoPlan's with the same weights.

EchoPlan's makes no attention map, which at 1024 has 4096 x 4096 numbers a head.

python tests/benchmarks/bench_sam.py [--side N] [--threads N] [--repeats N]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "networks"))

from plain_attention import peak_bytes

from echoplan.networks.sam.parts import ImageEncoder, vit_settings
from echoplan.networks.sam.settings import VARIANTS


def seconds(works: list[Callable[[], object]], repeats: int) -> list[float]:
    """The quickest of some runs of each, taken in turns."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, own in zip(works, taken, strict=True):
            start = time.perf_counter()
            work()
            own.append(time.perf_counter() - start)
    return [min(own) for own in taken]


@torch.no_grad()
def forward(encoder: nn.Module, image: Tensor) -> Tensor:
    return encoder(image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1024, help="of the image; a multiple of 16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    variant = VARIANTS["vit_b"]
    theirs = ImageEncoderViT(**{**vit_settings(variant), "img_size": options.side}).eval()
    ours = ImageEncoder(variant).eval()
    if options.side == 1024:
        ours.load_state_dict(theirs.state_dict())
    image = torch.randn(1, 3, options.side, options.side)
    encoders = {"segment-anything": theirs, "EchoPlan": ours}
    works = [lambda encoder=encoder: forward(encoder, image) for encoder in encoders.values()]
    times = seconds(works, options.repeats)
    peaks = [peak_bytes(work) / 2**20 for work in works]
    print(f"ViT-B, one image of {options.side} x {options.side}, float32, {options.threads} threads")
    print(f"{'encoder':18} {'s':>8} {'ratio':>7} {'MiB':>8} {'ratio':>7}")
    for name, spent, peak in zip(encoders, times, peaks, strict=True):
        print(f"{name:18} {spent:8.2f} {spent / times[0]:7.2f} {peak:8.0f} {peak / peaks[0]:7.2f}")


if __name__ == "__main__":
    main()
