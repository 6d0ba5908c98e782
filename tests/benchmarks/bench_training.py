"""What a training adds to its network's bare forward and backward passes: the step, and the data.

python tests/benchmarks/bench_training.py [--size PIXELS] [--frames T] [--batch N] [--batches N] [--trainers ...]
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from echoplan.conversion.phantom import PhantomSettings, make_patient
from echoplan.dataset import IGNORE, DatasetDescription
from echoplan.plans import Configuration, Decision, Plan
from echoplan.preprocessing.clip import sector_statistics
from echoplan.preprocessing.geometry import plan_geometry
from echoplan.preprocessing.store import ClipStore
from echoplan.training.data import Batch
from echoplan.training.fold import FoldSetup
from echoplan.training.trainers import EchoTrainer, trainer_registry

PATIENTS, CLIP_FRAMES = 4, 20
TARGET = 10  # percent that an epoch may take longer than its bare steps
DEFAULT = ("UNetTrainer", "UNet2DtTrainer", "PKEchoNetR18Trainer", "E3SAM2Trainer", "EchoForgeTrainer")


@dataclass(frozen=True)
class Seconds:
    """A batch's seconds: the network's own passes, with an optimiser's step; a training step; a batch of an epoch."""

    bare: float
    step: float
    epoch: float


def make_setup(folder: Path, trainer: type[EchoTrainer], *, size: int, frames: int) -> FoldSetup:
    """A fold of phantom clips labelled at end-diastole and end-systole."""
    values = {
        "size": [size, size], "frames": frames, "frame_stride": 1, "batch_size": 4, "crop": False, "protocol": "aspect",
        "normalisation": "zscore_sector", "mirror_axes": ["horizontal"], "rotation_degrees": 20.0,
        "supervision": "ed_es", "learning_rate": 1e-4,
    }  # fmt: skip
    decisions = {name: Decision(value, "for this benchmark") for name, value in values.items()}
    kind = trainer.configuration
    plan = Plan("Bench", "EchoPlans", {kind: Configuration(kind, decisions)}, {})
    resolved = plan.resolve(trainer.__name__, configuration=kind)
    store = ClipStore(folder / resolved.store)
    settings = PhantomSettings(size=(size, size), frames=CLIP_FRAMES, views=("A4C",))
    for number in range(PATIENTS):
        (clip,) = make_patient(np.random.default_rng([0, number]), settings).clips
        labelled = sorted((clip.ed_frame, clip.es_frame))
        labels = (clip.labels == 1).astype(np.uint8)
        labels[np.setdiff1d(range(CLIP_FRAMES), labelled)] = IGNORE
        geometry = plan_geometry((size, size), clip.spacing_mm, None, (size, size))
        mean, std = sector_statistics(clip.frames)
        about = {
            "geometry": geometry.to_dict(), "mean": mean, "std": std, "labelled_frames": labelled,
            "ed_frame": clip.ed_frame, "es_frame": clip.es_frame, "native_frames": CLIP_FRAMES,
        }  # fmt: skip
        store.write(f"p{number}", clip.frames, labels, about)
    cases = tuple(f"p{number}" for number in range(PATIENTS))
    return FoldSetup(0, resolved, DatasetDescription("Bench"), store, cases, (), folder / trainer.__name__, folder)


def make_trainer(name: str, folder: Path, options: argparse.Namespace, *, size: int) -> EchoTrainer:
    """A trainer that is about to start."""
    kind = trainer_registry()[name]
    batch = options.batch * options.frames if kind.needs.frames == 1 else options.batch
    settings = {"epochs": 2, "iterations_per_epoch": options.batches, "batch_size": batch}
    if hasattr(kind.recipe_class(), "pretrained"):
        settings["pretrained"] = False
    frames = 1 if kind.needs.frames == 1 else options.frames
    setup = make_setup(folder, kind, size=size, frames=frames)
    trainer = kind(setup, kind.recipe_class().with_settings(settings), processes=options.workers)
    trainer.on_train_start(resume=False)
    trainer.network.train()
    return trainer


