"""Speed of prediction beside peers, and the memory that long clips need.

python tests/benchmarks/bench_inference.py [--networks ...] [--frames T] [--size PIXELS] [--encoder_size PIXELS]
    [--long T] [--threads N] [--repeats N] [--processor_time] [--shared T] [--backends ...] [--exported ...]
    [--clips N] [--features N] [--beside CHECKOUT]

Every network goes through `segment_clip`, as in prediction, and is timed in turns with a peer on the same clip: the
same network of another package where there is one, and where there is none the plain ResNet of torchvision that the
network begins with, which is a bound and no peer. Windows have the clip's length unless that is more than `WINDOW`;
longer clips are seen by two windows at a time. SAM's frames are enlarged to `--encoder_size` instead of 1024 on both
sides; here its boxes come from the locator as well, there they are given. The networks are random, in float32.

The U-Net, or what `--exported` names, is then timed in ONNX Runtime and OpenVINO, as echoplan_predict --backend runs
it, in turns with PyTorch on the same clip, a phantom's; in bfloat16 too where the CPU multiplies in it. Beside that
stand the largest difference of probabilities, and the Dice of masks that are cut at the median of PyTorch's.

A last table shows what is shared: PKEcho-Net's windows over a clip of `--shared` frames, which encode each frame once,
beside windows by themselves; and EchoForge and E3SAM2 on four clips abreast beside one after another.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from echoplan.datasets.phantom import PhantomSettings, make_patient
from echoplan.device import fast_dtype
from echoplan.inference.deployment.exported import BACKENDS, TORCH, hand_over
from echoplan.networks import build_network
from echoplan.networks.sliding_window import segment_clip
from echoplan.networks.unet import pooling_steps
from echoplan.preprocessing import normalise, sector_statistics

TARGET = 1.3  # the memory of a clip ten times as long, its output apart
SHORTER, LONG_SIZE = 10, 64
WINDOW = 10
VIDEO = 180, 112  # frames and pixels a side: EchoNet-Dynamic's
BATCH = 8  # frames that frame networks take together
Predict = Callable[[Tensor], object]
MakePeer = Callable[[argparse.Namespace], Predict]


def dynunet(options: argparse.Namespace, *, in_time: bool) -> Predict:
    """MONAI's DynUNet with the U-Net's depth, widths and kernels, on frames or on the whole clip."""
    from monai.networks.nets import DynUNet

    steps = [(1, 1), *pooling_steps((options.size, options.size))]
    widths = [min(32 * 2**level, 320 if in_time else 512) for level in range(len(steps))]
    kernels: list[tuple[int, ...]] = [(3, 3)] * len(steps)
    strides: list[tuple[int, ...]] = steps
    if in_time:
        kernels = [(3 if level else 1, 3, 3) for level in range(len(steps))]
        strides = [(1, *step) for step in steps]
    network = DynUNet(3 if in_time else 2, 1, 1, kernels, strides, strides[1:], filters=widths).eval()
    if in_time:
        return lambda clip: network(clip[None, None]).sigmoid().numpy()
    return lambda clip: in_batches(network, clip[:, None])


def deeplab(options: argparse.Namespace) -> Predict:
    """EchoNet-Dynamic's network as torchvision has it, on frames of three equal channels."""
    from torchvision.models.segmentation import deeplabv3_resnet50

    network = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=1).eval()
    return lambda clip: in_batches(lambda frames: network(frames.expand(-1, 3, -1, -1))["out"], clip[:, None])


def resnet(options: argparse.Namespace, *, name: str) -> Predict:
    """torchvision's ResNet up to its last map."""
    import torchvision

    network = getattr(torchvision.models, name)(weights=None).eval()
    trunk = nn.Sequential(*list(network.children())[:-2])
    return lambda clip: in_batches(trunk, clip[:, None].expand(-1, 3, -1, -1))


