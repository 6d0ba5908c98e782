"""`make demo`: the main job on phantom data, typed as a user types it.

    python tests/demo.py --root build/demo

Makes 20 phantom patients (and 8 held out) with labels at end-diastole and end-systole. Predicts those held out with the
model that comes with EchoPlan, which has seen real hearts and no phantom. Then plans, preprocesses, trains five folds,
finds the best configuration, and predicts the held-out patients anew. Prints a last line with the Dice and the error of
the ejection fraction of each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

NAME = "Phantom"


def main() -> int:
    options = _parse()
    root = options.root.resolve()
    if root.exists():
        shutil.rmtree(root)
    raw = root / "raw" / f"Dataset001_{NAME}"
    first, out = root / "predictions_before_training", root / "predictions"
    processes = ["-np", str(options.processes)]
    training = ["--epochs", str(options.epochs), *[part for item in options.set for part in ("--set", item)]]
    steps = [
        ["echoplan_make_phantom", "-d", NAME, "--patients", str(options.patients),
         "--test_patients", str(options.test_patients), "--size", str(options.size), "--labels", "ed_es", *processes],
        ["echoplan_predict", "-i", str(raw / "imagesTs"), "-o", str(first)],
        ["echoplan_evaluate_folder", str(first), str(raw / "labelsTs"), "-d", NAME, "-o", str(first / "summary.json")],
        ["echoplan_plan_and_preprocess", "-d", NAME, "--verify_dataset_integrity", "-tr", options.trainer, *processes],
        ["echoplan_train", NAME, "all", "-tr", options.trainer, *training, "-np", "0"],
        ["echoplan_find_best_configuration", NAME],
        ["echoplan_predict", "-i", str(raw / "imagesTs"), "-o", str(out)],
        ["echoplan_evaluate_folder", str(out), str(raw / "labelsTs"), "-d", NAME, "-o", str(out / "summary.json")],
    ]  # fmt: skip
    started = time.monotonic()
    for number, step in enumerate(steps, start=1):
        print(f"\n[{number}/{len(steps)}, {time.monotonic() - started:.0f} s] $ {' '.join(step)}", flush=True)
        environment = {**os.environ, "ECHOPLAN_ROOT": str(root)}
        for name in ("echoplan_raw", "echoplan_preprocessed", "echoplan_results"):
            environment.pop(name, None)  # the demo must not write into the user's own folders
        command = [str(Path(sys.executable).parent / step[0]), *step[1:]]
        status = subprocess.run(command, env=environment, check=False).returncode
        if status:
            print(f"demo: {step[0]} failed with exit status {status}", file=sys.stderr)
            return status
    print(f"\ndemo: before any training: {_summary(first)}\ndemo: {_summary(out)}")
    return 0


def _summary(out: Path) -> str:
    dice = json.loads((out / "summary.json").read_text())["mean"]["LV"]["all"]["dice"]["mean"]
    cases = len(list(out.glob("*.nii.gz")))
    agreed = json.loads((out / "ef_report.json").read_text())["agreement"]
    agreement, found = agreed["ef_percent"], agreed["ef_found_phases_percent"]["mae"]
    report, r = out / "report.html", agreement["pearson_r"]  # None of fewer than three patients
    return (
        f"dice={dice:.3f} ef_mae={agreement['mae']:.1f} ef_r={'-' if r is None else f'{r:.2f}'} cases={cases} "
        f"report={report}\n  EF error: {agreement['mae']:.1f} points at the end-diastole and end-systole that "
        f"cases.csv gives, {found:.1f} at those found in the clips"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("build/demo"))
    parser.add_argument("--patients", type=int, default=20)
    parser.add_argument("--test_patients", type=int, default=8)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--trainer", default="UNetTrainer")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--set", action="append", help="instead of the demo's own settings")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if options.set is None:
        options.set = [
            "iterations_per_epoch=30", "batch_size=8", "base_features=16", "optimiser=adamw", "learning_rate=0.004",
        ]  # fmt: skip
    return options


if __name__ == "__main__":
    sys.exit(main())
