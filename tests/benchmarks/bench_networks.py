"""Size, cost and speed of every network.

python tests/benchmarks/bench_networks.py [--threads N] [--repeats N] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from echoplan.networks import build_network
from echoplan.networks.complexity import count_gmac, count_parameters

SIZE, FRAMES = (256, 256), 10
# Name, settings, and where a reference exists: million parameters and GMAC of a clip of the released module or, for
# E3SAM2 and EchoForge, in the paper. SAM, which enlarges frames to 1024 x 1024, is in bench_sam.py.
NETWORKS = [
    ("unet", {}, None),
    ("unet_2dt", {}, None),
    ("pkechonet", {"backbone": "resnet18"}, (11.78, 27.0)),
    ("pkechonet", {"backbone": "resnet34"}, (21.89, 51.0)),
    ("pkechonet", {"backbone": "resnet50"}, (25.71, 69.5)),
    ("sam2", {"variant": "tiny"}, None),
    ("e3sam2", {"variant": "tiny"}, (42.0, 159.0)),
    ("e3sam2", {"variant": "small"}, (49.0, 190.0)),
    ("echoforge", {"backbone": "resnet50"}, (67.0, 125.0)),
    ("deeplabv3", {}, None),
]
TRAINABLE = ("adapted", "adapters", "decoder", "memory", "all_but_trunk", "last_stage", "all")
PAPERS_TRAINABLE = 19.0  # million parameters of E3SAM2, tiny and small


def forward_ms(network: torch.nn.Module, clip: torch.Tensor, repeats: int) -> float:
    """The quickest of some forward passes in evaluation mode, after one of few frames that does not count."""
    seconds = []
    with torch.inference_mode():
        for part in (clip[:, :2], *[clip] * repeats):
            start = time.perf_counter()
            network(part)
            if clip.is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds[1:])


def e3sam2_table() -> None:
    """What E3SAM2's settings let learn."""
    print(f"\ne3sam2: million parameters that learn (the paper: {PAPERS_TRAINABLE:.0f})")
    for variant in ("tiny", "small"):
        counts = []
        for trainable in TRAINABLE:
            with torch.device("meta"):
                network = build_network("e3sam2", size=SIZE, variant=variant, trainable=trainable)
            counts.append(f"{trainable} {count_parameters(network, trainable_only=True) / 1e6:.1f}")
        print(f"  {variant:<7}{', '.join(counts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = (1, FRAMES, 1, *SIZE)
    print(
        f"clips of {FRAMES} frames of {SIZE[0]} x {SIZE[1]}, {options.device}, {options.threads} threads, "
        f"torch {torch.__version__}"
    )
    print(f"{'network':<36}{'M params':>9}{'ref.':>8}{'GMAC/clip':>11}{'ref.':>8}{'ms/clip':>10}{'frames/s':>10}")
    for name, settings, reference in NETWORKS:
        network = build_network(name, size=SIZE, **settings).to(options.device).eval()
        # Without values: networks that choose what to remember then remember everything.
        gmac = count_gmac(copy.deepcopy(network).to("meta"), shape)
        milliseconds = forward_ms(network, torch.randn(shape, device=options.device), options.repeats)
        known = [f"{x:.2f}" for x in reference] if reference else ["-", "-"]
        label = " ".join([name, *map(str, settings.values())])
        print(
            f"{label:<36}{count_parameters(network) / 1e6:>9.2f}{known[0]:>8}{gmac:>11.1f}{known[1]:>8}"
            f"{milliseconds:>10.0f}{1000 * FRAMES / milliseconds:>10.1f}",
            flush=True,
        )
    e3sam2_table()


if __name__ == "__main__":
    main()
