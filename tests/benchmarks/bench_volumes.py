"""Accuracy of volumes and ejection fractions, and the speed of the metrics beside MONAI's.

python tests/benchmarks/bench_volumes.py [--threads N] [--shapes N] [--repeats N] [--camus FOLDER ...]

--camus takes folders laid out as the CAMUS release or the old challenge, and measures EF in their reference masks.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import monai
import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "evaluation"))

from half_ellipsoids import Ventricle, phantom_beat

from echoplan.dataset import Case
from echoplan.datasets.camus import convert_camus
from echoplan.evaluation import (
    VOLUME_RULES,
    agreement,
    ejection_fraction,
    lv_volume_biplane,
    lv_volume_single_plane,
    measure_case,
    measure_patients,
    segmentation_metrics,
)

FLIPS = [(), (0,), (1,), (0, 1)]
# Name, (row, col) spacing in mm, and the image's shape where it is not just as large as the ventricle needs.
GRIDS = [("0.15 x 0.15 mm", (0.15, 0.15), None), ("0.3 x 0.3 mm", (0.3, 0.3), None),
         ("0.3 x 0.15 mm", (0.3, 0.15), None), ("0.2 x 0.4 mm", (0.2, 0.4), None),
         ("1 x 1 mm", (1.0, 1.0), None), ("112 x 112, 1.05 mm", (1.05, 1.05), (112, 112))]  # fmt: skip
# Name, and the ranges that the cut below the equator and the bend in degrees are drawn from.
BODIES = [("half-ellipsoids", (0, 0), (0, 0)), ("truncated", (0.1, 0.4), (0, 0)), ("bent", (0, 0), (-30, 30)),
          ("truncated and bent", (0.1, 0.4), (-30, 30))]  # fmt: skip
FRAMES = [("112 x 112", (112, 112), 1.05), ("256 x 256", (256, 256), 0.5), ("800 x 600", (800, 600), 0.2)]
# 500 patients of two views, each with end-diastole and end-systole; CAMUS' native pixels, 0.308 mm down, 0.154 across.
CAMUS_MASKS, CAMUS_SHAPES, CAMUS_SPACING = 2000, ((800, 600), (1000, 700)), (0.308, 0.154)


@dataclass(frozen=True)
class Beat:
    """The masks (A2C, A4C) at end-diastole and end-systole, and the volumes in mL of the bodies they are cut from."""

    ed: tuple[np.ndarray, np.ndarray]
    es: tuple[np.ndarray, np.ndarray]
    single_plane: tuple[float, float]
    biplane: tuple[float, float]


def random_beats(
    count: int,
    spacing: tuple[float, float],
    shape: tuple[int, int] | None,
    cuts: tuple[float, float] = (0, 0),
    bends: tuple[float, float] = (0, 0),
    seed: int = 0,
) -> list[Beat]:
    """Ventricles of an adult's size: tilt to 30 degrees, all flips in turn, shifts of up to half a pixel."""
    random = np.random.default_rng(seed)
    beats = []
    for number in range(count):
        size = np.array([random.uniform(72, 98), random.uniform(40, 56), random.uniform(40, 56)])  # length, two widths
        shrink = np.array([random.uniform(0.75, 0.95), *random.uniform(0.6, 0.9, 2)])
        views = [{"tilt": random.uniform(-30, 30), "flips": FLIPS[(number + view) % 4]} for view in range(2)]
        cut, bend = random.uniform(*cuts), random.uniform(*bends)
        phases, single, both = [], [], []
        for length, *widths in (size, size * shrink):
            shifts = random.uniform(-0.5, 0.5, (2, 2)) * spacing
            bodies = [Ventricle(length, width, cut, bend) for width in widths]
            phases.append(tuple(
                body.mask(spacing, shift=tuple(shift), shape=shape, **view)
                for body, shift, view in zip(bodies, shifts, views, strict=True)
            ))  # fmt: skip
            single.append(bodies[1].volume_ml)
            both.append(bodies[1].volume_ml * widths[0] / widths[1])
        beats.append(Beat(*phases, tuple(single), tuple(both)))
    return beats


