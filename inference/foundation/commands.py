"""echoplan_zero_shot"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from echoplan.cli import folders, report_failures
from echoplan.dataset import EchoDataset
from echoplan.device import choose_device

from ...evaluation.metrics import summarise
from ...training.prompts import without_begun
from .networks import FoundationModel
from .zero_shot import run_zero_shot

_PHASES = {"all": "all", "end_diastole": "ED", "end_systole": "ES", "ed_es": "ED + ES"}
_METRICS = {"dice": "Dice, %", "iou": "IoU, %", "hd": "HD", "hd95": "HD95", "assd": "ASSD"}


def zero_shot(options: argparse.Namespace) -> int:
    """echoplan_zero_shot DATASET -m sam|medsam|lite_medsam|sam2"""
    chosen = FoundationModel(
        options.model, options.prompt, options.variant, options.size, options.weights, options.shrink, options.boxes
    )
    where = folders()
    run = run_zero_shot(
        where,
        options.dataset,
        chosen,
        split=options.split,
        folds=options.folds,
        device=choose_device(options.device),
        overwrite=options.overwrite,
        continue_run=options.resume,
        processes=options.np,
    )
    if run.summary:
        target = EchoDataset.read(where.find_raw(options.dataset)).description.target
        kept = f", {len(run.kept)} of them finished before" if run.kept else ""
        print(f"{chosen.name}, {target}: {run.summary['cases']} cases{kept}; each frame's mean ± SD")
        print("\n".join(_table(_judged(run.summary, target, chosen.prompt), target)))
        if run.evaluation is not None:
            print("\n".join(run.evaluation.ef_lines(options.ef_method)))
        if chosen.prompt == "mask":
            print("The mask is the answer in the frame that it is given in; these frames are left out here.")
        print(f"written: {run.folder}")
    return report_failures(run.failures, work="segmenting")


def _judged(summary: Mapping[str, Any], target: str, prompt: str) -> Mapping[str, Any]:
    """The cases to show; with a mask as prompt without the frame in which it was given."""
    cases = summary["per_case"]
    if prompt != "mask":
        return cases
    shown = {
        case: [frame["frame"] for frame in found["frames"] if frame[target]["reference_pixels"]]
        for case, found in cases.items()
    }
    return without_begun(cases, {case: frames[0] for case, frames in shown.items() if frames})


def _table(cases: Mapping[str, Any], target: str) -> Iterator[str]:
    means = summarise(cases.values(), target)
    units = sorted({key.rpartition("_")[2] for found in means.values() for key in found if key.startswith("hd95_")})
    columns = [("dice", "", 100), ("iou", "", 100)]
    columns += [(name, f"_{unit}", 1) for unit in units for name in ("hd", "hd95", "assd")]
    heads = [_METRICS[name] + (f", {unit[1:]}" if unit else "") for name, unit, _ in columns]
    yield f"{'frames':>15}" + "".join(f"{head:>16}" for head in heads)
    for group, found in means.items():
        cells = [_cell(found.get(name + unit), scale) for name, unit, scale in columns]
        yield f"{_PHASES[group]:<8}{found['frames']:>7}" + "".join(f"{cell:>16}" for cell in cells)


def _cell(values: Mapping[str, Any] | None, scale: int) -> str:
    if values is None:
        return "–"
    sd = "" if values["sd"] is None else f" ± {scale * values['sd']:.2f}"
    return f"{scale * values['mean']:.2f}{sd}"
