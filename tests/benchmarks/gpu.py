"""All that only a GPU can tell, in one table: `make bench-gpu`.

python tests/benchmarks/gpu.py [--trainers ...] [--device cuda:1] [--minutes N] [--small] [--out FILE]

1. Memory: what planning forecasts of a training step, and what the step takes, at three batch sizes.
2. Training: steps a second, beside the same network and optimizer without loss, checks and data.
3. Prediction: frames a second as `echoplan_predict` has them (of as many clips as it walks abreast), of the network
   alone, and of the sam2 package's video predictor and nnU-Net's sliding window, where they are installed.
4. Loading: the share of an epoch that the GPU waits for batches.
5. Two processes by NCCL, where there are two GPUs: samples a second, beside one process.

What fails is named below its table, and the others go on. What there is no time for is left out, and said to be.
`--device cpu --small` tries all but the memory on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench_e3sam2 import package_predictor, predict_with_package
from bench_training import learning_tensors, make_setup

from echoplan.device import choose_device
from echoplan.errors import EchoPlanError
from echoplan.experiment_planning.dry_run import DryRun, prepare_step
from echoplan.experiment_planning.gpu_check import measured_step
from echoplan.experiment_planning.memory import CONTEXT_GB, measure_memory
from echoplan.networks.batches import windows_together
from echoplan.networks.interface import AbreastNetwork, StreamingNetwork
from echoplan.networks.sliding_window import segment_clip
from echoplan.preprocessing.clip import NormalisedFrames
from echoplan.training.distributed import World, joined
from echoplan.training.methods import Method, find_method
from echoplan.training.trainer import Trainer

TRAINERS = (
    "UNetTrainer", "E3SAM2Trainer", "PKEchoNetTrainer", "SAM2Trainer", "EchoForgeTrainer", "UNet2DtTrainer",
    "EchoNetTrainer", "ResUNetTrainer", "SAMTrainer",
)  # fmt: skip
LOADED = ("UNetTrainer", "E3SAM2Trainer")  # the lightest step and the heaviest
SIDE, SMALL_SIDE = 256, 64
FRAMES = 120  # of the predicted clip; of clips that are walked abreast a quarter each
Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A method as it is measured: settings without weights from the net, and the paper's input and batch."""

    name: str
    method: Method[Any]
    size: tuple[int, int]
    frames: int
    batch: int

    @classmethod
    def of(cls, name: str, *, small: bool) -> Case:
        method = find_method(name)
        wanted = {"pretrained": False, "trainable": getattr(method.recipe.network, "learning_part", None)}
        wanted |= {"encoder_size": SMALL_SIDE} if small else {}
        known = method.recipe.to_dict()
        method = method.with_settings({key: value for key, value in wanted.items() if key in known})
        needs = method.requirements
        side = SMALL_SIDE if small else needs.paper_size or SIDE
        frames, batch = (min(needs.frames, 3), 2) if small else (needs.frames, needs.batch_size)
        return cls(name, method, (side, side), frames, batch)

    def prepare(self, device: torch.device, batch: int | None = None) -> DryRun:
        """A step with values that are no zeros, of clips labelled in their first and last frame."""
        torch.manual_seed(0)
        made = prepare_step(
            self.method, size=self.size, frames=self.frames, batch_size=batch or self.batch, device=device
        )
        made.batch["clip"].copy_(torch.randn(made.batch["clip"].shape))
        if self.frames > 1:
            made.batch["labels"][:, 1:-1] = 255
        return made


