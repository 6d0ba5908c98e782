"""What E3SAM2's published protocol owes to the truth: one trained network, tested with each of its two leaks and both.

    echoplan_train Phantom 0 -tr E3SAM2Trainer --set design=released ...
    python tests/benchmarks/quality_e3sam2_leaks.py Phantom 0 -tr E3SAM2Trainer

The fold's validation cases begin by themselves with a memory of their own (what `echoplan_predict` does), with the
authors' pixel of the true mask, with a memory that no clip empties, and with both.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from echoplan.cli import folders
from echoplan.networks.e3sam2.tracking import CarriedMemory
from echoplan.training.model_folder import ModelFolder
from echoplan.training.prompts import CasePrompts
from echoplan.training.train_fold import FoldJob
from echoplan.training.validation import validate_fold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("fold", type=int)
    parser.add_argument("-tr", dest="trainer", default="E3SAM2Trainer")
    parser.add_argument("--checkpoint", default="final", help="final, best or latest")
    options = parser.parse_args()
    setup = FoldJob(options.dataset, options.fold, options.trainer).setup(folders())
    network = ModelFolder.read(setup.model_folder).load_network(options.fold, checkpoint=options.checkpoint)
    target = setup.description.target
    print("begins with                memory             Dice %          IoU %           HD95            ASSD")
    for carried in (False, True):
        for kind in ("automatic", "pixel"):
            network.carried = CarriedMemory() if carried else None
            with tempfile.TemporaryDirectory() as folder:
                prompts = CasePrompts(network, setup, kind)
                means = validate_fold(network, setup, folder=Path(folder), prompt=prompts)["mean"][target]["all"]
            name = "its coarse head's point" if kind == "automatic" else "a pixel of the truth"
            figures = [
                f"{scale * means[key]['mean']:7.2f} ({scale * means[key]['sd']:5.2f})"
                for scale, key in ((100, "dice"), (100, "iou"), (1, "hd95_mm"), (1, "assd_mm"))
            ]
            memory = "carried over" if carried else "a clip's own"
            print(f"{name:26} {memory:13} {' '.join(figures)}")


if __name__ == "__main__":
    main()
