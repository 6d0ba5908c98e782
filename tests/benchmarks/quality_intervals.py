"""Do 90 % intervals hold 90 % of the references? The whole way on phantoms, typed as a user types it.

    python tests/benchmarks/quality_intervals.py --root build/intervals

Makes phantom patients with labels at end-diastole and end-systole, trains five folds, finds the best configuration
(which calibrates), predicts held-out patients whose phases have to be found, and prints how often the intervals of EF,
EDV and ESV hold the phantom's true values, how wide they are, and whether the quality flag finds the larger errors.
What is finished in --root is kept; --again predicts and calibrates anew.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy.stats import binomtest, mannwhitneyu

NAME = "Phantom"
COLUMNS = {
    "EF, points": ("ef_percent", "ef_low_percent", "ef_high_percent"),
    "EDV, mL": ("edv_ml", "edv_low_ml", "edv_high_ml"),
    "ESV, mL": ("esv_ml", "esv_low_ml", "esv_high_ml"),
}


def main() -> None:
    options = _parse()
    root = options.root.resolve()
    raw = root / "raw" / f"Dataset001_{NAME}"
    results = root / "results" / f"Dataset001_{NAME}"
    processes = ("-np", options.processes)
    if not (raw / "cases.csv").is_file():
        _run(root, "echoplan_make_phantom", "-d", NAME, "--patients", options.patients, "--test_patients",
             options.test_patients, "--size", options.size, "--labels", "ed_es", "--seed", options.seed,
             *processes)  # fmt: skip
    if not list(root.glob("preprocessed/*/EchoPlans.json")):
        _run(root, "echoplan_plan_and_preprocess", "-d", NAME, "-tr", options.trainer, *processes)
    settings = [part for item in options.set for part in ("--set", item)]
    for fold in range(5):
        if not list(results.glob(f"{options.trainer}__*/fold_{fold}/validation/summary.json")):
            _run(root, "echoplan_train", NAME, fold, "-tr", options.trainer, "--epochs", options.epochs, *settings,
                 "-np", 0, "--c")  # fmt: skip
    if options.again or not (results / "best_configuration.json").is_file():
        _run(root, "echoplan_find_best_configuration", NAME, *processes)
    both, one = root / "predictions", root / "predictions_a4c"
    if options.again:
        shutil.rmtree(both, ignore_errors=True)
    predict = ("echoplan_predict", "-d", NAME, "--coverage", options.coverage, "--continue_prediction", *processes)
    _lay_out(raw, root / "clips", ("2CH", "4CH"))
    _run(root, *predict, "-i", root / "clips", "-o", both)
    _lay_out(raw, root / "clips_a4c", ("4CH",))
    _keep(both, one, "4CH")  # the masks are the same ones: only the measurements are made anew
    _run(root, *predict, "-i", root / "clips_a4c", "-o", one)
    for words, out in (("A2C and A4C", both), ("A4C alone", one)):
        print(f"\nheld-out phantoms, {words}")
        _report(out, _truth(raw), options.coverage)


def _run(root: Path, name: str, *words: object) -> None:
    command = [str(Path(sys.executable).parent / name), *map(str, words)]
    print("$", name, *words, flush=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("echoplan_")}
    subprocess.run(command, env={**environment, "ECHOPLAN_ROOT": str(root)}, check=True)


def _rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _truth(raw: Path) -> dict[str, dict[str, float]]:
    """patient -> the phantom's own EF and volumes."""
    names = [name for name, *_ in COLUMNS.values()]
    return {row["patient"]: {name: float(row[name]) for name in names} for row in _rows(raw / "cases.csv")}


def _lay_out(raw: Path, clips: Path, views: tuple[str, ...]) -> None:
    """The held-out clips away from cases.csv, which gives phases that a new clip does not come with."""
    shutil.rmtree(clips, ignore_errors=True)
    clips.mkdir()
    for file in sorted((raw / "imagesTs").iterdir()):
        if any(f"_{view}." in file.name for view in views):
            (clips / file.name).symlink_to(file)


