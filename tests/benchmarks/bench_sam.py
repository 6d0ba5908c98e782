"""Time and memory of SAM's image encoder (ViT-B): segment-anything's own, and EchoPlan's with the same weights.

EchoPlan's makes no attention map, which at 1024 has 4096 x 4096 numbers a head. Then SAMTrainer's step, with the frozen
encoder's passes and with its features read from disk, as in all epochs but the first.

python tests/benchmarks/bench_sam.py [--side N] [--threads N] [--repeats N] [--batch N] [--processor_time]
    [--tables encoder training]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "networks"))

from plain_attention import peak_bytes

from echoplan.experiment_planning.dry_run import prepare_step
from echoplan.networks.sam.parts import ImageEncoder, vit_settings
from echoplan.networks.sam.settings import VARIANTS
from echoplan.training.features import FeatureStore, with_features
from echoplan.training.methods import find_method


def seconds(works: list[Callable[[], object]], options: argparse.Namespace) -> list[float]:
    """The quickest of some runs of each, taken in turns."""
    clock = time.process_time if options.processor_time else time.perf_counter
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(options.repeats):
        for work, own in zip(works, taken, strict=True):
            start = clock()
            work()
            own.append(clock() - start)
    return [min(own) for own in taken]


@torch.no_grad()
def forward(encoder: nn.Module, image: Tensor) -> Tensor:
    return encoder(image)


def encoder_table(options: argparse.Namespace) -> None:
    variant = VARIANTS["vit_b"]
    theirs = ImageEncoderViT(**{**vit_settings(variant), "img_size": options.side}).eval()
    ours = ImageEncoder(variant).eval()
    if options.side == 1024:
        ours.load_state_dict(theirs.state_dict())
    image = torch.randn(1, 3, options.side, options.side)
    encoders = {"segment-anything": theirs, "EchoPlan": ours}
    works = [lambda encoder=encoder: forward(encoder, image) for encoder in encoders.values()]
    times = seconds(works, options)
    peaks = [peak_bytes(work) / 2**20 for work in works]
    print(f"ViT-B, one image of {options.side} x {options.side}, float32, {options.threads} threads")
    print(f"{'encoder':18} {'s':>8} {'ratio':>7} {'MiB':>8} {'ratio':>7}")
    for name, spent, peak in zip(encoders, times, peaks, strict=True):
        print(f"{name:18} {spent:8.2f} {spent / times[0]:7.2f} {peak:8.0f} {peak / peaks[0]:7.2f}")


def training_table(options: argparse.Namespace) -> None:
    size = (112, 112)
    settings = {"pretrained": False, "trainable": "decoder", "encoder_size": options.side, "precision": "float32"}
    method = find_method("SAMTrainer").with_settings(settings)
    run = prepare_step(method, size=size, frames=1, batch_size=options.batch, device="cpu")
    batch = {**run.batch, "clip": torch.randn_like(run.batch["clip"])}
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore.of_training(method, run.step, Path(folder))
        with_features(batch, store, training=True)  # the first epoch's
        works = [
            lambda: run.step(batch),
            lambda: run.step(with_features(batch, store, training=True)),
        ]
        before, later = seconds(works, options)
    print(f"\nSAMTrainer's step, {options.batch} frames of 112 x 112 at {options.side}, {options.threads} threads")
    print(f"with the encoder's passes {before:.2f} s, with kept features {later:.2f} s, ratio {before / later:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, help="of the image; a multiple of 16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--batch", type=int, default=2, help="frames of a training step")
    parser.add_argument("--processor_time", action="store_true", help="instead of the clock's, for busy machines")
    parser.add_argument("--tables", nargs="+", choices=("encoder", "training"), default=("encoder", "training"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if "encoder" in options.tables:
        encoder_table(options)
    if "training" in options.tables:
        training_table(options)


if __name__ == "__main__":
    main()