@dataclass
class Report:
    """Tables, what failed, and until when there is time."""

    device: torch.device
    deadline: float
    steps: int
    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)
        print(line, flush=True)

    def table(self, title: str, *columns: str) -> None:
        self.say(f"\n## {title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")

    def row(self, name: str, make: Callable[[], Sequence[object]]) -> None:
        """A row of a table, or why there is none."""
        if time.monotonic() > self.deadline:
            self.late.append(name)
            return
        try:
            cells = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in make()]
            self.say(f"| {' | '.join([name, *cells])} |")
        except Exception as error:  # one that fails keeps the others from nothing
            reason = (str(error).strip() or "-").splitlines()[0]
            self.failures.append(f"{name}: {type(error).__name__}: {reason}")
            self.say(f"| {name} | failed: {type(error).__name__} |")
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def seconds(self, work: Work) -> float:
        """The median of some times, after two that do not count."""
        taken = []
        for _ in range(2 + self.steps):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken[2:])

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def memory(report: Report, cases: Sequence[Case]) -> None:
    report.table("Memory of a training step", "trainer, batch", "forecast GB", "measured GB", "measured / forecast")
    for case in cases:
        shape = {"size": case.size, "frames": case.frames, "classes": 1}
        known: list[Any] = []  # one forecast is a line over all batches
        for batch in sorted({1, max(1, case.batch // 2), case.batch}):

            def measured(case: Case = case, batch: int = batch, shape: Any = shape, known: Any = known) -> Any:
                known.extend([] if known else [measure_memory(case.method, **shape)])
                forecast = known[0].gb(batch) - CONTEXT_GB
                step = measured_step(case.method, batch_size=batch, **shape)
                return (forecast, "out of memory", "") if step.gb is None else (forecast, step.gb, step.gb / forecast)

            report.row(f"{case.name}, {batch}", measured)


def training(report: Report, cases: Sequence[Case]) -> None:
    report.table("Training", "trainer", "batch", "steps/s", "bare network, steps/s", "step / bare")
    for case in cases:

        def measured(case: Case = case) -> Sequence[object]:
            made = case.prepare(report.device)
            step, bare = report.seconds(made.take_step), report.seconds(bare_step(case, made))
            parts = "" if made.step.accumulation == 1 else f" in {made.step.accumulation} parts"
            return f"{case.batch}{parts}", 1 / step, 1 / bare, step / bare

        report.row(case.name, measured)


def bare_step(case: Case, made: DryRun) -> Work:
    """Forward, backward and optimizer, with the mean of what the network gives as loss."""

    def once() -> None:
        made.step.optimizer.zero_grad(set_to_none=True)
        with made.step.autocast():
            output = case.method.forward(made.step.network, made.batch)
            torch.stack([tensor.float().mean() for tensor in learning_tensors(output)]).sum().backward()
        made.step.optimizer.step()

    return once


def prediction(report: Report, cases: Sequence[Case], *, small: bool) -> None:
    report.table("Prediction", "trainer", "frames/s", "network alone", "peer", "ours / peer")
    for case in cases:

        def measured(case: Case = case) -> Sequence[object]:
            network = case.prepare(report.device, 1).step.network.eval()
            clip = torch.randint(0, 255, (12 if small else FRAMES, *case.size), dtype=torch.uint8)
            windows = 2 if small else windows_together(network, frames=case.frames, size=case.size)
            clips = [clip.numpy()]
            if isinstance(network, AbreastNetwork):
                clips = [clip[: len(clip) // 4].numpy()] * windows
            lengths = [len(each) for each in clips]
            how = {"clips": lengths, "window": case.frames, "classes": 1, "batch": windows, "autocast": True}

            def predicted() -> object:
                seen = NormalisedFrames(clips, [(127.0, 74.0)] * len(clips), "zscore_sector", report.device)
                return segment_clip(network, seen, **how)

            ours = sum(lengths) / report.seconds(predicted)
            alone: object = "-"
            if not isinstance(network, StreamingNetwork):
                inputs = torch.randn(windows, case.frames, 1, *case.size, device=report.device)
                seconds = report.seconds(lambda: in_half(network, inputs, report.device))
                alone = windows * case.frames / seconds
            peer = peers(case, network, clip, report.device)
            if peer is None:
                return ours, alone, "-", "-"
            name, work = peer
            theirs = len(clip) / report.seconds(work)
            return ours, alone, f"{theirs:.3g} ({name})", ours / theirs

        report.row(case.name, measured)


def in_half(network: Callable[[Tensor], object], inputs: Tensor, device: torch.device) -> object:
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        return network(inputs)


def peers(case: Case, network: nn.Module, clip: Tensor, device: torch.device) -> tuple[str, Work] | None:
    """Another package's way through the clip; None where there is none for this network, or it is not installed."""
    if case.method.network_name in ("sam2", "e3sam2"):
        theirs = package_predictor("tiny", str(device), case.size[0])
        frames = clip[:, None].expand(-1, 3, -1, -1).float().to(device) / 255
        return "sam2", lambda: in_half(lambda seen: predict_with_package(theirs, seen), frames, device)
    if case.method.network_name == "unet":
        try:
            from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        except ImportError:
            return None
        predictor = nnUNetPredictor(use_mirroring=False, device=device)
        predictor.network = OnFrames(network)
        predictor.configuration_manager = SimpleNamespace(patch_size=case.size)
        predictor.label_manager = SimpleNamespace(num_segmentation_heads=1)
        return "nnU-Net", lambda: predictor.predict_sliding_window_return_logits(clip[None].float())
    return None


class OnFrames(nn.Module):
    """A network of clips (B, T, C, H, W), for frames (B, C, H, W)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        return self.network(frames[:, None])[:, 0]


def loading(report: Report, cases: Sequence[Case], *, batches: int, workers: int) -> None:
    report.table("Loading", "trainer", "workers", "samples/s", "of an epoch waiting for batches, %")
    for case in cases:
        if case.name not in LOADED:
            continue

        def measured(case: Case = case) -> Sequence[object]:
            settings = {"epochs": 2, "iterations_per_epoch": batches, "batch_size": case.batch}
            with tempfile.TemporaryDirectory() as folder:
                setup = make_setup(Path(folder), case.method, size=case.size[0], frames=case.frames)
                trainer = Trainer(case.method.with_settings(settings), setup, device=report.device, processes=workers)
                for epoch in range(2):  # the second finds its workers and kernels there
                    trainer.progress = type(trainer.progress)()
                    trainer.on_epoch_start(epoch)
                    trainer.train_epoch()
                    report.wait()
                trainer.close()
            spent = trainer.progress.seconds
            rate = batches * case.batch / spent["seconds"]
            return workers, rate, 100 * spent["data_seconds"] / spent["seconds"]

        report.row(case.name, measured)


def pair(report: Report, cases: Sequence[Case], options: argparse.Namespace) -> None:
    """Two processes, each with half of a batch, beside one with all of it."""
    report.table("Two processes", "trainer", "one, samples/s", "two, samples/s", "two / one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__, "--rank"]
    command += ["--device", report.device.type, "--steps", str(report.steps), *(["--small"] if options.small else [])]
    for case in cases[:2]:

        def measured(case: Case = case) -> Sequence[object]:
            alone = case.batch / report.seconds(case.prepare(report.device).take_step)
            left = max(30.0, report.deadline - time.monotonic())
            run = subprocess.run([*command, "--trainers", case.name], capture_output=True, text=True, timeout=left)
            if run.returncode:
                raise RuntimeError(run.stderr.strip().splitlines()[-1])
            together = case.batch / float(json.loads(run.stdout.strip().splitlines()[-1])["seconds"])
            return alone, together, together / alone

        report.row(case.name, measured)


def one_of_two(options: argparse.Namespace) -> None:
    """What torchrun starts: this process's half of the steps."""
    with joined(os.environ, torch.device(options.device)) as (world, device):
        case = Case.of(options.trainers[0], small=options.small)
        made = case.prepare(device, max(1, case.batch // world.size))
        report = Report(device, time.monotonic() + 600, options.steps)
        seconds = report.seconds(together(made, world, case.method, device))
        if world.is_main:
            print(json.dumps({"seconds": seconds}))


def together(made: DryRun, world: World, method: Method[Any], device: torch.device) -> Work:
    """A step whose gradients are averaged over the processes."""
    network = world.synchronise_norms(made.step.network, device)
    model = world.wrap(network, device)
    made.step.world, made.step.model = world, model
    made.step.loss = lambda batch: method.loss(method.forward(model, batch), batch, epoch=0, record=lambda **_: None)
    return lambda: made.step(made.batch, 1 / world.size)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", nargs="+", default=list(TRAINERS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.5, help="after which nothing new is begun")
    parser.add_argument("--steps", type=int, default=5, help="that are timed")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="that load batches")
    parser.add_argument("--small", action="store_true", help="tiny inputs: does the benchmark itself run?")
    parser.add_argument("--out", type=Path, default=Path("build/bench-gpu.md"))
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    warnings.simplefilter("ignore")
    options = parse(arguments)
    if options.rank:
        one_of_two(options)
        return 0
    try:
        device = choose_device(options.device)
    except EchoPlanError as error:
        print(f"bench-gpu needs a GPU: {error.problem}", file=sys.stderr)
        return 1
    report = Report(device, time.monotonic() + 60 * options.minutes, options.steps)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU, which only tries this benchmark"
    report.say(f"# EchoPlan on {name}\n\nPyTorch {torch.__version__}, CUDA {torch.version.cuda}, {time.strftime('%F')}")
    cases = [Case.of(trainer, small=options.small) for trainer in options.trainers]
    if device.type == "cuda":
        memory(report, cases)
    training(report, cases)
    prediction(report, cases, small=options.small)
    loading(report, cases, batches=2 if options.small else 20, workers=options.workers)
    if torch.cuda.device_count() > 1 or device.type == "cpu":
        pair(report, cases, options)
    for title, lines in (("Failed", report.failures), ("No time was left for", report.late)):
        if lines:
            report.say("\n".join([f"\n## {title}\n", *(f"- {line}" for line in lines)]))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(report.lines) + "\n", encoding="utf-8")
    print(f"\nwritten: {options.out}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