def segment_anything(options: argparse.Namespace) -> Predict:
    """SAM of the segment-anything package at the encoder's size, a box in every frame."""
    from segment_anything.modeling import ImageEncoderViT, Sam

    from echoplan.networks.sam.parts import build_mask_decoder, build_prompt_encoder, vit_settings
    from echoplan.networks.sam.settings import VARIANTS

    side = options.encoder_size
    encoder = ImageEncoderViT(**{**vit_settings(VARIANTS["vit_b"]), "img_size": side})
    sam = Sam(encoder, build_prompt_encoder(side), build_mask_decoder()).eval()
    box = torch.tensor([[0.3, 0.3, 0.7, 0.7]]) * side

    def predict(clip: Tensor) -> np.ndarray:
        images = nn.functional.interpolate(clip[:, None], (side, side), mode="bilinear").expand(-1, 3, -1, -1)
        told = [{"image": image, "original_size": tuple(clip.shape[1:]), "boxes": box} for image in images]
        parts = [told[first : first + BATCH] for first in range(0, len(told), BATCH)]
        return np.stack([found["masks"].numpy() for part in parts for found in sam(part, multimask_output=False)])

    return predict


def sam2_package(options: argparse.Namespace) -> Predict:
    """SAM 2.1 tiny in the sam2 package's video predictor, from a point in the first frame."""
    from bench_e3sam2 import package_predictor, predict_with_package

    predictor = package_predictor("tiny", "cpu", options.size)
    return lambda clip: predict_with_package(predictor, clip[None, :, None])


def in_batches(network: Callable[[Tensor], Tensor], frames: Tensor) -> np.ndarray:
    """Probabilities of frames (T, C, H, W), so many at a time as `segment_clip` takes."""
    return torch.cat([network(part).sigmoid() for part in frames.split(BATCH)]).numpy()


@dataclass(frozen=True)
class Entry:
    """A network, its settings, whether it sees windows of frames, and who stands beside it."""

    name: str
    settings: dict[str, str]
    in_time: bool
    peer_name: str
    peer: MakePeer
    bound: bool = False  # a part of the network, which it cannot be faster than


NETWORKS = [
    Entry("unet", {}, False, "MONAI DynUNet", lambda options: dynunet(options, in_time=False)),
    Entry("unet_2dt", {}, True, "MONAI DynUNet, 3D", lambda options: dynunet(options, in_time=True)),
    Entry("deeplabv3", {}, False, "torchvision DeepLabV3", deeplab),
    Entry("sam", {}, False, "segment-anything ViT-B", segment_anything),
    Entry("sam2", {"variant": "tiny"}, True, "sam2 package, tiny", sam2_package),
    Entry("e3sam2", {"variant": "tiny"}, True, "sam2 package, tiny", sam2_package),
    Entry("pkechonet", {"backbone": "resnet18"}, True, "ResNet-18 alone",
          lambda options: resnet(options, name="resnet18"), bound=True),
    Entry("echoforge", {"backbone": "resnet50"}, True, "ResNet-50 alone",
          lambda options: resnet(options, name="resnet50"), bound=True),
]  # fmt: skip
LONG = ("unet", "pkechonet", "e3sam2")


def random_network(entry: Entry, size: int, encoder_size: int | None = None) -> nn.Module:
    """One of EchoPlan's networks."""
    settings = {**entry.settings, **({"encoder_size": encoder_size} if entry.name == "sam" else {})}
    return build_network(entry.name, size=(size, size), **settings).eval()


def own(entry: Entry, size: int, encoder_size: int | None = None) -> Predict:
    """One of EchoPlan's networks through `segment_clip`."""
    network = random_network(entry, size, encoder_size)
    window, batch = (WINDOW, 1) if entry.in_time else (1, BATCH)
    return lambda clip: segment_clip(network, clip, window=window, classes=1, batch=batch)


def frames_per_second(works: list[Predict], clip: Tensor, options: argparse.Namespace) -> list[float]:
    """Of each one's quickest run after one that does not count; the runs take turns."""
    clock = time.process_time if options.processor_time else time.perf_counter
    taken: list[list[float]] = [[] for _ in works]
    with torch.inference_mode():
        for _ in range(options.repeats + 1):
            for work, seconds in zip(works, taken, strict=True):
                start = clock()
                work(clip)
                seconds.append(clock() - start)
    return [len(clip) / min(seconds[1:]) for seconds in taken]


