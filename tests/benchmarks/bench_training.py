"""What training adds to a network: a step beside the network's bare passes, the data beside the step.

python tests/benchmarks/bench_training.py [--trainers ...] [--size PIXELS] [--frames T] [--batch N] [--repeats N]
    [--large PIXELS] [--batches N] [--workers N] [--threads N] [--processor_time]

The first table has every trainer: its step (loss, optimiser and all) beside the forward and backward passes of its
network alone, of its output's mean, and the samples (clips, or frames) that one loading process gives in the time that
a step learns from one. The second has whole epochs, loading workers included, beside bare passes with the method's loss
and a plain optimiser. SAM's frames are enlarged to `--encoder_size` instead of 1024; weights are random, and as many of
them learn as from pretrained ones.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from echoplan.dataset import DatasetDescription
from echoplan.datasets.phantom import PhantomSettings, make_patient
from echoplan.labels import IGNORE
from echoplan.plans import Configuration, Decision, Plan
from echoplan.preprocessing.clip import sector_statistics
from echoplan.preprocessing.geometry import plan_geometry
from echoplan.preprocessing.store import ClipStore, StoredCase
from echoplan.training.data import Batch
from echoplan.training.fold import FoldSetup
from echoplan.training.methods import Method, find_method, method_registry
from echoplan.training.trainer import Trainer

PATIENTS, CLIP_FRAMES = 4, 20
LOADED = 24  # samples that the loader is timed with, at least
TARGET = 10  # percent that an epoch may take longer than its bare steps
ENGINE = "PKEchoNetR18Trainer"


@dataclass(frozen=True)
class Seconds:
    """Of a trainer: a batch's seconds in the network alone and in a step, and its samples; the loader's a sample."""

    network: float
    step: float
    samples: int
    loading: float

    @property
    def step_ratio(self) -> float:
        """How much longer a step takes than the network alone."""
        return self.step / self.network

    @property
    def loader_ratio(self) -> float:
        """How many times as many samples the loader gives as a step takes in."""
        return self.step / self.samples / self.loading


def make_setup(folder: Path, method: Method[Any], *, size: int, frames: int) -> FoldSetup:
    """A fold of phantom clips labelled at end-diastole and end-systole; trainers of one size share the clips."""
    values = {
        "size": [size, size], "frames": frames, "frame_stride": 1, "batch_size": 4, "crop": False, "protocol": "aspect",
        "normalisation": "zscore_sector", "mirror_axes": ["horizontal"], "rotation_degrees": 20.0,
        "sampling": "labelled_frames" if method.requirements.frames == 1 else "uniform_ed_es", "learning_rate": 1e-4,
    }  # fmt: skip
    decisions = {name: Decision(value, "for this benchmark") for name, value in values.items()}
    kind = method.configuration
    plan = Plan("Bench", "EchoPlans", {kind: Configuration(kind, decisions)}, {})
    resolved = plan.resolve(method.name, configuration=kind)
    store = ClipStore(folder / resolved.store)
    cases = tuple(f"p{number}" for number in range(PATIENTS))
    for number, case in enumerate(cases):
        if not store.has(case):
            _write_clip(store, case, number, size)
    return FoldSetup(0, resolved, DatasetDescription("Bench"), store, cases, (), folder / method.name, folder)


def _write_clip(store: ClipStore, case: str, number: int, size: int) -> None:
    settings = PhantomSettings(size=(size, size), frames=CLIP_FRAMES, views=("A4C",))
    (clip,) = make_patient(np.random.default_rng([0, number]), settings).clips
    labelled = sorted((clip.ed_frame, clip.es_frame))
    labels = (clip.labels == 1).astype(np.uint8)
    labels[np.setdiff1d(range(CLIP_FRAMES), labelled)] = IGNORE
    geometry = plan_geometry((size, size), clip.spacing_mm, None, (size, size))
    mean, std = sector_statistics(clip.frames)
    stored = StoredCase(
        case, ed_frame=clip.ed_frame, es_frame=clip.es_frame, labelled_frames=tuple(labelled),
        native_frames=CLIP_FRAMES, dataset="Bench", crop=False, geometry=geometry, mean=mean, std=std,
    )  # fmt: skip
    store.write(stored, clip.frames, labels)


def make_trainer(
    name: str, folder: Path, options: argparse.Namespace, *, size: int, batches: int, workers: int
) -> Trainer:
    """A trainer that is about to start; frame networks get as many frames as clip networks."""
    method = find_method(name)
    single = method.requirements.frames == 1
    batch = options.batch * options.frames if single else options.batch
    recipe = method.recipe
    wanted = {"pretrained": False, "trainable": getattr(recipe.network, "learning_part", None),
              "encoder_size": options.encoder_size}  # fmt: skip
    settings = {name: value for name, value in wanted.items() if name in recipe.to_dict()}
    settings |= {"epochs": options.repeats + 1, "iterations_per_epoch": batches, "batch_size": batch}
    setup = make_setup(folder, method, size=size, frames=1 if single else options.frames)
    trainer = Trainer(method.with_settings(settings), setup, processes=workers)
    trainer.on_epoch_start(0)
    return trainer


def network_alone(trainer: Trainer, batch: Batch) -> Callable[[], None]:
    """Forward and backward passes of a copy of the network, told what its method tells it, and no loss but a mean."""
    network = copy.deepcopy(trainer.network)
    told: list[Any] = []
    how: dict[str, Any] = {}

    class Recorder(nn.Module):
        def forward(self, *arguments: Any, **options: Any) -> Any:
            told[:] = arguments
            how.update(options)
            return network(*arguments, **options)

    with torch.no_grad():
        trainer.method.forward(Recorder(), batch)

    def once() -> None:
        network.zero_grad(set_to_none=True)
        with trainer.step.autocast():
            output = network(*told, **how)
            torch.stack([tensor.mean() for tensor in learning_tensors(output)]).sum().backward()

    return once


def learning_tensors(value: Any) -> Iterable[Tensor]:
    """The tensors with a gradient in (containers of) containers of a network's output."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            yield value.float()
        return
    value = vars(value) if hasattr(value, "__dict__") else value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for item in inner:
        yield from learning_tensors(item)


