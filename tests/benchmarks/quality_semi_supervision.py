"""What reforged pseudo-labels are worth: EchoForge with and without them, taught by the two phases of a few phantoms.

python tests/benchmarks/quality_semi_supervision.py [--epochs N] [--seeds N] [--test_patients N] [--set KEY=VALUE ...]

The phantoms have labels on every frame; training sees those at end-diastole and end-systole alone
(supervision=ed_es). Each seed trains both variants on the same patients. What is compared is the Dice of the frames
between the phases on patients that no training has seen: the mean of a clip's frames and of the seeds, paired by clip.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from echoplan.dataset import EchoDataset
from echoplan.evaluation import evaluate_cases, paired_test
from echoplan.evaluation.evaluate_cases import cases_in

NAME, TRAINER = "Phantom", "EchoForgeTrainer"
VARIANTS = {"reforging": "true", "labels alone": "false"}


def main() -> int:
    options = _parse()
    root = options.root.resolve()
    if root.exists():
        shutil.rmtree(root)
    _prepare(root, options)
    results: dict[str, list[dict[str, dict[str, float]]]] = {variant: [] for variant in VARIANTS}
    for seed in range(options.seeds):
        for variant, reforging in VARIANTS.items():
            results[variant].append(_train_and_judge(root, options, variant, reforging, seed))
    _show(results, options)
    return 0


def _prepare(root: Path, options: argparse.Namespace) -> None:
    """Phantoms, and five folds: the training patients but those of one fold teach."""
    processes = ["-np", str(options.processes)]
    _run(root, "echoplan_make_phantom", "-d", NAME, "--patients", options.patients, "--test_patients",
         options.test_patients, "--size", options.size, "--labels", "dense", *processes)  # fmt: skip
    _run(root, "echoplan_plan_and_preprocess", "-d", NAME, "-tr", TRAINER, *processes)


def _train_and_judge(
    root: Path, options: argparse.Namespace, variant: str, reforging: str, seed: int
) -> dict[str, dict[str, float]]:
    """Train one variant; for each held-out clip the Dice of its middle frames and of its two phases."""
    started = time.monotonic()
    home = {"echoplan_results": str(root / f"results_{reforging}_{seed}")}
    settings = [
        f"reforging={reforging}", "supervision=ed_es", "pretrained=false", f"backbone={options.backbone}",
        f"batch_size={options.batch_size}", f"iterations_per_epoch={options.iterations}", *options.set,
    ]  # fmt: skip
    chosen = [word for setting in settings for word in ("--set", setting)]
    _run(root, "echoplan_train", NAME, 0, "-tr", TRAINER, "--epochs", options.epochs, "--seed", seed, *chosen,
         "-np", 0, more=home)  # fmt: skip
    out = root / f"predictions_{reforging}_{seed}"
    raw = root / "raw" / f"Dataset001_{NAME}"
    _run(root, "echoplan_predict", "-i", raw / "imagesTs", "-o", out, "-d", NAME, "-tr", TRAINER, "-f", 0,
         "--no_postprocessing", "-np", 0, more=home)  # fmt: skip
    judged = _judge(out, raw)
    (metrics,) = Path(home["echoplan_results"]).glob("*/*/fold_0/metrics.jsonl")
    last = json.loads(metrics.read_text().splitlines()[-1])
    watched = ", ".join(
        f"{name} {last[name]:.3f}" for name in ("confident_share", "pseudo_label_dice") if last.get(name) is not None
    )
    middle = np.mean([clip["middle"] for clip in judged.values()])
    print(
        f"seed {seed}, {variant}: middle frames {middle:.4f}, {time.monotonic() - started:.0f} s"
        f"{f' (last epoch: {watched})' if watched else ''}",
        flush=True,
    )
    return judged


def _judge(predictions: Path, raw: Path) -> dict[str, dict[str, float]]:
    dataset = EchoDataset.read(raw)
    references = raw / "labelsTs"
    known = cases_in(references, dataset.cases)
    summary = evaluate_cases(known, predictions, references, labels=dataset.description.structures).summary()
    if summary["missing"] or summary["failures"]:
        raise SystemExit(f"predictions are missing or broken: {summary['missing']} {summary['failures']}")
    judged = {}
    for name, case in summary["per_case"].items():
        about = dataset.case(name)
        phases = {about.ed_frame, about.es_frame}
        dice = {frame["frame"]: frame[dataset.description.target]["dice"] for frame in case["frames"]}
        judged[name] = {
            "middle": float(np.mean([value for frame, value in dice.items() if frame not in phases])),
            "phases": float(np.mean([value for frame, value in dice.items() if frame in phases])),
        }
    return judged


def _show(results: Mapping[str, list[dict[str, dict[str, float]]]], options: argparse.Namespace) -> None:
    """Table of means over clips and seeds, and the paired test over clips."""
    print(
        f"\n{options.patients} phantoms in five folds of which four teach, {options.seeds} seeds, {options.epochs} "
        f"epochs of {options.iterations} batches of {options.batch_size}, {options.backbone}, {options.size} pixels"
    )
    print(f"{'taught by':<16}{'middle frames':>15}{'SD of seeds':>13}{'two phases':>13}")
    for variant, runs in results.items():
        seeds = [np.mean([clip["middle"] for clip in run.values()]) for run in runs]
        spread = f"{np.std(seeds, ddof=1):.4f}" if len(seeds) > 1 else "-"
        phases = np.mean([clip["phases"] for run in runs for clip in run.values()])
        print(f"{variant:<16}{np.mean(seeds):>15.4f}{spread:>13}{phases:>13.4f}")
    first, second = ([_mean_of_seeds(runs, clip) for clip in sorted(runs[0])] for runs in results.values())
    test = paired_test(first, second)
    print(_in_words(test))


def _mean_of_seeds(runs: list[dict[str, dict[str, float]]], clip: str) -> float:
    return float(np.mean([run[clip]["middle"] for run in runs]))


def _in_words(test: Mapping[str, Any]) -> str:
    interval = test["interval_95"]
    bounds = "" if interval is None else f" (95 % {interval[0]:+.4f} to {interval[1]:+.4f})"
    return (
        f"middle frames, reforging minus labels alone: {test['mean_difference']:+.4f}{bounds}, n = {test['n']} clips, "
        f"Wilcoxon signed-rank p = {test['p_signed_rank']:.4f}, rank-biserial {test['rank_biserial']:+.2f}"
    )


def _run(root: Path, *words: object, more: Mapping[str, str] | None = None) -> None:
    """A command as users type it, quiet unless it fails."""
    name, *arguments = map(str, words)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("echoplan_")}
    environment |= {"ECHOPLAN_ROOT": str(root), **(more or {})}
    command = [str(Path(sys.executable).parent / name), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("build/semi_supervision"), help="emptied at the start")
    parser.add_argument("--patients", type=int, default=5, help="in folds; all but one fold of them teach")
    parser.add_argument("--test_patients", type=int, default=12, help="held out")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=10, help="batches an epoch")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of the recipe")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