def accuracy(count: int) -> None:
    """Table of the errors of volumes (percent of the bodies' true volumes) and of EF (points)."""
    print(f"{count} beats a line (two volumes and one EF each)")
    print(f"{'body':<20}{'grid':<20}{'method':<14}{'volume %: median':>18}{'max':>7}{'in 1 %':>8}"
          f"{'EF points: mean':>17}{'max':>7}")  # fmt: skip
    for (body, cuts, bends), (name, spacing, shape) in itertools.product(BODIES, GRIDS):
        beats = random_beats(count, spacing, shape, cuts, bends)
        single = [tuple(lv_volume_single_plane(a4c, spacing) for _, a4c in (beat.ed, beat.es)) for beat in beats]
        both = [tuple(lv_volume_biplane(*views, spacing, spacing) for views in (beat.ed, beat.es)) for beat in beats]
        for method, found, truth in (
            ("single plane", single, [beat.single_plane for beat in beats]),
            ("biplane", both, [beat.biplane for beat in beats]),
        ):
            volume = 100 * np.abs(np.array(found) / np.array(truth) - 1)
            ef = np.abs([ejection_fraction(*a) - ejection_fraction(*b) for a, b in zip(found, truth, strict=True)])
            print(f"{body:<20}{name:<20}{method:<14}{np.median(volume):>18.2f}{volume.max():>7.2f}"
                  f"{100 * np.mean(volume < 1):>7.0f}%{ef.mean():>17.2f}{ef.max():>7.2f}", flush=True)  # fmt: skip


def flaws(count: int) -> None:
    """Table of the change of EF, in points, by a base with teeth: steps of 1.5 mm, up to so many mm out and in."""
    print(f"\nragged bases, 0.3 mm, {count} beats a line: change of EF in points against the clean mask")
    print(f"{'teeth':<10}{'mean':>8}{'max':>8}{'in 1 point':>12}")
    spacing = (0.3, 0.3)
    for teeth in (1.0, 2.0, 3.0):
        random, changes = np.random.default_rng(0), []
        for _ in range(count):
            size = random.uniform(72, 98), random.uniform(38, 56)
            where = {"tilt": random.uniform(-30, 30), "cut": random.uniform(0, 0.35), "bend": random.uniform(-20, 20)}
            shrink = random.uniform(0.75, 0.95), random.uniform(0.6, 0.9)
            efs = [
                ejection_fraction(*(lv_volume_single_plane(mask, spacing) for mask in beat.masks))
                for more in ({}, {"teeth": teeth, "random": random})
                for beat in [phantom_beat(spacing, size=size, shrink=shrink, **where, **more)]
            ]
            changes.append(abs(efs[1] - efs[0]))
        within = 100 * np.mean(np.less(changes, 1))
        print(f"{teeth:.0f} mm{'':<6}{np.mean(changes):>8.2f}{max(changes):>8.2f}{within:>11.0f}%", flush=True)


def camus_speed(count: int, repeats: int) -> None:
    """Seconds of one core for landmarks, volumes and EF of as many native-size masks as CAMUS has, from a sample."""
    print(f"\nmeasure_patients on masks of CAMUS' native sizes, {count} patients, two views, two phases")
    for shape in CAMUS_SHAPES:
        cases = []
        for number, beat in enumerate(random_beats(count, CAMUS_SPACING, shape, (0.1, 0.3), (-15, 15))):
            for view, masks in zip(("A2C", "A4C"), zip(beat.ed, beat.es, strict=True), strict=True):
                row, column = CAMUS_SPACING
                case = Case(f"{number}_{view}", str(number), "", view=view, spacing_row_mm=row, spacing_col_mm=column)
                cases.append((case, np.stack(masks)))
        start = time.process_time()
        for _ in range(repeats):
            measure_patients([measure_case(case, mask) for case, mask in cases])
        taken = (time.process_time() - start) / repeats
        each = taken / (4 * count)
        total = f"{each * CAMUS_MASKS:.0f} s for 500 patients ({CAMUS_MASKS} masks)"
        print(f"{shape[0]} x {shape[1]}: {1000 * each:.1f} ms a mask, {total}", flush=True)