def passes(trainer: Trainer, batch: Batch) -> Callable[[], None]:
    """Forward, loss, backward and a plain optimiser's step as bare PyTorch does them, on a network of its own."""
    method, network = trainer.method, copy.deepcopy(trainer.network)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[trainer.recipe.optimiser]
    optimiser = kind(parameters, 1e-6)

    def once() -> None:
        optimiser.zero_grad(set_to_none=True)
        with trainer.step.autocast():
            output = method.forward(network, batch)  # with what the method tells its network beside the clip
            loss = method.loss(output, batch, epoch=0, record=trainer.metrics.add)
        loss.backward()
        optimiser.step()

    return once


def seconds(works: list[Callable[[], object]], options: argparse.Namespace) -> list[float]:
    """Of each one's quickest run after one that does not count, in turns, so that a machine's moods meet all alike."""
    clock = time.process_time if options.processor_time else time.perf_counter
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(options.repeats + 1):
        for work, own in zip(works, taken, strict=True):
            start = clock()
            work()
            own.append(clock() - start)
    return [min(own[1:]) for own in taken]


def measure(trainer: Trainer, options: argparse.Namespace) -> Seconds:
    """Network, step and loader of a trainer, a batch at a time."""
    batches = trainer.training_batches
    batch = trainer.on_device(next(iter(batches.epoch(0))), training=True)
    samples = len(batch["case"])

    def load() -> None:
        for _ in batches.epoch(0):
            pass

    network, step = seconds([network_alone(trainer, batch), lambda: trainer.step(batch)], options)
    (loading,) = seconds([load], options)
    return Seconds(network, step, samples, loading / (len(batches) * samples))