def passes(trainer: EchoTrainer, batch: Batch) -> Callable[[], None]:
    """Forward, backward and the optimiser's step as bare PyTorch does them, on a network of its own."""
    network = copy.deepcopy(trainer.network)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[trainer.recipe.optimiser]
    optimiser = kind(parameters, 1e-6)

    def once() -> None:
        trainer.model, own = network, trainer.model
        optimiser.zero_grad(set_to_none=True)
        with trainer.optimisation.autocast():
            output = trainer.forward(batch)  # the network on the batch, with what its method tells it beside the clip
            loss = trainer.loss(output, batch)
        loss.backward()
        optimiser.step()
        trainer.model = own

    return once


def seconds(works: list[Callable[[], object]], repeats: int) -> list[float]:
    """The median of each one's runs, in turns, so that a machine's moods meet all alike."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(repeats + 1):
        for work, own in zip(works, taken, strict=True):
            start = time.perf_counter()
            work()
            own.append(time.perf_counter() - start)
    return [float(np.median(own[1:])) for own in taken]


def measure(trainer: EchoTrainer, options: argparse.Namespace) -> tuple[Seconds, float]:
    """The seconds of a batch, and the batches a second that the loader alone gives."""
    batch = next(iter(trainer.training_batches.epoch(0)))

    def epoch() -> None:
        trainer.progress = type(trainer.progress)()
        trainer.train_epoch(0)

    def load() -> None:
        for _ in trainer.training_batches.epoch(0):
            pass

    bare_pass = passes(trainer, batch)

    def bare_epoch() -> None:
        for _ in range(options.batches):
            bare_pass()

    def steps() -> None:
        for _ in range(options.batches):
            trainer.train_step(batch)

    bare, step, whole = (value / options.batches for value in seconds([bare_epoch, steps, epoch], options.repeats))
    (alone,) = seconds([load], 1)
    return Seconds(bare, step, whole), options.batches / alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--frames", type=int, default=4, help="of a clip; frame networks get as many frames")
    parser.add_argument("--batch", type=int, default=2, help="clips")
    parser.add_argument("--batches", type=int, default=6, help="an epoch")
    parser.add_argument("--workers", type=int, default=1, help="that load data, and share the cores")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--trainers", nargs="+", default=DEFAULT)
    parser.add_argument("--large", type=int, default=256, help="a second size for PKEcho-Net; 0: none")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", category=UserWarning)
    lines = [(name, options.size) for name in options.trainers]
    if options.large and "PKEchoNetR18Trainer" in options.trainers:
        lines.append(("PKEchoNetR18Trainer", options.large))
    print(
        f"{options.batch} clips of {options.frames} frames a batch, {options.batches} batches an epoch, "
        f"{options.threads} threads, {options.workers} worker(s); an epoch may take {TARGET} % longer than its passes"
    )
    print(f"{'trainer':<22}{'size':>5}{'bare ms':>9}{'step ms':>9}{'more':>7}{'epoch ms':>10}{'more':>7}"
          f"{'loader alone, batches/s':>25}{'of the step':>13}")  # fmt: skip
    for name, size in lines:
        with tempfile.TemporaryDirectory() as temporary:
            trainer = make_trainer(name, Path(temporary), options, size=size)
            found, loaded = measure(trainer, options)
            trainer.log.close()
        more = [100 * (value / found.bare - 1) for value in (found.step, found.epoch)]
        print(f"{name:<22}{size:>5}{1000 * found.bare:>9.0f}{1000 * found.step:>9.0f}{more[0]:>6.0f}%"
              f"{1000 * found.epoch:>10.0f}{more[1]:>6.0f}%{loaded:>25.1f}{loaded * found.bare:>12.1f}x",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