def speed(options: argparse.Namespace) -> dict[str, float]:
    """A table of frames a second, each network beside its peer; the ratios to peers by network."""
    clip = torch.randn(options.frames, options.size, options.size)
    print(f"clips of {options.frames} frames of {options.size} x {options.size}, {options.threads} threads")
    print(f"{'network':<22}{'frames/s':>10}  {'beside':<26}{'frames/s':>10}{'ratio':>8}")
    ratios = {}
    for entry in NETWORKS:
        if entry.name not in options.networks:
            continue
        works = [own(entry, options.size, options.encoder_size), entry.peer(options)]
        mine, theirs = frames_per_second(works, clip, options)
        label = " ".join([entry.name, *entry.settings.values()])
        if not entry.bound:
            ratios[label] = mine / theirs
        beside = f"({entry.peer_name})" if entry.bound else entry.peer_name
        print(f"{label:<22}{mine:>10.2f}  {beside:<26}{theirs:>10.2f}{mine / theirs:>8.2f}", flush=True)
    print("in brackets: the part that a network without a peer begins with")
    return ratios


def in_other_runtimes(options: argparse.Namespace) -> None:
    """A table of networks' frames a second by each runtime that is installed, beside PyTorch's, and how they differ."""
    there = [name for name in options.backends if find_spec({"onnx": "onnxruntime"}.get(name, name))]
    fast = fast_dtype(torch.device("cpu")) == torch.bfloat16
    clip = phantom(options)
    print(f"\nelsewhere{'' if fast else '; this CPU does not multiply in bfloat16'}")
    print(f"{'network':<12}{'runtime':<12}{'precision':>10}{'frames/s':>10}{'PyTorch':>10}{'ratio':>8}"
          f"{'probability':>14}{'Dice':>10}")  # fmt: skip
    for entry in (entry for entry in NETWORKS if entry.name in options.exported):
        torch.manual_seed(0)
        network = random_network(entry, options.size, options.encoder_size)
        window, batch = (WINDOW, 1) if entry.in_time else (1, BATCH)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "checkpoint_final.pth"
            checkpoint.touch()
            how = {"device": torch.device("cpu"), "size": (options.size, options.size), "framewise": not entry.in_time}
            for name in there:
                exported = hand_over(network, checkpoint, backend=name, **how)
                for autocast in (False, True)[: 1 + fast]:
                    settings = {"window": window, "classes": 1, "batch": batch, "autocast": autocast}
                    works = [partial(_segment, each, settings) for each in (exported, network)]
                    theirs, ours = frames_per_second(works, clip, options)
                    apart, dice = difference(*(work(clip) for work in works))
                    precision = "bfloat16" if autocast else "float32"
                    print(f"{entry.name:<12}{name:<12}{precision:>10}{theirs:>10.2f}{ours:>10.2f}{theirs / ours:>8.2f}"
                          f"{apart:>14.1e}{dice:>10.6f}", flush=True)  # fmt: skip


def phantom(options: argparse.Namespace) -> Tensor:
    """A phantom's frames, standardised."""
    settings = PhantomSettings(size=(options.size, options.size), frames=options.frames, views=("A4C",))
    frames = make_patient(0, settings).clip("A4C").frames
    return torch.from_numpy(normalise(frames, *sector_statistics(frames), "zscore_sector"))