def measure_epochs(trainer: Trainer, options: argparse.Namespace) -> tuple[float, float]:
    """A batch's seconds in bare passes, and in a whole epoch; epochs follow each other, as the loader is made for."""
    bare_pass = passes(trainer, next(iter(trainer.training_batches.epoch(0))))
    numbers = iter(range(options.repeats + 1))

    def bare_epoch() -> None:
        for _ in range(options.batches):
            bare_pass()

    def epoch() -> None:
        trainer.progress = type(trainer.progress)()
        trainer.on_epoch_start(next(numbers))
        trainer.train_epoch()

    bare, whole = seconds([bare_epoch, epoch], options)
    return bare / options.batches, whole / options.batches


def steps_table(options: argparse.Namespace, folder: Path) -> str:
    """Every trainer's step and loader; which are the worst, in words."""
    print(
        f"{options.batch} clips of {options.frames} frames a batch, {options.size} x {options.size}, frame networks as "
        f"many frames; {options.threads} threads; the loader in one process"
    )
    print(
        f"{'trainer':<22}{'network ms':>11}{'step ms':>9}{'ratio':>7}{'step, samples/s':>17}{'loader':>9}{'ratio':>8}"
    )
    found = {}
    for name in options.trainers:
        batches = -(-LOADED // options.batch)
        trainer = make_trainer(name, folder, options, size=options.size, batches=batches, workers=0)
        found[name] = own = measure(trainer, options)
        trainer.log.close()
        print(f"{name:<22}{1000 * own.network:>11.0f}{1000 * own.step:>9.0f}{own.step_ratio:>7.2f}"
              f"{own.samples / own.step:>17.1f}{1 / own.loading:>9.1f}{own.loader_ratio:>8.1f}",
              flush=True)  # fmt: skip
    slow = max(found, key=lambda name: found[name].step_ratio)
    starved = min(found, key=lambda name: found[name].loader_ratio)
    return (
        f"worst: the step of {slow}, {found[slow].step_ratio:.2f} times its network alone; the loader of {starved}, "
        f"{found[starved].loader_ratio:.1f} times its step"
    )


def epochs_table(options: argparse.Namespace, folder: Path) -> None:
    """What an epoch adds to bare passes, data included."""
    name = ENGINE if ENGINE in options.trainers else options.trainers[0]
    size = options.large or options.size
    options.frames = options.large_frames
    trainer = make_trainer(name, folder, options, size=size, batches=options.batches, workers=options.workers)
    bare, epoch = measure_epochs(trainer, options)
    trainer.training_batches.close()
    trainer.log.close()
    print(f"\n{options.batch} clips of {options.frames} frames a batch, {size} x {size}, {options.batches} batches an "
          f"epoch, {options.workers} worker(s); an epoch may take {TARGET} % longer")  # fmt: skip
    print(f"{'trainer':<22}{'bare passes ms':>15}{'epoch ms':>10}{'ratio':>7}")
    print(f"{name:<22}{1000 * bare:>15.0f}{1000 * epoch:>10.0f}{epoch / bare:>7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", nargs="+", default=list(method_registry()))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--frames", type=int, default=2, help="of a clip in the first table")
    parser.add_argument("--batch", type=int, default=2, help="clips")
    parser.add_argument("--repeats", type=int, default=2, help="the quickest counts")
    parser.add_argument("--encoder_size", type=int, default=224, help="of SAM")
    parser.add_argument("--large", type=int, default=256, help="size of the second table; 0: as the first")
    parser.add_argument("--large_frames", type=int, default=4, help="of a clip in the second table")
    parser.add_argument("--batches", type=int, default=3, help="an epoch of the second table")
    parser.add_argument("--workers", type=int, default=1, help="that load the second table's data, and share the cores")
    parser.add_argument(
        "--processor_time", action="store_true", help="of this process, for busy machines; not workers'"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", category=UserWarning)
    with tempfile.TemporaryDirectory() as temporary:
        worst = steps_table(options, Path(temporary))
        epochs_table(options, Path(temporary))
    print(f"\n{worst}")


if __name__ == "__main__":
    main()
