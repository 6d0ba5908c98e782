"""Seconds a clip of E3SAM2, beside plain SAM2 in the sam2 package's own video predictor, and PKEcho-Net.

python tests/benchmarks/bench_e3sam2.py [--threads N] [--repeats N] [--variant tiny] [--device cpu|cuda] [--bfloat16]

All get the same clip; the predictor a point in its first frame. Rounds of all methods take turns, the quickest of each
counts. The networks are random, which changes the masks and not the time, and remember every frame, as SAM2 does. With
one thread on a busy machine, trust the processor's seconds. bfloat16 is timed where the device computes in it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from echoplan.device import fast_dtype
from echoplan.networks import build_network
from echoplan.networks.complexity import count_gmac, count_parameters
from echoplan.networks.e3sam2.sam2_parts import sam2_module

SIZE, FRAMES = 256, 10
CONFIGURATIONS = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}


def package_predictor(variant: str, device: str, size: int = SIZE) -> Any:
    """The sam2 package's video predictor for square frames of so many pixels, as the package builds it."""
    build_sam = sam2_module("build_sam")
    from hydra import initialize_config_module

    grid = f"[{size // 16},{size // 16}]"
    with initialize_config_module("sam2", version_base="1.2"):
        return build_sam.build_sam2_video_predictor(
            f"configs/sam2.1/sam2.1_hiera_{CONFIGURATIONS[variant]}.yaml",
            device=device,
            hydra_overrides_extra=[
                f"++model.image_size={size}",
                f"++model.memory_attention.layer.self_attention.feat_sizes={grid}",
                f"++model.memory_attention.layer.cross_attention.feat_sizes={grid}",
            ],
            apply_postprocessing=False,
        )


def predict_with_package(predictor: Any, clip: torch.Tensor) -> list[torch.Tensor]:
    """Masks of frames in memory, from a point in the first frame; the predictor itself only reads files."""
    module, size = sam2_module("sam2_video_predictor"), clip.shape[-1]
    original = module.load_video_frames, module.tqdm
    module.load_video_frames = lambda **_: (clip[0].expand(-1, 3, -1, -1), size, size)
    module.tqdm = lambda frames, **_: frames
    try:
        state = predictor.init_state("frames in memory")
        middle = torch.tensor([[size / 2, size / 2]])
        predictor.add_new_points_or_box(state, 0, 1, points=middle, labels=torch.tensor([1]))
        return [logits for _, _, logits in predictor.propagate_in_video(state)]
    finally:
        module.load_video_frames, module.tqdm = original


def quickest(methods: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, tuple[float, float]]:
    """Seconds of each method's quickest round, after one that does not count, by the clock and of processor time."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for _ in range(repeats + 1):
        for name, work in methods.items():
            start = time.perf_counter(), time.process_time()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {name: tuple(map(min, zip(*taken[1:], strict=True))) for name, taken in seconds.items()}


def half(network: Callable[[torch.Tensor], object], clip: torch.Tensor) -> object:
    """What a network gives in bfloat16 mixed precision."""
    with torch.autocast(clip.device.type, dtype=torch.bfloat16):
        return network(clip)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--variant", choices=list(CONFIGURATIONS), default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true", help="also where the device is slower in it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    shape = (1, FRAMES, 1, SIZE, SIZE)
    clip = torch.randn(shape, device=options.device)
    build = {"size": (SIZE, SIZE), "variant": options.variant}
    networks = {
        "e3sam2": build_network("e3sam2", memory="fifo", **build),
        "e3sam2, light windows": build_network("e3sam2", memory="fifo", windows="light", **build),
        "e3sam2, self-attention": build_network("e3sam2", memory="fifo", attention="self", **build),
        "sam2 here": build_network("sam2", **build),
        "pkechonet resnet50": build_network("pkechonet", size=(SIZE, SIZE), backbone="resnet50"),
    }
    networks = {name: network.to(options.device).eval() for name, network in networks.items()}
    predictor = package_predictor(options.variant, options.device)
    peer = "sam2 package"
    methods: dict[str, Callable[[], object]] = {peer: lambda: predict_with_package(predictor, clip)}
    methods |= {name: lambda network=network: network(clip) for name, network in networks.items()}
    if options.bfloat16 or fast_dtype(clip.device) != torch.float32:
        methods[f"{peer}, bfloat16"] = lambda: half(lambda frames: predict_with_package(predictor, frames), clip)
        methods |= {
            f"{name}, bfloat16": lambda network=network: half(network, clip)
            for name, network in networks.items()
            if name in ("e3sam2", "e3sam2, light windows")
        }
    with torch.inference_mode():
        seconds = quickest(methods, options.repeats, options.device)
    print(
        f"clips of {FRAMES} frames of {SIZE} x {SIZE}, variant {options.variant}, {options.device}, "
        f"{options.threads} threads, torch {torch.__version__}"
    )
    print(
        f"{'method':<36}{'s/clip':>8}{'frames/s':>10}{'of package':>12}{'CPU s':>8}{'of package':>12}"
        f"{'M params':>10}{'GMAC/clip':>11}"
    )
    for name, (clock, processor) in seconds.items():
        network = networks.get(name)
        size = ["", ""] if network is None else [
            f"{count_parameters(network) / 1e6:.2f}", f"{count_gmac(network, shape):.1f}"
        ]  # fmt: skip
        print(
            f"{name:<36}{clock:>8.2f}{FRAMES / clock:>10.1f}{clock / seconds[peer][0]:>12.2f}{processor:>8.2f}"
            f"{processor / seconds[peer][1]:>12.2f}{size[0]:>10}{size[1]:>11}"
        )


if __name__ == "__main__":
    main()