def difference(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The largest difference of probabilities; the Dice of the masks that are cut at the median of those expected."""
    cut = np.median(expected)
    one, other = found >= cut, expected >= cut
    return float(np.abs(found - expected).max()), float(2 * (one & other).sum() / (one.sum() + other.sum()))


def _segment(network: nn.Module, settings: dict[str, Any], clip: Tensor) -> np.ndarray:
    return segment_clip(network, clip, **settings)


def peak_mib(name: str, frames: int) -> tuple[float, float]:
    """The peak of a process of its own that predicts so many frames, and the clip and output's share of it, in MiB."""
    arguments = [sys.executable, __file__, "--measure", name, str(frames)]
    found = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()
    return float(found[0]), float(found[1])


def measure(name: str, frames: int) -> None:
    """In that process: print its peak and the size of clip and output, in MiB."""
    torch.set_num_threads(1)
    entry = next(entry for entry in NETWORKS if entry.name == name)
    work = own(entry, LONG_SIZE)
    clip = torch.randn(frames, LONG_SIZE, LONG_SIZE)
    output = work(clip)
    # Not getrusage's: that starts with the peak of the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak_kib = int(re.search(r"VmHWM:\s*(\d+) kB", status).group(1))
    print(peak_kib / 2**10, (clip.nbytes + output.nbytes) / 2**20)


def memory(long: int) -> None:
    """A table of the memory of short and long clips."""
    print(
        f"\npeak memory of {long} frames of {LONG_SIZE} x {LONG_SIZE} beside {long // SHORTER}, MiB; with clip and "
        f"output taken off the ratio may be {TARGET}"
    )
    print(f"{'network':<22}{'short':>10}{'long':>10}{'clip + output':>15}{'ratio':>8}")
    for name in LONG:
        short, brief = peak_mib(name, long // SHORTER)
        lengthy, own_size = peak_mib(name, long)
        ratio = (lengthy - own_size) / (short - brief)
        print(f"{name:<22}{short:>10.0f}{lengthy:>10.0f}{own_size:>15.0f}{ratio:>8.2f}", flush=True)


class Alone(nn.Module):
    """A network of which nothing but its forward is known: its windows share nothing."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clip: Tensor) -> Tensor:
        return self.network(clip)


def shared(options: argparse.Namespace) -> None:
    """A table of what windows share, and clips that are walked abreast."""
    side = options.size
    windows = build_network("pkechonet", size=(side, side), backbone="resnet50").eval()
    streams = {name: build_network(name, size=(side, side)).eval() for name in ("echoforge", "e3sam2")}
    clip, clips = torch.randn(options.shared, side, side), torch.randn(4, options.frames, 1, side, side)
    told = {"window": WINDOW, "stride": 3, "classes": 1}
    print(f"\nframes, and clips, a second of {side} x {side}")
    for label, given, alone, together in (
        ("pkechonet resnet50, windows", clip,
         lambda clip: segment_clip(Alone(windows), clip, **told), lambda clip: segment_clip(windows, clip, **told)),
        *((f"{name}, 4 clips", clips, lambda clips, walk=walk: [walk(each) for each in clips.split(1)], walk)
          for name, walk in streams.items()),
    ):  # fmt: skip
        apart, shares = frames_per_second([alone, together], given, options)
        print(f"{label:<32}apart {apart:>8.2f}  together {shares:>8.2f}  ratio {shares / apart:.2f}", flush=True)


PREDICT = """
import resource, sys, time
from echoplan.inference import EchoPredictor, predict_folder

if __name__ == "__main__":
    model, clips, out, processes = sys.argv[1:]
    predictor = EchoPredictor.from_model_folder(model, device="cpu", trust_code=True)

    def used():
        both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in both)

    start, before = time.perf_counter(), used()
    run = predict_folder(clips, out, predictor, processes=int(processes))
    print(len(run.predicted), time.perf_counter() - start, used() - before)
"""


def many_clips(options: argparse.Namespace) -> None:
    """Tables of the stages of a clip, and of whole folders."""
    from bench_ray import make_clips, make_model

    from echoplan.imageio import read_clip, write_clip

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder, VIDEO[1], options.features)
        for number, file in enumerate(sorted(make_clips(folder / "made", 2, *VIDEO).iterdir())):
            write_clip(folder / "clips" / f"{number:05}.avi", read_clip(file))
        videos = sorted((folder / "clips").iterdir())
        for number in range(len(videos), options.clips):
            (folder / "clips" / f"{number:05}.avi").hardlink_to(videos[number % len(videos)])
        stages = stages_of_a_clip(model, folder / "clips", folder / "stages")
        frames, side = VIDEO
        print(f"\none of {options.clips} videos of {frames} frames of {side} x {side}, {options.features} features")
        print(f"{'stage':<24}{'CPU s':>8}{'clock s':>9}")
        for stage, (processor, clock) in stages.items():
            print(f"{stage:<24}{processor:>8.3f}{clock:>9.3f}")
        network = [value * options.clips for value in stages["network"]]
        here = Path(__file__).resolve().parents[2]
        print(f"\n{'folder':<24}{'CPU s':>8}{'clock s':>9}{'network, % of CPU':>19}{'of the clock':>14}")
        for checkout, processes in [*((place, 2) for place in (here, *options.beside)), (here, 0)]:
            out = folder / f"out_{checkout.name}_{processes}"
            words = [sys.executable, "-c", PREDICT, str(model), str(folder / "clips"), str(out), str(processes)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
            ran = subprocess.run(words, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
            count, clock, processor = map(float, ran.stdout.split())
            assert count == options.clips
            shares = f"{100 * network[0] / processor:>19.0f}{100 * network[1] / clock:>14.0f}"
            print(f"{f'{checkout.name}, -np {processes}':<24}{processor:>8.1f}{clock:>9.1f}{shares}", flush=True)


def stages_of_a_clip(model: Path, clips: Path, out: Path) -> dict[str, tuple[float, float]]:
    """Seconds of the processor and of the clock that each stage of the folder's first clip takes, the lesser of two."""
    from echoplan.evaluation.report.clips import report_clip
    from echoplan.inference import EchoPredictor, find_inputs
    from echoplan.inference.pipeline import find_in_clips, finish_clip
    from echoplan.masks import find_mask

    predictor, item = EchoPredictor.from_model_folder(model, device="cpu", trust_code=True), find_inputs(clips)[0]
    mask, taken = find_mask(out, item.name), {}

    def timed(stage: str, work: Callable[[], object]) -> Any:
        before = time.process_time(), time.perf_counter()
        result = work()
        seconds = time.process_time() - before[0], time.perf_counter() - before[1]
        taken[stage] = min(seconds, taken.get(stage, seconds))
        return result

    for _ in range(2):
        clip = timed("read", item.read)
        prepared = timed("to the grid", lambda clip=clip: predictor.prepare(clip))
        (grid,), (member,) = prepared.on_grids, predictor.members

        def bare(grid: Any = grid, member: Any = member) -> None:
            frames = member.as_seen([grid])
            for _ in member.probabilities(member.networks[0], frames, [grid], mirroring=False, autocast=False):
                pass

        timed("network", bare)
        found = timed("network and labels", lambda p=prepared: find_in_clips([(item, p)], predictor, False))[0]
        timed("judge and write", lambda p=prepared, f=found: finish_clip(item, predictor, p, f, out))
        for picture in ("none", "stills", "player"):
            timed(f"measure, {picture}", lambda p=picture: report_clip(item.case, item.path, mask, 1, picture=p))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=[entry.name for entry in NETWORKS])
    parser.add_argument("--frames", type=int, default=WINDOW)
    parser.add_argument("--size", type=int, default=128, help="a multiple of 32")
    parser.add_argument("--encoder_size", type=int, default=224, help="of SAM")
    parser.add_argument("--long", type=int, default=300, help="frames of the long clip; 0: no table of memory")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=2, help="the quickest counts")
    parser.add_argument("--processor_time", action="store_true", help="instead of the clock's, for busy machines")
    parser.add_argument("--shared", type=int, default=60, help="frames of the clip of shared windows; 0: no such table")
    parser.add_argument("--backends", nargs="*", default=[name for name in BACKENDS if name != TORCH])
    parser.add_argument("--exported", nargs="*", default=["unet"], help="the networks that they compute")
    parser.add_argument("--measure", nargs=2, metavar=("NETWORK", "FRAMES"), help=argparse.SUPPRESS)
    parser.add_argument("--clips", type=int, default=12, help="of the folder; 0: no such table")
    parser.add_argument("--features", type=int, default=8, help="of the first stage of that folder's U-Net")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="other checkouts")
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], int(options.measure[1]))
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ratios = {}
    if options.networks:
        ratios = speed(options)
    if options.backends and options.exported:
        in_other_runtimes(options)
    if options.long and Path("/proc/self/status").exists():
        memory(options.long)
    if options.shared:
        shared(options)
    if options.clips:
        many_clips(options)
    if ratios:
        worst = min(ratios, key=ratios.__getitem__)
        print(f"\nworst: {worst}, {ratios[worst]:.2f} of its peer's speed")


if __name__ == "__main__":
    main()