def _keep(source: Path, target: Path, view: str) -> None:
    """Copy what prediction left for the clips of one view."""
    shutil.rmtree(target, ignore_errors=True)
    for file in sorted([*source.glob(f"*_{view}.nii.gz"), *source.glob(f"evidence/*_{view}.npz")]):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, place)


def _report(out: Path, truth: dict[str, dict[str, float]], coverage: float) -> None:
    rows = _rows(out / "ef_report.csv")
    print(f"{len(rows)} patients, {sum(not row['ef_percent'] for row in rows)} without an EF")
    print(f"{'':12}{'n':>5}{'coverage %':>12}{'95 % CI':>16}{'mean width':>12}{'MAE':>8}")
    for words, (name, low, high) in COLUMNS.items():
        known = [row for row in rows if row[low]]
        if not known:
            print(f"{words:12}{0:5d}  no interval: {_why_none(out, name)}")
            continue
        values = np.array([[float(row[key]) for key in (name, low, high)] for row in known])
        answer = np.array([truth[row["patient"]][name] for row in known])
        held = int(np.sum((values[:, 1] <= answer) & (answer <= values[:, 2])))
        ci = binomtest(held, len(known), coverage).proportion_ci(0.95, method="exact")
        width, error = np.mean(values[:, 2] - values[:, 1]), np.mean(np.abs(values[:, 0] - answer))
        bounds = f"{100 * ci.low:.1f} to {100 * ci.high:.1f}"
        print(f"{words:12}{len(known):5d}{100 * held / len(known):12.1f}{bounds:>16}{width:12.1f}{error:8.2f}")
    _report_quality([row for row in rows if row["ef_percent"]], truth)


def _report_quality(rows: list[dict[str, str]], truth: dict[str, dict[str, float]]) -> None:
    error = np.array([abs(float(row["ef_percent"]) - truth[row["patient"]]["ef_percent"]) for row in rows])
    check = np.array([row["quality"] == "check" for row in rows])
    print(f"quality: {check.sum()} of {len(rows)} to check")
    if 0 < check.sum() < len(rows):
        bad, good = error[check], error[~check]
        larger = mannwhitneyu(bad, good).statistic / (len(bad) * len(good))
        share = np.mean(bad > np.median(good))
        print(f"EF error: check mean {bad.mean():.2f}, good mean {good.mean():.2f} points")
        print(f"a check patient's error is the larger of a random pair in {100 * larger:.0f} % of pairs")
        print(f"{100 * share:.0f} % of check patients err by more than the median good one")
    spread = np.array([float(row["ef_fold_sd_percent"] or "nan") for row in rows])
    print(f"EF SD over folds: median {np.nanmedian(spread):.2f}, 95th percentile {np.nanpercentile(spread, 95):.2f}")
    known = np.isfinite(spread)
    print(f"correlation of that SD with the EF error: {np.corrcoef(spread[known], error[known])[0, 1]:.2f}")
    reasons: dict[str, int] = {}
    for row in rows:
        for reason in filter(None, row["quality_reasons"].split("; ")):
            key = reason.partition(": ")[2] if reason.startswith(row["patient"]) else reason
            key = re.sub(r"(?<!A)\d+(\.\d+)?", "..", key)
            reasons[key] = reasons.get(key, 0) + 1
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        print(f"  {count:4d}  {reason}")


def _why_none(out: Path, quantity: str) -> str:
    trust = json.loads((out / "ef_report.json").read_text())["details"]["trust"]
    found = {patient["no_interval"].get(quantity, "") for patient in trust["patients"].values()}
    return "; ".join(sorted(filter(None, found)))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("build/intervals"))
    parser.add_argument("--patients", type=int, default=100)
    parser.add_argument("--test_patients", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the phantoms")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--trainer", default="UNetTrainer")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--set", action="append", help="instead of the script's own settings")
    parser.add_argument("--coverage", type=float, default=0.9)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="calibrate and predict anew")
    options = parser.parse_args()
    if options.set is None:
        options.set = [
            "iterations_per_epoch=30", "batch_size=8", "base_features=16", "optimiser=adamw", "learning_rate=0.004",
        ]  # fmt: skip
    return options


if __name__ == "__main__":
    main()
