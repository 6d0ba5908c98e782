"""echoplan_zero_shot"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from echoplan.cli import add_device, add_processes, command, existing_path, folders, parser, report_failures
from echoplan.dataset import EchoDataset
from echoplan.device import choose_device
from echoplan.networks.sam.settings import BOXES

from ...evaluation import VOLUME_RULES
from ...evaluation.metrics import summarise
from ...training.prompts import LABEL_KINDS, without_begun
from .networks import FOUNDATION_MODELS, FoundationModel
from .zero_shot import run_zero_shot

_PHASES = {"all": "all", "end_diastole": "ED", "end_systole": "ES", "ed_es": "ED + ES"}
_METRICS = {"dice": "Dice, %", "iou": "IoU, %", "hd": "HD", "hd95": "HD95", "assd": "ASSD"}


@command(resume="--continue_prediction")
def zero_shot(arguments: Sequence[str]) -> int:
    """echoplan_zero_shot DATASET -m sam|medsam|lite_medsam|sam2"""
    options = _parser().parse_args(arguments)
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
        continue_run=options.continue_prediction,
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


def _parser() -> argparse.ArgumentParser:
    made = parser(
        "echoplan_zero_shot",
        "Segment a dataset's labelled frames with a foundation model that was not trained on it, told by the labels "
        "where the structure is: the untrained row of a comparison.",
    )
    made.add_argument("dataset", metavar="DATASET", help="a raw dataset: name, id or folder name")
    made.add_argument("-m", dest="model", choices=tuple(FOUNDATION_MODELS), required=True, help="the model")
    made.add_argument(
        "--prompt", choices=LABEL_KINDS, default="box", help="what the labels tell; points and masks: sam2"
    )
    made.add_argument("--split", choices=("train", "test"), default="train", help="which of the labelled cases")
    made.add_argument(
        "-f", dest="folds", nargs="+", type=int, metavar="FOLD", help="only these folds' validation cases"
    )
    made.add_argument("--variant", default="", help="sam: vit_b, vit_l, vit_h; sam2: tiny, small, base_plus, large; "
                      "the first if not given")  # fmt: skip
    made.add_argument(
        "--size",
        type=int,
        help="side of the model's input (its own is 1024, lite_medsam's 256); less is faster and worse",
    )
    made.add_argument("--shrink", type=int, default=0, metavar="SIDE",
                      help="first shrink frames to SIDE x SIDE, as 112 in Chao et al.'s study")  # fmt: skip
    made.add_argument("--boxes", choices=BOXES, default=BOXES[0], help="all but sam2: from a box's first to its last "
                      "pixel's centre, or as OpenCV's boundingRect, one pixel further")  # fmt: skip
    made.add_argument("-weights", type=existing_path, metavar="FILE", help="where the usual places do not have them")
    made.add_argument("--ef_method", choices=sorted(VOLUME_RULES), default="simpson",
                      help="the rule of the EF printed; ef.csv, ef_camus.csv, ... hold all")  # fmt: skip
    made.add_argument("--continue_prediction", action="store_true", help="keep what is finished, do the rest")
    made.add_argument("--overwrite", action="store_true", help="do again what is there already")
    add_processes(made)
    add_device(made)
    return made


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