def camus(folder: Path) -> None:
    """Table of EF in the reference masks of a CAMUS folder against the dataset's own, by both volume rules."""
    with tempfile.TemporaryDirectory() as temporary:
        failures: dict[str, str] = {}
        dataset = convert_camus(folder, temporary, failures=failures)
        cases = []
        for case in dataset.cases:
            if case.label is None:
                failures[case.case] = "there are no labels"
                continue
            known = replace(case.with_header(dataset.load_clip(case)), frame_time_ms=None)
            cases.append((known, dataset.load_mask(case) == dataset.description.labels["LV"]))
    print(f"\nreference masks of {folder}: EF against the dataset's own, in points")
    print(f"{'rule':<12}{'n':>5}{'biplane':>9}{'r':>8}{'bias':>8}{'SD':>7}{'MAE':>7}{'failures':>10}")
    for rule in VOLUME_RULES:
        rows = measure_patients([measure_case(case, mask, method=rule) for case, mask in cases], method=rule)
        known = [row.reference_ef_percent for row in rows]
        found = agreement([row.ef_percent for row in rows], known, bootstrap=0)
        cells = [
            "-" if found[key] is None else f"{found[key]:.{digits}f}"
            for key, digits in (("pearson_r", 3), ("bias", 2), ("sd_of_differences", 2), ("mae", 2))
        ]
        biplane = sum(row.method == "biplane" for row in rows)
        print(f"{rule:<12}{found['n']:>5}{biplane:>9}{cells[0]:>8}{cells[1]:>8}{cells[2]:>7}{cells[3]:>7}"
              f"{found['failures']:>10}")  # fmt: skip
        failures |= {row.patient: row.failure for row in rows if row.failure}
        failures |= {row.patient: "the dataset has no EF" for row in rows if row.reference_ef_percent is None}
    for name, reason in failures.items():
        print(f"  {name}: {reason}")


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The quickest of some runs, after one that does not count."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def speed(count: int, repeats: int) -> None:
    """Table of milliseconds a frame; MONAI gets all frames in one batch."""
    print(f"\nmilliseconds a frame, {count} frames, {torch.get_num_threads()} threads, MONAI {monai.__version__}")
    print(f"{'frame':<12}{'segmentation_metrics':>22}{'MONAI Dice+HD95+ASSD':>23}{'(Dice':>8}{'HD95':>8}{'ASSD)':>8}"
          f"{'MONAI/ours':>12}{'single plane':>14}{'biplane':>9}")  # fmt: skip
    for name, shape, millimetres in FRAMES:
        spacing = (millimetres, millimetres)
        beats = random_beats(count, spacing, shape)
        # A prediction a few pixels off.
        truth = [beat.ed[1] for beat in beats]
        guess = [np.roll(mask, (2, -1), (0, 1)) for mask in truth]
        ours = seconds(lambda g=guess, t=truth, s=spacing: _ours(g, t, s), repeats)
        batch = [torch.from_numpy(np.stack(masks)[:, None].astype(np.float32)) for masks in (guess, truth)]
        alone = {"include_background": True, "spacing": spacing}
        peers = [
            seconds(work, repeats)
            for work in (
                lambda b=batch: compute_dice(*b, include_background=True),
                lambda b=batch, a=alone: compute_hausdorff_distance(*b, percentile=95, **a),
                lambda b=batch, a=alone: compute_average_surface_distance(*b, symmetric=True, **a),
            )
        ]
        single = seconds(lambda t=truth, s=spacing: [lv_volume_single_plane(mask, s) for mask in t], repeats)
        both = seconds(lambda b=beats, s=spacing: [lv_volume_biplane(*beat.ed, s, s) for beat in b], repeats)
        ms = [1000 * value / count for value in (ours, sum(peers), *peers, single, both)]
        print(f"{name:<12}{ms[0]:>22.3f}{ms[1]:>23.3f}{ms[2]:>8.3f}{ms[3]:>8.3f}{ms[4]:>8.3f}{ms[1] / ms[0]:>12.1f}"
              f"{ms[5]:>14.2f}{ms[6]:>9.2f}", flush=True)  # fmt: skip
    print(
        "segmentation_metrics gives Dice, IoU, HD95 and ASSD at once. MONAI's HD95 has another definition: the larger\n"
        "of the two directed 95th percentiles, where ours is that of both sets of distances pooled."
    )


def _ours(guess: Sequence[np.ndarray], truth: Sequence[np.ndarray], spacing: tuple[float, float]) -> None:
    for predicted, reference in zip(guess, truth, strict=True):
        segmentation_metrics(predicted, reference, spacing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", type=int, default=40, help="beats a line")
    parser.add_argument("--repeats", type=int, default=2, help="the quickest counts")
    parser.add_argument("--camus", type=Path, nargs="+", default=[], metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)  # such as CAMUS folders without sequences, once a case
    warnings.filterwarnings("ignore", category=FutureWarning, module="monai")
    accuracy(options.shapes)
    flaws(options.shapes)
    camus_speed(10, options.repeats)
    speed(6, options.repeats)
    for folder in options.camus:
        camus(folder)


if __name__ == "__main__":
    main()
