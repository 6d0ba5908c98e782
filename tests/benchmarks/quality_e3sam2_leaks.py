"""What E3SAM2's published protocol owes to the truth: one trained network, tested with each of its two leaks and both.

    echoplan_train Phantom 0 -tr E3SAM2Trainer --set design=released ...
    python tests/benchmarks/quality_e3sam2_leaks.py Phantom 0 -tr E3SAM2Trainer

The fold's validation cases begin by themselves, as the coarse head or the middle of the picture has it (what
`echoplan_predict` does with a training of one's own and with the authors' checkpoints), or with the authors' pixel of
the true mask; with a memory of their own, or with one that no clip empties. They are judged as the plan says. With
--train the fold is trained here, and with --narrow by a trunk of few channels and blocks, which a processor trains long
enough: all else is E3SAM2's.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from echoplan.cli import folders
from echoplan.evaluation.comparison.learning_curves import mean_with_interval
from echoplan.networks.e3sam2 import sam2_parts
from echoplan.networks.e3sam2.tracking import CarriedMemory
from echoplan.training.fold import FoldSetup
from echoplan.training.model_folder import ModelFolder
from echoplan.training.prompts import CasePrompts
from echoplan.training.recipe import parse_settings
from echoplan.training.train_fold import FoldJob, train_fold
from echoplan.training.validation import judge_sampled, validate_fold

NARROW = sam2_parts.Variant(32, 1, (1, 1, 2, 1), (3, 3, 3))
STARTS = {"point": "its coarse head's point", "centre": "the middle of the picture", "pixel": "a pixel of the truth"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("fold", type=int)
    parser.add_argument("-tr", dest="trainer", default="E3SAM2Trainer")
    parser.add_argument("--checkpoint", default="final", help="final, best or latest")
    parser.add_argument("--narrow", action="store_true", help="the trunk has 32 to 256 channels and five blocks")
    parser.add_argument(
        "--train", nargs="+", default=[], metavar="KEY=VALUE", help="train with these settings, or go on"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.narrow:
        sam2_parts.VARIANTS["tiny"] = NARROW
    job = FoldJob(options.dataset, options.fold, options.trainer, settings=parse_settings(options.train))
    setup = job.setup(folders())
    if options.train:
        train_fold(job, setup, resume=True)
    network = ModelFolder.read(setup.model_folder).load_network(options.fold, checkpoint=options.checkpoint)
    print("begins with                memory             Dice %          IoU %           HD95            ASSD  "
          "  Dice, of automatic")  # fmt: skip
    automatic = None
    for carried, start in itertools.product((False, True), STARTS):
        network.carried = CarriedMemory() if carried else None
        network.prompting.automatic = "point" if start == "pixel" else start
        with tempfile.TemporaryDirectory() as folder:
            prompts = CasePrompts(network, setup, "pixel" if start == "pixel" else "automatic")
            if setup.plan.judging == "sampled":
                summary = judge_sampled(network, setup, setup.val, Path(folder), prompt=prompts)
            else:
                summary = validate_fold(network, setup, folder=Path(folder), prompt=prompts)
        means, dice = summary["mean"][setup.description.target]["all"], dice_of_patients(summary, setup)
        automatic = dice if automatic is None else automatic
        figures = [
            f"{scale * means[key]['mean']:7.2f} ({scale * means[key]['sd']:5.2f})"
            for scale, key in ((100, "dice"), (100, "iou"), (1, "hd95_mm"), (1, "assd_mm"))
        ]
        (middle,), (low,), (high,) = mean_with_interval((dice - automatic)[:, None])
        memory = "carried over" if carried else "a clip's own"
        print(
            f"{STARTS[start]:26} {memory:13} {' '.join(figures)} {middle:+.2f} ({low:+.2f} to {high:+.2f})", flush=True
        )


def dice_of_patients(summary: dict[str, Any], setup: FoldSetup) -> np.ndarray:
    """The mean over each patient's frames, in percent."""
    frames: dict[str, list[float]] = {}
    for case, judged in summary["per_case"].items():
        own = frames.setdefault(setup.store.case(case).patient, [])
        own += [100 * frame[setup.description.target]["dice"] for frame in judged["frames"]]
    return np.array([fmean(dice) for dice in frames.values()])


if __name__ == "__main__":
    main()
